"""The reward job: linear heads over a frozen trunk, trained on preference pairs; the baselines beside it; the figures.

Products are few (a hundred or two) and clicks are noisy, so heads are linear in well-made features, every fit uses all
its data at once (no order of batches to depend on), and what is tuned (the penalty, the
temperature) is tuned on predictions for products that the predicting fit did not see.
"""

import copy
import dataclasses
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data import LATER, TEST, TRAIN, Creatives, Pairs, load_dataset
from ..digest import dir_digest
from ..errors import BadInputError, NoEvidenceError
from ..progress import Progress, check_loss, write_json, write_lines
from ..spec import Spec, derive, hyper
from . import baselines, drift, figures, forms
from .baselines import BUCKETS, Labels, Lesson, Objective
from .scorer import Head, RewardModel, Shape, both_orders, sigmoid
from .trunk import Trunk

WEIGHTS = Path(__file__).parents[2] / "weights"
SWAPPED = 64  # pairs that are drawn again in both orders: the eye is what costs time


@dataclasses.dataclass
class Hyper:
    """Tuning (of the penalty, on the same folds) is the same for ours and for every baseline."""

    epochs: int = 25  # iterations of L-BFGS on all data, at most; each penalty starts where the one before ended
    penalties: str = "0.001,0.003,0.01,0.02,0.04"  # on the squared weights; the best on unseen products wins
    folds: int = 5  # of products: each is predicted by a head that did not see it
    fit_scale: float = 1.0  # prior of department x scene beside one feature's
    evidence: str = "soft"  # soft, weight or none: what the evidence of a pair is for (baselines.pair_targets)
    point_weight: float = 0.5  # of the MSE beside the cross-entropy; 0: no point loss
    ctr_scale: str = "percent"  # percent, standard or raw: units of the click-through head (baselines.targets)
    centred: bool = True  # the point loss compares within a product
    tau: float = 0.02  # abstain when |p - 0.5| is below
    referee: bool = False  # second opinion for the gates: other trunk, seed and bootstrap of products
    baselines: bool = True
    trunk: str = ""  # folder of the frozen trunk; empty: the shipped one
    form: str = "siamese"  # or "mllm": two pictures in one prompt, by a model that sees (forms.py)
    referee_form: str = ""  # of the referee; empty: the same. Another form has other faults
    mllm: dict = dataclasses.field(default_factory=dict)  # settings of the two-image form (mllm.Hyper)

    @property
    def own_form(self) -> str:
        """The form that this job trains."""
        return (self.referee and self.referee_form) or self.form


# ----------------------------------------------------------------------------------------------- what is learned from


def folds_of(products: Sequence[str], n: int, salt: str) -> dict[str, int]:
    """Which fold each product is in. By hash, so that a product stays in its fold from cycle to cycle: a head that did
    not see a fold then may judge it now. Few products may leave a fold empty; they are dealt in turn instead."""
    named = sorted(set(products))
    n = min(n, len(named))
    out = {p: zlib.crc32(f"{salt}/{p}".encode()) % n for p in named}
    return out if len(set(out.values())) == n else {p: i % n for i, p in enumerate(named)}


class Fold:
    """A dataset as one training run sees it: features, labels, and who is in which part."""

    def __init__(self, creatives: Creatives, pairs: Pairs, trunk: Trunk, h: Hyper, seed: int):
        self.creatives, self.pairs, self.trunk, self.h = creatives, pairs, trunk, h
        self.train_pairs = pairs.of(TRAIN)
        products = sorted(set(self.train_pairs.products))
        if len(products) < 2:
            raise NoEvidenceError(
                f"training pairs of {len(products)} product: at least 2 are needed, wait for more clicks"
            )
        self.fold = folds_of(products, h.folds, "referee" if h.referee else "reward")
        self.drawn = _drawn(products, seed) if h.referee else dict.fromkeys(products, 1)
        self.number = {p: i for i, p in enumerate(products)}
        self.rows = np.array([i for i, p in enumerate(creatives.products) if p in self.number])
        self.described = trunk.describe(creatives.images)
        self.shape = Shape.of(
            trunk, self.described[self.rows], [creatives.captions[i] for i in self.rows], fit_scale=h.fit_scale
        )
        self.features = self.shape.features(self.described, creatives.captions)
        self.labels = Labels.of(creatives, self.rows, h.ctr_scale)

    @property
    def folds(self) -> int:
        return max(self.fold.values()) + 1

    def in_fold(self, k: int) -> np.ndarray:
        """Positions of the training pairs of fold k."""
        return np.array([i for i, p in enumerate(self.train_pairs.products) if self.fold[p] == k], int)

    def lesson(self, without: int | None = None) -> Lesson:
        """Everything to learn from, less one fold; products that the bootstrap did not draw are left out."""
        c = self.creatives
        use = {p for p, n in self.drawn.items() if n and self.fold[p] != without}
        if not use:  # the bootstrap of very few products may miss all others
            use = {p for p in self.drawn if self.fold[p] != without}
        rows = np.array([i for i in self.rows if c.products[i] in use])
        place = np.full(len(c.ids), -1)
        place[rows] = np.arange(len(rows))
        pairs = self.train_pairs.take([i for i, p in enumerate(self.train_pairs.products) if p in use])
        target, weight = baselines.pair_targets(pairs, self.h.evidence)
        drawn = torch.tensor([max(1, self.drawn[p]) for p in pairs.products], dtype=torch.float32)
        number = {p: i for i, p in enumerate(sorted(use))}
        return Lesson(
            features=self.features[rows],
            product=torch.tensor([number[c.products[i]] for i in rows]),
            weight=torch.tensor([float(max(1, self.drawn[c.products[i]])) for i in rows]),
            labels=dataclasses.replace(
                self.labels,
                **{
                    f: getattr(self.labels, f)[rows] for f in ("target", "percent", "smoothed", "bucket", "impressions")
                },
            ),
            left=torch.tensor(place[pairs.left]),
            right=torch.tensor(place[pairs.right]),
            pair_target=target,
            pair_weight=weight * drawn,
        )


def _drawn(products: list[str], seed: int) -> dict[str, int]:
    """How often each product is drawn, with replacement: the referee's own view of the shop."""
    counts = np.bincount(np.random.default_rng(seed).integers(0, len(products), len(products)), minlength=len(products))
    return {p: int(n) for p, n in zip(products, counts, strict=True)}


# --------------------------------------------------------------------------------------------------------------- fits


def fit_path(
    lesson: Lesson, objective: Objective, penalties: Sequence[float], epochs: int, prior: Head | None
) -> list[Head]:
    """One head per penalty: the objective plus penalty x the squared distance of the weights to the prior's (to zero
    without one). The problems are smooth, nearly all convex, and each starts where the one before ended."""
    head = Head(lesson.features.shape[1], BUCKETS if objective.first else 0)
    if prior is not None:
        head.load_state_dict(prior.state_dict(), strict=False)
    if objective.first:
        head.bucket_value.copy_(lesson.labels.bucket_value)
    anchor = torch.zeros_like(head.weight) if prior is None else prior.weight.detach()
    out = []
    for penalty in sorted(penalties, reverse=True):
        if objective.first:
            parameters = [head.bucket_weight, head.bucket_bias]
            _minimise(
                parameters,
                lambda p=penalty: (
                    objective.first(head.bucket_logits(lesson.features), lesson) + p * (head.bucket_weight**2).sum()
                ),
                epochs,
                objective.name,
            )
        parameters = [head.weight, head.bias, *([head.bucket_use] if objective.first else [])]
        _minimise(
            parameters,
            lambda p=penalty: objective.loss(head(lesson.features), lesson) + p * ((head.weight - anchor) ** 2).sum(),
            epochs,
            objective.name,
        )
        out.append(copy.deepcopy(head).requires_grad_(False))
    return out[::-1]


def _minimise(parameters: list[torch.Tensor], loss: Any, epochs: int, name: str) -> None:
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=epochs, history_size=10, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss()
        check_loss(value.item(), f"the reward head {name}")
        value.backward()
        return value

    optimizer.step(closure)


@dataclasses.dataclass
class Tuned:
    """A trained model and how it did on products that the predicting head did not see."""

    model: RewardModel
    unseen: np.ndarray  # score of left less right for each training pair, by the head that did not see its product
    loss: float  # log-loss of those at the best temperature
    penalties: list[float]  # chosen, by column of the objective


def train(fold: Fold, objective: Objective, h: Hyper, progress: Progress, prior: RewardModel | None = None) -> Tuned:
    """Tunes the penalty on unseen products, fits all of them with it, mixes the heads, calibrates.

    prior: the model of the cycle before; its heads are what the new ones are pulled to. Each of its fold heads meets
    only the fold that it did not see.
    """
    penalties = sorted(float(x) for x in h.penalties.split(","))
    outputs = np.zeros((len(penalties), len(fold.train_pairs), 2))
    kept: list[list[Head]] = []
    for k in range(fold.folds):
        progress.check_interrupted()
        heads = fit_path(fold.lesson(k), objective, penalties, h.epochs, _translated(prior, fold.shape, k))
        kept.append(heads)
        at = fold.in_fold(k)
        for j, head in enumerate(heads):
            outputs[j, at] = _differences(head, fold.features, fold.train_pairs.take(at))
    wins = fold.train_pairs.left_wins
    best = {
        c: min(range(len(penalties)), key=lambda j: calibrate(outputs[j, :, c], wins)[1]) for c in objective.columns
    }
    full = fit_path(fold.lesson(), objective, penalties, h.epochs, _translated(prior, fold.shape, None))
    chosen = np.stack([outputs[best.get(c, 0), :, c] for c in range(2)], 1)
    mix = _mix(chosen, objective.columns)
    unseen = chosen @ np.array(mix)
    temperature, loss = calibrate(unseen, wins)
    model = RewardModel(
        fold.trunk, fold.shape, _combined(full, best), mix, temperature, h.tau, [_combined(x, best) for x in kept]
    )
    used = [penalties[best[c]] for c in objective.columns]
    progress.log(stage="reward", model=objective.name, warm=prior is not None, penalties=used, mix=list(mix), loss=loss)
    return Tuned(model, unseen / temperature, loss, used)


def _differences(head: Head, features: torch.Tensor, pairs: Pairs) -> np.ndarray:
    """(pairs, 2): outputs of left less those of right."""
    with torch.no_grad():
        out = head(features).double().numpy()
    return out[pairs.left] - out[pairs.right]


def _mix(differences: np.ndarray, columns: tuple[int, ...]) -> tuple[float, float]:
    """How the two outputs are added: halves, each in units of its own spread. Choosing a share on the validation
    products was tried: it follows their noise, and the even mix is the steadier judge."""
    if len(columns) == 1:
        return (1.0, 0.0) if columns == (0,) else (0.0, 1.0)
    first, second = (0.5 / max(float(x), 1e-9) for x in differences.std(0))
    return first, second


def _combined(heads: list[Head], best: dict[int, int]) -> Head:
    """One head whose columns come from the fits with each column's best penalty."""
    out = copy.deepcopy(heads[next(iter(best.values()))])
    for column, j in best.items():
        out.weight[:, column], out.bias[column] = heads[j].weight[:, column], heads[j].bias[column]
    return out


def _translated(prior: RewardModel | None, shape: Shape, without: int | None) -> Head | None:
    """The prior's head (of its fold `without`, when given) in this shape's features and units; what it lacks is 0."""
    if prior is None:
        return None
    old = prior.head if without is None else prior.folds[without]
    row = {name: i for i, name in enumerate(prior.shape.names)}
    scales = [_units(s) for s in (prior.shape, shape)]
    head = Head(len(shape.names)).requires_grad_(False)
    for i, name in enumerate(shape.names):
        if name in row:
            head.weight[i] = old.weight[row[name]] * (scales[1][i] / scales[0][row[name]])
    head.bias.copy_(old.bias)
    return head


def _units(shape: Shape) -> np.ndarray:
    """What one unit of each feature is, in the trunk's own numbers."""
    scale = np.array(shape.scale)
    fit = np.tile(scale[: shape.scenes], len(shape.departments)) / shape.fit_scale
    return np.concatenate([scale, fit, np.full(len(shape.vocabulary), 1 / shape.word_scale)])


def calibrate(difference: np.ndarray, left_wins: np.ndarray) -> tuple[float, float]:
    """Temperature with the least log-loss of sigmoid(difference / temperature), and that loss; of several alike the
    highest. A judge that knows nothing gets one so high that it says one half."""
    spread = float(np.std(difference))
    if spread < 1e-9:  # no opinion at all: in units of nothing every temperature would be a certain one
        spread = 1.0
    sign = np.where(left_wins, 1.0, -1.0)
    grid = spread * np.geomspace(0.1, 1000, 81)
    loss = np.logaddexp(0, -sign * difference / grid[:, None]).mean(1)
    best = int(np.flatnonzero(loss <= loss.min() + 1e-12)[-1])
    return float(grid[best]), float(loss[best])


# ------------------------------------------------------------------------------------------------------------ the job


def trunk_folder(h: Hyper) -> Path:
    """Where the frozen trunk lies. The referee has its own: a fault of one eye must not pass its own gate."""
    return Path(h.trunk) if h.trunk else WEIGHTS / ("referee-trunk" if h.referee else "reward-trunk")


def previous_model(spec: Spec, fold: Fold) -> tuple[RewardModel | None, str]:
    """The model of the cycle before if its heads can be this one's prior, and why or why not."""
    if not spec.previous:
        return None, "no previous model"
    if forms.about(Path(spec.previous))["form"] != forms.SIAMESE:
        return None, "the previous model is of another form"
    old = RewardModel.load(Path(spec.previous))
    same = all(torch.equal(a, b) for a, b in zip(old.trunk.parameters(), fold.trunk.parameters(), strict=True))
    if not same:
        return None, "the previous model has another trunk"
    if len(old.folds) != fold.folds:
        return None, f"the previous model has {len(old.folds)} folds of products, this one {fold.folds}"
    return old, "same trunk and folds"


def train_ours(fold: Fold, h: Hyper, spec: Spec, progress: Progress) -> tuple[Tuned, dict[str, Any]]:
    """From scratch, and from the previous model when there is one: what does better on unseen products stays."""
    objective = baselines.ours(h.point_weight, h.centred)
    fresh = train(fold, objective, h, progress)
    prior, why = previous_model(spec, fold)
    about: dict[str, Any] = {"start": "scratch", "why": why, "validation_loss_scratch": fresh.loss}
    if prior is None:
        return fresh, about
    warm = train(fold, objective, h, progress, prior)
    about["validation_loss_warm"] = warm.loss
    if warm.loss < fresh.loss:
        return warm, {**about, "start": "previous"}
    return fresh, {**about, "why": "from scratch is as good on unseen products"}


ARTIFACT = "model"


def parents(spec: Spec) -> dict[str, str | None]:
    """Folders that the job was made from, by role."""
    h = hyper(Hyper, spec.hyper)
    base = spec.base if h.own_form == forms.MLLM else None
    return {"trunk": str(trunk_folder(h)), "previous": spec.previous, "base": base}


def checked(h: Hyper) -> Hyper:
    """h with forms that are known and, of the two-image form, settings that are; BadInputError otherwise."""
    forms.check(h.form, "form")
    if h.referee_form:
        forms.check(h.referee_form, "referee_form")
    if forms.MLLM in (h.form, h.referee_form):
        from . import mllm

        hyper(mllm.Hyper, h.mllm)
    return h


def mllm_settings(kind: str, given: dict[str, Any]) -> tuple[Any, int]:
    """Settings of the two-image model that a job trains, and 1; BadInputError where it trains none: the siamese form
    takes no memory to speak of."""
    from . import mllm

    if kind == "evaluate":
        options = given.get("mllm")
        found, told = bool(options), options if isinstance(options, dict) else {}
    else:
        h = checked(hyper(Hyper, given))
        found, told = h.own_form == forms.MLLM, h.mllm
    if not found:
        raise BadInputError(f"this {kind} job trains no two-image model: the siamese form runs on a CPU within 1 GB")
    return hyper(mllm.Hyper, told), 1


def load_truth(path: str | None) -> dict[str, float] | None:
    """truth.json: true click-through rate by creative; BadInputError when it is something else."""
    if not path:
        return None
    try:
        truth = {str(k): float(v) for k, v in json.loads(Path(path).read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError) as e:
        raise BadInputError(f"truth: {path} must be a JSON object of creative and click-through rate: {e}") from e
    return truth


def prepare(spec: Spec, h: Hyper) -> Fold:
    """Loads what a reward or an evaluate job works on."""
    trunk = Trunk.load(trunk_folder(h))
    creatives, pairs = load_dataset(Path(spec.dataset))
    return Fold(creatives, pairs, trunk, h, derive(spec.seed, "referee" if h.referee else "reward"))


def predictions(fold: Fold, model: RewardModel, pairs: Pairs) -> np.ndarray:
    """P(left wins) of every pair."""
    s = model.scores_of(fold.described, fold.creatives.captions)
    return sigmoid(s[pairs.left] - s[pairs.right])


def swap_consistency(fold: Fold, model: RewardModel, pairs: Pairs) -> float | None:
    """Measured on the pictures of about SWAPPED pairs by the public interface, not assumed from the construction."""
    if not len(pairs):
        return None
    some = pairs.take(np.arange(0, len(pairs), max(1, len(pairs) // SWAPPED)))
    captions, images = [fold.creatives.captions[i] for i in some.left], fold.creatives.images
    return both_orders(model, captions, images[some.left], images[some.right]).swap_consistency


def exam(fold: Fold, split: str, truth: dict[str, float] | None = None) -> figures.Exam:
    """The pairs of a split, ready to be judged."""
    return figures.Exam(fold.creatives, fold.pairs.of(split), truth)


def run(spec: Spec, out: Path, progress: Progress) -> None:
    """The job: writes model/, predictions.jsonl, metrics.json, and drift.json when there was a previous model."""
    h = checked(hyper(Hyper, spec.hyper))
    if h.own_form == forms.MLLM:
        from . import two_images

        return two_images.run(spec, h, out, progress)
    truth = load_truth(spec.truth)
    fold = prepare(spec, h)
    ours, start = train_ours(fold, h, spec, progress)
    tuned = {"ours": ours}
    if h.baselines:
        tuned |= {o.name: train(fold, o, h, progress) for o in baselines.BASELINES}
    test = exam(fold, TEST, truth)
    p = {name: predictions(fold, t.model, test.pairs) for name, t in tuned.items()}
    table = {name: _figures(name, x, test, h.tau) for name, x in p.items()}
    later = exam(fold, LATER, truth)
    ours.model.reference = drift.reference(fold.described, fold.trunk.columns, table["ours"])
    metrics = {
        "kind": "reward",
        "referee": h.referee,
        "train_pairs": len(fold.train_pairs),
        "train_products": len(fold.number),
        "trunk_digest": dir_digest(trunk_folder(h)),
        "temperature": ours.model.temperature,
        "tau": h.tau,
        "mix": list(ours.model.mix),
        "penalties": ours.penalties,
        "start": start,
        "swap_consistency": swap_consistency(fold, ours.model, test.pairs),
        "validation": _validation(fold, ours, h.tau),
        "test": table["ours"],
        "later": _figures(
            "ours", predictions(fold, ours.model, (later := exam(fold, "later", truth)).pairs), later, h.tau
        ),
        "baselines": {k: v for k, v in table.items() if k != "ours"},
    }
    if spec.previous:
        from . import two_images

        metrics["drift"] = two_images.previous_now(spec, fold, test)
        write_json(out / "drift.json", metrics["drift"])
    lines = [
        {"pair_id": i, "model": name, "p_left": float(v)}
        for name, x in p.items()
        for i, v in zip(test.pairs.ids, x, strict=True)
    ]
    write_lines(out / "predictions.jsonl", lines)
    ours.model.save(out / "model")
    write_json(out / "metrics.json", metrics)
    progress.log(stage="done", **{k: v.get("accuracy") for k, v in table.items()})


def _validation(fold: Fold, ours: Tuned, tau: float) -> dict[str, Any]:
    """Figures on the training products, each judged by the head that did not see it."""
    return _figures("ours", sigmoid(ours.unseen), exam(fold, TRAIN), tau)


def _figures(name: str, p_left: np.ndarray, e: figures.Exam, tau: float) -> dict[str, Any]:
    """A row of figures with its ceilings; empty without pairs."""
    if not len(e.pairs):
        return {}
    ceilings = figures.ceilings(e)
    out = figures.row(name, p_left, e, ceilings.get("oracle", ceilings["fitted"]), tau)
    return {**out, "ceilings": ceilings}
