"""A server that speaks both forms of a judge's endpoint, for tests only: it sees the pictures and says a word.

Its answers have the shape that the vendors document. `decide(caption, left, right)` makes the word; `faults` is a
list of steps taken before answering, one a request, from FAULTS or a function of the handler.
"""

import base64
import io
import json
import math
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

INPUT_TOKENS, OUTPUT_TOKENS = 400, 2


def pictures(n: int, seed: int = 0) -> tuple[list[str], np.ndarray, np.ndarray]:
    """n pairs of flat pictures; which one is brighter is random."""
    rng = np.random.default_rng(seed)
    shades = rng.permutation(2 * n).reshape(2, n) * 3 + 10
    left, right = (np.broadcast_to(s[:, None, None, None], (n, 16, 16, 3)).astype(np.uint8) for s in shades)
    return [f"mug {i}. kitchen/mugs" for i in range(n)], left, right


def brighter(caption: str, left: np.ndarray, right: np.ndarray) -> str:
    return "LEFT" if left.mean() >= right.mean() else "RIGHT"


class Stub:
    """with Stub(decide) as stub: stub.url; requests are counted and kept without their pictures."""

    def __init__(self, decide: Callable[[str, np.ndarray, np.ndarray], str] = brighter):
        self.decide, self.faults, self.requests, self.headers = decide, [], [], []
        self.logprobs: tuple[float, float] | None = None  # P("LEFT"), P("RIGHT") in the openai form
        self.refuse_parameters: tuple[str, ...] = ()
        self.sizes: list[tuple[int, int]] = []
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()

    def __enter__(self) -> "Stub":
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                stub.handle(self)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def handle(self, h: BaseHTTPRequestHandler) -> None:
        body = json.loads(h.rfile.read(int(h.headers["Content-Length"])))
        with self.lock:
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
            fault = self.faults.pop(0) if self.faults else None
            self.headers.append(dict(h.headers))
        try:
            openai = h.path.endswith("/chat/completions")
            assert openai or h.path.endswith("/v1/messages"), h.path
            texts, images = self.read(body, openai)
            with self.lock:
                self.requests.append({**body, "messages": texts, "path": h.path})
            refused = [p for p in self.refuse_parameters if p in body]
            if refused:
                self.error(h, 400, f"Unsupported parameter: '{refused[0]}' is not supported with this model.", openai)
            elif fault is None or fault(self, h, openai) is None:
                word = self.decide(texts[0], *images)
                send(h, 200, self.openai_answer(word) if openai else self.anthropic_answer(word))
        finally:
            with self.lock:
                self.under_way -= 1

    def read(self, body: dict, openai: bool) -> tuple[list[str], list[np.ndarray]]:
        """Texts and pictures of a request, checked against the documented form."""
        (message,) = body["messages"]
        assert message["role"] == "user"
        assert isinstance(body["model"], str)
        texts, images = [], []
        for part in message["content"]:
            if part["type"] == "text":
                texts.append(part["text"])
                continue
            if openai:
                assert part["type"] == "image_url"
                data = part["image_url"]["url"].removeprefix("data:image/png;base64,")
            else:
                assert part["type"] == "image"
                assert {part["source"]["type"], part["source"]["media_type"]} == {"base64", "image/png"}
                data = part["source"]["data"]
            picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
            self.sizes.append(picture.size)
            images.append(np.asarray(picture.convert("RGB")))
        assert len(images) == 2
        if not openai:
            assert body["max_tokens"] > 0
        return texts, images

    def openai_answer(self, word: str) -> dict:
        logprobs = None
        if self.logprobs:
            top = [
                {"token": t, "logprob": math.log(p), "bytes": None}
                for t, p in zip(("LE", "RIGHT"), self.logprobs, strict=True)
            ]
            logprobs = {"content": [{**top[0], "top_logprobs": top}], "refusal": None}
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1741569952,
            "model": "m",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": word, "refusal": None, "annotations": []},
                    "logprobs": logprobs,
                    "finish_reason": "stop",
                }
            ],
            "usage": {
                "prompt_tokens": INPUT_TOKENS,
                "completion_tokens": OUTPUT_TOKENS,
                "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
                "completion_tokens_details": {"reasoning_tokens": 0},
            },
        }

    def anthropic_answer(self, word: str) -> dict:
        return {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "m",
            "content": [
                {"type": "thinking", "thinking": "RIGHT or LEFT?", "signature": "x"},
                {"type": "text", "text": word},
            ],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": INPUT_TOKENS, "output_tokens": OUTPUT_TOKENS, "cache_read_input_tokens": 0},
        }

    @staticmethod
    def error(h, status: int, message: str, openai: bool, code: str = "", **headers: str) -> bool:
        e = {"message": message, "type": code or "invalid_request_error"}
        if openai:
            e |= {"param": None, "code": code or None}
        send(h, status, {"error": e} if openai else {"type": "error", "error": e, "request_id": "req_1"}, **headers)
        return True


def send(h: BaseHTTPRequestHandler, status: int, body: dict | bytes, **headers: str) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    h.send_response(status)
    for k, v in headers.items():
        h.send_header(k.replace("_", "-"), v)
    h.send_header("Content-Type", "application/json")
    h.send_header("Content-Length", str(len(raw)))
    # One write for head and body: two would meet Nagle's algorithm and a delayed acknowledgement, 40 ms a request.
    h._headers_buffer.append(b"\r\n" + raw)
    h.flush_headers()


def too_many(stub: Stub, h, openai: bool) -> bool:
    return stub.error(h, 429, "Rate limit reached", openai, "rate_limit_exceeded", Retry_After="7")


def server_error(stub: Stub, h, openai: bool) -> bool:
    return stub.error(h, 500, "The server had an error", openai, "server_error")


def overloaded(stub: Stub, h, openai: bool) -> bool:
    return stub.error(h, 529, "Overloaded", openai, "overloaded_error")


def no_money(stub: Stub, h, openai: bool) -> bool:
    return stub.error(h, 429, "You exceeded your current quota", openai, "insufficient_quota")


def bad_key(stub: Stub, h, openai: bool) -> bool:
    said = h.headers.get("Authorization", "") + h.headers.get("x-api-key", "")
    return stub.error(h, 401, f"Incorrect API key provided: {said}", openai, "invalid_api_key")


def hang_up(stub: Stub, h, openai: bool) -> bool:
    h.close_connection = True
    return True


def not_json(stub: Stub, h, openai: bool) -> bool:
    send(h, 200, b"<html>busy</html>")
    return True


def other_shape(stub: Stub, h, openai: bool) -> bool:
    send(h, 200, {"choices": []})
    return True


def content_policy(stub: Stub, h, openai: bool) -> bool:
    return stub.error(h, 400, "Rejected by the safety system", openai, "content_policy_violation")


def redirect(stub: Stub, h, openai: bool) -> bool:
    send(h, 307, b"", Location="http://127.0.0.1:9/elsewhere")
    return True
