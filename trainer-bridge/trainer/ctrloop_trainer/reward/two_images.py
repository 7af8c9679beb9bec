"""The reward job in the two-image form: trains it, and leaves what the siamese form's job leaves, figures alike."""

from pathlib import Path
from typing import Any

import numpy as np

from ..data import LATER, TEST, Pairs
from ..digest import dir_digest
from ..errors import BadInputError, NoEvidenceError
from ..placement import Placement
from ..progress import Progress, write_json, write_lines
from ..spec import Spec, derive, hyper
from . import baselines, drift, figures, forms, mllm, train
from .scorer import PairScorer, Scored, both_orders


def run(spec: Spec, h: train.Hyper, out: Path, progress: Progress) -> None:
    """Writes model/, predictions.jsonl, metrics.json, and drift.json when there was a previous model."""
    m: mllm.Hyper = hyper(mllm.Hyper, h.mllm)
    if not spec.base:
        raise BadInputError("base: missing; the two-image reward model is made from the prompt model's base")
    placement = Placement.of(spec, full=m.rank == 0)
    truth = train.load_truth(spec.truth)
    fold = train.prepare(spec, h)  # of the small models beside it; it reads and checks the data set
    rows = drawn_rows(fold.pairs, fold.drawn)
    seed = derive(spec.seed, "referee" if h.referee else "reward")
    reward = mllm.train_mllm(fold.creatives, fold.pairs, rows, Path(spec.base), m, seed, progress, placement)
    reward.base_digest = dir_digest(Path(spec.base))
    tuned = {o.name: train.train(fold, o, h, progress) for o in baselines.BASELINES} if h.baselines else {}
    test = train.exam(fold, TEST, truth)
    ours = judged(reward, test)
    p = {"ours": ours.p_left} | {name: train.predictions(fold, t.model, test.pairs) for name, t in tuned.items()}
    table = {name: train._figures(name, x, test, m.tau) for name, x in p.items()}
    reward.reference = drift.of_figures(table["ours"])
    later = train.exam(fold, LATER, truth)
    metrics: dict[str, Any] = {
        "kind": "reward",
        "form": forms.MLLM,
        "referee": h.referee,
        "train_pairs": len(fold.train_pairs),
        "train_products": len(fold.number),
        "base_digest": reward.base_digest,
        "temperature": reward.temperature,
        "tau": m.tau,
        "column": reward.column,
        "start": {"start": "base", "why": "the two-image form starts from its base in every cycle"},
        "swap_consistency": ours.swap_consistency if len(test.pairs) else None,
        "test": table["ours"],
        "later": train._figures("ours", judged(reward, later).p_left, later, m.tau),
        "baselines": {k: v for k, v in table.items() if k != "ours"},
    }
    if spec.previous:
        metrics["drift"] = previous_now(spec, fold, test)
        write_json(out / "drift.json", metrics["drift"])
    lines = [
        {"pair_id": i, "model": name, "p_left": float(v)}
        for name, x in p.items()
        for i, v in zip(test.pairs.ids, x, strict=True)
    ]
    write_lines(out / "predictions.jsonl", lines)
    reward.save(out / "model")
    write_json(out / "metrics.json", metrics)
    progress.log(stage="done", **{k: v.get("accuracy") for k, v in table.items()})


def drawn_rows(pairs: Pairs, drawn: dict[str, int]) -> np.ndarray:
    """Positions of the training pairs, those of a product as often as the bootstrap drew it (once without one)."""
    at = [i for i in np.flatnonzero(pairs.training) for _ in range(drawn[pairs.products[i]])]
    if len({pairs.products[i] for i in at}) < 2:
        raise NoEvidenceError("training pairs of fewer than 2 products: wait for more clicks")
    return np.array(at, int)


def judged(model: PairScorer, e: figures.Exam) -> Scored:
    """A model's opinion of an exam, both orders averaged."""
    captions, images = [e.creatives.captions[i] for i in e.pairs.left], e.creatives.images
    if not len(e.pairs):
        return Scored(np.zeros(0), 1.0)
    return both_orders(model, captions, images[e.pairs.left], images[e.pairs.right])


def previous_now(spec: Spec, fold: train.Fold, test: figures.Exam) -> dict[str, Any]:
    """The drift report on the model of the cycle before, whatever its form."""
    previous = forms.load(spec.previous, spec)
    if hasattr(previous, "trunk"):
        return drift.report(previous, fold.described, test)
    return drift.by_figures(previous.reference, judged(previous, test).p_left, test, previous.tau)
