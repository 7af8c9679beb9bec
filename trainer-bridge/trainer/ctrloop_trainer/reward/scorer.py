"""Reward models at work: one interface, and the siamese model that ships."""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ..errors import BadInputError
from ..progress import write_json
from .trunk import Trunk

BOTH = 2  # RewardModel.column: the two heads' outputs are added; which is best, validation products say


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


def words(text: str) -> list[str]:
    """Lower-case words of a caption, category path included."""
    return re.findall(r"[a-z]+", text.lower())


def vocabulary(captions_by_product: dict[str, str]) -> list[str]:
    """Words that at least two products share: the others could only be learnt by heart."""
    count: dict[str, int] = {}
    for caption in captions_by_product.values():
        for w in set(words(caption)):
            count[w] = count.get(w, 0) + 1
    return sorted(w for w, n in count.items() if n > 1)


@dataclasses.dataclass(frozen=True)
class Shape:
    """Of a head; saved beside its weights."""

    vocabulary: tuple[str, ...]
    described: int  # columns of Trunk.describe
    names: int  # how many of them are soft names
    first_name: int  # where those start
    text: int = 48
    hidden: int = 96
    dropout: float = 0.2


class Head(nn.Module):
    """Picture and caption features -> preference score and (standardised) click-through rate."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.words = nn.EmbeddingBag(len(shape.vocabulary) + 1, shape.text, mode="mean")  # row 0: no known word
        self.wanted = nn.Linear(shape.text, shape.names)
        width = shape.described + shape.names + shape.text
        self.mlp = nn.Sequential(nn.Linear(width, shape.hidden), nn.GELU(), nn.Dropout(shape.dropout))
        self.out = nn.Linear(shape.hidden, 2)
        self._row = {w: i + 1 for i, w in enumerate(shape.vocabulary)}

    def encode(self, caption: str) -> list[int]:
        """Rows of the caption's known words."""
        return [self._row[w] for w in words(caption) if w in self._row] or [0]

    def forward(self, described: torch.Tensor, text: Sequence[list[int]]) -> torch.Tensor:
        """(n, 2): preference score, click-through rate in standard deviations."""
        flat = torch.tensor([i for t in text for i in t])
        starts = torch.tensor(np.cumsum([0, *(len(t) for t in text[:-1])]))
        e = self.words(flat, starts) * 3  # a mean of many words is small beside the picture's features
        first = self.shape.first_name
        names = described[:, first : first + self.shape.names]
        # "What the picture shows" times "what this product wants": the interaction that fit is made of.
        return self.out(self.mlp(torch.cat([described, names * self.wanted(e), e], 1)))


@dataclasses.dataclass
class RewardModel:
    """Frozen trunk and trained heads (their mean counts); implements PairScorer, order-consistent by construction."""

    trunk: Trunk
    heads: list[Head]
    temperature: float = 1.0  # divides score differences: calibrated on products that the fit did not see
    tau: float = 0.0  # pairs with |p - 0.5| below it say nothing
    column: int = 0  # which head output ranks: 0 preference, 1 click-through rate, BOTH their sum

    @torch.no_grad()
    def scores(self, captions: Sequence[str], images: np.ndarray) -> np.ndarray:
        """One number per creative, comparable within a product."""
        return self.scores_of(self.trunk.describe(images), captions)

    @torch.no_grad()
    def scores_of(self, described: torch.Tensor, captions: Sequence[str]) -> np.ndarray:
        """scores() of pictures that the trunk has described already."""
        if any(not c.strip() for c in captions):
            raise BadInputError("empty caption: the reward model reads it, every product needs at least a title")
        out = []
        for head in self.heads:
            head.eval()
            y = head(described, [head.encode(c) for c in captions])
            out.append(y.sum(1) if self.column == BOTH else y[:, self.column])
        return torch.stack(out).mean(0).numpy() / self.temperature

    def p_left(self, captions: Sequence[str], left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """P(left wins); see PairScorer."""
        return sigmoid(self.scores(captions, left) - self.scores(captions, right))

    def save(self, folder: Path) -> None:
        """Writes trunk, heads and reward.json."""
        self.trunk.save(folder)
        state = {f"{i}.{k}": v for i, head in enumerate(self.heads) for k, v in head.state_dict().items()}
        save_file(state, folder / "heads.safetensors")
        shape = dataclasses.asdict(self.heads[0].shape)
        about = {"temperature": self.temperature, "tau": self.tau, "column": self.column, "heads": len(self.heads)}
        write_json(folder / "reward.json", {**about, "shape": shape})

    @staticmethod
    def load(folder: Path) -> "RewardModel":
        """Reads what save wrote; BadInputError when it is not there, broken or not finite."""
        folder = Path(folder)
        try:
            about = json.loads((folder / "reward.json").read_text())
            shape = Shape(**{**about["shape"], "vocabulary": tuple(about["shape"]["vocabulary"])})
            state = load_file(folder / "heads.safetensors")
            heads = []
            for i in range(about["heads"]):
                head = Head(shape)
                head.load_state_dict({k.split(".", 1)[1]: v for k, v in state.items() if k.startswith(f"{i}.")})
                heads.append(head.requires_grad_(False).eval())
        except (OSError, KeyError, TypeError, RuntimeError, json.JSONDecodeError) as e:
            raise BadInputError(f"cannot load the reward model in {folder}: {e}") from e
        if not all(torch.isfinite(v).all() for v in state.values()):
            raise BadInputError(f"weights of the reward model in {folder} are not finite: train it again")
        return RewardModel(Trunk.load(folder), heads, about["temperature"], about["tau"], about["column"])


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(np.asarray(x, np.float64) / 2))
