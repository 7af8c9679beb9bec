"""`python -m ctrloop_trainer.settings`: are these hyper-parameters usable, and what do they come to?

Reads a JSON list of {"kind", "hyper"} on standard input and prints the list of all their settings, defaults included.
Exit code 2, with every problem, where a job would refuse them: a caller that prepares jobs for minutes asks first.
"""

import dataclasses
import json
import sys
from typing import Any

from . import errors
from . import spec as specs


def effective(kind: str, given: dict[str, Any]) -> dict[str, Any]:
    """All settings of a job of that kind; BadInputError as the job would raise it."""
    # Imported when it is asked for: PyTorch, which reward models need, takes seconds.
    if kind == "rounds":
        from .rounds import settings

        h = specs.hyper(settings.Hyper, given)
        settings.check(h)
        return dataclasses.asdict(h)
    if kind == "reward":
        from .reward import train

        return dataclasses.asdict(train.checked(specs.hyper(train.Hyper, given)))
    if kind == "evaluate":
        from .reward import evaluate

        h, options = evaluate.settings(given)
        return dataclasses.asdict(h) | options
    raise errors.BadInputError(f"kind: {kind!r} has no settings to check, use one of rounds, reward, evaluate")


def main() -> int:
    """The command line; returns the exit code."""
    try:
        told = [effective(one["kind"], one["hyper"]) for one in json.load(sys.stdin)]
    except (json.JSONDecodeError, KeyError, TypeError) as e:
        print(f'standard input must be a list of {{"kind", "hyper"}}: {e!r}', file=sys.stderr)
        return errors.BAD_INPUT
    except errors.BadInputError as e:
        print(e, file=sys.stderr)
        return e.exit_code
    print(json.dumps(told))
    return errors.OK


if __name__ == "__main__":
    sys.exit(main())
