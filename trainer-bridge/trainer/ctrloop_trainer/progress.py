"""Live curves (metrics.jsonl), interruption, and files that are either whole or absent."""

import contextlib
import json
import math
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import DivergedError, InterruptedJobError


class Progress:
    """Appends one JSON object a line; knows whether the job was asked to stop."""

    def __init__(self, out: Path, echo: bool = False):
        end_line(out / "metrics.jsonl")
        self._file = open(out / "metrics.jsonl", "a", buffering=1)  # noqa: SIM115 closed with the process
        self._echo, self._start, self._stop = echo, time.monotonic(), False

    def catch_sigterm(self) -> None:
        """From now on SIGTERM lets the job stop at its next check_interrupted."""
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "_stop", True))

    def log(self, **row: Any) -> None:
        """One point of the curve; seconds since the start are added."""
        text = json.dumps({**plain(row), "seconds": round(time.monotonic() - self._start, 2)})
        self._file.write(text + "\n")
        if self._echo:
            print(text, flush=True)

    def check_interrupted(self) -> None:
        if self._stop:
            raise InterruptedJobError("stopped by SIGTERM; finished epochs are kept, run the same command to go on")


def end_line(path: Path) -> None:
    """Ends the last line of a file that a kill has cut: what follows must not become part of it."""
    if path.is_file() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
        with open(path, "ab") as f:
            f.write(b"\n")


def check_loss(value: float, where: str) -> None:
    """DivergedError for a NaN or infinite loss."""
    if not math.isfinite(value):
        raise DivergedError(f"the loss is {value} in {where}: lower the learning rate or look at the data")


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A path to write to; what is there in the end takes the place of path, whole and on the disk.

    A reader sees the old content or the new one, also after the process is killed or the machine loses its power.
    """
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield tmp
        _to_disk(tmp)
        os.replace(tmp, path)
        _to_disk(path.parent)  # the new name, too
    finally:
        tmp.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    at = os.open(path, os.O_RDONLY)
    try:
        os.fsync(at)
    finally:
        os.close(at)


def write_text(path: Path, text: str) -> None:
    """Replaces a file by text."""
    with replaced(path) as tmp:
        tmp.write_text(text)


def write_json(path: Path, value: Any) -> None:
    """Replaces a file by value; NaN and infinity, which are not JSON, become null."""
    write_text(path, json.dumps(plain(value), indent=2) + "\n")


def write_lines(path: Path, rows: list[dict]) -> None:
    """Replaces a file by JSON lines."""
    write_text(path, "".join(json.dumps(plain(r)) + "\n" for r in rows))


def plain(value: Any) -> Any:
    """value with None in the place of numbers that are not finite: a figure is right or absent."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value
