"""Live curves (metrics.jsonl), interruption, and files that are either whole or absent."""

import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

from .errors import DivergedError, InterruptedJobError


class Progress:
    """Appends one JSON object a line; knows whether the job was asked to stop."""

    def __init__(self, out: Path, echo: bool = False):
        self._file = open(out / "metrics.jsonl", "a", buffering=1)  # noqa: SIM115 closed with the process
        self._echo, self._start, self._stop = echo, time.monotonic(), False

    def catch_sigterm(self) -> None:
        """From now on SIGTERM lets the job stop at its next check_interrupted."""
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "_stop", True))

    def log(self, **row: Any) -> None:
        """One point of the curve; seconds since the start are added."""
        text = json.dumps({**row, "seconds": round(time.monotonic() - self._start, 2)})
        self._file.write(text + "\n")
        if self._echo:
            print(text, flush=True)

    def check_interrupted(self) -> None:
        if self._stop:
            raise InterruptedJobError("stopped by SIGTERM; finished epochs are kept, run the same command to go on")


def check_loss(value: float, where: str) -> None:
    """DivergedError for a NaN or infinite loss."""
    if not math.isfinite(value):
        raise DivergedError(f"the loss is {value} in {where}: lower the learning rate or look at the data")


def write_json(path: Path, value: Any) -> None:
    """Writes value so that a reader sees the old content or the new, never half of it."""
    tmp = path.with_name(path.name + ".tmp")
    tmp.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(tmp, path)


def write_lines(path: Path, rows: list[dict]) -> None:
    """Writes JSON lines atomically."""
    tmp = path.with_name(path.name + ".tmp")
    tmp.write_text("".join(json.dumps(r) + "\n" for r in rows))
    os.replace(tmp, path)
