"""Client of `ctrloop render pipe`: pictures of products in front of described backgrounds, by a child process."""

import contextlib
import json
import signal
import subprocess
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .errors import BadInputError, InterruptedJobError, JobError, KilledError
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
        self._drained = threading.Thread(target=self._drain, daemon=True)
        self._drained.start()

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
            line = self._child.stdout.readline()
        except OSError as e:
            raise self._dead() from e
        if not line.endswith(b"\n"):
            raise self._dead()
        head = self._head(line)
        if "error" in head:
            raise BadInputError(f"renderer: {head['error']}")
        n, px = head["n"], head["px"]
        if n != len(shots) or px != self.px or len(head["valid"]) != n:
            raise JobError(f"renderer: asked for {len(shots)} pictures of {self.px} px, got {n} of {px} px")
        raw = self._child.stdout.read(n * px * px * 3)
        if len(raw) != n * px * px * 3:
            raise self._dead()
        return np.frombuffer(raw, np.uint8).reshape(n, px, px, 3), np.array(head["valid"], bool)

    def _head(self, line: bytes) -> dict:
        try:
            head = json.loads(line)
        except ValueError:
            head = None
        if not isinstance(head, dict):
            raise BadInputError(f"renderer: {self._command} answers {line[:80]!r}, not like `ctrloop render pipe`")
        return head

    def _dead(self) -> JobError:
        """Why there is no answer, or only a part of one."""
        by_itself = self._end()
        self._drained.join(timeout=5)
        code = self._child.returncode
        if by_itself and code < 0:
            # Nothing is wrong with the job: a stop reaches the children of a process group, too, and maybe before us.
            kind = KilledError if code == -signal.SIGKILL else InterruptedJobError
            return kind(f"renderer: {self._command} was ended by {_name(-code)}; run the same command again to go on")
        tail = b"".join(self._stderr).decode(errors="replace").strip()
        return BadInputError(f"renderer: {self._command} ended with code {code}: {tail or 'it said nothing'}")

    def _end(self) -> bool:
        """Ends the child; whether it went by itself when nothing more was asked."""
        with contextlib.suppress(BrokenPipeError):  # a child that has died already has said why elsewhere
            self._child.stdin.close()
        try:
            self._child.wait(timeout=5)
            return True
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
            return False

    def close(self) -> None:
        """Ends the child."""
        self._end()
        self._child.stdout.close()

    def __enter__(self) -> "Renderer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _name(number: int) -> str:
    """SIGTERM for 15; real-time signals have no name."""
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
