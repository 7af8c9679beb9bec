"""May a job go on from what an earlier run of it left? Only the same specification by the same code may."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .digest import code_digest
from .errors import BadInputError
from .progress import Progress, write_json
from .spec import Spec


def claim(marker: Path, spec: Spec, kept: Sequence[Path]) -> None:
    """Writes down whose folder this is. BadInputError where there is something kept of another job, or of this one by
    another version of the trainer: half a model by each would be no version's.

    Where the marker is gone or cut nobody can tell, so what was kept is removed and made again.
    """
    told = {**dataclasses.asdict(spec), "code": code_digest()}
    if any(p.exists() for p in kept):
        try:
            before = json.loads(marker.read_text())
        except (OSError, ValueError):
            for p in kept:
                shutil.rmtree(p, ignore_errors=True)
        else:
            changed = [k for k in told if before.get(k) != told[k]]
            if changed == ["code"]:
                raise BadInputError(f"{marker.parent} was begun by another version of the trainer: use a new folder")
            if changed:
                raise BadInputError(
                    f"{marker.parent} holds the state of another job ({', '.join(changed)} differ): use a new folder"
                )
    marker.parent.mkdir(parents=True, exist_ok=True)
    write_json(marker, told)


def checkpoint(path: Path, progress: Progress) -> dict[str, Any] | None:
    """What torch.save wrote; None where there is nothing, or a file that a kill or a full disk has cut: it is removed,
    and what it held is made again."""
    if not path.is_file():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # the kinds that torch.load raises for broken files are many
        progress.log(stage="started over", file=path.name, why=repr(e)[:200])
        path.unlink()
        return None
