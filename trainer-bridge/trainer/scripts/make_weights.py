"""Makes the weights that ship, each by one job: `python scripts/make_weights.py --ctrloop ../../bin/ctrloop --out DIR`.

Writes grammar, catalogue and specifications to DIR, and runs the jobs one after the other; DIR/<name>/model is what
weights/<name> holds. A run that was stopped goes on when the command is given again. Torch's sums depend on machine
and threads in their last bits, so another machine makes the like, not the same bytes.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

FINISH = {
    **{"vision_steps": 0, "steps": 180, "lr": 1.5e-3, "warm_up": 20, "pictures": 3_000},
    **{"image_share": 0.08, "content_share": 0.22, "clean": 0.0, "fit": 0.80, "harmony": 0.88},
}


@dataclasses.dataclass(frozen=True)
class Weights:
    """One job of the chain: the folder below weights/ that it makes, or a parent of one."""

    name: str
    kind: str
    seed: int
    hues: int  # variants of every product in the catalogue: a colour is learnt from products of that colour
    base: str | None = None  # name of the job that it continues
    hyper: dict[str, Any] = dataclasses.field(default_factory=dict)  # where not the defaults of the job's Hyper


CHAIN = (
    Weights("prompt-base-start", "pretrain", 1, hues=12),
    # The finish: prompts above all, by a teacher whose mistakes are those that the model shall keep.
    Weights("prompt-base", "pretrain", 2, hues=12, base="prompt-base-start", hyper=FINISH),
    Weights("reward-trunk", "trunk", 11, hues=5),
    Weights("referee-trunk", "trunk", 12, hues=5, hyper={"steps": 1400}),
    Weights("image-model", "diffusion", 1, hues=5),
)


def specification(w: Weights, out: Path, renderer: list[str], threads: int, hyper: dict[str, Any]) -> dict[str, Any]:
    """The job of w; out holds grammar.json, catalogue-<hues>.jsonl and the folders of the jobs before. hyper is laid
    over w's own."""
    return {
        "kind": w.kind,
        "id": w.name,
        "seed": w.seed,
        "threads": threads,
        **({"base": str(out / w.base / "model")} if w.base else {}),
        "renderer": renderer,
        "grammar": str(out / "grammar.json"),
        "catalogue": str(out / f"catalogue-{w.hues}.jsonl"),
        "hyper": {**w.hyper, **hyper},
    }


def chosen(only: str | None) -> tuple[Weights, ...]:
    """The jobs to run: all, or one with those that it continues."""
    if only is None:
        return CHAIN
    w = next(w for w in CHAIN if w.name == only)
    return (*(chosen(w.base) if w.base else ()), w)


def open_shop(ctrloop: str, shop: Path, chain: tuple[Weights, ...]) -> None:
    """Writes grammar and catalogues, as the binary prints them."""
    shop.mkdir(parents=True, exist_ok=True)
    wanted = {f"catalogue-{w.hues}.jsonl": ["catalogue", "--hues", str(w.hues)] for w in chain}
    for name, arguments in {"grammar.json": ["grammar"], **wanted}.items():
        said = subprocess.run([ctrloop, "render", *arguments], check=True, stdout=subprocess.PIPE).stdout
        (shop / name).write_bytes(said)


def main(argv: list[str] | None = None) -> int:
    """The command line; the exit code is that of the first job that fails."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--ctrloop", default="bin/ctrloop", help="the binary that draws (make build)")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--only", choices=[w.name for w in CHAIN], help="make this folder alone")
    p.add_argument("--threads", type=int, default=1, help="of PyTorch")
    p.add_argument("--hyper", type=json.loads, default={}, help="JSON object laid over the defaults, for a try")
    a = p.parse_args(argv)
    chain = chosen(a.only)
    open_shop(a.ctrloop, a.out, chain)
    for w in chain:
        spec = a.out / f"{w.name}.json"
        renderer = [a.ctrloop, "render", "pipe"]
        text = json.dumps(specification(w, a.out, renderer, a.threads, a.hyper), indent=2) + "\n"
        # lineage.json is the last file that a job writes.
        if spec.is_file() and spec.read_text() == text and (a.out / w.name / "lineage.json").is_file():
            continue
        spec.write_text(text)
        job = [sys.executable, "-m", "ctrloop_trainer.job", str(spec), "--out", str(a.out / w.name), "--echo"]
        if code := subprocess.run(job, env=with_package()).returncode:
            return code
    return 0


def with_package() -> dict[str, str]:
    """The environment, with this package on Python's path."""
    return {**os.environ, "PYTHONPATH": str(HERE.parent)}


if __name__ == "__main__":
    sys.exit(main())
