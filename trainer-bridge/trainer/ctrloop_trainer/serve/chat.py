"""Chat completion requests: what is read, and what is refused."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import math
from collections.abc import Callable

from PIL import Image

from .. import pictures
from .errors import bad_request

MAX_IMAGES = 8
MAX_IMAGE_PX = 4096 * 4096  # of all pictures of a request together, as they are declared
MAX_MESSAGES = 256
MAX_CHOICES = 16
MAX_TOP_LOGPROBS = 20

# OpenAI parameters that would change the answer and that this server does not implement: ignoring them would be a lie.
UNSUPPORTED = ("stop", "tools", "tool_choice", "response_format", "logit_bias", "guided_json", "structured_outputs")


@dataclasses.dataclass
class ChatRequest:
    """One chat completion: a prompt and `n` answers to it."""

    model: str
    messages: list[dict]
    images: list[bytes]  # as they came; the engine decodes them when it is the client's turn
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int | None = None
    seed: int | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    stream: bool = False
    user: str = ""  # OpenAI's field: whom the caller asks for
    client: str = ""  # who asks: clients take turns
    size: int = 0  # bytes of the request's body
    cancelled: bool = False  # its client has gone: nobody reads the answer
    prepared: Prepared | None = None
    done: Callable[[ChatResult | Exception], None] | None = None
    on_token: Callable[[int, list[int]], None] | None = None


@dataclasses.dataclass
class Prepared:
    """A request as the model's inputs, one row of them, checked against the context's length."""

    tokens: dict  # name -> list of numbers, one a token of the prompt
    pictures: list[dict]  # inputs of each picture, as families.Family.split gives them
    length: int  # tokens of the prompt
    limit: int  # most tokens of an answer


@dataclasses.dataclass
class Choice:
    tokens: list[int]  # without the end-of-sequence token
    finish_reason: str
    logprobs: list[tuple[int, float, list[tuple[int, float]]]]  # token, its log-probability, the most likely ones


@dataclasses.dataclass
class ChatResult:
    prompt_tokens: int
    choices: list[Choice]


def _number(body: dict, key: str, default: float, low: float, high: float) -> float:
    v = body.get(key)
    if v is None:
        return default
    if isinstance(v, bool) or not isinstance(v, int | float) or not math.isfinite(v) or not low <= v <= high:
        raise bad_request(f"{key} must be a number in [{low}, {high}], got {v!r}.", key)
    return v


def _integer(body: dict, key: str, default: int | None, low: int, high: int) -> int | None:
    v = body.get(key)
    if v is None:
        return default
    if isinstance(v, bool) or not isinstance(v, int) or not low <= v <= high:
        raise bad_request(f"{key} must be an integer in [{low}, {high}], got {v!r}.", key)
    return v


def _encoded(url: object) -> bytes:
    """The picture of a data URL as it came; nothing is decoded here, which is what costs."""
    if not isinstance(url, str) or not url.startswith("data:image/"):
        raise bad_request(
            "image_url.url must be a data URL (data:image/png;base64,...): this server fetches nothing.", "messages"
        )
    head, _, payload = url.partition(",")
    if not head.endswith(";base64"):
        raise bad_request("image_url.url must be base64-encoded.", "messages")
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as e:
        raise bad_request(f"image is not base64: {e}", "messages") from e


def decoded(images: list[bytes]) -> list[Image.Image]:
    """The pictures of a request; ApiError for what is none, and where they declare more than MAX_IMAGE_PX together."""
    out, room = [], MAX_IMAGE_PX
    for raw in images:
        try:
            out.append(pictures.read(raw, max_pixels=room))
        except pictures.BadPictureError as e:
            raise bad_request(f"image cannot be used: it {e}", "messages") from e
        room -= out[-1].width * out[-1].height
    return out


def _messages(raw: object, max_text: int) -> tuple[list[dict], list[bytes]]:
    if not isinstance(raw, list) or not raw:
        raise bad_request("messages must be a non-empty list.", "messages")
    if len(raw) > MAX_MESSAGES:
        raise bad_request(f"At most {MAX_MESSAGES} messages may be provided in one prompt.", "messages")
    _check_parts(raw, max_text)
    out, images = [], []
    for m in raw:
        if not isinstance(m, dict) or m.get("role") not in ("system", "user", "assistant"):
            raise bad_request("each message needs a role: system, user or assistant.", "messages")
        content = m.get("content")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, list):
            raise bad_request("content must be a string or a list of parts.", "messages")
        parts = []
        for p in content:
            kind = p.get("type") if isinstance(p, dict) else None
            if kind == "text" and isinstance(p.get("text"), str):
                parts.append({"type": "text", "text": p["text"]})
            elif kind == "image_url" and isinstance(p.get("image_url"), dict):
                images.append(_encoded(p["image_url"].get("url")))
                parts.append({"type": "image"})
            else:
                raise bad_request(f"content part of type {kind!r} is not supported: text or image_url.", "messages")
        out.append({"role": m["role"], "content": parts})
    return out, images


def _check_parts(raw: list, max_text: int) -> None:
    """Bounds of a prompt that need no decoding and no tokenising: a long one must cost nothing."""
    contents = [m.get("content") for m in raw if isinstance(m, dict)]
    parts = [p for c in contents if isinstance(c, list) for p in c if isinstance(p, dict)]
    texts = [c for c in contents if isinstance(c, str)] + [p["text"] for p in parts if isinstance(p.get("text"), str)]
    if sum(p.get("type") == "image_url" for p in parts) > MAX_IMAGES:
        raise bad_request(f"At most {MAX_IMAGES} images may be provided in one prompt.", "messages")
    size = sum(len(t.encode(errors="replace")) for t in texts)
    if size > max_text:
        raise bad_request(
            f"your prompt has {size} bytes of text, and this model's context holds no more than {max_text}. Please "
            "reduce the length of the input.",
            "messages",
        )


def parse_chat(body: dict, max_text: int = 1 << 20) -> ChatRequest:
    """Reads a chat completion request of at most max_text bytes of text; raises ApiError with vLLM's shape for anything
    that it cannot honour."""
    for key in UNSUPPORTED:
        if body.get(key):
            raise bad_request(f"{key} is not supported by this server.", key)
    for key in ("frequency_penalty", "presence_penalty"):
        if body.get(key):
            raise bad_request(f"{key} is not supported by this server.", key)
    if not isinstance(body.get("model"), str):
        raise bad_request("model is required.", "model")
    messages, images = _messages(body.get("messages"), max_text)
    logprobs = bool(body.get("logprobs"))
    top = _integer(body, "top_logprobs", 0, 0, MAX_TOP_LOGPROBS)
    if top and not logprobs:
        raise bad_request("when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs")
    max_tokens = body.get("max_completion_tokens", body.get("max_tokens"))
    top_p = _number(body, "top_p", 1.0, 0.0, 1.0)
    if top_p == 0:
        raise bad_request("top_p must be in (0, 1], got 0.", "top_p")
    return ChatRequest(
        model=body["model"],
        messages=messages,
        images=images,
        n=_integer(body, "n", 1, 1, MAX_CHOICES),
        temperature=_number(body, "temperature", 1.0, 0.0, 100.0),
        top_p=top_p,
        top_k=max(0, _integer(body, "top_k", 0, -1, 1 << 20)),
        min_p=_number(body, "min_p", 0.0, 0.0, 1.0),
        max_tokens=_integer({"max_tokens": max_tokens}, "max_tokens", None, 1, 1 << 20),
        seed=_integer(body, "seed", None, -(1 << 63), (1 << 64) - 1),
        logprobs=logprobs,
        top_logprobs=top,
        stream=bool(body.get("stream")),
        user=body["user"] if isinstance(body.get("user"), str) else "",
    )
