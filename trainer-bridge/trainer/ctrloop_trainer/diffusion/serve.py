"""Image server: Stable Diffusion inpainting around products, behind OpenAI's image edits call.

`POST /v1/images/edits`, multipart form, as OpenAI has it: transparent means paint here.

    image            PNG with alpha, square: the canvas with the product in its place. One canvas a call.
    mask             PNG with alpha of the same size, optional: only what is opaque in both is kept.
    prompt           the background
    n                pictures, 1 to 8; picture i has seed + i
    size             "auto" or the canvas's own, such as 256x256
    seed             not OpenAI's: the same canvas, prompt and seed give the same picture. Default 0.
    layout           not OpenAI's: "as is", or "centred": the image is a cut-out of any shape, cropped to what is
                     opaque, scaled to 0.78 of the canvas and centred; size then says how large the canvas is.
    model, response_format (b64_json), output_format (png), user    accepted

Kept pixels come back as they were, to the bit where they are fully opaque. The model paints at its own size; the
background is resized to the canvas.

Also GET /health, GET /v1/models, GET /metrics (Prometheus). HTTP runs on the event loop; one thread owns the model.
Requests that arrive while a batch is painted form the next one.

Run: python -m ctrloop_trainer.diffusion.serve --model DIR [--controlnet DIR] --host 127.0.0.1 --port N
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import dataclasses
import email.parser
import email.policy
import io
import json
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ..errors import BadInputError
from ..serve import ApiError, bad_request
from .canvas import Canvas, place
from .model import PRECISIONS, ImageModel, Job, PromptError

MAX_BODY_BYTES = 32 << 20
MIN_SIDE, MAX_SIDE = 16, 2048  # pixels of a canvas
MAX_PICTURES = 8  # of one call
MAX_WAITING = 4096  # pictures; beyond it the server answers 503
FIELDS = (
    *("image", "mask", "prompt", "n", "size", "seed", "layout"),
    *("model", "response_format", "output_format", "user"),
)
LAYOUTS = ("as is", "centred")


@dataclasses.dataclass
class Edit:
    """One call: the pictures that it asks for, and who waits for them."""

    jobs: list[Job]
    done: Callable[[list[np.ndarray] | Exception], None]


class Engine:
    """The model and the queue in front of it."""

    def __init__(self, model: ImageModel, name: str, max_batch: int):
        self.model, self.name, self.max_batch, self.created = model, name, max_batch, int(time.time())
        self.counts: Counter[str] = Counter()
        self.busy_seconds = 0.0
        self._lock = threading.Condition()
        self._waiting: deque[Edit] = deque()
        self._pictures = 0
        self._stopped = False
        self.thread = threading.Thread(target=self.run, name="engine", daemon=True)

    @property
    def waiting(self) -> int:
        """Pictures that nobody paints yet."""
        return self._pictures

    def submit(self, e: Edit) -> None:
        """Queues a call; e.done is called on the engine's thread."""
        with self._lock:
            if self._pictures + len(e.jobs) > MAX_WAITING:
                raise ApiError(
                    503, "ServiceUnavailableError", f"{self._pictures} pictures are waiting already, try again later."
                )
            self._pictures += len(e.jobs)
            self._waiting.append(e)
            self._lock.notify()

    def stop(self) -> None:
        """Ends the thread after the batch in hand."""
        with self._lock:
            self._stopped = True
            self._lock.notify()

    def run(self) -> None:
        """The engine's thread."""
        while True:
            with self._lock:
                while not (self._waiting or self._stopped):
                    self._lock.wait()
                if self._stopped:
                    return
                batch = self._take()
            self._serve(batch)

    def _take(self) -> list[Edit]:
        batch, pictures = [], 0
        while self._waiting and (not batch or pictures + len(self._waiting[0].jobs) <= self.max_batch):
            e = self._waiting.popleft()
            pictures += len(e.jobs)
            batch.append(e)
        self._pictures -= pictures
        return batch

    def _serve(self, batch: list[Edit]) -> None:
        start = time.perf_counter()
        jobs = [j for e in batch for j in e.jobs]
        try:
            painted = self.model.paint(jobs, self.max_batch)
        except Exception as e:
            if len(batch) == 1:
                batch[0].done(e)
                return
            for one in batch:  # one bad request must not fail its neighbours
                self._serve([one])
            return
        seconds = time.perf_counter() - start
        self.busy_seconds += seconds
        self.counts.update(batches=1, pictures=len(jobs))
        log(event="painted", pictures=len(jobs), seconds=round(seconds, 3), waiting=self.waiting)
        for e in batch:
            e.done(painted[: len(e.jobs)])
            painted = painted[len(e.jobs) :]


def log(**fields: object) -> None:
    """One line of JSON on standard error."""
    print(json.dumps(fields), file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------- requests


async def read_form(request: Request) -> dict[str, bytes]:
    """Parts of a multipart form by name. Each may come once."""
    kind = request.headers.get("content-type", "")
    if not kind.lower().startswith("multipart/form-data"):
        raise ApiError(415, "BadRequestError", f"want multipart/form-data as OpenAI's image edits, got {kind!r}.")
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_BODY_BYTES:
            raise ApiError(413, "BadRequestError", f"the body is larger than {MAX_BODY_BYTES} bytes.")
    head = f"Content-Type: {kind}\r\n\r\n".encode("latin-1", "replace")
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + bytes(raw))
    if not message.is_multipart():
        raise bad_request("the multipart form cannot be read: is its boundary right?")
    out: dict[str, bytes] = {}
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        if not isinstance(name, str):
            raise bad_request("a part of the form has no name.")
        name = name.removesuffix("[]")  # image[] is OpenAI's name for several
        if name not in FIELDS:
            raise bad_request(f"{name} is not supported by this server: {', '.join(FIELDS)}.", name)
        if name in out:
            raise bad_request(f"{name} is given twice.", name)
        out[name] = part.get_payload(decode=True) or b""
    return out


def parse(form: dict[str, bytes], model: ImageModel, served: str) -> list[Job]:
    """The pictures that a form asks for; ApiError says what is wrong with it."""
    words = {k: _text(k, v) for k, v in form.items() if k not in ("image", "mask")}
    for key, only in (("response_format", "b64_json"), ("output_format", "png"), ("model", served)):
        if words.get(key, only) != only:
            code, kind = (404, "NotFoundError") if key == "model" else (400, "BadRequestError")
            raise ApiError(code, kind, f"{key} {words[key]!r}: this server knows {only!r}.", key)
    layout = words.get("layout", "as is")
    if layout not in LAYOUTS:
        raise bad_request(f"layout {layout!r}: want {' or '.join(map(repr, LAYOUTS))}.", "layout")
    n = _integer(words, "n", 1, 1, MAX_PICTURES)
    seed = _integer(words, "seed", 0, 0, (1 << 64) - 1)
    try:
        prompt = model.check_prompt(words.get("prompt", ""))
    except PromptError as e:
        raise bad_request(f"{e}.", "prompt") from e
    if "image" not in form:
        raise bad_request("image is required: a PNG with the product, transparent where to paint.", "image")
    canvas = _canvas(form, words.get("size", "auto"), layout, model.settings.px)
    return [Job(prompt, canvas, seed + i) for i in range(n)]


def _text(key: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as e:
        raise bad_request(f"{key} is not UTF-8: {e}", key) from e


def _integer(words: dict[str, str], key: str, default: int, low: int, high: int) -> int:
    text = words.get(key, str(default))
    if not text.isascii() or not text.isdigit() or len(text) > 20 or not low <= int(text) <= high:
        raise bad_request(f"{key} must be an integer in [{low}, {high}], got {text[:40]!r}.", key)
    return int(text)


def _canvas(form: dict[str, bytes], size: str, layout: str, native: int) -> Canvas:
    image = _png("image", form["image"])
    if "mask" in form:
        mask = _png("mask", form["mask"])
        if mask.shape != image.shape:
            raise bad_request(f"mask of {_size(mask)} for an image of {_size(image)}: want the same size.", "mask")
        image[..., 3] = np.minimum(image[..., 3], mask[..., 3])
    if layout == "centred":
        side = native if size == "auto" else _side(size)
        try:
            return place(image, side)
        except ValueError as e:
            raise bad_request(f"{e}: there is no product to paint around.", "image") from e
    if image.shape[0] != image.shape[1] or not MIN_SIDE <= len(image) <= MAX_SIDE:
        raise bad_request(f"image of {_size(image)}: want a square of {MIN_SIDE} to {MAX_SIDE} pixels.", "image")
    if size not in ("auto", _size(image)):
        raise bad_request(f"size {size!r}: pictures have the image's size, {_size(image)}; or say auto.", "size")
    if image[..., 3].min() == 255:
        raise bad_request("the image is opaque everywhere: make transparent what shall be painted.", "image")
    return Canvas.of_rgba(image)


def _side(size: str) -> int:
    w, _, h = size.partition("x")
    if not (w.isascii() and w.isdigit() and w == h and len(w) < 5 and MIN_SIDE <= int(w) <= MAX_SIDE):
        raise bad_request(f"size {size!r}: want a square of {MIN_SIDE} to {MAX_SIDE} pixels, such as 512x512.", "size")
    return int(w)


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


def _png(name: str, raw: bytes) -> np.ndarray:
    """Straight RGBA, uint8 (h, w, 4). The header is looked at before anything is decoded."""
    try:
        im = Image.open(io.BytesIO(raw), formats=("PNG",))
        if max(im.size) > MAX_SIDE:
            raise bad_request(f"{name} of {im.width}x{im.height}: want at most {MAX_SIDE} pixels a side.", name)
        return np.array(im.convert("RGBA"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        raise bad_request(f"{name} cannot be decoded as PNG: {e}.", name) from e


# ---------------------------------------------------------------------------------------------- HTTP


class Server:
    """The HTTP face of an Engine."""

    def __init__(self, engine: Engine):
        self.engine = engine

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/health", self.health, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/images/edits", self.edits, methods=["POST"]),
        ]
        return Starlette(routes=routes, exception_handlers={ApiError: self.refused, Exception: self.unexpected})

    def refused(self, _: Request, e: ApiError) -> Response:
        """An expected error."""
        self.engine.counts[f"code_{e.code}"] += 1
        return e.response()

    def unexpected(self, request: Request, e: Exception) -> Response:
        """A defect."""
        log(event="failed", error=f"{type(e).__name__}: {e}")
        return self.refused(request, ApiError(500, "InternalServerError", f"{type(e).__name__}: {e}"))

    async def health(self, _: Request) -> Response:
        """200 while the engine's thread lives."""
        if not self.engine.thread.is_alive():
            return ApiError(503, "ServiceUnavailableError", "the engine has stopped").response()
        return Response(status_code=200)

    async def models(self, _: Request) -> Response:
        """The one model, with how it samples."""
        e, settings = self.engine, dataclasses.asdict(self.engine.model.settings)
        card = {"id": e.name, "object": "model", "created": e.created, "owned_by": "ctrloop", "generation": settings}
        return JSONResponse({"object": "list", "data": [card]})

    async def metrics(self, _: Request) -> Response:
        """Prometheus text."""
        e = self.engine
        rows = [
            ("ctrloop_image_server_pictures_total", "counter", "", e.counts["pictures"]),
            ("ctrloop_image_server_batches_total", "counter", "", e.counts["batches"]),
            ("ctrloop_image_server_busy_seconds_total", "counter", "", round(e.busy_seconds, 6)),
            ("ctrloop_image_server_waiting_pictures", "gauge", "", e.waiting),
        ]
        codes = sorted(k.removeprefix("code_") for k in e.counts if k.startswith("code_"))
        rows += [
            ("ctrloop_image_server_requests_total", "counter", f'{{code="{c}"}}', e.counts[f"code_{c}"]) for c in codes
        ]
        text = "".join(f"# TYPE {name} {kind}\n" for name, kind in {r[0]: r[1] for r in rows}.items())
        text += "".join(f"{name}{labels} {value}\n" for name, _, labels, value in rows)
        return PlainTextResponse(text)

    async def edits(self, request: Request) -> Response:
        """Paints."""
        form = await read_form(request)
        # Decoding and resizing a large picture would hold up the loop.
        jobs = await asyncio.to_thread(parse, form, self.engine.model, self.engine.name)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future = loop.create_future()

        def settle(result: list[np.ndarray] | Exception) -> None:
            if answer.done():  # the client has gone
                return
            if isinstance(result, Exception):
                answer.set_exception(result)
            else:
                answer.set_result(result)

        self.engine.submit(Edit(jobs, lambda result: loop.call_soon_threadsafe(settle, result)))
        pictures = await answer
        data = [{"b64_json": p} for p in await asyncio.to_thread(lambda: [encode(p) for p in pictures])]
        self.engine.counts["code_200"] += 1
        size = f"{jobs[0].canvas.px}x{jobs[0].canvas.px}"
        return JSONResponse({"created": int(time.time()), "data": data, "output_format": "png", "size": size})


def encode(picture: np.ndarray) -> str:
    """Base64 of a PNG, written for speed."""
    b = io.BytesIO()
    Image.fromarray(picture).save(b, "PNG", compress_level=1)
    return base64.b64encode(b.getvalue()).decode()


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    p = argparse.ArgumentParser(prog="ctrloop_trainer.diffusion.serve", description=__doc__.splitlines()[0])
    p.add_argument(
        "--model", required=True, type=Path, help="diffusers folder: the shipped one, Stable Diffusion 1.5, ..."
    )
    p.add_argument("--controlnet", type=Path, help="folder of a canny ControlNet, when the model has none inside")
    p.add_argument("--host", default="127.0.0.1")
    p.add_argument("--port", type=int, default=8001)
    p.add_argument("--served-model-name", help="default: the folder as given")
    p.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    p.add_argument("--precision", choices=sorted(PRECISIONS), help="default: float32 on the CPU, float16 elsewhere")
    # One: on a machine that is busy with the stream, two threads wait for each other.
    p.add_argument("--threads", type=int, default=1, help="CPU threads of the model")
    p.add_argument("--max-batch", type=int, default=32, help="pictures painted together")
    a = p.parse_args(argv)
    import uvicorn

    torch.set_num_threads(a.threads)
    precision = a.precision or ("float32" if a.device == "cpu" else "float16")
    try:
        model = ImageModel.load(a.model, a.controlnet, a.device, precision)
    except BadInputError as e:
        print(e, file=sys.stderr)
        return e.exit_code
    engine = Engine(model, a.served_model_name or str(a.model), a.max_batch)
    engine.thread.start()
    # Kept connections outlive any client's pause: a request on one that is just being closed would fail.
    options = {"log_level": "warning", "timeout_graceful_shutdown": 5, "timeout_keep_alive": 75}
    uvicorn.run(Server(engine).app(), host=a.host, port=a.port, **options)
    engine.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
