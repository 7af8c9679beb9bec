"""What judges have answered, on disk: paid once, and still there after a kill."""

import dataclasses
import fcntl
import json
import os
from pathlib import Path

from ..errors import BadInputError
from .judge_api import Answer


class Cache:
    """One JSON line per answer, appended as it comes; no key, no picture and no price is in it.

    A kill can cut the last line: it is dropped on the next opening. One process at a time may have it open.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a+b")  # noqa: SIM115 closed by close()
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            self._file.close()
            raise BadInputError(f"another process is writing {path}: wait for it, or use another judge_cache") from e
        self._answers: dict[str, Answer | None] = {}  # None: the service refused the content
        self._lost: dict[str, int] = {}
        self._load(path)

    def _load(self, path: Path) -> None:
        self._file.seek(0)
        raw = self._file.read()
        whole = raw.rfind(b"\n") + 1
        if whole < len(raw):
            os.ftruncate(self._file.fileno(), whole)
        for n, line in enumerate(raw[:whole].splitlines(), 1):
            try:
                row = json.loads(line)
                if "lost" in row:
                    self._lost[row["key"]] = self._lost.get(row["key"], 0) + int(row["lost"])
                elif row["answer"] is None:
                    self._answers[row["key"]] = None
                else:
                    answer = Answer(**row["answer"])
                    self._answers[row["key"]] = dataclasses.replace(answer, first=_pair(answer.first))
            except (ValueError, KeyError, TypeError) as e:
                raise BadInputError(f"{path}:{n} is not a cached answer ({e!r}): remove the line or the file") from e

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> Answer | None:
        return self._answers[key]

    def lost(self, key: str) -> int:
        """Requests for this key that may have been charged and brought nothing."""
        return self._lost.get(key, 0)

    def put(self, key: str, answer: Answer | None) -> None:
        """Remembers an answer; None for refused content."""
        self._answers[key] = answer
        self._append({"key": key, "answer": None if answer is None else dataclasses.asdict(answer)})

    def put_lost(self, key: str, requests: int) -> None:
        """Remembers requests that may have been charged."""
        self._lost[key] = self.lost(key) + requests
        self._append({"key": key, "lost": requests})

    def _append(self, row: dict) -> None:
        # One write call a line: a kill leaves either the whole line or a cut that the next opening drops.
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Releases the file."""
        self._file.close()


def _pair(first: list[float] | None) -> tuple[float, float] | None:
    return None if first is None else (float(first[0]), float(first[1]))
