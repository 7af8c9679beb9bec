"""Client of `ctrloop render pipe`: pictures of products in front of described backgrounds, by a child process."""

import contextlib
import json
import subprocess
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .errors import BadInputError, JobError
from .pictures import VIEW_PX


class Shot(NamedTuple):
    """One picture: product in front of the described background; an empty text is the plain view."""

    product: str
    text: str
    seed: int = 0  # of the drawing: equal seeds differ only by their descriptions
    view: str = ""  # "alpha": the product's coverage as grey instead of a picture


class Renderer:
    """Keeps one child alive; render() is a request and a reply over its pipes. Not for several threads."""

    def __init__(self, command: Sequence[str], px: int = VIEW_PX, batch: int = 128):
        self.px, self.batch = px, batch
        self._command = list(command)
        try:
            self._child = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except OSError as e:
            raise BadInputError(f"renderer: cannot start {command}: {e}; is `ctrloop` built?") from e
        # stderr is drained all the time, or a chatty child would block on a full pipe.
        self._stderr: list[bytes] = []
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        for line in self._child.stderr:
            self._stderr = [*self._stderr[-19:], line]

    def render(self, shots: Sequence[Shot]) -> tuple[np.ndarray, np.ndarray]:
        """Pictures, uint8 (n, px, px, 3), and which descriptions were well formed, bool (n,)."""
        if not shots:
            return np.zeros((0, self.px, self.px, 3), np.uint8), np.zeros(0, bool)
        parts = [self._request(shots[i : i + self.batch]) for i in range(0, len(shots), self.batch)]
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def _request(self, shots: Sequence[Shot]) -> tuple[np.ndarray, np.ndarray]:
        ask = [{"product": s.product, "text": s.text, "seed": s.seed, "px": self.px} for s in shots]
        for row, s in zip(ask, shots, strict=True):
            if s.view:
                row["view"] = s.view
        try:
            self._child.stdin.write(json.dumps(ask).encode() + b"\n")
            self._child.stdin.flush()
            head = json.loads(self._child.stdout.readline())
        except (OSError, json.JSONDecodeError) as e:
            raise self._dead() from e
        if "error" in head:
            raise BadInputError(f"renderer: {head['error']}")
        n, px = head["n"], head["px"]
        if n != len(shots) or px != self.px or len(head["valid"]) != n:
            raise JobError(f"renderer: asked for {len(shots)} pictures of {self.px} px, got {n} of {px} px")
        raw = self._child.stdout.read(n * px * px * 3)
        if len(raw) != n * px * px * 3:
            raise self._dead()
        return np.frombuffer(raw, np.uint8).reshape(n, px, px, 3), np.array(head["valid"], bool)

    def _dead(self) -> JobError:
        self._child.kill()
        code = self._child.wait()
        tail = b"".join(self._stderr).decode(errors="replace").strip()
        return BadInputError(f"renderer: {self._command} ended with code {code}: {tail or 'it said nothing'}")

    def close(self) -> None:
        """Ends the child."""
        with contextlib.suppress(BrokenPipeError):  # a child that has died already has said why elsewhere
            self._child.stdin.close()
        try:
            self._child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child.stdout.close()

    def __enter__(self) -> "Renderer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
