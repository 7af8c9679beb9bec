"""`python -m ctrloop_trainer.job SPEC.json --out DIR`: runs one job, leaves its artifacts, exits by failure class.

Exit codes: 0 ok, 1 bug, 2 bad specification or input, 3 out of memory, 4 diverged, 5 interrupted (checkpointed),
6 too little evidence to learn from.
"""

import argparse
import importlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path

# Nothing heavy here: main() must be able to answer SIGTERM before PyTorch is there, whose import takes seconds.
from . import errors
from . import spec as specs
from .progress import Progress, write_json

# Kind of job -> the module with run(spec, out, progress), parents(spec) (folders by role, for the lineage) and
# ARTIFACT (the sub-folder of out that is the product, or None).
MODULES = {
    "pretrain": "prompt.pretrain",
    "trunk": "reward.trunk",
    "describe": "prompt.describe",
    "reward": "reward.train",
    "evaluate": "reward.evaluate",
    "rounds": "rounds.train",
    "diffusion": "diffusion.train",
}


def run(spec: specs.Spec, out: Path, echo: bool = False) -> None:
    """Runs a checked job in this process."""
    import torch

    from . import lineage

    # Imported when it runs: a reward job does not need what a language model needs.
    module = importlib.import_module(f".{MODULES[spec.kind]}", __package__)
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(spec.threads)
    progress = Progress(out, echo)
    progress.catch_sigterm()  # from here on there may be something to checkpoint
    progress.log(stage="start", kind=spec.kind, id=spec.id, seed=spec.seed)
    module.run(spec, out, progress)
    lineage.write(out, spec, module.parents(spec), module.ARTIFACT)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    p = argparse.ArgumentParser(prog="ctrloop_trainer.job", description=__doc__.splitlines()[0])
    p.add_argument("spec", type=Path)
    p.add_argument("--out", type=Path)
    p.add_argument("--echo", action="store_true", help="print the live curve, too")
    p.add_argument("--dry-run", action="store_true", help="say what the job would need: sizes, memory, steps, tokens")
    p.add_argument("--processes", type=int, default=4, help="of the dry run's columns for FSDP")
    a = p.parse_args(argv)
    if a.dry_run:
        return _dry_run(a.spec, a.processes)
    if a.out is None:
        p.error("--out is required")
    if int(os.environ.get("RANK", "0")) > 0:  # one of several under accelerate launch: the first one's is the result
        a.out = a.out / "processes" / os.environ["RANK"]
    signal.signal(signal.SIGTERM, _stop_at_once)
    try:
        run(specs.load(a.spec), a.out, a.echo)
    except errors.JobError as e:
        return _failed(a.out, e.exit_code, str(e))
    except (MemoryError, RuntimeError) as e:
        if _out_of_memory(e):
            return _failed(a.out, errors.OUT_OF_MEMORY, f"out of memory: {e}; lower the batch or use a larger machine")
        return _failed(a.out, errors.BUG, traceback.format_exc())
    except Exception:
        return _failed(a.out, errors.BUG, traceback.format_exc())
    return errors.OK


def _dry_run(spec: Path, processes: int) -> int:
    from . import dryrun

    try:
        dryrun.main(spec, processes)
    except errors.JobError as e:
        print(e, file=sys.stderr)
        return e.exit_code
    return errors.OK


def _stop_at_once(*_: object) -> None:
    """SIGTERM before the job has begun: nothing is written yet, and an exception might be swallowed by an import."""
    os.write(2, b"stopped by SIGTERM before the job began; run the same command again\n")
    os._exit(errors.INTERRUPTED)


def _out_of_memory(e: Exception) -> bool:
    # PyTorch's CPU allocator has no exception of its own, and the GPU's class may not be imported yet.
    told = "can't allocate memory" in str(e) or "not enough memory" in str(e)
    return isinstance(e, MemoryError) or type(e).__name__ == "OutOfMemoryError" or told


def _failed(out: Path, code: int, message: str) -> int:
    print(message, file=sys.stderr)
    if out.is_dir():
        write_json(out / "error.json", {"exit_code": code, "error": json.loads(json.dumps(message))})
    return code


if __name__ == "__main__":
    sys.exit(main())
