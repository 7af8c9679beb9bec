"""What a rounds job can be told, and its arms: each arm is the job with a few settings replaced."""

import dataclasses
from typing import Any

from ..errors import BadInputError
from . import corrupt, gates


@dataclasses.dataclass
class Hyper(gates.Thresholds):
    """Chosen on worlds that are not reported on; docs/learning.md has the reasons."""

    arms: str = "dpo,pcpo"  # names out of ARMS, trained from the same base on the same products and seeds
    main: str = ""  # the arm that ships; empty: pcpo if it is among the arms, else the first
    epochs: int = 5
    patience: int = 2  # the arm that ships ends after so many epochs in a row that failed a gate; 0: never
    products: int = 160  # per epoch, hue variants included
    # Drawn per product; of more than two, the best and the worst make the pair. 160 x 4 costs what 320 x 2 does to
    # write and half to learn from, and every pair says more.
    descriptions: int = 4
    both_orders: bool = True  # ask the reward model twice, sides exchanged: a preferred side is not a preference
    tau: float = -1.0  # abstention of the ranking; negative: as the reward model was trained
    batch: int = 8  # many small updates beat few large ones
    lr: float = 2.2e-3  # of the embedded model; a 7 B model wants 2e-5
    decay: float = 0.85  # of lr from epoch to epoch: the late ones are where descriptions lost their form
    warmup: int = 4  # steps per epoch; an epoch has about 20
    rank: int = 16  # alpha is twice the rank
    dropout: float = 0.05
    beta: float = 0.3
    # Large, so that the loss is satisfied once y+ is about 2 nats likelier for x than for x~. With 0.3 to 0.5 it pushed
    # y+|x~ down without end, into answers to other questions ("touch screen"), and those leaked to x.
    beta_pcpo: float = 1.5
    w_dpo: float = 1.0
    w_pcpo: float = 1.0
    w_nll: float = 3.0  # per-token likelihood of y+: without it answers lose their form under DPO
    # Per-token likelihood of some other description under x~, or what PCPO takes from y+|x~ goes to malformed answers.
    w_form: float = 0.4  # of either kind of arm: 0 in those that are plain DPO
    w_anchor: float = 0.0
    soft_labels: bool = False  # DPO towards the reward model's probability instead of towards certainty
    fresh_optimizer: bool = False  # a new Adam every epoch: its first steps kick the weights; for the ablation only
    # Which x~ a sample gets, kinds of corrupt.py: | is a choice, a comma means both. Not CAIG's "image|caption": what
    # is left of a masked picture still tells its colour, so nothing taught which palettes suit.
    corrupt: str = "product,colour"
    mask_share: float = 0.75
    mask_patch: int = 8  # px of a 64 px view; larger views are masked in patches of the same share of them
    # Descriptions per held-out product and epoch. Half of the products are the gates', the other half the report's.
    held_samples: int = 16
    relevance_samples: int = 4  # of those, how many at most are looked at from nine other products, too (protocol B)
    probes: int = 12  # candidates for the probe
    checkpoint: int = 10  # steps between checkpoints; SIGTERM writes one at once, whatever this says
    merge: bool = False  # also leave merged/, the base with the adapter's weights added: a model folder of its own

    @property
    def product_centric(self) -> bool:
        """Whether a sample needs its x~: for PCPO, or for L_form alone."""
        return self.w_pcpo > 0 or self.w_form > 0


# Name of an arm -> settings that differ from the job's. One line each, so that the table of ablations reads as this.
ARMS: dict[str, dict[str, Any]] = {
    "pcpo": {},
    "dpo": {"w_pcpo": 0.0, "w_form": 0.0},
    "placebo": {"corrupt": "none"},  # the third row is there and x is whole: what PCPO does besides the product
    "caig": {"corrupt": "image|caption"},  # x~ as CAIG has it
    "pcpo_product": {"corrupt": "product"},
    "pcpo_colour": {"corrupt": "colour"},
    "pcpo_only": {"w_dpo": 0.0},
    "anchored": {"w_anchor": 1.0},
    "anchored_dpo": {"w_pcpo": 0.0, "w_form": 0.0, "w_anchor": 1.0},
    "one_order": {"both_orders": False},
    "soft": {"soft_labels": True},
    "two_descriptions": {"descriptions": 2, "products": 320},
    "pushy": {"beta_pcpo": 0.5, "w_pcpo": 3.0},  # the same slope at the start, and no end to it
    "no_nll": {"w_nll": 0.0},
    # L_form teaches y+ of similar products, which is near what matching measures. These two tell what is its doing and
    # what PCPO's: "dpo,no_form" compares both arms without it, "form_only,pcpo" both with it.
    "no_form": {"w_form": 0.0},
    "form_only": {"w_pcpo": 0.0},
    "bare_dpo": {
        "w_pcpo": 0.0,
        "w_form": 0.0,
        "w_nll": 0.0,
        "fresh_optimizer": True,
    },  # the recipe in which answers lose their form
}


def arm_names(h: Hyper) -> list[str]:
    """The arms in the order they are trained; BadInputError for unknown or repeated ones."""
    names = [a.strip() for a in h.arms.split(",") if a.strip()]
    unknown = sorted(set(names) - set(ARMS))
    if unknown or not names or len(set(names)) < len(names):
        raise BadInputError(
            f"hyper.arms: {h.arms!r} is not a list of different arms (unknown: {', '.join(unknown) or 'none'}); "
            f"known are {', '.join(ARMS)}"
        )
    return names


def main_arm(h: Hyper) -> str:
    """The arm whose adapter ships."""
    names = arm_names(h)
    main = h.main or ("pcpo" if "pcpo" in names else names[0])
    if main not in names:
        raise BadInputError(f"hyper.main: {main!r} is not among hyper.arms {h.arms!r}")
    return main


def arm_hyper(h: Hyper, arm: str) -> Hyper:
    """The job's settings with the arm's own put in."""
    return dataclasses.replace(h, **ARMS[arm])


def check(h: Hyper) -> None:
    """BadInputError that lists every setting outside its range."""
    problems = []
    at_least = {"epochs": 1, "products": 1, "descriptions": 2, "batch": 1, "rank": 1, "held_samples": 1, "probes": 1}
    at_least |= {"checkpoint": 1, "patience": 0, "mask_patch": 1, "warmup": 0, "relevance_samples": 1}
    problems += [
        f"hyper.{k}: must be at least {n}, got {getattr(h, k)}" for k, n in at_least.items() if getattr(h, k) < n
    ]
    positive = ("lr", "beta", "beta_pcpo")
    problems += [f"hyper.{k}: must be positive, got {getattr(h, k)}" for k in positive if not getattr(h, k) > 0]
    weights = ("w_dpo", "w_pcpo", "w_nll", "w_form", "w_anchor")
    problems += [f"hyper.{k}: must not be negative, got {getattr(h, k)}" for k in weights if not getattr(h, k) >= 0]
    try:
        corrupt.parse(h.corrupt)
    except BadInputError as e:
        problems.append(str(e))
    if not 0 < h.mask_share <= 1:
        problems.append(f"hyper.mask_share: must be inside (0, 1], got {h.mask_share}")
    if not 0 < h.decay <= 1:
        problems.append(f"hyper.decay: must be inside (0, 1], got {h.decay}")
    if not 0 <= h.dropout < 1:
        problems.append(f"hyper.dropout: must be inside [0, 1), got {h.dropout}")
    if problems:
        raise BadInputError("the hyper-parameters are not usable:\n  " + "\n  ".join(problems))
    main_arm(h)
