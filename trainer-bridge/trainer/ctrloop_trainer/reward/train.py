"""The reward job: heads over a frozen trunk, trained on preference pairs; the baselines beside it; the figures."""

import dataclasses
import json
import math
import random
from pathlib import Path

import numpy as np
import torch

from ..data import Creatives, Pairs, bootstrap_interval, load_dataset
from ..errors import BadInputError
from ..progress import Progress, check_loss, write_json, write_lines
from ..spec import Spec, derive, hyper
from . import baselines
from .baselines import OURS, Labels, Objective
from .scorer import BOTH, Head, RewardModel, Shape, both_orders, sigmoid, vocabulary
from .trunk import FEATURES, Trunk

WEIGHTS = Path(__file__).parents[2] / "weights"


@dataclasses.dataclass
class Hyper:
    """Tuning (the learning rates) is the same for ours and for every baseline."""

    epochs: int = 16  # at most; training stops early
    patience: int = 4  # epochs without a better validation figure
    batch: int = 128  # pairs; list objectives take as many creatives
    learning_rates: str = "0.001,0.003"  # tried in turn, the best on the validation products wins
    weight_decay: float = 0.05
    heads: int = 3  # averaged; each its own initialisation
    validation: float = 0.15  # share of the training products
    tau: float = 0.02  # abstain when |p - 0.5| is below
    referee: bool = False  # second opinion for the gates: other trunk, seed and bootstrap of products
    baselines: bool = True
    trunk: str = ""  # folder of the frozen trunk; empty: the shipped one


class Fold:
    """A dataset as one training run sees it: features, labels, and who is in which part."""

    def __init__(self, creatives: Creatives, pairs: Pairs, trunk: Trunk, h: Hyper, seed: int):
        self.creatives, self.pairs, self.trunk = creatives, pairs, trunk
        self.described = trunk.describe(creatives.images)
        rng = random.Random(f"reward/{seed}")
        products = sorted({pairs.products[i] for i in np.flatnonzero(~pairs.test)})
        rng.shuffle(products)
        cut = max(1, round(h.validation * len(products)))
        if len(products) < 2:
            raise BadInputError(
                f"training pairs of {len(products)} product: at least 2 are needed, wait for more clicks"
            )
        self.validation, self.training = set(products[:cut]), products[cut:]
        if h.referee:
            self.training = [rng.choice(self.training) for _ in self.training]
        self.rows_of: dict[str, list[int]] = {}
        for i, p in enumerate(creatives.products):
            self.rows_of.setdefault(p, []).append(i)
        self.train_pairs = pairs.take(self._pairs_of(self.training))
        self.validation_pairs = pairs.take(self._pairs_of(sorted(self.validation)))
        self.test_pairs = pairs.take(np.flatnonzero(pairs.test))
        seen = [i for p in sorted(set(self.training)) for i in self.rows_of[p]]
        self.labels = Labels.of(creatives, np.array(seen))
        captions = {creatives.products[i]: creatives.captions[i] for i in seen}
        names = sum(trunk.sizes)
        self.shape = Shape(tuple(vocabulary(captions)), trunk.described, names, FEATURES)

    def _pairs_of(self, products: list[str]) -> np.ndarray:
        by: dict[str, list[int]] = {}
        for i in np.flatnonzero(~self.pairs.test):
            by.setdefault(self.pairs.products[i], []).append(int(i))
        return np.array([i for p in products for i in by.get(p, [])], int)

    def batches(self, objective: Objective, size: int, rng: random.Random) -> list[np.ndarray]:
        """Positions in train_pairs, or rows of creatives of one product, in random order."""
        if objective.by_pair:
            order = list(range(len(self.train_pairs)))
            rng.shuffle(order)
            return [np.array(order[i : i + size]) for i in range(0, len(order), size)]
        products = list(self.training)
        rng.shuffle(products)
        return [np.array(self.rows_of[p]) for p in products if len(self.rows_of[p]) > 1]


def train_head(fold: Fold, objective: Objective, lr: float, h: Hyper, seed: int) -> tuple[Head, float]:
    """One head with early stop; returns it and its best validation figure (weighted accuracy, ties broken by loss)."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    head = Head(fold.shape)
    text = [head.encode(c) for c in fold.creatives.captions]
    optimizer = torch.optim.AdamW(head.parameters(), lr, weight_decay=h.weight_decay)
    per_product = max(1, h.batch // 12)  # list objectives: products per step, about h.batch creatives
    best, kept, since = -math.inf, None, 0
    for epoch in range(h.epochs):
        head.train()
        batches = fold.batches(objective, h.batch, rng)
        groups = [[b] for b in batches] if objective.by_pair else _chunks(batches, per_product)
        for group in groups:
            loss = _loss(fold, objective, head, text, group)
            check_loss(loss.item(), f"reward head {objective.name}, epoch {epoch}")
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
        figure = _validation(fold, objective, head)
        if figure > best + 1e-6:
            best, since = figure, 0
            kept = {k: v.clone() for k, v in head.state_dict().items()}
        else:
            since += 1
            if since >= h.patience:
                break
    head.load_state_dict(kept)
    return head.eval(), best


def _chunks(items: list, n: int) -> list[list]:
    return [items[i : i + n] for i in range(0, len(items), n)]


def _loss(fold: Fold, objective: Objective, head: Head, text: list, group: list[np.ndarray]) -> torch.Tensor:
    if objective.by_pair:
        pairs = fold.train_pairs.take(group[0])
        rows = np.concatenate([pairs.left, pairs.right])
        out = head(fold.described[rows], [text[i] for i in rows])
        return objective.loss(out, len(pairs), pairs, fold.labels, rows)
    rows = np.concatenate(group)
    out = head(fold.described[rows], [text[i] for i in rows])
    parts = out.split([len(g) for g in group])
    return sum(objective.loss(o, g, fold.labels) for o, g in zip(parts, group, strict=True)) / len(group)


def _validation(fold: Fold, objective: Objective, head: Head) -> float:
    """Minus the weighted pair log-loss at the best temperature: smoother than accuracy, blind to scale."""
    return -_validation_loss(fold, [head], objective.column)


def _validation_loss(fold: Fold, heads: list[Head], column: int) -> float:
    return calibrate(fold, RewardModel(fold.trunk, heads, column=column), fold.validation_pairs)[1]


def differences(fold: Fold, model: RewardModel, pairs: Pairs) -> np.ndarray:
    """Score of left minus score of right."""
    s = model.scores_of(fold.described, fold.creatives.captions)
    return s[pairs.left] - s[pairs.right]


def calibrate(fold: Fold, model: RewardModel, pairs: Pairs) -> tuple[float, float]:
    """Temperature with the least weighted log-loss on pairs, and that loss."""
    d = differences(fold, model, pairs)
    sign = np.where(pairs.left_wins, 1.0, -1.0)
    grid = np.geomspace(0.05, 20, 49)
    loss = [float(np.average(np.logaddexp(0, -sign * d / t), weights=pairs.weight + 1e-9)) for t in grid]
    best = int(np.argmin(loss))
    return float(grid[best]), loss[best]


def train(fold: Fold, objective: Objective, h: Hyper, seed: int, progress: Progress) -> RewardModel:
    """Tries the learning rates, keeps the best, averages h.heads heads of it, calibrates."""
    rates = [float(x) for x in h.learning_rates.split(",")]
    tried = [(train_head(fold, objective, lr, h, seed), lr) for lr in rates]
    (first, figure), lr = max(tried, key=lambda x: x[0][1])
    heads = [first]
    for k in range(1, h.heads):
        progress.check_interrupted()
        heads.append(train_head(fold, objective, lr, h, seed + 1000 * k)[0])
    model = RewardModel(fold.trunk, heads, tau=h.tau, column=objective.column)
    if objective is OURS:
        model.column = min((0, 1, BOTH), key=lambda c: _validation_loss(fold, heads, c))
    model.temperature = calibrate(fold, model, fold.validation_pairs)[0]
    progress.log(stage="reward", model=objective.name, lr=lr, validation=round(figure, 4))
    return model


def figures(fold: Fold, model: RewardModel, pairs: Pairs) -> dict[str, float]:
    """Accuracy and calibration on pairs, with the products' bootstrap interval. A tie counts half."""
    if not len(pairs):
        return {}
    d = differences(fold, model, pairs)
    p = sigmoid(d)
    right = np.where(d == 0, 0.5, (d > 0) == pairs.left_wins).astype(float)
    products = np.array(pairs.products)
    each = np.array([right[products == x].mean() for x in sorted(set(pairs.products))])
    low, high = bootstrap_interval(each)
    truth = pairs.left_wins.astype(float)
    return {
        "pairs": len(pairs),
        "accuracy": float(right.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "weighted_accuracy": float(np.average(right, weights=pairs.weight + 1e-9)),
        # What an oracle would score if the posteriors were true: labels are noisy, 1.0 is out of reach.
        "ceiling_posterior": float(np.mean((1 + pairs.weight) / 2)),
        "log_loss": float(-np.mean(truth * np.log(p + 1e-12) + (1 - truth) * np.log(1 - p + 1e-12))),
        "calibration_error": calibration_error(p, truth),
        "abstained": float(np.mean(np.abs(p - 0.5) < model.tau)),
    }


def calibration_error(p: np.ndarray, truth: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error: mean |confidence - accuracy| over equal-width bins, weighted by size."""
    at = np.minimum((p * bins).astype(int), bins - 1)
    return float(sum(abs(p[at == b].sum() - truth[at == b].sum()) for b in range(bins)) / len(p))


def swap_consistency(fold: Fold, model: RewardModel, pairs: Pairs) -> float:
    """Measured on the pictures through the public interface, not assumed from the construction."""
    captions = [fold.creatives.captions[i] for i in pairs.left]
    images = fold.creatives.images
    return both_orders(model, captions, images[pairs.left], images[pairs.right]).swap_consistency


def trunk_folder(h: Hyper) -> Path:
    """Where the frozen trunk lies. The referee has its own: a fault of one eye must not pass its own gate."""
    return Path(h.trunk) if h.trunk else WEIGHTS / ("referee-trunk" if h.referee else "reward-trunk")


ARTIFACT = "model"


def parents(spec: Spec) -> dict[str, str | None]:
    """Folders that the job was made from, by role."""
    return {"trunk": str(trunk_folder(hyper(Hyper, spec.hyper))), "previous": spec.previous}


def run(spec: Spec, out: Path, progress: Progress) -> None:
    """The job: writes model/, predictions.jsonl, metrics.json."""
    h: Hyper = hyper(Hyper, spec.hyper)
    trunk = Trunk.load(trunk_folder(h))
    creatives, pairs = load_dataset(Path(spec.dataset))
    seed = derive(spec.seed, "referee" if h.referee else "reward")
    fold = Fold(creatives, pairs, trunk, h, seed)
    ours = train(fold, OURS, h, seed, progress)
    models = {"ours": ours}
    if h.baselines:
        models |= {o.name: train(fold, o, h, seed, progress) for o in baselines.BASELINES}
    test = fold.test_pairs
    rows = []
    for name, model in models.items():
        p = sigmoid(differences(fold, model, test))
        rows += [{"pair_id": i, "model": name, "p_left": float(x)} for i, x in zip(test.ids, p, strict=True)]
    write_lines(out / "predictions.jsonl", rows)
    ours.save(out / "model")
    table = {name: figures(fold, model, test) for name, model in models.items()}
    metrics = {
        "kind": "reward",
        "referee": h.referee,
        "train_pairs": len(fold.train_pairs),
        "train_products": len(set(fold.training)),
        "temperature": ours.temperature,
        "tau": ours.tau,
        "swap_consistency": swap_consistency(fold, ours, test) if len(test) else None,
        "validation": figures(fold, ours, fold.validation_pairs),
        "test": table["ours"],
        "baselines": {k: v for k, v in table.items() if k != "ours"},
    }
    write_json(out / "metrics.json", metrics)
    progress.log(stage="done", **json.loads(json.dumps({k: v.get("accuracy") for k, v in table.items()})))
