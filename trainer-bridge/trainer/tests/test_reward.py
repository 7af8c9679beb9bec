"""The reward model: it finds what is there, and nothing where nothing is; its losses are what their papers say."""

import json
import random

import numpy as np
import pytest
import torch
from conftest import WEIGHTS

from ctrloop_trainer import errors, losses
from ctrloop_trainer.data import TRAIN, Creatives, Pairs, load_dataset
from ctrloop_trainer.digest import dir_digest
from ctrloop_trainer.reward import baselines, drift
from ctrloop_trainer.reward import train as reward_train
from ctrloop_trainer.reward.baselines import BASELINES, Labels, Lesson, pair_targets
from ctrloop_trainer.reward.scorer import RewardModel, both_orders, category_path
from ctrloop_trainer.reward.trunk import Trunk

FAST = {"penalties": "0.01,0.1", "folds": 3, "epochs": 25, "trunk": str(WEIGHTS / "reward-trunk")}


def worth(image):
    """Shoppers of the miniature like red backgrounds better than blue ones."""
    red, _, blue = image[:, 32:].reshape(-1, 3).mean(0)
    return 0.5 * np.tanh((red - blue) / 40)


def reward(make_spec, data, tmp_path, hyper=None, name="d", **fields):
    return make_spec("reward", {**FAST, **(hyper or {})}, dataset=str(data.write(tmp_path / name)), **fields)


def metrics(out):
    return json.loads((out / "metrics.json").read_text())


def test_learns_what_the_clicks_say(make_data, make_spec, run_job, tmp_path):
    code, out = run_job(reward(make_spec, make_data(worth, per=8, names=36), tmp_path))
    assert code == errors.OK
    m = metrics(out)
    assert m["test"]["accuracy"] > 0.7
    assert m["validation"]["accuracy"] > 0.7
    assert m["swap_consistency"] == 1.0
    assert set(m["baselines"]) == {"vam", "cg4ctr", "pointwise", "two_stage"}
    rows = [json.loads(x) for x in (out / "predictions.jsonl").read_text().splitlines()]
    assert {r["model"] for r in rows} == {"ours", *m["baselines"]}
    assert len(rows) == 5 * m["test"]["pairs"]
    assert all(0 <= r["p_left"] <= 1 for r in rows)
    assert (out / "lineage.json").is_file()
    # What calibration is for: nobody does better by saying something else at every pair alike.
    assert m["test"]["log_loss"] < np.log(2)


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
    m = metrics(out)
    assert abs(m["validation"]["accuracy"] - 0.5) < 0.06
    assert m["test"]["log_loss"] < 0.72  # calibration makes a model that knows nothing say so


def test_same_seed_same_model_and_the_referee_differs(make_data, make_spec, run_job, tmp_path):
    spec = reward(make_spec, make_data(worth, per=5), tmp_path, {"baselines": False})
    digests = [dir_digest(run_job(spec, name)[1] / "model") for name in ("a", "b")]
    assert digests[0] == digests[1]
    referee = {**spec, "hyper": {**spec["hyper"], "referee": True}}
    assert dir_digest(run_job(referee, "c")[1] / "model") != digests[0]


def test_saved_model_scores_alike_and_refuses_nonsense(make_data, make_spec, run_job, tmp_path):
    spec = reward(make_spec, make_data(worth, per=5), tmp_path, {"baselines": False})
    _, out = run_job(spec)
    model = RewardModel.load(out / "model")
    creatives, pairs = load_dataset(tmp_path / "d")
    test = pairs.of("test")
    p = model.p_left(
        [creatives.captions[i] for i in test.left], creatives.images[test.left], creatives.images[test.right]
    )
    told = [json.loads(x)["p_left"] for x in (out / "predictions.jsonl").read_text().splitlines()]
    assert p == pytest.approx(told, abs=1e-5)
    images = np.random.default_rng(0).integers(0, 255, (6, 64, 64, 3)).astype(np.uint8)
    captions = ["tea pot, dark blue. kitchen/kitchen things"] * 3
    judged = both_orders(model, captions, images[:3], images[3:])
    assert np.allclose(judged.p_left, 1 - both_orders(model, captions, images[3:], images[:3]).p_left)
    with pytest.raises(errors.BadInputError, match="empty caption"):
        model.scores(["", "a", "b"], images[:3])
    (out / "model" / "heads.safetensors").write_bytes(b"broken")
    with pytest.raises(errors.BadInputError, match="cannot load"):
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


def test_a_caption_ends_with_its_category():
    assert category_path("tea pot, dark blue. kitchen/pots and pans") == ("kitchen", "pots and pans")
    assert category_path("a lamp from e.g. Sweden") == ()


# --- folds, calibration, warm start ---


@pytest.fixture
def fold(make_data, tmp_path):
    creatives, pairs = load_dataset(make_data(worth, per=5).write(tmp_path / "fold"))
    h = reward_train.Hyper(penalties="0.03", folds=3, epochs=15)
    return reward_train.Fold(creatives, pairs, Trunk.load(WEIGHTS / "reward-trunk"), h, 1)


class Silent:
    def log(self, **row):
        pass

    def check_interrupted(self):
        pass


def test_products_keep_their_fold_from_cycle_to_cycle():
    products = [f"p-{i}" for i in range(40)]
    before, after = reward_train.folds_of(products[:30], 5, "reward"), reward_train.folds_of(products, 5, "reward")
    assert all(after[p] == k for p, k in before.items())
    assert set(after.values()) == set(range(5))
    assert sorted(reward_train.folds_of(["a", "b"], 5, "reward").values()) == [0, 1]


def test_unseen_predictions_do_not_see_the_labels_of_their_fold(fold):
    before = reward_train.train(fold, baselines.ours(), fold.h, Silent())
    at = fold.in_fold(0)
    fold.train_pairs.left_wins[at] = ~fold.train_pairs.left_wins[at]
    rows = [i for i in fold.rows if fold.fold[fold.creatives.products[i]] == 0]
    fold.labels.target[rows] *= -1
    after = reward_train.train(fold, baselines.ours(), fold.h, Silent())
    # Units and temperature come from all folds and may change; the order of the pairs hardly does.
    assert np.corrcoef(before.unseen[at], after.unseen[at])[0, 1] > 0.9
    # The heads that did learn from the turned labels do change.
    assert not torch.equal(before.model.head.weight, after.model.head.weight)
    assert torch.equal(before.model.folds[0].weight, after.model.folds[0].weight)


def test_calibration_lowers_the_log_loss():
    rng = np.random.default_rng(0)
    difference = rng.normal(0, 1, 4000)
    wins = rng.random(4000) < 1 / (1 + np.exp(-difference / 3))
    temperature, loss = reward_train.calibrate(difference, wins)
    assert 2.3 < temperature < 4
    raw = np.logaddexp(0, -np.where(wins, 1, -1) * difference).mean()
    assert loss < raw - 0.03
    useless, at = reward_train.calibrate(difference, rng.random(4000) < 0.5)
    assert useless > 20
    assert at == pytest.approx(np.log(2), abs=0.002)


def test_warm_start_is_kept_only_when_unseen_products_gain(make_data, make_spec, run_job, tmp_path):
    big = reward(make_spec, make_data(worth, per=8, names=36), tmp_path, {"baselines": False}, "big")
    _, first = run_job(big, "first")
    few = make_data(worth, per=3, names=24, seed=3)
    previous = {"previous": str(first / "model")}
    _, scratch = run_job(reward(make_spec, few, tmp_path, {"baselines": False}, "few"), "scratch")
    _, warm = run_job(reward(make_spec, few, tmp_path, {"baselines": False}, "few2", **previous), "warm")
    s, w = metrics(scratch)["start"], metrics(warm)["start"]
    assert w["start"] == "previous"
    assert w["validation_loss_warm"] < s["validation_loss_scratch"]
    # A previous model of a world turned upside down must not win.
    other = make_data(lambda x: -worth(x), per=8, names=36, seed=4)
    _, last = run_job(reward(make_spec, other, tmp_path, {"baselines": False}, "other", **previous), "last")
    m = metrics(last)
    assert m["start"]["start"] == "scratch" or (
        m["start"]["validation_loss_warm"] <= m["start"]["validation_loss_scratch"]
    )
    assert m["test"]["accuracy"] > 0.7
    d = json.loads((last / "drift.json").read_text())
    assert d["drifted"]
    assert "accuracy" in d["verdict"]
    calm = json.loads((warm / "drift.json").read_text())
    assert not any(w.startswith("accuracy") for w in calm["why"])


def test_a_previous_model_with_another_eye_is_no_prior(make_data, make_spec, run_job, tmp_path):
    data = make_data(worth, per=4)
    _, first = run_job(reward(make_spec, data, tmp_path, {"baselines": False}), "first")
    hyper = {"baselines": False, "trunk": str(WEIGHTS / "referee-trunk")}
    _, second = run_job(reward(make_spec, data, tmp_path, hyper, "e", previous=str(first / "model")), "second")
    assert metrics(second)["start"] == metrics(second)["start"] | {
        "start": "scratch",
        "why": "the previous model has another trunk",
    }


def test_stability_index_by_hand():
    assert drift.stability_index(np.array([0.5, 0.5]), np.array([0.5, 0.5])) == 0
    assert drift.stability_index(np.array([0.5, 0.5]), np.array([0.25, 0.75])) == pytest.approx(
        -0.25 * np.log(0.5) + 0.25 * np.log(1.5)
    )


def test_other_pictures_are_input_drift(make_data, make_spec, run_job, tmp_path):
    data = make_data(worth, per=5)
    _, out = run_job(reward(make_spec, data, tmp_path, {"baselines": False}))
    model = RewardModel.load(out / "model")
    creatives, pairs = load_dataset(tmp_path / "d")
    exam = reward_train.figures.Exam(creatives, pairs.of("test"))
    same = drift.report(model, model.trunk.describe(creatives.images), exam)
    assert not any(w.startswith("inputs") for w in same["why"])
    moved = drift.report(model, model.trunk.describe(creatives.images // 3), exam)
    assert any(w.startswith("inputs") for w in moved["why"])
    assert "b_luma" in moved["stability_index"]["moved"]


# --- objectives, by hand ---


@pytest.fixture
def lesson():
    """Two products with three and two creatives; outputs that are not a solution."""
    imp = np.array([1000, 2000, 500, 800, 1200])
    clk = np.array([30, 90, 20, 40, 24])
    c = Creatives(
        list("abcde"), ["p", "p", "p", "q", "q"], ["x"] * 5, ["y"] * 5, np.zeros((5, 1, 1, 3), np.uint8), imp, clk,
        (clk + 4) / (imp + 110),
    )  # fmt: skip
    pairs = Pairs(
        ["1", "2"], ["p", "q"], np.array([0, 3]), np.array([1, 4]), np.array([False, True]), np.array([0.8, 0.4]),
        np.array([TRAIN, TRAIN], object),
    )  # fmt: skip
    labels = Labels.of(c, np.arange(5))
    target, weight = pair_targets(pairs, "soft")
    out = torch.tensor([[0.3, 3.0], [-0.2, 4.0], [0.1, 5.0], [0.7, 2.0], [0.4, 3.5]])
    x = Lesson(torch.zeros(5, 1), torch.tensor([0, 0, 0, 1, 1]), torch.ones(5), labels,
               torch.tensor([0, 3]), torch.tensor([1, 4]), target, weight)  # fmt: skip
    return c, x, out


def of(name):
    return next(o for o in BASELINES if o.name == name).loss


def test_ours_by_hand(lesson):
    c, x, out = lesson
    z = 100 * c.clicks / c.impressions
    pair = 0
    for left, right, target in ((0, 1, 0.1), (3, 4, 0.7)):  # 1/2 -+ weight / 2
        p = 1 / (1 + np.exp(-(out[left, 0] - out[right, 0]).item()))
        pair -= target * np.log(p) + (1 - target) * np.log(1 - p)
    error = out[:, 1].numpy() - z
    for members in ([0, 1, 2], [3, 4]):
        error[members] -= np.average(error[members], weights=c.impressions[members])
    point = np.average(error**2, weights=c.impressions)
    assert baselines.ours().loss(out, x).item() == pytest.approx(pair / 2 + 0.5 * point, rel=1e-4)
    assert baselines.ours(0.0).loss(out, x).item() == pytest.approx(pair / 2, rel=1e-4)
    uncentred = np.average((out[:, 1].numpy() - z) ** 2, weights=c.impressions)
    assert baselines.ours(0.5, False).loss(out, x).item() == pytest.approx(pair / 2 + 0.5 * uncentred, rel=1e-4)


def test_evidence_as_weight_is_the_weighted_cross_entropy(lesson):
    _, x, out = lesson
    pairs = Pairs(["1", "2"], ["p", "q"], x.left.numpy(), x.right.numpy(), np.array([False, True]),
                  np.array([0.8, 0.4]), np.array([TRAIN] * 2, object))  # fmt: skip
    x.pair_target, x.pair_weight = pair_targets(pairs, "weight")
    want = losses.weighted_pair(out[x.left, 0], out[x.right, 0], torch.tensor([0.0, 1.0]), torch.tensor([0.8, 0.4]))
    assert baselines.ours(0.0).loss(out, x).item() == pytest.approx(want.item())
    assert pair_targets(pairs, "none")[1].tolist() == [1, 1]
    with pytest.raises(errors.BadInputError, match="evidence"):
        pair_targets(pairs, "strong")


def test_vam_by_hand(lesson):
    c, x, out = lesson
    y = 100 * (c.clicks + 2.0402) / (c.impressions + 2.0402 + 54.0625)
    w = np.log(c.impressions)
    rank = [losses.listwise(out[m, 0], torch.tensor(y[m]), torch.tensor(w[m])).item() for m in ([0, 1, 2], [3, 4])]
    point = np.average((out[:, 1].numpy() - y) ** 2, weights=w)
    assert of("vam")(out, x).item() == pytest.approx(np.mean(rank) + 0.5 * point, rel=1e-4)


def test_cg4ctr_by_hand(lesson):
    c, x, out = lesson
    y = 100 * c.clicks / c.impressions
    rank = []
    for m in ([0, 1, 2], [3, 4]):
        t = np.exp(y[m]) / np.exp(y[m]).sum()
        s = out[m, 0].double().numpy()
        rank.append(-(t * (s - np.log(np.exp(s).sum()))).sum())
    point = np.average((out[:, 0].numpy() - y) ** 2, weights=c.impressions)
    assert of("cg4ctr")(out, x).item() == pytest.approx(0.9 * np.mean(rank) + 0.1 * point, rel=1e-4)


def test_pointwise_by_hand(lesson):
    c, x, out = lesson
    want = np.average((out[:, 1].numpy() - 100 * c.clicks / c.impressions) ** 2, weights=c.impressions)
    assert of("pointwise")(out, x).item() == pytest.approx(want, rel=1e-4)


def test_two_stage_by_hand(lesson):
    c, x, out = lesson
    y = 100 * (c.clicks + 2.0402) / (c.impressions + 2.0402 + 54.0625)
    pair = 0
    for left, right in ((0, 1), (3, 4)):
        t = 1 / (1 + np.exp(-(y[left] - y[right])))
        p = 1 / (1 + np.exp(-(out[left, 0] - out[right, 0]).item()))
        pair -= t * np.log(p) + (1 - t) * np.log(1 - p)
    want = pair / 2 + 0.2 * np.mean((out[:, 0].numpy() - y) ** 2)
    assert of("two_stage")(out, x).item() == pytest.approx(want, rel=1e-4)
    assert x.labels.bucket.tolist() == np.argsort(np.argsort(y)).tolist() or x.labels.bucket.max() < baselines.BUCKETS
    assert (np.diff(y[np.argsort(x.labels.bucket.numpy(), kind="stable")]) > 0).all()  # buckets follow the rates


def test_ctr_scales(lesson):
    c, _, _ = lesson
    everyone = np.arange(5)
    assert baselines.targets(c, everyone, "raw") == pytest.approx(c.clicks / c.impressions)
    assert baselines.targets(c, everyone, "percent") == pytest.approx(100 * c.clicks / c.impressions)
    z = np.log(c.posterior_mean / (1 - c.posterior_mean))
    assert baselines.targets(c, everyone, "standard") == pytest.approx((z - z.mean()) / z.std())
    with pytest.raises(errors.BadInputError, match="ctr_scale"):
        baselines.targets(c, everyone, "log")


def test_a_judge_that_knows_nothing_says_one_half():
    """Nothing at all, next to nothing, or opinions that come true as often as not: the smallest temperature would make
    certainties of them."""
    wins = np.array([True, False] * 50)
    for difference in (np.zeros(100), np.full(100, 1e-12), np.random.default_rng(0).normal(size=50).repeat(2)):
        temperature, loss = reward_train.calibrate(difference, wins)
        assert np.abs(1 / (1 + np.exp(-difference / temperature)) - 0.5).max() < 0.01
        assert loss == pytest.approx(np.log(2), abs=1e-4)
