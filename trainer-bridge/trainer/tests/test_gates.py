"""Gates and the choice of the epoch that ships."""

import pytest

from ctrloop_trainer.rounds import gates

BASE = {"matching": 0.6, "distinct": 0.9}
GOOD = {"valid": 0.99, "referee_gain": 0.2, "matching": 0.62, "chosen": 1.0, "kl": 3.0, "distinct": 0.8}


def judged(**change):
    return {g["name"]: g["passed"] for g in gates.judge({**GOOD, **change}, BASE, gates.Thresholds())}


def test_a_good_epoch_passes_all():
    assert all(judged().values())


@pytest.mark.parametrize(
    ("change", "gate"),
    [
        ({"referee_gain": 0.0}, "referee_gain"),
        ({"referee_gain": None}, "referee_gain"),
        ({"valid": 0.96}, "valid"),
        ({"matching": 0.5}, "matching"),
        ({"chosen": -5.0}, "chosen_logp"),
        ({"kl": 40.0}, "kl"),
        ({"distinct": 0.1}, "diversity"),
    ],
)
def test_each_gate_stops_its_own_fault_only(change, gate):
    assert [name for name, passed in judged(**change).items() if not passed] == [gate]


def epoch(gain, *passed):
    return {"referee_gain": gain, "gates": [{"passed": p} for p in passed]}


def test_the_best_gated_epoch_ships():
    assert gates.choose([epoch(0.1, True), epoch(0.3, True), epoch(0.9, False)]) == (1, True)


def test_when_none_passes_the_nearest_is_shown_as_failed():
    assert gates.choose([epoch(0.5, False, False), epoch(-0.1, True, False)]) == (1, False)
