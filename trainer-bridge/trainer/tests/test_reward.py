"""The reward model: it finds what is there, and nothing where nothing is."""

import json
import random

import numpy as np
import pytest
from conftest import WEIGHTS

from ctrloop_trainer import errors
from ctrloop_trainer.digest import dir_digest
from ctrloop_trainer.reward.scorer import RewardModel, both_orders

FAST = {"epochs": 12, "learning_rates": "0.003", "heads": 1, "trunk": str(WEIGHTS / "reward-trunk")}


def worth(image):
    """Shoppers of the miniature like red backgrounds better than blue ones."""
    red, _, blue = image[:, 32:].reshape(-1, 3).mean(0)
    return 0.5 * np.tanh((red - blue) / 40)


def reward(make_spec, data, tmp_path, hyper=None, **fields):
    return make_spec("reward", {**FAST, **(hyper or {})}, dataset=str(data.write(tmp_path / "d")), **fields)


def test_learns_what_the_clicks_say(make_data, make_spec, run_job, tmp_path):
    code, out = run_job(reward(make_spec, make_data(worth, per=8, names=36), tmp_path))
    assert code == errors.OK
    m = json.loads((out / "metrics.json").read_text())
    assert m["test"]["accuracy"] > 0.7
    assert m["swap_consistency"] == 1.0
    assert set(m["baselines"]) == {"vam", "cg4ctr", "pointwise"}
    rows = [json.loads(x) for x in (out / "predictions.jsonl").read_text().splitlines()]
    assert {r["model"] for r in rows} == {"ours", "vam", "cg4ctr", "pointwise"}
    assert len(rows) == 4 * m["test"]["pairs"]
    assert all(0 <= r["p_left"] <= 1 for r in rows)
    assert (out / "lineage.json").is_file()


def test_shuffled_labels_score_chance(make_data, make_spec, run_job, tmp_path):
    data = make_data(worth, per=8, names=60)
    rng = random.Random(1)
    for column in ("clicks", "posterior_mean"):
        values = list(data.creatives[column])
        rng.shuffle(values)
        data.creatives[column] = values
    # Training labels lose their link to the pictures; the test pairs keep the true ones.
    wins = data.pairs["left_wins"]
    data.pairs["left_wins"] = [
        w if s == "test" else rng.random() < 0.5 for w, s in zip(wins, data.pairs["split"], strict=True)
    ]
    _, out = run_job(reward(make_spec, data, tmp_path, {"baselines": False}))
    m = json.loads((out / "metrics.json").read_text())
    assert abs(m["test"]["accuracy"] - 0.5) < 0.1


def test_same_seed_same_model_and_the_referee_differs(make_data, make_spec, run_job, tmp_path):
    spec = reward(make_spec, make_data(worth, per=5), tmp_path, {"baselines": False, "epochs": 3})
    digests = [dir_digest(run_job(spec, name)[1] / "model") for name in ("a", "b")]
    assert digests[0] == digests[1]
    referee = {**spec, "hyper": {**spec["hyper"], "referee": True}}
    assert dir_digest(run_job(referee, "c")[1] / "model") != digests[0]


def test_saved_model_scores_alike_and_refuses_nonsense(make_data, make_spec, run_job, tmp_path):
    _, out = run_job(reward(make_spec, make_data(worth, per=5), tmp_path, {"baselines": False, "epochs": 2}))
    model = RewardModel.load(out / "model")
    images = np.random.default_rng(0).integers(0, 255, (6, 64, 64, 3)).astype(np.uint8)
    captions = ["tea pot, dark blue. kitchen/kitchen things"] * 3
    judged = both_orders(model, captions, images[:3], images[3:])
    assert np.allclose(judged.p_left, 1 - both_orders(model, captions, images[3:], images[:3]).p_left)
    with pytest.raises(errors.BadInputError, match="empty caption"):
        model.scores(["", "a", "b"], images[:3])
    (out / "model" / "heads.safetensors").write_bytes(b"broken")
    with pytest.raises(Exception, match=r"cannot load|header"):
        RewardModel.load(out / "model")


def test_averaging_both_orders_removes_a_side_preference():
    class LikesLeft:
        def p_left(self, captions, left, right):
            better = left.mean((1, 2, 3)) > right.mean((1, 2, 3))
            return np.where(better, 0.9, 0.6)

    images = np.stack([np.full((4, 4, 3), v, np.uint8) for v in (10, 20)])
    judged = both_orders(LikesLeft(), ["a", "a"], images, images[::-1])
    assert judged.p_left.tolist() == pytest.approx([0.35, 0.65])
    assert judged.swap_consistency == 0.0
