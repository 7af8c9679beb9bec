"""Reward models of either form, from the job that trains one to the rounds that rank by it; and the one view size."""

import json

import numpy as np
import pytest
from conftest import STUB, WEIGHTS

from ctrloop_trainer import dryrun, errors, job, pictures, settings
from ctrloop_trainer import spec as specs
from ctrloop_trainer.data import load_dataset
from ctrloop_trainer.progress import Progress
from ctrloop_trainer.prompt import miniatures
from ctrloop_trainer.prompt.model import Prompting, PromptModel
from ctrloop_trainer.render import Renderer, Shot
from ctrloop_trainer.reward import evaluate, forms, mllm
from ctrloop_trainer.reward import train as reward_job
from ctrloop_trainer.reward.trunk import Trunk
from ctrloop_trainer.rounds import train as rounds

QUICK = {"epochs": 1, "pairs": 16, "batch": 8, "rank": 0, "tau": 0.0}
BASE = str(WEIGHTS / "prompt-base")


@pytest.fixture(scope="module")
def data(make_data, tmp_path_factory):
    made = make_data(lambda x: 0.5 * np.sin(x.mean()), per=4, names=12)
    return str(made.write(tmp_path_factory.mktemp("forms") / "data"))


@pytest.fixture(scope="module")
def two_images(make_spec, data, tmp_path_factory):
    """What a reward job of the two-image form leaves."""
    d = tmp_path_factory.mktemp("two")
    hyper = {"form": "mllm", "mllm": QUICK, "baselines": False}
    (d / "spec.json").write_text(json.dumps(make_spec("reward", hyper, dataset=data, base=BASE)))
    assert job.main([str(d / "spec.json"), "--out", str(d / "out")]) == errors.OK
    return d / "out"


def test_the_job_saves_what_the_loader_loads(two_images, make_spec, data):
    metrics = json.loads((two_images / "metrics.json").read_text())
    assert metrics["form"] == "mllm"
    assert metrics["test"]["pairs"] > 0
    lineage = json.loads((two_images / "lineage.json").read_text())
    assert set(lineage["parents"]) == {"trunk", "base"}
    spec = specs.Spec("rounds", "x", base=BASE)
    model = forms.load(two_images / "model", spec)
    assert isinstance(model, mllm.MllmReward)
    creatives, pairs = load_dataset(data)
    p = pairs.of("test")
    said = {}
    for line in (two_images / "predictions.jsonl").read_text().splitlines():
        row = json.loads(line)
        said[row["pair_id"]] = row["p_left"]
    captions = [creatives.captions[i] for i in p.left[:4]]
    left, right = creatives.images[p.left[:4]], creatives.images[p.right[:4]]
    both = (model.p_left(captions, left, right) + 1 - model.p_left(captions, right, left)) / 2
    assert np.allclose(both, [said[i] for i in p.ids[:4]], atol=1e-4)


def test_rounds_rank_by_it(two_images, make_spec, tmp_path):
    """As reward model and as referee: gains come from pairs, since no creative is scored alone."""
    hyper = {"epochs": 1, "products": 6, "descriptions": 3, "batch": 4, "tau": 0.0, "held_samples": 2, "probes": 1}
    hyper |= {"arms": "pcpo", "relevance_samples": 1}
    folder = str(two_images / "model")
    raw = make_spec("rounds", hyper, base=BASE, reward_model=folder, referee_model=folder)
    (tmp_path / "spec.json").write_text(json.dumps(raw))
    assert job.main([str(tmp_path / "spec.json"), "--out", str(tmp_path / "out")]) == errors.OK
    (epoch,) = json.loads((tmp_path / "out" / "metrics.json").read_text())["epochs"]
    assert epoch["reward_gain"] == epoch["referee_gain"] is not None
    assert epoch["samples"]["pairs"] > 0


def test_the_next_cycle_reports_drift_across_forms(two_images, make_spec, data, run_job):
    hyper = {"baselines": False, "penalties": "0.01"}
    code, out = run_job(make_spec("reward", hyper, dataset=data, previous=str(two_images / "model")))
    assert code == errors.OK
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["start"]["why"] == "the previous model is of another form"
    assert metrics["drift"]["then"]["pairs"] == metrics["drift"]["now"]["pairs"]


def test_an_adapter_of_another_base_is_refused(two_images, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    told = json.loads((two_images / "model" / "reward.json").read_text())
    (folder / "reward.json").write_text(json.dumps({**told, "merged": False, "base_digest": "0" * 64}))
    with pytest.raises(errors.BadInputError, match="say reward_base"):
        forms.load(folder, specs.Spec("rounds", "x", base=BASE))


def test_a_form_of_the_future_is_named(tmp_path):
    (tmp_path / "reward.json").write_text('{"form": "listener"}')
    with pytest.raises(errors.BadInputError, match=r"'listener'.*known are siamese, mllm"):
        forms.load(tmp_path, specs.Spec("rounds", "x"))


@pytest.mark.parametrize(
    ("hyper", "told"),
    [
        ({"form": "two"}, "hyper.form: 'two' is unknown"),
        ({"referee_form": "two"}, "hyper.referee_form"),
        ({"form": "mllm", "mllm": {"layers": 3}}, "hyper.layers: unknown"),
        ({"mllm": 3}, "hyper.mllm: must be dict"),
    ],
)
def test_settings_of_forms_are_checked_before_a_job_is_made(hyper, told):
    with pytest.raises(errors.BadInputError, match=told):
        settings.effective("reward", hyper)


def test_a_referee_may_be_of_another_form():
    h = reward_job.Hyper(form="mllm", referee_form="siamese")
    assert h.own_form == "mllm"
    assert reward_job.Hyper(form="mllm", referee_form="siamese", referee=True).own_form == "siamese"
    assert reward_job.Hyper(form="mllm", referee=True).own_form == "mllm"


def test_evaluate_trains_it_where_the_specification_says(make_spec, data, monkeypatch, tmp_path):
    """A 7 B model on the CPU in fp32 is no evaluation."""
    seen = {}

    def train(*args, **kwargs):
        seen["placement"] = args[7]
        raise errors.BadInputError("enough")

    monkeypatch.setattr(mllm, "train_mllm", train)
    spec = specs.Spec(**make_spec("evaluate", dataset=data, base=BASE, precision="bf16", checkpointing=True))
    h, _ = evaluate.settings({})
    fold = reward_job.prepare(spec, h)
    with pytest.raises(errors.BadInputError, match="enough"):
        evaluate._mllm(fold, {"rank": 8}, spec, Progress(tmp_path))
    assert (seen["placement"].precision, seen["placement"].checkpointing, seen["placement"].full) == (
        "bf16",
        True,
        False,
    )


# --- one view


@pytest.fixture(scope="module")
def wide_base(tmp_path_factory, products, grammar):
    """A base that sees 96 px."""
    texts = [p.caption for p in products] + [grammar.describe((0, 0, 0, 0))] * 5
    folder = tmp_path_factory.mktemp("wide") / "qwen"
    return miniatures.save("qwen2.5-vl", folder, texts, Prompting(("write a background prompt",), 96, max_tokens=8))


def test_training_sees_as_many_picture_tokens_as_serving(wide_base, make_spec, monkeypatch, tmp_path):
    """Rounds drew 64 px whatever the base's prompting.json said, and the server sends what it says."""

    def begin(self, spec, h, out, renderer, progress):
        raise errors.BadInputError(f"drawn at {renderer.px} px")

    monkeypatch.setattr(rounds.Rounds, "__init__", begin)
    spec = specs.Spec(**make_spec("rounds", {}, base=str(wide_base), reward_model=str(tmp_path)))
    with pytest.raises(errors.BadInputError, match="drawn at 96 px"):
        rounds.run(spec, tmp_path, Progress(tmp_path))
    v = PromptModel.load(wide_base)
    with Renderer(STUB, px=Prompting.view_of(wide_base)) as renderer:
        v.add_images(["p"], renderer.render([Shot("p-0", "")])[0])
    served = v.prompt_ids("tea pot")  # of the view that the server sends
    assert v.prompt_ids("tea pot", "p") == served


def test_the_dry_run_asks_the_same_place(wide_base):
    s, prompting = dryrun.described(wide_base, 4)
    assert prompting.view_px == Prompting.view_of(wide_base) == 96
    v = PromptModel.load(wide_base)
    assert v.prompt_ids("tea pot").count(v.processor.image_token_id) == s.picture_tokens


def test_larger_views_are_reduced_and_smaller_ones_refused(grammar):
    """So that one data set, at the base's view, serves the 64 px eye too."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (2, 64, 64, 3), dtype=np.uint8)
    large = small.repeat(3, 1).repeat(3, 2)
    trunk = Trunk(grammar.sizes).eval()
    assert np.allclose(trunk.describe(large), trunk.describe(small), atol=1e-5)
    assert np.array_equal(pictures.fit(large, 64, "x"), small)
    with pytest.raises(errors.BadInputError, match="pictures of 32 x 32 px: this eye was trained on views of 64"):
        trunk.describe(small[:, ::2, ::2])
