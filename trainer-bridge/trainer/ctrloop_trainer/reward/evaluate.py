"""The evaluate job: every reward model of the table on one dataset, judged alike on products that none has seen.

Rows: random, the baselines, ours; on demand the two-image multimodal model ("mllm": true) and zero-shot judges
("judges": [...], see judges.py); the oracle, where the spec names the true click-through rates.
"""

import dataclasses
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..data import LATER, TEST
from ..errors import BadInputError
from ..placement import Placement
from ..progress import Progress, write_json, write_lines
from ..spec import Spec, hyper
from . import baselines, figures, train
from . import judges as remote
from .scorer import PairScorer, both_orders

ARTIFACT = None
OPTIONS = ("mllm", "judges", "judge_cache", "judge_pairs")  # of hyper, beside those of the reward job


class Entry(NamedTuple):
    """A model at the table: what it says of pairs, both orders averaged, and what to tell of it besides."""

    p_left: np.ndarray  # of the pairs at positions rows of the exam
    rows: np.ndarray
    swap_consistency: float | None
    about: dict[str, Any]


Judge = Callable[[figures.Exam], Entry]


def parents(spec: Spec) -> dict[str, str | None]:
    """Folders that the job was made from, by role."""
    h, _ = settings(spec.hyper)
    return {"trunk": str(train.trunk_folder(h)), "base": spec.base, "previous": spec.previous}


def settings(given: dict[str, Any]) -> tuple[train.Hyper, dict[str, Any]]:
    """Hyper-parameters of the reward models, and the options of this job."""
    options = {k: v for k, v in given.items() if k in OPTIONS}
    h = hyper(train.Hyper, {k: v for k, v in given.items() if k not in OPTIONS})
    if not isinstance(options.get("mllm", False), bool | dict):
        raise BadInputError("hyper.mllm: must be true, false or an object with the hyper-parameters of reward/mllm.py")
    if not isinstance(options.get("judges", []), list):
        raise BadInputError("hyper.judges: must be a list of judges, as reward/judges.py reads them")
    remote.check_all(options.get("judges", []))
    return h, options


def run(spec: Spec, out: Path, progress: Progress) -> None:
    """The job: writes table.json, predictions.jsonl (test pairs), metrics.json, and later.json when the dataset has
    evidence from after the training span."""
    h, options = settings(spec.hyper)
    truth = train.load_truth(spec.truth)
    fold = train.prepare(spec, h)
    if not fold.pairs.test.any():
        raise BadInputError(f"the dataset {spec.dataset} has no test pairs: hold products out (holdout_fraction)")
    judges = _trained(fold, h, spec, progress)
    judges |= _on_demand(fold, options, spec, out, progress)
    test = train.exam(fold, TEST, truth)
    if truth is not None:
        judges["oracle"] = _oracle
    entries = {}
    for name, judge in judges.items():
        progress.check_interrupted()
        start = time.monotonic()
        entries[name] = judge(test)
        progress.log(stage="judged", model=name, pairs=len(entries[name].rows), took=round(time.monotonic() - start, 2))
    ceilings = figures.ceilings(test, _creatives_of(fold))
    # A judge whose budget was too small for a single pair has no figures; metrics.json says why.
    unjudged = {name: entries.pop(name).about for name, e in list(entries.items()) if not len(e.rows)}
    table = [_row(name, e, test, fold, ceilings, h.tau) for name, e in entries.items()]
    _compare(table, entries, test)
    lines = [
        {"pair_id": test.pairs.ids[i], "model": name, "p_left": float(p)}
        for name, e in entries.items()
        for i, p in zip(e.rows, e.p_left, strict=True)
    ]
    write_lines(out / "predictions.jsonl", lines)
    write_json(out / "table.json", table)
    metrics = {
        "kind": "evaluate",
        "ceilings": ceilings,
        "test_pairs": len(test.pairs),
        "train_pairs": len(fold.train_pairs),
    }
    metrics |= {"train_products": len(fold.number), "models": {r["model"]: r["accuracy"] for r in table}}
    metrics["unjudged"] = unjudged
    later = train.exam(fold, LATER, truth)
    if len(later.pairs):
        metrics["later"] = _later(judges, later, fold, h)
        write_json(out / "later.json", metrics["later"])
    write_json(out / "metrics.json", metrics)
    progress.log(stage="done", **metrics["models"])


def _creatives_of(fold: train.Fold):
    """Creatives of training products: what the spread of true rates is estimated from."""
    c = fold.creatives
    pick = [[x[i] for i in fold.rows] for x in (c.ids, c.products, c.captions, c.descriptions)]
    return type(c)(*pick, c.images[:0], c.impressions[fold.rows], c.clicks[fold.rows], c.posterior_mean[fold.rows])


# ----------------------------------------------------------------------------------------------- who sits at the table


def _trained(fold: train.Fold, h: train.Hyper, spec: Spec, progress: Progress) -> dict[str, Judge]:
    judges: dict[str, Judge] = {"random": _random}
    for objective in baselines.BASELINES if h.baselines else ():
        judges[objective.name] = _siamese(fold, train.train(fold, objective, h, progress))
    judges["ours"] = _siamese(fold, train.train_ours(fold, h, spec, progress)[0])
    return judges


def _random(e: figures.Exam) -> Entry:
    """A coin per pair, thrown by its id."""
    p = np.array([zlib.crc32(i.encode()) % 1000 / 1000 + 0.0005 for i in e.pairs.ids])
    return Entry(p, np.arange(len(p)), 0.5, {})


def _oracle(e: figures.Exam) -> Entry:
    """The true order; how sure it may be of a noisy label is not its business, so its probabilities are mild."""
    return Entry(0.5 + 0.13 * np.sign(e.true_gap), np.arange(len(e.pairs)), 1.0, {})


def _siamese(fold: train.Fold, tuned: train.Tuned) -> Judge:
    def judge(e: figures.Exam) -> Entry:
        p = train.predictions(fold, tuned.model, e.pairs)
        about = {"penalties": tuned.penalties, "temperature": tuned.model.temperature, "mix": list(tuned.model.mix)}
        return Entry(p, np.arange(len(p)), train.swap_consistency(fold, tuned.model, e.pairs), about)

    return judge


def judge_with(scorer: PairScorer, about: Callable[[], dict[str, Any]] = dict, most: int = 0) -> Judge:
    """The registration point: anything with p_left(captions, left, right), asked in both orders. most > 0: only so
    many pairs, taken evenly by their ids' hash (remote judges cost money)."""

    def judge(e: figures.Exam) -> Entry:
        order = np.argsort([zlib.crc32(i.encode()) for i in e.pairs.ids], kind="stable")
        rows = np.sort(order[:most]) if most else np.arange(len(e.pairs))
        pairs, c = e.pairs.take(rows), e.creatives
        captions = [c.captions[i] for i in pairs.left]
        scored = both_orders(scorer, captions, c.images[pairs.left], c.images[pairs.right])
        return Entry(scored.p_left, rows, scored.swap_consistency, about())

    return judge


def _on_demand(
    fold: train.Fold, options: dict[str, Any], spec: Spec, out: Path, progress: Progress
) -> dict[str, Judge]:
    """Imported when asked for: a language model takes seconds to import, and most tables have neither."""
    judges: dict[str, Judge] = {}
    if options.get("mllm"):
        judges["ours_mllm"] = judge_with(_mllm(fold, options["mllm"], spec, progress))
    for entry in options.get("judges", []):
        cache = Path(options.get("judge_cache") or out / "judge-cache")
        judge = remote.build(entry, cache, progress.check_interrupted)
        judges[f"judge:{judge.name}"] = _remote(judge, int(options.get("judge_pairs", 0)))
    return judges


def _remote(judge: Any, most: int) -> Judge:
    """A judge over an endpoint; it answers for both orders itself, and may leave pairs out (cost cap, refusals)."""

    def ask(e: figures.Exam) -> Entry:
        order = np.argsort([zlib.crc32(i.encode()) for i in e.pairs.ids], kind="stable")
        rows = np.sort(order[:most]) if most else np.arange(len(e.pairs))
        pairs, c = e.pairs.take(rows), e.creatives
        with judge:
            judged = judge.judge([c.captions[i] for i in pairs.left], c.images[pairs.left], c.images[pairs.right])
        answered = np.isfinite(judged.p_left)
        return Entry(judged.p_left[answered], rows[answered], judged.swap_consistency, judged.about())

    return ask


def _mllm(fold: train.Fold, given: bool | dict[str, Any], spec: Spec, progress: Progress) -> PairScorer:
    from . import mllm

    if not spec.base:
        raise BadInputError("hyper.mllm needs `base`, the folder of the multimodal model that it is made from")
    h = hyper(mllm.Hyper, given if isinstance(given, dict) else {})
    rows = np.flatnonzero(fold.pairs.training)
    # Where and in which numbers the specification says: a 7 B model on the CPU in fp32 would take a week.
    placement = Placement.of(spec, full=h.rank == 0)
    return mllm.train_mllm(fold.creatives, fold.pairs, rows, Path(spec.base), h, spec.seed, progress, placement)


# ----------------------------------------------------------------------------------------------------------- the table


def _row(
    name: str, entry: Entry, test: figures.Exam, fold: train.Fold, ceilings: dict[str, float], tau: float
) -> dict[str, Any]:
    part = test if len(entry.rows) == len(test.pairs) else dataclasses.replace(test, pairs=test.pairs.take(entry.rows))
    ceiling = ceilings.get("oracle", ceilings["fitted"])
    row = figures.row(name, entry.p_left, part, ceiling, tau)
    row |= {"swap_consistency": entry.swap_consistency, **entry.about}
    if name == "oracle":  # it has no probabilities to calibrate
        row |= {"log_loss": None, "calibration_error": None, "reliability": []}
    return row


def _compare(table: list[dict[str, Any]], entries: dict[str, Entry], test: figures.Exam) -> None:
    """Adds to each row how much more accurate ours is, on the same pairs."""
    ours = entries["ours"].p_left
    for row in table:
        if row["model"] == "ours":
            continue
        e = entries[row["model"]]
        part = dataclasses.replace(test, pairs=test.pairs.take(e.rows))
        row["ours_less"] = figures.paired(ours[e.rows], e.p_left, part)


def _later(judges: dict[str, Judge], later: figures.Exam, fold: train.Fold, h: train.Hyper) -> list[dict[str, Any]]:
    """The split by time: training products, evidence from after the training span. Remote judges sit this one out."""
    ceilings = figures.ceilings(later, _creatives_of(fold))
    rows = []
    for name, judge in judges.items():
        if not name.startswith("judge:"):
            rows.append(_row(name, judge(later), later, fold, ceilings, h.tau))
    return rows
