"""The two request forms that multimodal models are asked in over HTTP, and what their answers say.

- `openai`: POST BASE/v1/chat/completions, pictures as data URLs in `image_url` parts, `Authorization: Bearer`;
  answers carry `choices[0].message.content`, `usage.prompt_tokens`, `usage.completion_tokens` and, where the server
  offers them, `choices[0].logprobs.content[].top_logprobs`. GPT, GLM, vLLM, llama.cpp and most gateways speak it.
- `anthropic`: POST BASE/v1/messages, pictures as base64 `image` blocks, `x-api-key` and `anthropic-version`;
  answers are blocks (`thinking` may come before `text`), `usage.input_tokens`, `usage.output_tokens`.

Models differ in which optional parameters they take (newer ones refuse `temperature`, reasoning ones `logprobs` and
`max_tokens`): a refused parameter is left out from then on, see Endpoint.adapt.
"""

import base64
import dataclasses
import email.utils
import hashlib
import http.client
import json
import math
import os
import re
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from ..errors import BadInputError

OPENAI, ANTHROPIC = "openai", "anthropic"
KEY_ENV = {OPENAI: "OPENAI_API_KEY", ANTHROPIC: "ANTHROPIC_API_KEY"}
PATHS = {OPENAI: "chat/completions", ANTHROPIC: "messages"}
ANTHROPIC_VERSION = "2023-06-01"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
MAX_BYTES = 1 << 20  # of an answer: a judge says one word, more is not an answer
# Codes of a 429 or 403 that no waiting cures: the account has no money or met its own limit.
NO_MONEY = (
    "insufficient_quota",
    "credit_balance_exhausted",
    "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded",
    "organization_usage_limit_exceeded",
    "enforced_spend_limit_reached",
    "billing_error",
)
PASSING = (408, 409, 425, 429)  # besides 5xx: worth another try
# Parameters that a model may refuse, and what stands in for them (None: nothing).
OPTIONAL = {"temperature": None, "logprobs": None, "top_logprobs": None, "max_tokens": "max_completion_tokens"}
# host or [IPv6], port, path without a colon; the rest is the model's name, which may have colons ("llava:7b").
_SPEC = re.compile(r"(openai|anthropic):((https?)://(\[[^\]]+\]|[^/:?#@]+)(?::(\d+))?(?:/[^:?#]*)?):(.+)")
# "@" dates a model on some clouds; anywhere else it would be the end of "user:password@host".
_MODEL = re.compile(r"[^@]+(@\d{8}|@latest|@default)?")


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came back for one request."""

    text: str
    finish: str  # the API's own word: stop, length, content_filter; end_turn, max_tokens, refusal
    input_tokens: int | None  # None: the server did not count
    output_tokens: int | None
    first: tuple[float, float] | None = None  # probability mass of "left" and "right" at the answering token


class TryAgainError(Exception):
    """Refused for now; nothing was charged."""

    def __init__(self, message: str, after: float | None = None):
        super().__init__(message)
        self.after = after  # seconds that the server asks to wait


class UnsureError(TryAgainError):
    """The request went out and no usable answer came back: it may have been charged."""


class RefusedError(Exception):
    """The service refuses this content: an abstention, not a failure."""


@dataclasses.dataclass(frozen=True)
class Where:
    """A judge's address: which form, which server, which model."""

    form: str
    base: str
    model: str
    host: str
    secure: bool

    @staticmethod
    def parse(spec: str) -> "Where":
        """Reads "openai:BASE_URL:MODEL" or "anthropic:BASE_URL:MODEL"; BadInputError says what is wrong."""
        m = _SPEC.fullmatch(spec.strip())
        if not m or not _MODEL.fullmatch(m[6]):
            # The text itself is not shown: a URL that does not parse may hold a password.
            raise BadInputError(
                "a judge must be openai:BASE_URL:MODEL or anthropic:BASE_URL:MODEL, such as "
                "openai:https://api.openai.com:gpt-4o; no user, query or key belongs in the address "
                "(the key comes from the environment)"
            )
        form, base, scheme, host, _, model = m.groups()
        return Where(form, base.rstrip("/"), model, host.strip("[]").lower(), scheme == "https")

    @property
    def url(self) -> str:
        """Of the call. A base that ends in a version ("/v1", "/api/paas/v4") keeps it."""
        last = self.base.rsplit("/", 1)[-1]
        return (
            f"{self.base}/{PATHS[self.form]}" if re.fullmatch(r"v\d+", last) else f"{self.base}/v1/{PATHS[self.form]}"
        )

    @property
    def local(self) -> bool:
        """On this machine: no key is needed and nothing is paid."""
        return self.host in LOOPBACK


@dataclasses.dataclass(frozen=True)
class Question:
    """One request: texts around two PNG pictures."""

    parts: tuple[str, str, str]  # before the left picture, before the right one, after both
    left: bytes
    right: bytes


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect could carry the key to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Endpoint:
    """One model behind one server; send() may be called from several threads."""

    def __init__(self, where: Where, max_tokens: int, logprobs: bool, extra: dict, key_env: str, timeout_s: float):
        self.where, self._timeout, self._lock = where, timeout_s, threading.Lock()
        self.parameters: dict[str, Any] = {"max_tokens": max_tokens, "temperature": 0}
        if logprobs and where.form == OPENAI:
            self.parameters |= {"logprobs": True, "top_logprobs": 5}
        self.extra, self._worked = dict(extra), False
        self._key_env = key_env or KEY_ENV[where.form]
        self._key = os.environ.get(self._key_env, "").strip()
        if not self._key and not where.local:
            raise BadInputError(f"no key for the judge {where.model}: set {self._key_env} in the environment")
        if self._key and not where.secure and not where.local:
            raise BadInputError(
                f"the judge {where.model} would get the key of {self._key_env} over plain http: use https, "
                f"or unset {self._key_env} if the server wants none"
            )
        proxy = urllib.request.ProxyHandler({} if where.local else None)
        self._opener = urllib.request.build_opener(_NoRedirect, proxy)

    def identity(self) -> str:
        """What an answer depends on besides question and pictures, for the cache's key. No secret is in it."""
        about = {"form": self.where.form, "url": self.where.url, "model": self.where.model, "extra": self.extra}
        about |= {"max_tokens": self.parameters.get("max_tokens"), "logprobs": "logprobs" in self.parameters}
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def send(self, q: Question) -> Answer:
        """One attempt. TryAgainError, UnsureError, RefusedError or BadInputError when it fails."""
        while True:
            with self._lock:
                parameters = dict(self.parameters)
            try:
                answer = _READ[self.where.form](self._post(_BODY[self.where.form](self.where.model, parameters, q)))
            except _BadParameterError as e:
                if not self.adapt(e, parameters):
                    raise BadInputError(self._clean(f"the judge {self.where.model} refuses the request: {e}")) from None
                continue
            except (KeyError, IndexError, TypeError, AttributeError) as e:
                raise UnsureError(f"{self.where.base} gives an answer that is not of the {self.where.form} form") from e
            with self._lock:
                self._worked = True
            return answer

    def adapt(self, e: "_BadParameterError", sent: dict[str, Any]) -> bool:
        """Leaves out the parameters that the refusal names; where it names none and nothing has worked yet, all."""
        with self._lock:
            named = [k for k in OPTIONAL if k in sent and e.names(k)]
            if any(k not in self.parameters for k in named):
                return True  # another thread has met the same refusal
            if not named and self._worked:
                return False
            gone = named or [k for k in ("temperature", "logprobs", "top_logprobs") if k in self.parameters]
            for k in gone:
                value = self.parameters.pop(k)
                if OPTIONAL[k]:
                    self.parameters[OPTIONAL[k]] = value
            if "logprobs" not in self.parameters:
                self.parameters.pop("top_logprobs", None)
            return bool(gone)

    def _headers(self) -> dict[str, str]:
        h = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "ctrloop"}
        if self.where.form == ANTHROPIC:
            h["anthropic-version"] = ANTHROPIC_VERSION
        if self._key:
            h |= {"x-api-key": self._key} if self.where.form == ANTHROPIC else {"Authorization": f"Bearer {self._key}"}
        return h

    def _post(self, body: dict[str, Any]) -> Any:
        data = json.dumps(body | self.extra).encode()
        request = urllib.request.Request(self.where.url, data, self._headers(), method="POST")
        try:
            with self._opener.open(request, timeout=self._timeout) as r:
                raw = r.read(MAX_BYTES + 1)
        except urllib.error.HTTPError as e:
            with e:
                raise self._failure(e.code, e.headers, e.read(MAX_BYTES)) from None
        except urllib.error.URLError as e:
            if isinstance(e.reason, ConnectionRefusedError | socket.gaierror):
                raise TryAgainError(f"cannot reach {self.where.base}: {e.reason}") from None
            raise UnsureError(self._clean(f"{self.where.base}: {e.reason}")) from None
        except (TimeoutError, ConnectionError, http.client.HTTPException) as e:
            raise UnsureError(f"{self.where.base}: {e!r}") from None
        if len(raw) > MAX_BYTES:
            raise UnsureError(f"{self.where.base} answered with more than {MAX_BYTES} bytes")
        try:
            return json.loads(raw)
        except ValueError:
            raise UnsureError(f"{self.where.base} answered with something that is not JSON") from None

    def _failure(self, status: int, headers: Any, raw: bytes) -> Exception:
        """The exception for a status that is not 200."""
        error = _error(raw)
        code, said = error["code"], self._clean(error["message"]) or "no reason given"
        who = f"the judge {self.where.model} at {self.where.base}"
        if code in NO_MONEY or status == 402:
            return BadInputError(f"{who} has no credit left ({code or status}): {said}; look at the account's billing")
        if "content_policy" in code or "content_filter" in code:
            return RefusedError(said)
        if status in PASSING or status >= 500:
            return TryAgainError(f"{who} answers {status}: {said}", retry_after(headers))
        if status in (400, 422):
            return _BadParameterError(said, error["param"])
        if status in (401, 403):
            return BadInputError(f"{who} refuses the key ({status}): {said}; check {self._key_env}")
        if status == 404:
            return BadInputError(f"{who} is not there (404): {said}; check base URL and model name")
        return BadInputError(f"{who} answers {status}: {said}")

    def _clean(self, text: str) -> str:
        """Server texts can repeat the key, whole or in part."""
        text = " ".join(text.split())[:300]
        if self._key:
            text = text.replace(self._key, "***")
        return re.sub(r"\b(sk|key)-[\w*.-]+", "***", text)


class _BadParameterError(Exception):
    """400 or 422: perhaps an optional parameter that this model does not take."""

    def __init__(self, message: str, param: str):
        super().__init__(message)
        self.param = param

    def names(self, parameter: str) -> bool:
        """Whether the refusal is about this parameter."""
        if self.param:
            return self.param == parameter
        return re.search(rf"(?<!\w){parameter}(?!\w)", str(self)) is not None


def _error(raw: bytes) -> dict[str, str]:
    """message, code (or type) and param of an error body, in either form."""
    try:
        body = json.loads(raw)
    except ValueError:
        return {"message": raw[:200].decode(errors="replace"), "code": "", "param": ""}
    e = body.get("error", body) if isinstance(body, dict) else {}
    if not isinstance(e, dict):
        return {"message": str(e), "code": "", "param": ""}
    details = e.get("details") if isinstance(e.get("details"), dict) else {}
    codes = [str(x) for x in (e.get("code"), details.get("error_code"), e.get("type")) if x]
    code = next((c for c in codes if c in NO_MONEY), codes[0] if codes else "")
    return {"message": str(e.get("message") or e.get("detail") or ""), "code": code, "param": str(e.get("param") or "")}


def retry_after(headers: Any) -> float | None:
    """Seconds that a Retry-After header asks for (a number or a date), None without one."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _openai_body(model: str, parameters: dict[str, Any], q: Question) -> dict[str, Any]:
    def picture(png: bytes) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(png).decode()}}

    return {"model": model, "messages": [{"role": "user", "content": _content(q, picture)}], **parameters}


def _anthropic_body(model: str, parameters: dict[str, Any], q: Question) -> dict[str, Any]:
    def picture(png: bytes) -> dict[str, Any]:
        source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(png).decode()}
        return {"type": "image", "source": source}

    return {"model": model, "messages": [{"role": "user", "content": _content(q, picture)}], **parameters}


def _content(q: Question, picture: Any) -> list[dict[str, Any]]:
    """Pictures before the question, each with its label: what both vendors' guides recommend."""
    before_left, before_right, after = ({"type": "text", "text": t} for t in q.parts)
    return [before_left, picture(q.left), before_right, picture(q.right), after]


def _read_openai(body: Any) -> Answer:
    choice = body["choices"][0]
    text = choice["message"].get("content")
    if isinstance(text, list):  # some gateways answer in parts
        text = "".join(p.get("text", "") for p in text)
    usage = body.get("usage") or {}
    return Answer(
        text or "",
        str(choice.get("finish_reason") or ""),
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
        _first((choice.get("logprobs") or {}).get("content") or []),
    )


def _read_anthropic(body: Any) -> Answer:
    text = "".join(b["text"] for b in body["content"] if b["type"] == "text")
    usage = body.get("usage") or {}
    parts = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    read = [_count(usage.get(k)) for k in parts]
    # Cached input is cheaper than this counts it: the figure is an upper bound.
    tokens = None if read[0] is None else sum(x or 0 for x in read)
    return Answer(text, str(body.get("stop_reason") or ""), tokens, _count(usage.get("output_tokens")))


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _first(tokens: list[dict[str, Any]]) -> tuple[float, float] | None:
    """Probability of "left" and of "right" at the first token that begins one of them ("LE" counts for "left")."""
    for token in tokens:
        if not _begins(token["token"]):
            continue
        mass = {"left": 0.0, "right": 0.0}
        for t in token.get("top_logprobs") or [token]:
            side = _begins(t["token"])
            if side:
                mass[side] += math.exp(min(0.0, t["logprob"]))
        return mass["left"], mass["right"]
    return None


def _begins(token: str) -> str | None:
    t = token.strip(" \n\t*\"'`").lower()
    return next((s for s in ("left", "right") if t and s.startswith(t)), None)


_BODY = {OPENAI: _openai_body, ANTHROPIC: _anthropic_body}
_READ = {OPENAI: _read_openai, ANTHROPIC: _read_anthropic}
