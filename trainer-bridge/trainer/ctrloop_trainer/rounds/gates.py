"""Gates: what an epoch's model must show on held-out products before it may be loaded anywhere.

These are the gate's own products: what is reported of the epoch that was chosen is measured on others (held.halves), or
it would be true by construction.

Closed list. Each gate compares one measured value with one threshold and says what its failure means.
"""

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass
class Thresholds:
    """Chosen on worlds that are not reported on; every one can be set in the job's hyper-parameters."""

    gate_valid: float = 0.985  # least share of well-formed descriptions; 3 of 256 may fail
    gate_referee_gain: float = 0.0  # least gain by the second reward model, in log-odds
    gate_matching_drop: float = 0.0  # most that the matching rate may lose against the base
    # Least mean of logp(y+|x) - ref(y+|x) over the epoch's later half, in nats. Sound epochs had 0 to +3.7.
    gate_chosen: float = -0.5
    # Most nats per description that the model may be away from the base. Sound epochs had 0.1 to 3.3; those that lost
    # their form 4.2 and 5.7, plain DPO on its way to clickbait 4.0 and 4.8.
    gate_kl: float = 4.0
    gate_diversity: float = 0.5  # least share of the base's variety: how far two descriptions of a product differ
    gate_relevance: float = 0.7  # least share of the base's nats that a description tells of its product
    # The same share where no judge says what matches: then it is all that is known of matching, and more is asked.
    gate_relevance_alone: float = 0.9
    gate_referee_share: float = 0.3  # least gain by the referee for each unit of gain by the first reward model


@dataclasses.dataclass(frozen=True)
class Gate:
    """value must be at least (or, for a bound, at most) threshold."""

    name: str
    bound: bool
    why: str
    value: Callable[[dict[str, Any], dict[str, Any]], float | None]  # of (epoch's figures, base's figures)
    threshold: Callable[[Thresholds, dict[str, Any], dict[str, Any]], float]  # and of both figures


def _has_judge(base: dict[str, Any]) -> bool:
    return base.get("matching") is not None


GATES = (
    Gate(
        "referee_gain",
        False,
        "a second reward model, of other seed and data, must prefer the new descriptions; else the first was gamed",
        lambda e, b: e.get("referee_gain"),
        lambda t, b, e: t.gate_referee_gain,
    ),
    Gate(
        "referee_share",
        False,
        "what the first reward model gained, the second must see in part; else its errors were learned, not its taste",
        lambda e, b: e.get("referee_gain"),
        lambda t, b, e: t.gate_referee_share * max(e.get("reward_gain") or 0.0, 0.0),
    ),
    Gate(
        "valid",
        False,
        "descriptions must stay well formed",
        lambda e, b: e["valid"],
        lambda t, b, e: t.gate_valid,
    ),
    Gate(
        "matching",
        False,
        "backgrounds must suit their products about as well as the base model's do; without a judge, tell as much of "
        "them (protocol B)",
        lambda e, b: e["matching"] if _has_judge(b) else e["information_base"],
        lambda t, b, e: (
            b["matching"] - t.gate_matching_drop if _has_judge(b) else t.gate_relevance_alone * b["information_base"]
        ),
    ),
    Gate(
        "relevance",
        False,
        "a description must tell its product from others: backgrounds that pull clicks for anything do not",
        lambda e, b: e["information_base"],
        lambda t, b, e: t.gate_relevance * b["information_base"],
    ),
    Gate(
        "chosen_logp",
        False,
        "preferred answers must not become unlikely along with the rejected ones",
        lambda e, b: e["chosen"],
        lambda t, b, e: t.gate_chosen,
    ),
    Gate(
        "kl",
        True,
        "the model must stay near the base, where the reward model has seen data",
        lambda e, b: e["kl"],
        lambda t, b, e: t.gate_kl,
    ),
    Gate(
        "diversity",
        False,
        "one product must not get one background for ever: exploration would end",
        lambda e, b: e["variety"],
        lambda t, b, e: t.gate_diversity * b["variety"],
    ),
)


def judge(epoch: dict[str, Any], base: dict[str, Any], thresholds: Thresholds) -> list[dict[str, Any]]:
    """All gates on one epoch: [{"name", "value", "threshold", "passed", "why"}]; a value that is missing fails."""
    out = []
    for gate in GATES:
        value, threshold = gate.value(epoch, base), gate.threshold(thresholds, base, epoch)
        if value is None:
            passed = False
        elif gate.name == "referee_gain":
            passed = value > threshold
        else:
            passed = value <= threshold if gate.bound else value >= threshold
        why = gate.why if value is not None else "not measured: no referee model was given"
        out.append({"name": gate.name, "value": value, "threshold": threshold, "passed": passed, "why": why})
    return out


def choose(epochs: list[dict[str, Any]]) -> tuple[int, bool]:
    """Position of the epoch to ship and whether it passed: the gated one with the largest referee gain; when none
    passed, the one with the fewest failures, so that there is something to look at."""

    def failures(e: dict[str, Any]) -> int:
        return sum(not g["passed"] for g in e["gates"])

    def gain(e: dict[str, Any]) -> float:
        return e["referee_gain"] if e.get("referee_gain") is not None else float("-inf")

    best = min(range(len(epochs)), key=lambda i: (failures(epochs[i]), -gain(epochs[i]), i))
    return best, failures(epochs[best]) == 0


def failed(epoch: dict[str, Any]) -> list[str]:
    """Names of the gates that an epoch did not pass."""
    return [g["name"] for g in epoch["gates"] if not g["passed"]]


def exhausted(epochs: list[dict[str, Any]], patience: int) -> bool:
    """Whether the last epochs, as many as patience, all failed a gate: going on would only go further. What could not
    be measured does not count: it would end every job without a referee. patience 0: never."""
    last = epochs[-patience:] if patience else []
    return bool(patience) and len(last) == patience and all(_measured_failure(e) for e in last)


def _measured_failure(epoch: dict[str, Any]) -> bool:
    return any(not g["passed"] and g["value"] is not None for g in epoch["gates"])
