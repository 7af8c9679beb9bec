"""The forms of reward models, and the one way to load whichever a folder holds.

A form is a name in reward.json. Everything downstream (rounds, evaluation, drift) asks for a PairScorer and does not
know which it got; a form whose single creatives can be scored alone also has `scores`.
"""

import json
from collections.abc import Callable
from pathlib import Path

from ..digest import dir_digest
from ..errors import BadInputError
from ..placement import Placement
from ..spec import Spec
from . import scorer
from .scorer import PairScorer

SIAMESE, MLLM = scorer.FORM, "mllm"


def _siamese(folder: Path, spec: Spec) -> PairScorer:
    return scorer.RewardModel.load(folder)


def _mllm(folder: Path, spec: Spec) -> PairScorer:
    from . import mllm  # a language model takes seconds to import

    base = Path(spec.reward_base or spec.base) if spec.reward_base or spec.base else None
    wanted = about(folder).get("base_digest")
    if base and wanted and not about(folder).get("merged") and dir_digest(base) != wanted:
        raise BadInputError(
            f"the reward model in {folder} is an adapter of the base with digest {wanted}, and {base} is another: say "
            "reward_base, the folder of the base that it was tuned from"
        )
    return mllm.MllmReward.load(folder, base, Placement.of(spec))


FORMS: dict[str, Callable[[Path, Spec], PairScorer]] = {SIAMESE: _siamese, MLLM: _mllm}


def about(folder: Path) -> dict:
    """reward.json; BadInputError when it is not there."""
    try:
        told = json.loads((Path(folder) / "reward.json").read_text())
        form = told["form"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise BadInputError(f"cannot load the reward model in {folder}: {e!r}") from e
    if form not in FORMS:
        raise BadInputError(
            f"the reward model in {folder} is of the form {form!r}, which this version does not know; known are "
            f"{', '.join(FORMS)}"
        )
    return told


def load(folder: str | Path, spec: Spec) -> PairScorer:
    """The reward model in a folder, on the device and in the precision of the specification."""
    return FORMS[about(Path(folder))["form"]](Path(folder), spec)


def check(form: str, field: str) -> None:
    """BadInputError for a form that is not known."""
    if form not in FORMS:
        raise BadInputError(f"hyper.{field}: {form!r} is unknown, use one of {', '.join(FORMS)}")
