"""Has the world moved since the reward model of the cycle before was trained? Its figures on fresh pairs against what
it scored then, its calibration, and the distribution of what it reads."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from . import figures

if TYPE_CHECKING:
    from .scorer import RewardModel

BINS = 10
# Population stability index above which a distribution counts as moved: the usual rule of thumb of credit scoring.
PSI_MOVED = 0.25
MOVED_SHARE = 0.2  # of the columns: more of them moved is drift of the inputs
CALIBRATION_RISE = 0.05  # of the expected calibration error


def reference(described: torch.Tensor, columns: tuple[str, ...], test: dict[str, Any]) -> dict[str, Any]:
    """What a report of the next cycle compares with; saved in reward.json."""
    x = described.numpy().astype(float)
    # Rounded before anything is counted: a value on an edge must fall on the same side when read back.
    edges = np.round(np.quantile(x, np.arange(1, BINS) / BINS, axis=0), 6)
    keep = ("pairs", "accuracy", "low", "high", "log_loss", "calibration_error", "ceilings")
    return {
        "columns": list(columns),
        "edges": edges.T.tolist(),
        "shares": [_shares(x[:, j], edges[:, j]) for j in range(x.shape[1])],
        "test": {k: test[k] for k in keep if k in test},
    }


def _shares(values: np.ndarray, edges: np.ndarray) -> list[float]:
    counts = np.bincount(np.searchsorted(np.asarray(edges), values), minlength=len(edges) + 1)
    return [round(float(c), 6) for c in counts / max(1, len(values))]


def stability_index(then: np.ndarray, now: np.ndarray) -> float:
    """Population stability index of two histograms: sum (now - then) log(now / then), shares floored at 0.001."""
    a, b = np.maximum(then, 1e-3), np.maximum(now, 1e-3)
    return float(((b - a) * np.log(b / a)).sum())


def report(previous: "RewardModel", described: torch.Tensor, fresh: figures.Exam) -> dict[str, Any]:
    """The previous model on fresh pairs of products that no model is trained on; verdict: "none" or what drifted.

    accuracy: the fresh interval over products lies below what it scored then, relative to the ceiling of either time
    (noisier labels alone are no drift). calibration: the error rose by CALIBRATION_RISE. inputs: the distribution of
    more than MOVED_SHARE of the columns moved (index above PSI_MOVED).
    """
    then = previous.reference
    if not then or list(previous.trunk.columns) != then.get("columns"):
        return {"verdict": "unknown", "why": ["the previous model carries no reference"], "drifted": False}
    x = described.numpy().astype(float)
    index = {
        name: stability_index(np.array(then["shares"][j]), np.array(_shares(x[:, j], np.array(then["edges"][j]))))
        for j, name in enumerate(then["columns"])
    }
    moved = sorted((n for n, v in index.items() if v > PSI_MOVED), key=lambda n: -index[n])
    why = []
    if len(moved) > MOVED_SHARE * len(index):
        why.append(f"inputs: {len(moved)} of {len(index)} columns moved, first {moved[0]} ({index[moved[0]]:.2f})")
    now = _now(previous, described, fresh)
    if now and then["test"]:
        why += _performance(then["test"], now)
    worst = sorted(index.items(), key=lambda kv: -kv[1])[:10]
    return {
        "verdict": "; ".join(why) if why else "none",
        "why": why,
        "drifted": bool(why),
        "then": then["test"],
        "now": now,
        "stability_index": {"median": float(np.median(list(index.values()))), "moved": moved, "largest": dict(worst)},
        "thresholds": {"index": PSI_MOVED, "moved_share": MOVED_SHARE, "calibration_rise": CALIBRATION_RISE},
    }


def of_figures(test: dict[str, Any]) -> dict[str, Any]:
    """reference() of a model that describes nothing: its figures alone."""
    keep = ("pairs", "accuracy", "low", "high", "log_loss", "calibration_error", "ceilings")
    return {"test": {k: test[k] for k in keep if k in test}}


def by_figures(then: dict[str, Any], p_left: np.ndarray, fresh: figures.Exam, tau: float) -> dict[str, Any]:
    """report() of such a model, from what it says of the fresh pairs: inputs are not looked at."""
    if not then.get("test"):
        return {"verdict": "unknown", "why": ["the previous model carries no reference"], "drifted": False}
    now = _row(p_left, fresh, tau) if len(fresh.pairs) else {}
    why = _performance(then["test"], now) if now else []
    verdict = "; ".join(why) if why else "none"
    return {"verdict": verdict, "why": why, "drifted": bool(why), "then": then["test"], "now": now}


def _now(previous: "RewardModel", described: torch.Tensor, fresh: figures.Exam) -> dict[str, Any]:
    from .scorer import sigmoid

    if not len(fresh.pairs):
        return {}
    s = previous.scores_of(described, fresh.creatives.captions)
    return _row(sigmoid(s[fresh.pairs.left] - s[fresh.pairs.right]), fresh, previous.tau)


def _row(p_left: np.ndarray, fresh: figures.Exam, tau: float) -> dict[str, Any]:
    ceilings = figures.ceilings(fresh)
    row = figures.row("previous", p_left, fresh, ceilings["fitted"], tau)
    return {k: row[k] for k in ("pairs", "accuracy", "low", "high", "log_loss", "calibration_error")} | {
        "ceilings": ceilings
    }


def _performance(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    why = []
    share = figures.fraction(then["accuracy"], then["ceilings"]["fitted"])
    expected = 0.5 + (share or 0) * max(0.0, now["ceilings"]["fitted"] - 0.5)
    if share is not None and now["high"] < expected:
        why.append(
            f"accuracy: {now['accuracy']:.3f} on fresh pairs, {expected:.3f} expected from {share:.2f} of the ceiling"
        )
    rise = now["calibration_error"] - then["calibration_error"]
    if rise > CALIBRATION_RISE:
        why.append(f"calibration: the error rose by {rise:.3f} to {now['calibration_error']:.3f}")
    return why
