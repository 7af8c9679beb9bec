"""The HTTP face of the engine: vLLM's calls."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from .chat import ChatRequest, ChatResult, parse_chat
from .engine import MAX_WAITING_BYTES, Engine
from .errors import ApiError, invalid_input

MAX_BODY_BYTES = 32 << 20
LARGE_BODY_BYTES = 1 << 20  # of JSON takes some ten milliseconds to decode


def _validation(problems: list[dict], param: str) -> ApiError:
    lines = "\n".join(f"  {p}" for p in problems)
    return ApiError(
        400, "Bad Request", f"{len(problems)} validation error{'s' if len(problems) > 1 else ''}:\n{lines}", param
    )


async def read_body(request: Request, hold: Callable[[int], None] = lambda n: None) -> bytes:
    """The body; 413 as soon as it is known to be too large. hold is told of its bytes as they come."""
    raw = bytearray()
    declared = request.headers.get("content-length", "")
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_BODY_BYTES or (declared.isdigit() and int(declared) > MAX_BODY_BYTES):
            raise ApiError(413, "BadRequestError", f"the body is larger than {MAX_BODY_BYTES} bytes")
        hold(len(chunk))
    return bytes(raw)


def decode_json(raw: bytes) -> dict:
    """A body as an object; 400 with vLLM's words where it is none."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as e:
        pos = getattr(e, "pos", 0)
        why = getattr(e, "msg", str(e))
        problem = {"type": "json_invalid", "loc": f"body.{pos}", "msg": "JSON decode error"}
        problem |= {"input": "<dict of 0 items>", "ctx": {"error": why}}
        raise _validation([problem], f"body.{pos}") from e
    if not isinstance(body, dict):
        raise _validation(
            [{"type": "model_attributes_type", "loc": "body", "msg": "Input should be a valid dictionary"}], "body"
        )
    return body


def _fields(body: dict, names: tuple[str, ...]) -> list[str]:
    missing = [n for n in names if n not in body]
    if missing:
        found = f"<dict of {len(body)} items>"
        problems = [{"type": "missing", "loc": f"body.{n}", "msg": "Field required", "input": found} for n in missing]
        raise _validation(problems, f"body.{missing[0]}")
    if not all(isinstance(body[n], str) and body[n] for n in names):
        quoted = " and ".join(f"'{n}'" for n in names)
        raise invalid_input(f"{'Both ' if len(names) > 1 else ''}{quoted} must be provided.")
    return [body[n] for n in names]


class Server:
    """The HTTP face of an Engine."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.held = 0  # bytes of bodies in memory; only the event loop touches it

    def app(self) -> Starlette:
        routes = [
            Route("/health", self.health, methods=["GET"]),
            Route("/version", self.version, methods=["GET"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/load_lora_adapter", self.load, methods=["POST"]),
            Route("/v1/unload_lora_adapter", self.unload, methods=["POST"]),
        ]
        return Starlette(
            routes=routes, exception_handlers={ApiError: lambda _, e: e.response(), Exception: self.unexpected}
        )

    @staticmethod
    def unexpected(_: Request, e: Exception) -> Response:
        return ApiError(500, "InternalServerError", f"{type(e).__name__}: {e}").response()

    async def health(self, _: Request) -> Response:
        if not self.engine.alive():
            return ApiError(503, "ServiceUnavailableError", "the engine has stopped").response()
        return Response(status_code=200)

    async def version(self, _: Request) -> Response:
        return JSONResponse({"version": "0.32.0+ctrloop"})  # the vLLM whose calls these are

    async def models(self, _: Request) -> Response:
        e = self.engine
        cards = [self._card(e.served_name, e.root, None, e.created, e.max_len)]
        cards += [self._card(a.name, a.path, e.served_name, a.created, None) for a in e.adapters.values()]
        return JSONResponse({"object": "list", "data": cards})

    @staticmethod
    def _card(name: str, root: str, parent: str | None, created: int, max_len: int | None) -> dict:
        return {
            "id": name, "object": "model", "created": created, "owned_by": "ctrloop", "root": root, "parent": parent,
            "max_model_len": max_len, "permission": [],
        }  # fmt: skip

    async def _on_engine(self, op: Callable) -> object:
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def done(result: object) -> None:
            loop.call_soon_threadsafe(_settle, future, result)

        self.engine.call(op, done)
        return await future

    async def load(self, request: Request) -> Response:
        body = decode_json(await read_body(request))
        name, path = _fields(body, ("lora_name", "lora_path"))
        if body.get("load_inplace"):
            raise invalid_input(
                "load_inplace is refused: names are never reused, load the new adapter under a new name."
            )
        await self._on_engine(lambda: self.engine.load(name, path))
        return Response(f"Success: LoRA adapter '{name}' added successfully.")  # without a content type, as vLLM

    async def unload(self, request: Request) -> Response:
        (name,) = _fields(decode_json(await read_body(request)), ("lora_name",))
        await self._on_engine(lambda: self.engine.unload(name))
        return Response(f"Success: LoRA adapter '{name}' removed successfully.")

    async def chat(self, request: Request) -> Response:
        mine = 0

        def hold(n: int) -> None:
            nonlocal mine
            if self.held + n > MAX_WAITING_BYTES:
                raise ApiError(503, "ServiceUnavailableError", f"requests hold {self.held} bytes, try again later.")
            self.held, mine = self.held + n, mine + n

        try:
            return await self._chat(request, await read_body(request, hold))
        finally:
            self.held -= mine

    async def _chat(self, request: Request, raw: bytes) -> Response:
        if len(raw) > LARGE_BODY_BYTES:  # in another thread: all others would wait for its decoding
            body = await asyncio.to_thread(decode_json, raw)
        else:
            body = decode_json(raw)
        r = parse_chat(body, self.engine.max_text)
        r.client, r.size = client_of(request, r.user), len(raw)
        self.engine.require(r.model)
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue = asyncio.Queue()
        r.done = lambda result: loop.call_soon_threadsafe(queue.put_nowait, result)
        ident, created = f"chatcmpl-{secrets.token_hex(8)}", int(time.time())
        if not r.stream:
            self.engine.submit(r)
            result = await _unless_gone(request, r, queue)
            if result is None:
                return Response(status_code=499)  # nobody reads it; proxies log it so
            if isinstance(result, Exception):
                raise result
            return JSONResponse(self._completion(ident, created, r, result))
        # The list grows on the engine thread: copy it there.
        r.on_token = lambda index, tokens: loop.call_soon_threadsafe(queue.put_nowait, (index, list(tokens)))
        self.engine.submit(r)
        first = await _unless_gone(request, r, queue)
        if first is None:
            return Response(status_code=499)
        if isinstance(first, Exception):
            raise first
        return StreamingResponse(self._stream(ident, created, r, queue, first), media_type="text/event-stream")

    def _text(self, tokens: list[int]) -> str:
        return self.engine.tokenizer.decode(tokens, skip_special_tokens=True)

    def _completion(self, ident: str, created: int, r: ChatRequest, result: ChatResult) -> dict:
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": self._text(c.tokens), "refusal": None},
                "logprobs": {"content": [self._logprob(*x) for x in c.logprobs]} if r.logprobs else None,
                "finish_reason": c.finish_reason,
                "stop_reason": None,
            }
            for i, c in enumerate(result.choices)
        ]
        out = sum(len(c.tokens) + (c.finish_reason == "stop") for c in result.choices)
        usage = {
            "prompt_tokens": result.prompt_tokens,
            "total_tokens": result.prompt_tokens + out,
            "completion_tokens": out,
        }
        return {
            "id": ident, "object": "chat.completion", "created": created, "model": r.model, "choices": choices,
            "service_tier": None, "system_fingerprint": None, "usage": usage, "prompt_logprobs": None,
        }  # fmt: skip

    def _logprob(self, token: int, value: float, top: list[tuple[int, float]]) -> dict:
        def one(t: int, v: float) -> dict:
            s = self.engine.tokenizer.decode([t])
            return {"token": s, "logprob": max(v, -9999.0), "bytes": list(s.encode())}

        return {**one(token, value), "top_logprobs": [one(t, v) for t, v in top]}

    async def _stream(self, ident: str, created: int, r: ChatRequest, queue: asyncio.Queue, item: object):
        def event(choices: list[dict]) -> str:
            chunk = {
                "id": ident,
                "object": "chat.completion.chunk",
                "created": created,
                "model": r.model,
                "choices": choices,
            }
            return f"data: {json.dumps(chunk)}\n\n"

        def delta(index: int, d: dict, finish: str | None = None) -> dict:
            return {"index": index, "delta": d, "logprobs": None, "finish_reason": finish}

        sent = [""] * r.n
        try:
            for i in range(r.n):
                yield event([delta(i, {"role": "assistant", "content": ""})])
            while not isinstance(item, ChatResult):
                if isinstance(item, Exception):
                    err = item if isinstance(item, ApiError) else ApiError(500, "InternalServerError", str(item))
                    yield f"data: {err.response().body.decode()}\n\ndata: [DONE]\n\n"
                    return
                index, tokens = item
                text = self._text(tokens)
                # An incomplete UTF-8 sequence decodes to U+FFFD: wait for the rest of it.
                if not text.endswith("\ufffd") and len(text) > len(sent[index]):
                    yield event([delta(index, {"content": text[len(sent[index]) :]})])
                    sent[index] = text
                item = await queue.get()
            for i, c in enumerate(item.choices):
                yield event([delta(i, {"content": self._text(c.tokens)[len(sent[i]) :]}, c.finish_reason)])
            yield "data: [DONE]\n\n"
        finally:  # also when the client goes: the response is cancelled then
            r.cancelled = True


def client_of(request: Request, user: str) -> str:
    """Who takes turns with whom: the nearest proxy's word for its client, else the peer; and the request's "user",
    since the gateway asks for many. Who invents users has more turns, not longer ones: the bounds are the engine's.
    """
    forwarded = request.headers.get("x-forwarded-for", "").rsplit(",", 1)[-1].strip()
    peer = forwarded or (request.client.host if request.client else "")
    return f"{peer[:64]} {user[:64]}"


async def _unless_gone(request: Request, r: ChatRequest, queue: asyncio.Queue) -> object | None:
    """The next thing from the engine; None, and the request cancelled, when its client goes before."""
    answer = asyncio.ensure_future(queue.get())
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        r.cancelled = True
        return None
    except asyncio.CancelledError:
        r.cancelled = True
        raise
    finally:
        answer.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _settle(future: asyncio.Future, result: object) -> None:
    if future.done():  # the client has gone
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
