"""The job specification (spec.json), checked in full before any work starts."""

import dataclasses
import json
import zlib
from pathlib import Path
from typing import Any

from .digest import dir_digest
from .errors import BadInputError

KINDS = ("pretrain", "trunk", "describe", "reward", "evaluate", "rounds", "diffusion")

# What each kind must be given besides kind, id and seed.
REQUIRED = {
    "pretrain": (),  # the job asks for the three below, or for a folder to learn from in `dataset`
    "trunk": ("renderer", "grammar", "catalogue"),
    "describe": ("base", "renderer", "grammar", "catalogue"),
    "reward": ("dataset", "grammar", "catalogue"),
    "evaluate": ("dataset",),
    "diffusion": ("renderer", "grammar", "catalogue"),
    "rounds": ("base", "reward_model", "renderer", "grammar", "catalogue"),
}
TYPES = {
    "seed": int,
    "threads": int,
    "hyper": dict,
    "renderer": list,
    "device": str,
    "precision": str,
    "quantize": str,
    "checkpointing": bool,
    "base_name": str,
}
FOLDERS = ("base", "dataset", "reward_model", "referee_model", "reward_base", "previous")
FILES = ("grammar", "catalogue", "truth")


@dataclasses.dataclass
class Spec:
    """One job. Paths are absolute or relative to the working directory."""

    kind: str
    id: str
    seed: int = 0
    threads: int = 1  # of PyTorch; one beats two on a machine that is busy with the stream
    device: str = "cpu"  # cpu, cuda or auto; see placement.py for these four
    precision: str = "fp32"  # fp32, bf16 or fp16
    quantize: str = ""  # "4bit": QLoRA, needs bitsandbytes and a GPU
    checkpointing: bool = False  # recompute activations: less memory, a third more time
    base: str | None = None  # folder of the base prompt model
    base_digest: str | None = None  # checked when given
    base_name: str | None = None  # by which others find the base: its name on a hub; adapters carry it
    dataset: str | None = None
    dataset_digest: str | None = None  # checked when given
    reward_model: str | None = None  # ranks the pairs
    referee_model: str | None = None  # second reward model, only for the gates
    reward_base: str | None = None  # what a two-image reward model was tuned from, where that is not `base`
    previous: str | None = None  # reward model of the cycle before: warm start, and drift on the fresh pairs
    truth: str | None = None  # JSON object creative -> true click-through rate, where a simulation knows it
    renderer: list[str] | None = None  # command line of `ctrloop render pipe`
    grammar: str | None = None
    catalogue: str | None = None
    hyper: dict[str, Any] = dataclasses.field(default_factory=dict)


def load(path: Path) -> Spec:
    """Reads and checks a specification; BadInputError lists every problem found."""
    try:
        raw = json.loads(Path(path).read_text())
    except OSError as e:
        raise BadInputError(f"cannot read the specification {path}: {e}") from e
    except json.JSONDecodeError as e:
        raise BadInputError(f"the specification {path} is not JSON: {e}") from e
    if not isinstance(raw, dict):
        raise BadInputError(f"the specification {path} must be a JSON object")
    return check(raw)


def check(raw: dict[str, Any]) -> Spec:
    """Checks a decoded specification, digests included."""
    known = {f.name for f in dataclasses.fields(Spec)}
    problems = [f"{k}: unknown field, known are {', '.join(sorted(known))}" for k in sorted(set(raw) - known)]
    kind = raw.get("kind")
    if kind not in KINDS:
        raise BadInputError(f"kind: {kind!r} is unknown, use one of {', '.join(KINDS)}")
    problems += [f"{k}: missing, a {kind} job needs it" for k in ("id", *REQUIRED[kind]) if not raw.get(k)]
    for k, want in TYPES.items():
        if raw.get(k) is not None and (not isinstance(raw[k], want) or isinstance(raw[k], bool) != (want is bool)):
            problems.append(f"{k}: must be {want.__name__}, got {raw[k]!r}")
    for k in FOLDERS:
        if raw.get(k) and not Path(raw[k]).is_dir():
            problems.append(f"{k}: no folder at {raw[k]}")
    for k in FILES:
        if raw.get(k) and not Path(raw[k]).is_file():
            problems.append(f"{k}: no file at {raw[k]}")
    if problems:
        raise BadInputError("the specification is not usable:\n  " + "\n  ".join(problems))
    for k in ("base", "dataset"):
        want = raw.get(f"{k}_digest")
        if raw.get(k) and want and (got := dir_digest(Path(raw[k]))) != want:
            raise BadInputError(
                f"{k}_digest: {raw[k]} has digest {got}, the specification says {want}; "
                f"give the {k} that was meant, or its digest"
            )
    return Spec(**{k: v for k, v in raw.items() if v is not None})


def hyper(cls: type, given: dict[str, Any]) -> Any:
    """Hyper-parameters as the dataclass cls; unknown names and wrong types are errors, not silently defaults."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    problems = [f"hyper.{k}: unknown, known are {', '.join(sorted(fields))}" for k in sorted(set(given) - set(fields))]
    values = {}
    for k in set(given) & set(fields):
        f = fields[k]
        default = f.default_factory() if f.default is dataclasses.MISSING else f.default
        v = given[k]
        if isinstance(default, float) and isinstance(v, int) and not isinstance(v, bool):
            v = float(v)
        if type(v) is not type(default):
            problems.append(f"hyper.{k}: must be {type(default).__name__}, got {v!r}")
        values[k] = v
    if problems:
        raise BadInputError("the hyper-parameters are not usable:\n  " + "\n  ".join(problems))
    return cls(**values)


def derive(seed: int, *what: object) -> int:
    """A seed for one purpose: equal for equal purposes, unrelated for others, and small enough for every library."""
    return zlib.crc32("/".join(str(x) for x in (seed, *what)).encode())
