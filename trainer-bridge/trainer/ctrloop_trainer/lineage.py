"""Where an artifact came from: lineage.json beside every job's output, figures.json inside shipped weights."""

import datetime
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import torch

from .digest import code_digest, dir_digest
from .progress import write_json
from .spec import Spec

PACKAGES = ("torch", "transformers", "peft", "tokenizers", "safetensors", "numpy", "pyarrow")


def versions() -> dict[str, str]:
    """Versions of what computes."""
    return {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in PACKAGES}}


def device() -> str:
    """What computed, in words."""
    if torch.cuda.is_available():
        return f"cuda: {torch.cuda.get_device_name()}"
    return f"cpu: {platform.machine()}, {torch.get_num_threads()} threads"


def write(out: Path, spec: Spec, parents: dict[str, str | None], artifact: str | None) -> None:
    """lineage.json of a job: parents are folders by role; artifact is the sub-folder of out that is the product."""
    write_json(
        out / "lineage.json",
        {
            "kind": spec.kind,
            "id": spec.id,
            "seed": spec.seed,
            "hyper": spec.hyper,
            "parents": {role: dir_digest(Path(p)) for role, p in parents.items() if p},
            "dataset_digest": dir_digest(Path(spec.dataset)) if spec.dataset else None,
            "base_digest": dir_digest(Path(spec.base)) if spec.base else None,
            "artifact": artifact,
            "artifact_digest": dir_digest(out / artifact) if artifact else None,
            "code_digest": code_digest(),
            "versions": versions(),
            "device": device(),
        },
    )


def write_figures(folder: Path, spec: Spec, figures: dict[str, Any], hyper: dict[str, Any]) -> None:
    """figures.json inside a weights folder: what made it and how good it was when made."""
    command = f"python -m ctrloop_trainer.job spec.json --out DIR  (kind {spec.kind}, seed {spec.seed})"
    made = {
        "command": command,
        "kind": spec.kind,
        "seed": spec.seed,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hyper": hyper,
        "continued_from": _made_from(Path(spec.base)) if spec.base else None,
        "figures": figures,
        "versions": versions(),
    }
    write_json(folder / "figures.json", made)


def _made_from(base: Path) -> dict[str, Any]:
    """Digest of a parent, and what its own figures.json says made it: two runs are reproducible from one file."""
    file = base / "figures.json"
    told = json.loads(file.read_text()) if file.is_file() else {}
    return {"digest": dir_digest(base), **{k: told.get(k) for k in ("command", "seed", "hyper", "continued_from")}}
