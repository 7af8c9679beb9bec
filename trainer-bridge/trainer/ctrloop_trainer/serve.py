"""Model server for prompt models on transformers + PEFT, speaking vLLM's HTTP calls.

It is the embedded stand-in for vLLM (held against a recording of vLLM 0.32): chat completions with image data
URLs, runtime LoRA adapters, /v1/models with parents, the same status codes and error bodies. It is stricter where
vLLM is unsafe:

* an adapter whose keys or shapes do not fit the base is refused with 400 (vLLM answers 200 and then applies
  nothing, or answers garbage);
* a name means one content for the life of the process: `load_inplace`, and loading other content under a name that
  was ever used, are 400 (vLLM serves stale caches then). The same content may come back under its name after an
  unload.

Threads: HTTP runs on the event loop; one engine thread owns the model and does everything to it, one operation at a
time: a batch of requests for one adapter, a load, an unload. Requests that arrive while a batch runs form the next
one, so batching needs no waiting window.

Run: python -m ctrloop_trainer.serve --model DIR --host 127.0.0.1 --port N --served-model-name prompt-base
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import binascii
import dataclasses
import hashlib
import io
import json
import math
import os
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

MAX_BODY_BYTES = 32 << 20
MAX_IMAGES = 8
MAX_IMAGE_PX = 4096 * 4096
MAX_CHOICES = 16
MAX_TOP_LOGPROBS = 20
MAX_WAITING_ROWS = 65536  # choices waiting for the engine; beyond it the server answers 503

LORA_KEY = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")

# OpenAI parameters that would change the answer and that this server does not implement: ignoring them would be a lie.
UNSUPPORTED = ("stop", "tools", "tool_choice", "response_format", "logit_bias", "guided_json", "structured_outputs")


class ApiError(Exception):
    """An error with the body and status that vLLM gives it."""

    def __init__(self, code: int, kind: str, message: str, param: str | None = None):
        super().__init__(message)
        self.code, self.kind, self.message, self.param = code, kind, message, param

    def response(self) -> JSONResponse:
        body = {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}
        return JSONResponse(body, status_code=self.code, headers={"Retry-After": "1"} if self.code == 503 else None)


def bad_request(message: str, param: str | None = None) -> ApiError:
    return ApiError(400, "BadRequestError", message, param)


def invalid_input(message: str) -> ApiError:
    return ApiError(400, "InvalidUserInput", message)


def add_lora_failed(why: str) -> ApiError:
    return ApiError(
        500,
        "InternalServerError",
        f"Call to add_lora method failed: Worker failed with error '{why}', please check the stack trace above "
        "for the root cause",
    )


# ---------------------------------------------------------------------------------------------- requests


@dataclasses.dataclass
class ChatRequest:
    """One chat completion: a prompt and `n` answers to it."""

    model: str
    messages: list[dict]
    images: list[Image.Image]
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
    done: Callable[[ChatResult | Exception], None] | None = None
    on_token: Callable[[int, list[int]], None] | None = None


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


def _image(url: object) -> Image.Image:
    if not isinstance(url, str) or not url.startswith("data:image/"):
        raise bad_request(
            "image_url.url must be a data URL (data:image/png;base64,...): this server fetches nothing.", "messages"
        )
    head, _, payload = url.partition(",")
    if not head.endswith(";base64"):
        raise bad_request("image_url.url must be base64-encoded.", "messages")
    try:
        im = Image.open(io.BytesIO(base64.b64decode(payload, validate=True)))
        if im.width * im.height > MAX_IMAGE_PX:
            raise bad_request(
                f"image of {im.width}x{im.height} pixels is larger than {MAX_IMAGE_PX} pixels.", "messages"
            )
        return im.convert("RGB")
    except (binascii.Error, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        raise bad_request(f"image cannot be decoded: {e}", "messages") from e


def _messages(raw: object) -> tuple[list[dict], list[Image.Image]]:
    if not isinstance(raw, list) or not raw:
        raise bad_request("messages must be a non-empty list.", "messages")
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
                images.append(_image(p["image_url"].get("url")))
                parts.append({"type": "image"})
            else:
                raise bad_request(f"content part of type {kind!r} is not supported: text or image_url.", "messages")
        out.append({"role": m["role"], "content": parts})
    if len(images) > MAX_IMAGES:
        raise bad_request(f"At most {MAX_IMAGES} images may be provided in one prompt.", "messages")
    return out, images


def parse_chat(body: dict) -> ChatRequest:
    """Reads a chat completion request; raises ApiError with vLLM's shape for anything that it cannot honour."""
    for key in UNSUPPORTED:
        if body.get(key):
            raise bad_request(f"{key} is not supported by this server.", key)
    for key in ("frequency_penalty", "presence_penalty"):
        if body.get(key):
            raise bad_request(f"{key} is not supported by this server.", key)
    if not isinstance(body.get("model"), str):
        raise bad_request("model is required.", "model")
    messages, images = _messages(body.get("messages"))
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
    )


# ---------------------------------------------------------------------------------------------- sampling


class Sampler:
    """Chooses one token for each row of a batch and keeps score; given to `generate` as its logits processor.

    Every row has its own temperature, cuts and random numbers: row (request, choice) draws from a generator keyed by
    (request's seed, choice), by inverse transform in the order of the vocabulary, so that an answer does not depend on
    which other requests share its batch (beyond rounding of the logits). The choice is handed on by masking all else.
    """

    def __init__(self, rows: list[tuple[int, ChatRequest, int]], max_new: int, eos: set[int], limits: list[int]):
        self.rows, self.eos, self.limits = rows, eos, limits
        reqs = [r for _, r, _ in rows]
        self.temperature = torch.tensor([r.temperature for r in reqs], dtype=torch.float32)
        self.greedy = self.temperature < 1e-5
        self.top_p = torch.tensor([r.top_p for r in reqs], dtype=torch.float32)[:, None]
        self.min_p = torch.tensor([r.min_p for r in reqs], dtype=torch.float32)[:, None]
        self.top_k = torch.tensor([r.top_k for r in reqs])[:, None]
        self.uniform = torch.from_numpy(np.stack([self._draw(r, choice, max_new) for _, r, choice in rows]))
        self.choices = [Choice([], "length", []) for _ in rows]
        self.done = torch.zeros(len(rows), dtype=torch.bool)
        self.want_logprobs = any(r.logprobs for r in reqs)
        self.step = 0

    @staticmethod
    def _draw(r: ChatRequest, choice: int, k: int) -> np.ndarray:
        seed = secrets.randbits(64) if r.seed is None else r.seed & (1 << 64) - 1
        return np.random.Generator(np.random.Philox(key=[seed, choice])).random(k)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.float()
        if not torch.isfinite(scores).any(dim=-1).all():
            raise ApiError(500, "InternalServerError", "the model's logits are not finite: its weights are broken")
        token = scores.argmax(-1)
        if not self.greedy.all():
            token = torch.where(self.greedy, token, self._sample(scores))
        logprobs = torch.log_softmax(scores, -1) if self.want_logprobs else None
        self._record(token.tolist(), logprobs)
        out = torch.full_like(scores, -torch.inf)
        out.scatter_(1, token[:, None], 0.0)
        self.step += 1
        return out

    def _sample(self, scores: torch.Tensor) -> torch.Tensor:
        p = torch.softmax(scores / self.temperature.clamp_min(1e-5)[:, None], -1)
        p = torch.where(p < self.min_p * p.amax(-1, keepdim=True), 0.0, p)
        if (self.top_p < 1).any() or (self.top_k > 0).any():
            ranked, order = p.sort(-1, descending=True)
            before = ranked.cumsum(-1) - ranked
            cut = before >= self.top_p * p.sum(-1, keepdim=True)
            cut |= (self.top_k > 0) & (torch.arange(p.shape[1])[None] >= self.top_k)
            p = torch.zeros_like(p).scatter_(1, order, ranked.masked_fill(cut, 0.0))
        c = p.double().cumsum(-1)
        u = self.uniform[:, self.step, None] * c[:, -1:]
        # right=True takes the first token whose cumulative mass exceeds u, so one of mass 0 is never taken.
        return torch.searchsorted(c, u, right=True)[:, 0].clamp_max(p.shape[1] - 1)

    def _record(self, tokens: list[int], logprobs: torch.Tensor | None) -> None:
        for i, t in enumerate(tokens):
            if self.done[i]:
                continue
            _, req, index = self.rows[i]
            c = self.choices[i]
            if req.logprobs:
                v, ids = logprobs[i].topk(req.top_logprobs) if req.top_logprobs else (torch.empty(0), torch.empty(0))
                c.logprobs.append((t, float(logprobs[i, t]), list(zip(ids.tolist(), v.tolist(), strict=True))))
            if t in self.eos:
                c.finish_reason = "stop"
                self.done[i] = True
                continue
            c.tokens.append(t)
            if len(c.tokens) >= self.limits[i]:
                self.done[i] = True
            if req.on_token:
                req.on_token(index, c.tokens)

    def stopping(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        """Stopping criterion: rows that have reached their end or their own max_tokens."""
        return self.done


# ---------------------------------------------------------------------------------------------- adapters


@dataclasses.dataclass
class Adapter:
    name: str
    path: str  # as given by the client
    internal: str  # PEFT's name for it: ours may hold characters that a module name must not
    digest: str
    created: int


def adapter_digest(folder: Path) -> str:
    h = hashlib.sha256()
    for f in ("adapter_config.json", "adapter_model.safetensors"):
        h.update(hashlib.sha256((folder / f).read_bytes()).digest())
    return h.hexdigest()


def check_adapter(folder: Path, shapes: dict[str, tuple[int, int]], max_rank: int) -> set[str]:
    """Holds an adapter against the base's linear layers {module: (out, in)}; returns its keys. Raises ApiError."""
    cfg = json.loads((folder / "adapter_config.json").read_text())
    if cfg.get("peft_type") != "LORA":
        raise add_lora_failed(f"peft_type {cfg.get('peft_type')} is not LORA.")
    if cfg.get("use_dora"):
        raise add_lora_failed("this server does not yet support DoRA.")
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise add_lora_failed(f"{folder} doesn't contain tensors")
    try:
        with safe_open(weights, "pt") as f:
            found = {k: tuple(f.get_slice(k).get_shape()) for k in f.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as e:
        raise add_lora_failed(str(e)) from e
    if not found:
        raise add_lora_failed(f"{folder} doesn't contain tensors")
    suffixes = {m.rsplit(".", 1)[-1] for m in shapes}
    matched = {k: LORA_KEY.match(k) for k in found}
    unknown = sorted(m["module"] for m in matched.values() if m and m["module"].rsplit(".", 1)[-1] not in suffixes)
    if unknown:
        raise add_lora_failed(
            f"While loading {folder}, expected target modules in {suffixes} but received {unknown[:4]}."
        )
    for key, shape in sorted(found.items()):
        m = matched[key]
        if m is None or m["module"] not in shapes:
            raise invalid_input(
                f"The lora adapter has the key '{key}', which names no linear layer of the base model: it would not be "
                f"applied. Expected keys like 'base_model.model.{next(iter(shapes))}.lora_A.weight'."
            )
        out, inp = shapes[m["module"]]
        rank = shape[0 if m["side"] == "A" else 1] if len(shape) == 2 else -1
        want = (rank, inp) if m["side"] == "A" else (out, rank)
        if shape != want or rank < 1:
            raise invalid_input(
                f"The lora adapter's '{key}' has shape {list(shape)}, the base model's layer needs {list(want)}."
            )
        if rank > max_rank:
            raise add_lora_failed(f"LoRA rank {rank} is greater than max_lora_rank {max_rank}.")
        other = f"base_model.model.{m['module']}.lora_{'B' if m['side'] == 'A' else 'A'}.weight"
        if other not in found or found[other][1 if m["side"] == "A" else 0] != rank:
            raise invalid_input(f"The lora adapter's '{key}' has no matching '{other}' of rank {rank}.")
    return set(found)


# ---------------------------------------------------------------------------------------------- engine


class Engine:
    """Owns the model. Public methods may be called from any thread; `run` is the engine thread."""

    def __init__(self, model_dir: str, served_name: str, threads: int = 1, max_rows: int = 256, max_rank: int = 256):
        # Imported here: the import costs seconds, and --help should not.
        from transformers import AutoModelForImageTextToText, AutoProcessor

        from .prompt.families import plain_generation

        torch.set_num_threads(threads)
        self.root, self.served_name, self.max_rows, self.max_rank = model_dir, served_name, max_rows, max_rank
        self.created = int(time.time())
        self.processor = AutoProcessor.from_pretrained(model_dir, local_files_only=True)
        self.tokenizer = self.processor.tokenizer
        self.tokenizer.padding_side = "left"  # generation appends on the right
        self.model = AutoModelForImageTextToText.from_pretrained(model_dir, local_files_only=True).eval()
        plain_generation(self.model)  # a request's settings are all there is
        self.text_config = self.model.config.get_text_config()
        self.max_len = int(getattr(self.text_config, "max_position_embeddings", 2048))
        self.shapes = {
            n: (m.out_features, m.in_features) for n, m in self.model.named_modules() if isinstance(m, torch.nn.Linear)
        }
        eos = self.model.generation_config.eos_token_id
        eos = self.tokenizer.eos_token_id if eos is None else eos
        self.eos = set(eos if isinstance(eos, list) else [eos]) - {None}
        self.pad = next(t for t in (self.tokenizer.pad_token_id, *self.eos, 0) if t is not None)
        self.peft = None
        self.adapters: dict[str, Adapter] = {}  # replaced, never changed: the event loop reads it
        self.used: dict[str, str] = {}  # name -> digest of what it has ever meant
        self._counter = 0
        self._lock = threading.Condition()
        self._waiting: deque[ChatRequest] = deque()
        self._ops: deque[tuple[Callable, Callable]] = deque()
        self._rows_waiting = 0
        self._stopped = False
        self.thread = threading.Thread(target=self.run, name="engine", daemon=True)

    # --- any thread

    def knows(self, model: str) -> bool:
        return model == self.served_name or model in self.adapters

    def require(self, model: str) -> None:
        if not self.knows(model):
            raise ApiError(
                404, "NotFoundError", f"The model `{model}` does not exist. Valid aliases: {self.served_name}.", "model"
            )

    def submit(self, r: ChatRequest) -> None:
        """Queues a request; r.done is called on the engine thread with its ChatResult or exception."""
        with self._lock:
            if self._rows_waiting + r.n > MAX_WAITING_ROWS:
                raise ApiError(
                    503,
                    "ServiceUnavailableError",
                    f"{self._rows_waiting} answers are waiting already, try again later.",
                )
            self._rows_waiting += r.n
            self._waiting.append(r)
            self._lock.notify()

    def call(self, op: Callable, done: Callable) -> None:
        """Runs op() on the engine thread, ahead of waiting requests, and passes its result or exception to done."""
        with self._lock:
            self._ops.append((op, done))
            self._lock.notify()

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            self._lock.notify()

    # --- engine thread

    def run(self) -> None:
        while True:
            with self._lock:
                while not (self._ops or self._waiting or self._stopped):
                    self._lock.wait()
                if self._stopped:
                    return
                op = self._ops.popleft() if self._ops else None
                batch = [] if op else self._take()
            if op:
                try:
                    op[1](op[0]())
                except Exception as e:
                    op[1](e)
            else:
                self._serve(batch)

    def _take(self) -> list[ChatRequest]:
        """The oldest request and those after it that use the same model, up to max_rows answers."""
        model, rows, batch, rest = self._waiting[0].model, 0, [], deque()
        for r in self._waiting:
            if r.model == model and (not batch or rows + r.n <= self.max_rows):
                rows += r.n
                batch.append(r)
            else:
                rest.append(r)
        self._waiting = rest
        self._rows_waiting -= rows
        return batch

    def _serve(self, batch: list[ChatRequest]) -> None:
        try:
            self.require(batch[0].model)  # unloaded while it waited
            self.generate(batch)
        except Exception as e:
            if len(batch) == 1 or (isinstance(e, ApiError) and e.code == 404):
                for r in batch:
                    r.done(e)
                return
            for r in batch:  # one bad request must not fail its neighbours
                self._serve([r])

    @torch.inference_mode()
    def generate(self, batch: list[ChatRequest]) -> None:
        """Answers a batch of requests for one model and calls their `done`."""
        rows = [(i, r, k) for i, r in enumerate(batch) for k in range(r.n)]
        texts = [
            self.processor.apply_chat_template(r.messages, add_generation_prompt=True, tokenize=False) for r in batch
        ]
        # add_special_tokens=False: the chat template writes them, as in vLLM.
        kwargs = {
            "text": [texts[i] for i, _, _ in rows],
            "padding": True,
            "add_special_tokens": False,
            "return_tensors": "pt",
        }
        images = [im for _, r, _ in rows for im in r.images]
        if images:
            kwargs["images"] = images
        inputs = self.processor(**kwargs)
        lengths = inputs["attention_mask"].sum(1).tolist()
        limits = []
        for (_, r, _), length in zip(rows, lengths, strict=True):
            room = self.max_len - length
            want = room if r.max_tokens is None else r.max_tokens
            if want > room or room < 1:
                raise bad_request(
                    f"This model's maximum context length is {self.max_len} tokens. However, you requested {want} "
                    f"output tokens and your prompt contains {length} input tokens. Please reduce the length of the "
                    "input or max_tokens.",
                    "max_tokens",
                )
            limits.append(want)
        sampler = Sampler(rows, max(limits), self.eos, limits)
        self._generate(batch[0].model, inputs, sampler, max(limits))
        results = [ChatResult(0, []) for _ in batch]
        for (i, _, _), choice, length in zip(rows, sampler.choices, lengths, strict=True):
            results[i].prompt_tokens = length
            results[i].choices.append(choice)
        for r, result in zip(batch, results, strict=True):
            r.done(result)

    def _generate(self, model: str, inputs: dict, sampler: Sampler, max_new: int) -> None:
        from transformers import GenerationConfig

        config = GenerationConfig(
            do_sample=False,  # the sampler has chosen
            max_new_tokens=max_new,
            use_cache=True,
            eos_token_id=sorted(self.eos),
            pad_token_id=self.pad,
        )
        kwargs = {"generation_config": config, "logits_processor": [sampler], "stopping_criteria": [sampler.stopping]}
        if self.peft is None:
            self.model.generate(**inputs, **kwargs)
        elif model == self.served_name:
            with self.peft.disable_adapter():
                self.peft.generate(**inputs, **kwargs)
        else:
            self.peft.set_adapter(self.adapters[model].internal)
            self.peft.generate(**inputs, **kwargs)

    def load(self, name: str, path: str) -> None:
        folder = Path(path)
        if name == self.served_name:
            raise invalid_input(f"The lora adapter '{name}' conflicts with a served base model.")
        if name in self.adapters:
            raise invalid_input(
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, "
                "set 'load_inplace' to True."
            )
        if not (folder / "adapter_config.json").is_file():
            raise ApiError(404, "NotFoundError", f"Loading lora {name} failed: No adapter found for {path}")
        try:
            keys = check_adapter(folder, self.shapes, self.max_rank)
        except (ValueError, OSError) as e:
            raise add_lora_failed(str(e)) from e
        digest = adapter_digest(folder)
        if self.used.get(name, digest) != digest:
            raise invalid_input(
                f"The lora adapter name '{name}' was used for other weights before: names are never reused."
            )
        self._counter += 1
        internal = f"a{self._counter}"
        self._inject(folder, internal, keys)
        self.used[name] = digest
        self.adapters = {**self.adapters, name: Adapter(name, path, internal, digest, int(time.time()))}

    def _inject(self, folder: Path, internal: str, keys: set[str]) -> None:
        from peft import PeftModel

        try:
            if self.peft is None:
                self.peft = PeftModel.from_pretrained(self.model, folder, adapter_name=internal).eval()
            else:
                self.peft.load_adapter(folder, internal)
                self.peft.eval()
        except Exception as e:
            self._drop(internal)
            raise add_lora_failed(f"{type(e).__name__}: {e}") from e
        # A layer that the config names and the file lacks would stay as initialised, without a word.
        applied = {
            f"base_model.model.{n.removeprefix('base_model.model.').removesuffix(f'.{internal}.weight')}.weight"
            for n, _ in self.peft.named_parameters()
            if n.endswith(f".{internal}.weight")
        }
        if applied != keys:
            self._drop(internal)
            raise invalid_input(
                f"The lora adapter's adapter_config.json targets {len(applied)} tensors, its file holds {len(keys)}: "
                f"for example '{sorted(applied ^ keys)[0]}' is in only one of them."
            )

    def _drop(self, internal: str) -> None:
        if self.peft is not None and internal in self.peft.peft_config:
            if len(self.peft.peft_config) > 1:
                self.peft.delete_adapter(internal)
            else:  # PEFT keeps at least one: give the plain model back
                self.model, self.peft = self.peft.unload(), None

    def unload(self, name: str) -> None:
        if name not in self.adapters:
            raise ApiError(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
        gone = self.adapters[name]
        self.adapters = {k: v for k, v in self.adapters.items() if k != name}
        self._drop(gone.internal)


# ---------------------------------------------------------------------------------------------- HTTP


def _validation(problems: list[dict], param: str) -> ApiError:
    lines = "\n".join(f"  {p}" for p in problems)
    return ApiError(
        400, "Bad Request", f"{len(problems)} validation error{'s' if len(problems) > 1 else ''}:\n{lines}", param
    )


async def read_json(request: Request) -> dict:
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_BODY_BYTES:
            raise ApiError(413, "BadRequestError", f"the body is larger than {MAX_BODY_BYTES} bytes")
    try:
        body = json.loads(bytes(raw))
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
        if not self.engine.thread.is_alive():
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
        body = await read_json(request)
        name, path = _fields(body, ("lora_name", "lora_path"))
        if body.get("load_inplace"):
            raise invalid_input(
                "load_inplace is refused: names are never reused, load the new adapter under a new name."
            )
        await self._on_engine(lambda: self.engine.load(name, path))
        return Response(f"Success: LoRA adapter '{name}' added successfully.")  # without a content type, as vLLM

    async def unload(self, request: Request) -> Response:
        (name,) = _fields(await read_json(request), ("lora_name",))
        await self._on_engine(lambda: self.engine.unload(name))
        return Response(f"Success: LoRA adapter '{name}' removed successfully.")

    async def chat(self, request: Request) -> Response:
        body = await read_json(request)
        r = parse_chat(body)
        self.engine.require(r.model)
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue = asyncio.Queue()
        r.done = lambda result: loop.call_soon_threadsafe(queue.put_nowait, result)
        ident, created = f"chatcmpl-{secrets.token_hex(8)}", int(time.time())
        if not r.stream:
            self.engine.submit(r)
            result = await queue.get()
            if isinstance(result, Exception):
                raise result
            return JSONResponse(self._completion(ident, created, r, result))
        # The list grows on the engine thread: copy it there.
        r.on_token = lambda index, tokens: loop.call_soon_threadsafe(queue.put_nowait, (index, list(tokens)))
        self.engine.submit(r)
        first = await queue.get()
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


def _settle(future: asyncio.Future, result: object) -> None:
    if future.done():  # the client has gone
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(
        description="Serve a vision-language model and its LoRA adapters over vLLM's HTTP calls."
    )
    p.add_argument(
        "--model", required=True, help="folder of a Hugging Face image-text-to-text model with its processor"
    )
    p.add_argument("--host", default="127.0.0.1")
    p.add_argument("--port", type=int, default=8000)
    p.add_argument("--served-model-name", help="default: the folder as given")
    # One: on a machine that is busy with the stream, two threads that wait for each other took six times as long.
    p.add_argument("--threads", type=int, default=1, help="CPU threads of the model")
    p.add_argument("--max-batch", type=int, default=256, help="answers generated together")
    p.add_argument("--max-lora-rank", type=int, default=256)
    a = p.parse_args(argv)
    import uvicorn

    engine = Engine(a.model, a.served_model_name or a.model, a.threads, a.max_batch, a.max_lora_rank)
    engine.thread.start()
    # Kept connections outlive any client's pause: a request on one that is just being closed would fail.
    options = {"log_level": "warning", "timeout_graceful_shutdown": 5, "timeout_keep_alive": 75}
    uvicorn.run(Server(engine).app(), host=a.host, port=a.port, **options)
    engine.stop()


if __name__ == "__main__":
    main()
