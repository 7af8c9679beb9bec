"""The protocol of `ctrloop render pipe`, painted by diffusion: a `renderer` for any job.

JSON arrays of {"product", "text", "seed", "px"} in, a JSON header line and RGB out (see render.py). Well-formed
descriptions are painted; plain views, coverage and everything else is the scene renderer's answer, which runs as a
child of this process and knows the products.

Run: python -m ctrloop_trainer.diffusion.pipe --model DIR --grammar FILE -- ctrloop render pipe
"""

import argparse
import json
import os
import sys
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from ..errors import BadInputError, JobError
from ..grammar import Grammar
from ..render import Renderer, Shot
from .canvas import Canvas
from .judge import canvases
from .model import ImageModel, Job, PromptError

MAX_CANVASES = 4096  # kept; 16 KiB each at 64 px
DEFAULT_PX = 64


class Pipe:
    """Answers requests, one after the other."""

    def __init__(self, model: ImageModel, grammar: Grammar, renderer: Renderer, batch: int):
        self.model, self.grammar, self.renderer, self.batch = model, grammar, renderer, batch
        self._canvases: OrderedDict[tuple[str, int], Canvas] = OrderedDict()

    def answer(self, line: bytes) -> tuple[dict, bytes]:
        """Header and pixels of one request; BadInputError says what is wrong with it."""
        shots, px = self._shots(line)
        self.renderer.px = px
        images, valid = np.zeros((len(shots), px, px, 3), np.uint8), np.zeros(len(shots), bool)
        paint = [i for i, s in enumerate(shots) if not s.view and self.grammar.parse(s.text) is not None]
        other = sorted(set(range(len(shots))) - set(paint))
        if other:
            images[other], valid[other] = self.renderer.render([shots[i] for i in other])
        if paint:
            valid[paint] = True
            images[paint] = self._painted([shots[i] for i in paint], px)
        return {"n": len(shots), "px": px, "valid": valid.tolist()}, images.tobytes()

    def _painted(self, shots: list[Shot], px: int) -> np.ndarray:
        wanted = dict.fromkeys(s.product for s in shots)
        new = [p for p in wanted if (p, px) not in self._canvases]
        for p, canvas in zip(new, canvases(self.renderer, new), strict=True):
            self._canvases[p, px] = canvas
        here = {p: self._canvases[p, px] for p in wanted}
        for p in wanted:
            self._canvases.move_to_end((p, px))
        while len(self._canvases) > max(MAX_CANVASES, len(wanted)):
            self._canvases.popitem(last=False)
        try:
            jobs = [Job(self.model.check_prompt(s.text), here[s.product], s.seed) for s in shots]
        except PromptError as e:
            raise BadInputError(str(e)) from e
        return np.stack(self.model.paint(jobs, self.batch))

    @staticmethod
    def _shots(line: bytes) -> tuple[list[Shot], int]:
        try:
            rows = json.loads(line)
            shots = [Shot(r["product"], r.get("text", ""), r.get("seed", 0), r.get("view", "")) for r in rows]
            sizes = {r.get("px", 0) or DEFAULT_PX for r in rows}
        except (ValueError, TypeError, KeyError, AttributeError) as e:
            raise BadInputError(f"want a JSON array of product, text, seed and px: {e!r}") from e
        if len(sizes) > 1 or not all(isinstance(p, int) and 8 <= p <= 512 for p in sizes):
            raise BadInputError(f"want one px from 8 to 512 for the whole request, got {sorted(sizes, key=str)}")
        return shots, sizes.pop() if sizes else DEFAULT_PX


def serve(pipe: Pipe, source: BinaryIO, sink: BinaryIO) -> None:
    """Answers lines until the source ends."""
    for line in source:
        if line.strip():
            head, pixels = pipe.answer(line)
            sink.write(json.dumps(head).encode() + b"\n" + pixels)
            sink.flush()


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    p = argparse.ArgumentParser(prog="ctrloop_trainer.diffusion.pipe", description=__doc__.splitlines()[0])
    p.add_argument("--model", required=True, type=Path, help="diffusers folder of the image model")
    p.add_argument("--controlnet", type=Path, help="folder of a canny ControlNet, when the model has none")
    p.add_argument("--grammar", required=True, type=Path, help="output of `ctrloop render grammar`")
    p.add_argument("--device", default="cpu")
    p.add_argument("--precision", default="float32")
    # One: on a machine that is busy with the stream, two threads wait for each other and take several times as long.
    p.add_argument("--threads", type=int, default=1, help="CPU threads of the model")
    p.add_argument("--batch", type=int, default=32, help="pictures painted together")
    p.add_argument("renderer", nargs="+", help="command line of `ctrloop render pipe`, after --")
    a = p.parse_args(argv)
    torch.set_num_threads(a.threads)
    # Whatever a library prints must not get between the pictures.
    sink = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    sys.stdout = sys.stderr
    try:
        model = ImageModel.load(a.model, a.controlnet, a.device, a.precision)
        with Renderer(a.renderer) as renderer:
            serve(Pipe(model, Grammar.load(a.grammar), renderer, a.batch), sys.stdin.buffer, sink)
    except JobError as e:
        print(e, file=sys.stderr)
        return e.exit_code
    except BrokenPipeError:
        return 0  # who asked has gone
    return 0


if __name__ == "__main__":
    sys.exit(main())
