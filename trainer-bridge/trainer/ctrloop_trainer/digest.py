"""Digests of files and folders, equal to those of the Go artifact store."""

import hashlib
from pathlib import Path

from .errors import BadInputError


def file_digest(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def dir_digest(folder: Path) -> str:
    """SHA-256 over "<file digest>  <slash path>\\n" of every regular file, sorted by path."""
    lines = []
    for path in Path(folder).rglob("*"):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise BadInputError(f"{path} is not a regular file: an artifact must mean the same everywhere")
        if path.is_file():
            lines.append((path.relative_to(folder).as_posix() + "\n", file_digest(path)))
    text = "".join(f"{digest}  {name}" for name, digest in sorted(lines, key=lambda x: x[0].encode()))
    return hashlib.sha256(text.encode()).hexdigest()


def code_digest() -> str:
    """Digest of this package's own sources: which code made an artifact."""
    here = Path(__file__).parent
    text = "".join(f"{file_digest(p)}  {p.relative_to(here).as_posix()}\n" for p in sorted(here.rglob("*.py")))
    return hashlib.sha256(text.encode()).hexdigest()
