"""Reward models at work: one interface, and the siamese model that ships."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from .. import weights
from ..errors import BadInputError
from ..progress import replaced, write_json
from ..words import words
from .trunk import Trunk

FORM = "siamese"  # reward.json's "form": other forms are other classes
BOTH = 2  # of the two-image form's column: the two heads' outputs are added
NAME_SCALE = 0.3  # of a soft name, about the spread of one among ten: a share that no rare name escapes from


class Scored(NamedTuple):
    """A judgement of n pairs, both orders averaged."""

    p_left: np.ndarray  # probability that the left creative earns more clicks
    swap_consistency: float  # share of pairs whose winner does not depend on the order


class PairScorer(Protocol):
    """Anything that judges two creatives of one product: the siamese model here, a two-image MLLM, a remote judge."""

    def p_left(self, captions: Sequence[str], left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """P(left wins) in the order given; images are uint8 (n, px, px, 3)."""
        ...


def both_orders(scorer: PairScorer, captions: Sequence[str], left: np.ndarray, right: np.ndarray) -> Scored:
    """Asks twice with the sides exchanged: a judge that prefers a side must not pass that on as a label."""
    forward, backward = scorer.p_left(captions, left, right), scorer.p_left(captions, right, left)
    same = np.mean((forward > 0.5) == (backward < 0.5)) if len(forward) else 1.0
    return Scored((forward + 1 - backward) / 2, float(same))


def category_path(caption: str) -> tuple[str, ...]:
    """Levels of the category that ends a caption ("title, colour. department/category"), the coarsest first; a caption
    without a path has none."""
    last = caption.rsplit(". ", 1)[-1]
    return tuple(x.strip().lower() for x in last.split("/")) if "/" in last else ()


def vocabulary(captions: Sequence[str]) -> list[str]:
    """Words that at least two captions (one per product) share: the others could only be learnt by heart."""
    count: dict[str, int] = {}
    for caption in captions:
        for w in set(words(caption)):
            count[w] = count.get(w, 0) + 1
    return sorted(w for w, n in count.items() if n > 1)


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a head reads, and in which units; saved beside its weights. Lists go by the columns of describe()."""

    columns: tuple[str, ...]  # names of what the trunk describes
    named: int  # how many of the first are soft names
    scenes: int  # how many of those name the scene
    vocabulary: tuple[str, ...]
    departments: tuple[str, ...]  # first levels of the category paths
    centre: tuple[float, ...]  # over the training creatives
    scale: tuple[float, ...]
    fit_scale: float = 1.0  # of department x scene beside one column: larger is a weaker prior on fit
    word_scale: float = 0.3

    @staticmethod
    def of(trunk: Trunk, described: torch.Tensor, captions: Sequence[str], fit_scale: float = 1.0) -> "Shape":
        """The shape for training creatives with these descriptions (n, trunk.described) and captions."""
        named = sum(trunk.sizes)
        scale = described.std(0).clamp_min(1e-3)
        scale[:named] = NAME_SCALE
        departments = tuple(sorted({p[0] for p in map(category_path, captions) if p}))
        units = tuple(described.mean(0).tolist()), tuple(scale.tolist())
        shared = tuple(vocabulary(sorted(set(captions))))
        return Shape(trunk.columns, named, trunk.sizes[0], shared, departments, *units, fit_scale)

    @property
    def names(self) -> list[str]:
        """A name per feature, in order: what weights are matched by when one model starts from another."""
        cross = [f"{d} x {n}" for d in self.departments for n in self.columns[: self.scenes]]
        return [*self.columns, *cross, *(f"word {w}" for w in self.vocabulary)]

    def features(self, described: torch.Tensor, captions: Sequence[str]) -> torch.Tensor:
        """(n, len(names)): what is in the picture; which scene it is for this department; the words.

        "What the picture shows" times "what is sold" is what fit is made of. The words are the same for all pictures
        of a product: they carry its own level, which the losses on single creatives have to explain.
        """
        z = (described - torch.tensor(self.centre)) / torch.tensor(self.scale)
        department = {v: i for i, v in enumerate(self.departments)}
        at = torch.zeros(len(captions), len(department))
        row = {w: i for i, w in enumerate(self.vocabulary)}
        bag = torch.zeros(len(captions), len(row))
        for i, c in enumerate(captions):
            path = category_path(c)
            if path and path[0] in department:
                at[i, department[path[0]]] = self.fit_scale
            known = [row[w] for w in words(c) if w in row]
            bag[i, known] = self.word_scale / max(1, len(known)) ** 0.5
        fit = (at[:, :, None] * z[:, None, : self.scenes]).flatten(1)
        return torch.cat([z, fit, bag], 1)


class Head(nn.Module):
    """Two linear heads on the frozen features: preference score and click-through rate.

    buckets > 0 adds a classifier of click-through buckets whose expectation, too, the first output may use (the
    two-stage baseline).
    """

    def __init__(self, features: int, buckets: int = 0):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(features, 2))
        self.bias = nn.Parameter(torch.zeros(2))
        self.buckets = buckets
        if buckets:
            self.bucket_weight = nn.Parameter(torch.zeros(features, buckets))
            self.bucket_bias = nn.Parameter(torch.zeros(buckets))
            self.bucket_use = nn.Parameter(torch.zeros(1))
            self.register_buffer("bucket_value", torch.zeros(buckets))

    def bucket_logits(self, x: torch.Tensor) -> torch.Tensor:
        """(n, buckets)."""
        return x @ self.bucket_weight + self.bucket_bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (n, f) -> (n, 2): preference score, click-through rate in the units of the objective."""
        out = x @ self.weight + self.bias
        if self.buckets:
            expected = self.bucket_logits(x).softmax(1) @ self.bucket_value
            out = torch.stack([out[:, 0] + self.bucket_use * expected, out[:, 1]], 1)
        return out


@dataclasses.dataclass
class RewardModel:
    """Frozen trunk and a trained head; implements PairScorer, order-consistent by construction."""

    trunk: Trunk
    shape: Shape
    head: Head
    mix: tuple[float, float] = (1.0, 0.0)  # how the two outputs are added; validation products say
    temperature: float = 1.0  # divides score differences: calibrated on products that the fit did not see
    tau: float = 0.0  # pairs with |p - 0.5| below it say nothing
    # For the cycle after: heads that did not see a fold of products (see train.folds_of), and what the model scored.
    folds: list[Head] = dataclasses.field(default_factory=list)
    reference: dict[str, Any] = dataclasses.field(default_factory=dict)

    @torch.no_grad()
    def scores(self, captions: Sequence[str], images: np.ndarray) -> np.ndarray:
        """One number per creative, comparable within a product. images: uint8 (n, 64, 64, 3)."""
        return self.scores_of(self.trunk.describe(images), captions)

    @torch.no_grad()
    def scores_of(self, described: torch.Tensor, captions: Sequence[str]) -> np.ndarray:
        """scores() of pictures that the trunk has described already."""
        if any(not c.strip() for c in captions):
            raise BadInputError("empty caption: the reward model reads it, every product needs at least a title")
        y = self.head(self.shape.features(described, captions)).double().numpy()
        return (y @ np.array(self.mix)) / self.temperature

    def p_left(self, captions: Sequence[str], left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """P(left wins); see PairScorer."""
        return sigmoid(self.scores(captions, left) - self.scores(captions, right))

    def save(self, folder: Path) -> None:
        """Writes trunk, heads and reward.json."""
        self.trunk.save(folder)
        state = {f"head.{k}": v for k, v in self.head.state_dict().items()}
        for i, head in enumerate(self.folds):
            state |= {f"fold{i}.{k}": v for k, v in head.state_dict().items()}
        weights.check_made(state.items(), "the reward model")
        with replaced(folder / "heads.safetensors") as tmp:
            save_file({k: v.contiguous() for k, v in state.items()}, tmp)
        about = {"form": FORM, "temperature": self.temperature, "tau": self.tau, "mix": list(self.mix)}
        about |= {"folds": len(self.folds), "shape": dataclasses.asdict(self.shape), "reference": self.reference}
        write_json(folder / "reward.json", about)

    @staticmethod
    def load(folder: Path) -> "RewardModel":
        """Reads what save wrote; BadInputError when it is not there, broken or not finite."""
        folder = Path(folder)
        try:
            about = json.loads((folder / "reward.json").read_text())
            if about.get("form") != FORM:
                raise BadInputError(f"{folder} holds no siamese reward model: reward.json says {about.get('form')!r}")
            shape = Shape(**{k: tuple(v) if isinstance(v, list) else v for k, v in about["shape"].items()})
            state = weights.load(folder / "heads.safetensors", "the reward model")
            heads = [_head(state, shape, name) for name in ("head", *(f"fold{i}" for i in range(about["folds"])))]
        except (OSError, KeyError, TypeError, RuntimeError, json.JSONDecodeError) as e:
            raise BadInputError(f"cannot load the reward model in {folder}: {e}") from e
        trunk = Trunk.load(folder)
        model = RewardModel(trunk, shape, heads[0], tuple(about["mix"]), about["temperature"], about["tau"])
        model.folds, model.reference = heads[1:], about["reference"]
        return model


def _head(state: dict[str, torch.Tensor], shape: Shape, name: str) -> Head:
    head = Head(len(shape.names))
    head.load_state_dict({k.split(".", 1)[1]: v for k, v in state.items() if k.startswith(f"{name}.")})
    return head.requires_grad_(False).eval()


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow."""
    return 0.5 * (1 + np.tanh(np.asarray(x, np.float64) / 2))
