"""The table of reward models: figures by hand, who sits at it, and what an oracle could score."""

import json

import numpy as np
import pytest
from conftest import WEIGHTS
from test_reward import worth

from ctrloop_trainer import errors
from ctrloop_trainer.data import TEST, Creatives, Pairs
from ctrloop_trainer.reward import evaluate, figures

FAST = {"penalties": "0.03", "folds": 2, "epochs": 12, "trunk": str(WEIGHTS / "reward-trunk")}
TRAINED = ("pointwise", "vam", "cg4ctr", "two_stage", "ours")


def shop(products=60, per=8, impressions=2000, spread=0.2, seed=0, keep=1.0):
    """Creatives with known true rates, and all pairs of each product with the labels that their clicks give."""
    rng = np.random.default_rng(seed)
    names = [f"p{i}" for i in range(products) for _ in range(per)]
    true = 0.04 * np.exp(rng.normal(0, spread, len(names)) + np.repeat(rng.normal(0, 0.2, products), per))
    imp = np.full(len(names), impressions)
    clk = rng.binomial(imp, true)
    n = len(names)
    c = Creatives([f"c{i}" for i in range(n)], names, ["thing, red. a/b"] * n, ["t"] * n,
                  np.zeros((n, 1, 1, 3), np.uint8), imp, clk, (clk + 4) / (imp + 100))  # fmt: skip
    i, j = np.triu_indices(per, 1)
    left = np.concatenate([i + per * k for k in range(products)])
    right = np.concatenate([j + per * k for k in range(products)])
    gap = clk[left] - clk[right]
    use = (gap != 0) & (np.abs(gap) >= np.quantile(np.abs(gap), 1 - keep))
    left, right, gap = left[use], right[use], gap[use]
    m = len(left)
    pairs = Pairs([f"q{k}" for k in range(m)], [names[k] for k in left], left, right, gap > 0, np.full(m, 0.5),
                  np.array([TEST] * m, object))  # fmt: skip
    return c, pairs, dict(zip(c.ids, true.tolist(), strict=True))


@pytest.mark.parametrize("keep", [1.0, 0.4])
def test_the_fitted_ceiling_is_what_the_oracle_scores(keep):
    """Also when the pair builder leaves out pairs with little evidence."""
    for seed in range(3):
        c, pairs, truth = shop(seed=seed, keep=keep)
        got = figures.ceilings(figures.Exam(c, pairs, truth))
        assert got["fitted"] == pytest.approx(got["oracle"], abs=0.03)
        assert got["posterior"] == pytest.approx(0.75)


def test_spread_within_products_by_moments():
    for spread in (0.1, 0.3):
        c, _, _ = shop(products=150, spread=spread)
        assert np.sqrt(figures.within_variance(c)) == pytest.approx(spread, rel=0.2)


def test_row_by_hand():
    c, pairs, truth = shop(products=2, per=3)
    pairs = pairs.take([0, 1, 2])
    exam = figures.Exam(c, pairs, truth)
    p = np.where(pairs.left_wins, [0.8, 0.3, 0.5], 1 - np.array([0.8, 0.3, 0.5]))
    row = figures.row("m", p, exam, ceiling=0.75, tau=0.05)
    assert row["accuracy"] == pytest.approx(0.5)  # right, wrong, a tie is half right
    assert row["fraction_of_ceiling"] == pytest.approx(0)
    assert row["log_loss"] == pytest.approx(-np.log([0.8, 0.3, 0.5]).mean())
    assert row["abstained"] == pytest.approx(1 / 3)
    assert row["accuracy_decided"] == pytest.approx(0.5)
    assert sum(b["pairs"] for b in row["by_gap"]) == 3
    assert row["by_category"] == [{"category": "a", "pairs": 3, "accuracy": 0.5}]


def test_calibration_error_by_hand():
    p, truth = np.array([0.15, 0.15, 0.95, 0.95]), np.array([0, 1, 1, 1.0])
    assert figures.calibration_error(p, truth) == pytest.approx((abs(0.3 - 1) + abs(1.9 - 2)) / 4)
    bins = figures.reliability(p, truth)
    assert [b["pairs"] for b in bins] == [2, 2]
    assert bins[0]["happened"] == 0.5


def test_intervals_draw_products_not_pairs():
    right = np.repeat([1.0, 0.0], 500)
    product = np.repeat(np.arange(20), 50)
    low, high = figures.product_bootstrap(right, product)
    one_low, one_high = figures.product_bootstrap(right, np.arange(1000))
    assert low < 0.5 < high
    assert high - low > 4 * (one_high - one_low)  # a thousand witnesses that are twenty


def test_paired_difference_of_a_model_with_itself_is_nothing():
    c, pairs, truth = shop(products=5)
    exam = figures.Exam(c, pairs, truth)
    p = np.random.default_rng(0).random(len(pairs))
    assert figures.paired(p, p, exam) == {"difference": 0.0, "low": 0.0, "high": 0.0}
    best = np.where(pairs.left_wins, 0.9, 0.1)
    assert figures.paired(best, p, exam)["low"] > 0.3


def test_table_of_a_dataset(make_data, make_spec, run_job, tmp_path):
    data = make_data(worth, per=6, names=36)
    split = data.pairs["split"]
    train = [i for i, s in enumerate(split) if s == "train"]
    for i in train[::7]:
        split[i] = "later"
    folder = data.write(tmp_path / "d")
    truth = dict(zip(data.creatives["creative"], (data.creatives["clicks"] / 4000).tolist(), strict=True))
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    spec = make_spec("evaluate", FAST, dataset=str(folder), truth=str(tmp_path / "truth.json"))
    code, out = run_job(spec)
    assert code == errors.OK
    table = {r["model"]: r for r in json.loads((out / "table.json").read_text())}
    assert list(table) == ["random", *TRAINED, "oracle"]
    tests = sum(s == "test" for s in split)
    lines = [json.loads(x) for x in (out / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == len(table) * tests
    for name in TRAINED:
        row = table[name]
        assert row["accuracy"] > 0.65, name
        assert row["low"] < row["accuracy"] < row["high"]
        assert row["swap_consistency"] == 1.0
        assert row["fraction_of_ceiling"] == pytest.approx(
            (row["accuracy"] - 0.5) / (table["oracle"]["accuracy"] - 0.5)
        )
    assert abs(table["random"]["accuracy"] - 0.5) < 0.15
    assert table["random"]["ours_less"]["low"] > 0
    # This oracle's truth is the clicks themselves: it agrees with every label but ties.
    assert table["oracle"]["accuracy"] > 0.95
    later = {r["model"]: r for r in json.loads((out / "later.json").read_text())}
    assert later["ours"]["pairs"] == len(train[::7])
    assert later["ours"]["accuracy"] > 0.65


def test_shuffled_labels_leave_nothing_to_find(make_data, make_spec, run_job, tmp_path):
    data = make_data(lambda x: 0.0, per=6, names=48)
    _, out = run_job(make_spec("evaluate", FAST, dataset=str(data.write(tmp_path / "d"))))
    for row in json.loads((out / "table.json").read_text()):
        assert abs(row["accuracy"] - 0.5) < 0.1, row["model"]


def test_registered_scorers_are_asked_in_both_orders():
    class LikesLeft:
        asked = 0

        def p_left(self, captions, left, right):
            self.asked += len(captions)
            return np.full(len(captions), 0.9)

    c, pairs, truth = shop(products=4, per=4)
    scorer = LikesLeft()
    entry = evaluate.judge_with(scorer, lambda: {"cost_usd": 1.5}, most=7)(figures.Exam(c, pairs, truth))
    assert entry.p_left == pytest.approx(np.full(7, 0.5))
    assert entry.swap_consistency == 0
    assert scorer.asked == 14
    assert entry.about == {"cost_usd": 1.5}


def test_a_dataset_without_test_pairs_is_refused(make_data, make_spec, run_job, tmp_path):
    data = make_data(worth, per=3, names=12)
    keep = [i for i, s in enumerate(data.pairs["split"]) if s == "train"]
    data.pairs = {k: [v[i] for i in keep] for k, v in data.pairs.items()}
    code, out = run_job(make_spec("evaluate", FAST, dataset=str(data.write(tmp_path / "d"))))
    assert code == errors.BAD_INPUT
    assert "no test pairs" in json.loads((out / "error.json").read_text())["error"]


@pytest.mark.parametrize("text", ["[]", "{", '{"c-1": "much"}'])
def test_a_truth_that_is_none_is_refused(make_data, make_spec, run_job, tmp_path, text):
    (tmp_path / "truth.json").write_text(text)
    data = make_data(worth, per=3, names=12).write(tmp_path / "d")
    code, out = run_job(make_spec("evaluate", FAST, dataset=str(data), truth=str(tmp_path / "truth.json")))
    assert code == errors.BAD_INPUT
    assert "truth" in json.loads((out / "error.json").read_text())["error"]


def test_options_are_checked_before_anything_is_trained(make_data, make_spec, run_job, tmp_path):
    data = make_data(worth, per=3, names=12).write(tmp_path / "d")
    code, out = run_job(make_spec("evaluate", {**FAST, "mllm": "yes"}, dataset=str(data)))
    assert code == errors.BAD_INPUT
    assert "hyper.mllm" in json.loads((out / "error.json").read_text())["error"]
