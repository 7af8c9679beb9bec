"""Gates and the choice of the epoch that ships."""

import pytest

from ctrloop_trainer.rounds import gates

BASE = {"matching": 0.6, "variety": 0.8, "information_base": 1.0}
GOOD = {"valid": 0.99, "reward_gain": 0.3, "referee_gain": 0.2, "matching": 0.62, "chosen": 1.0, "kl": 1.0}
GOOD |= {"variety": 0.7, "information_base": 1.1}


def judged(**change):
    return {g["name"]: g["passed"] for g in gates.judge({**GOOD, **change}, BASE, gates.Thresholds())}


def test_a_good_epoch_passes_all():
    assert all(judged().values())


@pytest.mark.parametrize(
    ("change", "gate"),
    [
        ({"reward_gain": 0.0, "referee_gain": 0.0}, "referee_gain"),
        ({"reward_gain": 0.9}, "referee_share"),
        ({"valid": 0.96}, "valid"),
        ({"matching": 0.5}, "matching"),
        ({"chosen": -5.0}, "chosen_logp"),
        ({"kl": 40.0}, "kl"),
        ({"variety": 0.1}, "diversity"),
        ({"information_base": 0.3}, "relevance"),
    ],
)
def test_each_gate_stops_its_own_fault_only(change, gate):
    assert [name for name, passed in judged(**change).items() if not passed] == [gate]


def test_without_a_referee_nothing_passes():
    told = {g["name"]: g for g in gates.judge({**GOOD, "referee_gain": None}, BASE, gates.Thresholds())}
    assert [n for n, g in told.items() if not g["passed"]] == ["referee_gain", "referee_share"]
    assert "no referee" in told["referee_gain"]["why"]


def test_an_arm_is_exhausted_by_failures_in_a_row_that_were_measured():
    bad, good = {"gates": [{"passed": False, "value": 1.0}]}, {"gates": [{"passed": True, "value": 1.0}]}
    unmeasured = {"gates": [{"passed": False, "value": None}]}
    assert gates.exhausted([good, bad, bad], 2)
    assert not gates.exhausted([bad, good, bad], 2)
    assert not gates.exhausted([bad], 2)
    assert not gates.exhausted([bad] * 9, 0)
    assert not gates.exhausted([unmeasured] * 9, 2)


def epoch(gain, *passed):
    return {"referee_gain": gain, "gates": [{"passed": p} for p in passed]}


def test_the_best_gated_epoch_ships():
    assert gates.choose([epoch(0.1, True), epoch(0.3, True), epoch(0.9, False)]) == (1, True)


def test_when_none_passes_the_nearest_is_shown_as_failed():
    assert gates.choose([epoch(0.5, False, False), epoch(-0.1, True, False)]) == (1, False)


def test_a_world_in_which_form_is_lost_ships_the_epoch_before():
    """Figures of a world in which PCPO lost validity: 0.97 in epoch 2, 0.88 in epoch 3, while the gain went on rising.
    The gate must catch both, the arm must end, and what ships is epoch 1."""
    curve = [(0.996, 0.21), (0.97, 0.35), (0.88, 0.52)]
    epochs = []
    for n, (valid, gain) in enumerate(curve, 1):
        figures = {**GOOD, "epoch": n, "valid": valid, "referee_gain": gain, "reward_gain": gain}
        epochs.append({**figures, "gates": gates.judge(figures, BASE, gates.Thresholds())})
    assert [gates.failed(e) for e in epochs] == [[], ["valid"], ["valid"]]
    assert gates.choose(epochs) == (0, True)
    assert gates.exhausted(epochs, 2)
    assert not gates.exhausted(epochs[:2], 2)


def test_without_a_judge_matching_is_what_descriptions_tell_of_their_product():
    """A real catalogue says nothing of what suits: protocol B, by the base, which no round can teach to be mild."""
    base = {**BASE, "matching": None}
    for told, passed in ((1.0, True), (0.92, True), (0.85, False)):
        figures = {**GOOD, "matching": None, "information_base": told}
        found = {g["name"]: g for g in gates.judge(figures, base, gates.Thresholds())}
        assert found["matching"]["passed"] is passed
        assert found["matching"]["value"] == told
        assert found["matching"]["threshold"] == pytest.approx(0.9)
        assert found["relevance"]["passed"]
