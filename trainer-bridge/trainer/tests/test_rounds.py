"""Preference rounds on the shipped base in miniature: what a sample is, what a job leaves, that it repeats."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import STUB, WEIGHTS

from ctrloop_trainer import errors, losses
from ctrloop_trainer import spec as specs
from ctrloop_trainer.digest import dir_digest
from ctrloop_trainer.errors import BadInputError
from ctrloop_trainer.progress import Progress
from ctrloop_trainer.prompt.model import PromptModel
from ctrloop_trainer.render import Renderer
from ctrloop_trainer.rounds import adapter, corrupt, gates, learn, settings
from ctrloop_trainer.rounds import train as rounds
from ctrloop_trainer.rounds.draw import Sample, draw, show_masks

TINY = {"epochs": 2, "products": 12, "descriptions": 2, "batch": 4, "checkpoint": 2, "tau": 0.0}
TINY |= {"held_samples": 2, "probes": 2}
STEPS = 3  # of TINY's epochs: twelve products make at most twelve samples


@pytest.fixture(scope="module")
def rewards(make_data, make_spec, tmp_path_factory):
    """A reward model and a referee, trained for a moment: their opinion is arbitrary, and firm."""
    from ctrloop_trainer import job

    d = tmp_path_factory.mktemp("rewards")
    data = make_data(lambda x: 0.3 * np.sin(x.mean()), per=4).write(d / "data")
    common = {"epochs": 2, "baselines": False}
    out = []
    for name in ("reward", "referee"):
        hyper = {**common, "referee": name == "referee", "trunk": str(WEIGHTS / f"{name}-trunk")}
        (d / f"{name}.json").write_text(json.dumps(make_spec("reward", hyper, dataset=str(data))))
        assert job.main([str(d / f"{name}.json"), "--out", str(d / name)]) == errors.OK
        out.append(str(d / name / "model"))
    return out


@pytest.fixture(scope="module")
def rounds_spec(make_spec, rewards):
    base = WEIGHTS / "prompt-base"
    models = {"base": str(base), "base_digest": dir_digest(base)}
    return make_spec("rounds", TINY, reward_model=rewards[0], referee_model=rewards[1], **models)


@pytest.fixture(scope="module")
def miniature(rounds_spec, tmp_path_factory):
    """Rounds with its base figures."""
    spec, out = specs.check(rounds_spec), tmp_path_factory.mktemp("miniature")
    with Renderer(STUB) as renderer:
        yield rounds.Rounds(spec, specs.hyper(rounds.Hyper, spec.hyper), out, renderer, Progress(out))


@pytest.fixture(scope="module")
def batch(miniature):
    """A model and the samples of an epoch, masks registered."""
    v = miniature.load_base()
    samples, about = draw(v, miniature.shop, miniature.h, 5, 1)
    show_masks(v, miniature.shop, miniature.h, samples)
    return v, samples, about


# ---- PCPO's property: the product is the sole variable


def corrupted(miniature, arm):
    """(sample, its product, x~, the question without the caption) of an epoch of an arm."""
    v = miniature.load_base()
    samples, _ = draw(v, miniature.shop, settings.arm_hyper(miniature.h, arm), 5, 1)
    show_masks(v, miniature.shop, miniature.h, samples)
    products = {p.id: p for p in miniature.shop.train}
    rows = []
    for s in samples:
        p = products[s.product]
        instruction = s.text.removeprefix(p.caption)
        assert instruction != s.text
        rows += [(s, p, c, instruction) for c in s.corrupted]
    return v, rows


def captioned(miniature, c, instruction):
    """The product whose caption is in x~."""
    (other,) = [q for q in miniature.shop.train if q.caption + instruction == c.text]
    return other


def test_x_is_another_product_and_the_same_in_another_colour(miniature, batch):
    _, samples, about = batch
    assert about["pairs"] == len(samples) > 4
    assert all(s.chosen != s.rejected for s in samples)
    assert all(miniature.shop.grammar.parse(t) for s in samples for t in (s.chosen, s.rejected))
    assert {tuple(c.how for c in s.corrupted) for s in samples} == {("product", "colour")}
    _, rows = corrupted(miniature, "pcpo")
    for _, p, c, instruction in rows:
        other = captioned(miniature, c, instruction)
        assert c.ask.image == other.id  # picture and caption are of one product
        if c.how == "product":
            assert other.department != p.department
        else:
            assert (other.base, other.department) == (p.base, p.department)
            assert other.colour != p.colour


def test_caig_s_corruption_takes_either_the_picture_or_the_caption(miniature):
    v, rows = corrupted(miniature, "caig")
    assert {c.how for _, _, c, _ in rows} == {"image", "caption"}
    for s, p, c, instruction in rows:
        same = np.array_equal(v.pixels([c.ask.image]), v.pixels([s.ask.image]))
        if c.how == "image":
            assert c.text == s.text
            assert not same
        else:
            assert same
            assert captioned(miniature, c, instruction).department != p.department


def test_in_tokens_nothing_but_the_product_changes(batch):
    """On the batch that the forward pass is given: answers, instruction and everything around are the same tokens."""
    v, samples, _ = batch
    seen = {}

    def spy(asks, answers):
        seen["asks"], seen["answers"] = list(asks), list(answers)
        return PromptModel.token_logps(v, asks, answers)

    v.token_logps = spy
    try:
        learn.logps(v, samples, True)
    finally:
        del v.token_logps
    n, ways = len(samples), 2
    assert seen["asks"][: 2 * n] == [s.ask for s in samples] * 2
    assert seen["answers"][: 2 * n] == [s.chosen for s in samples] + [s.rejected for s in samples]
    for k in range(ways):
        here, form = slice((2 + k) * n, (3 + k) * n), slice((2 + ways + k) * n, (3 + ways + k) * n)
        assert seen["answers"][here] == [s.chosen for s in samples]
        # The last rows give the form a hold under x~: an answer that was written for another product.
        assert seen["asks"][form] == seen["asks"][here]
        assert seen["answers"][form] == [s.corrupted[k].elsewhere for s in samples]
        for s, b in zip(samples, seen["asks"][here], strict=True):
            x, y = v.prompt_ids(s.text), v.prompt_ids(b.text)
            assert b.image != s.product
            ahead = next(i for i, (i1, i2) in enumerate(zip(x, y, strict=False)) if i1 != i2)
            assert v.tokenizer.decode(x[:ahead]) == v.tokenizer.decode(y[:ahead])
            tail = len(v.tokenizer.encode(s.text.split(". ")[-1], add_special_tokens=False))
            assert x[-tail:] == y[-tail:]


def test_elsewhere_is_what_was_chosen_for_the_most_similar_product(miniature, batch):
    _, samples, _ = batch
    products = {p.id: p for p in miniature.shop.train}
    for s in samples:
        for c in s.corrupted:
            others = [(o, products[o.product]) for o in samples if products[o.product].base != products[s.product].base]
            like = [(corrupt.likeness(q, products[c.product]), o.chosen) for o, q in others]
            assert (max(n for n, _ in like), c.elsewhere) in like


def test_a_placebo_leaves_x_whole(miniature):
    _, rows = corrupted(miniature, "placebo")
    assert rows
    assert all(c.ask == s.ask and c.elsewhere == s.chosen for s, _, c, _ in rows)


def test_a_restored_sample_is_the_same(batch):
    _, samples, _ = batch
    assert [Sample.restored(dataclasses.asdict(s)) for s in samples] == samples


# ---- the model


def test_an_adapter_names_the_base_that_others_know(miniature, monkeypatch):
    assert miniature.adapted().model.peft_config["default"].base_model_name_or_path == "prompt-base"
    monkeypatch.setattr(miniature.spec, "base_name", "owner/model-7b")
    assert miniature.adapted().model.peft_config["default"].base_model_name_or_path == "owner/model-7b"


def test_a_fresh_adapter_is_the_base(miniature, batch):
    learner = miniature.learner("pcpo")
    samples = batch[1][:4]
    show_masks(learner.v, miniature.shop, miniature.h, samples)
    reference = learner.reference(samples)
    mine = learn.logps(learner.v, samples, True)[0]
    assert np.allclose(mine.detach().numpy(), reference.numpy(), atol=1e-4)
    assert learner.parameters
    assert all("language_model" in n and "lora_" in n for n in learner.parameters)


def test_the_reference_is_epoch_0_in_every_epoch(miniature, batch):
    """After the adapter has moved, too; a reference that follows the model would let it drift without end."""
    learner = miniature.learner("pcpo")
    samples = batch[1][:4]
    show_masks(learner.v, miniature.shop, miniature.h, samples)
    before = learner.reference(samples)
    with torch.no_grad():
        for p in learner.parameters.values():
            p.add_(0.05)
    assert not torch.allclose(learn.logps(learner.v, samples, True)[0], before, atol=0.1)
    assert torch.equal(learner.reference(samples), before)


def test_a_merged_model_answers_like_the_adapter(miniature, tmp_path):
    v = miniature.adapted()
    with torch.no_grad():
        for n, p in v.model.named_parameters():
            if "lora_B" in n:
                p.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(n)))
    asks, texts = miniature.held.asks[:6], miniature.held.base_texts[:6]
    with torch.no_grad(), v.model.disable_adapter():
        base = v.logps(asks, texts)
    with torch.no_grad():
        want, answers = v.logps(asks, texts), v.sample(asks, 0, greedy=True)
    assert (want - base).abs().max() > 0.1  # the adapter says something
    adapter.merge(v, tmp_path / "merged")
    alone = PromptModel.load(tmp_path / "merged")
    miniature.shop.show(alone)
    with torch.no_grad():
        assert torch.allclose(alone.logps(asks, texts), want, atol=1e-3)
    assert alone.sample(asks, 0, greedy=True) == answers
    assert alone.prompting == v.prompting


# ---- the job


@pytest.fixture(scope="module")
def whole(rounds_spec, tmp_path_factory):
    """A job that ran from start to end."""
    return _job({**rounds_spec, "hyper": {**TINY, "merge": True}}, tmp_path_factory.mktemp("whole"))


def _job(spec: dict, folder: Path) -> Path:
    from ctrloop_trainer import job

    (folder / "spec.json").write_text(json.dumps(spec))
    assert job.main([str(folder / "spec.json"), "--out", str(folder / "out")]) == errors.OK
    return folder / "out"


def test_a_job_leaves_its_artifacts(rounds_spec, whole):
    m = json.loads((whole / "metrics.json").read_text())
    assert [(e["arm"], e["epoch"]) for e in m["epochs"]] == [("dpo", 1), ("dpo", 2), ("pcpo", 1), ("pcpo", 2)]
    assert m["arm"] == "pcpo"
    assert {"name", "value", "threshold", "passed", "why"} == set(m["gates"][0])
    best = whole / "arms" / "pcpo" / f"epoch-{m['epoch']}"
    assert m["adapter_digest"] == dir_digest(whole / "adapter") == dir_digest(best)
    assert {p.name for p in (whole / "adapter").iterdir()} == {
        *("README.md", "adapter_config.json", "adapter_model.safetensors")
    }
    config = json.loads((whole / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "prompt-base"
    assert config["target_modules"] == sorted(config["target_modules"])  # a set's order would change the digest
    assert list(config) == sorted(config)
    samples = [json.loads(x) for x in (whole / "samples.jsonl").read_text().splitlines()]
    assert {(s["arm"], s["epoch"]) for s in samples} == {(a, e) for a in ("dpo", "pcpo") for e in (0, 1, 2)}
    gates = [json.loads(x) for x in (whole / "gate-samples.jsonl").read_text().splitlines()]
    assert len(samples) == len(gates) == 6 * 2 * 2
    # What is reported is measured on products that had no say in what was chosen.
    assert not {s["product"] for s in samples} & {s["product"] for s in gates}
    assert {*m["report"]} == {"base", "chosen"}
    assert m["report"]["chosen"]["epoch"] == m["epoch"]
    probe = json.loads((whole / "probe.json").read_text())
    assert probe["answer"] != probe["base_answer"] or probe["logprobs"] != probe["base_logprobs"]
    lineage = json.loads((whole / "lineage.json").read_text())
    assert lineage["base_digest"] == rounds_spec["base_digest"]
    assert set(lineage["parents"]) == {"base", "reward_model", "referee_model"}
    assert m["merged_digest"] == dir_digest(whole / "merged")


def test_every_epoch_has_both_protocols(whole):
    m = json.loads((whole / "metrics.json").read_text())
    names = {"matching", "matching_valid", "matching_b", "matching_b_valid", "reciprocal_rank", "information_base"}
    for figures in [m["base"], *m["epochs"], *m["report"].values()]:
        assert names <= set(figures)
        assert all(0 <= figures[n] <= 1 for n in names - {"information_base"})


def test_the_same_job_gives_the_same_bits(rounds_spec, whole, tmp_path):
    again = _job({**rounds_spec, "hyper": {**TINY, "merge": True}}, tmp_path)
    for name in ("adapter", "arms", "merged"):
        assert dir_digest(again / name) == dir_digest(whole / name)
    assert (again / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()
    assert (again / "probe.json").read_text() == (whole / "probe.json").read_text()


def test_a_job_killed_anywhere_ends_with_the_same_bits(rounds_spec, whole, tmp_path, monkeypatch):
    """Killed without warning at a step between checkpoints and while it measures; stopped by SIGTERM at a step."""
    from ctrloop_trainer import job

    spec = {**rounds_spec, "hyper": {**TINY, "merge": True}}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    step, figures, calls = learn.Learner._step, rounds.Held.figures, []
    cut = {2: "kill", 4: "term", 8: "kill"}  # number of the step, over all attempts

    def cut_step(self, at):
        calls.append(at)
        if cut.get(len(calls)) == "kill":
            raise KeyboardInterrupt  # no handler in the package: nothing is written on the way out
        if cut.get(len(calls)) == "term":
            self.progress._stop = True  # what the SIGTERM handler does
        return step(self, at)

    def cut_figures(self, v, epoch):
        if len(calls) == 7:
            calls.append(None)
            raise KeyboardInterrupt
        return figures(self, v, epoch)

    monkeypatch.setattr(learn.Learner, "_step", cut_step)
    monkeypatch.setattr(rounds.Held, "figures", cut_figures)
    ended, attempts = None, []
    while ended != errors.OK:
        assert len(attempts) < 6
        try:
            ended = job.main([str(tmp_path / "spec.json"), "--out", str(tmp_path / "out")])
        except KeyboardInterrupt:
            ended = "killed"
        attempts.append(ended)
        assert (tmp_path / "out" / "adapter").exists() == (ended == errors.OK)
    assert errors.INTERRUPTED in attempts
    assert attempts.count("killed") >= 2
    for name in ("adapter", "arms", "merged"):
        assert dir_digest(tmp_path / "out" / name) == dir_digest(whole / name)
    assert (tmp_path / "out" / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()
    (tmp_path / "spec.json").write_text(json.dumps({**spec, "seed": 6}))
    assert job.main([str(tmp_path / "spec.json"), "--out", str(tmp_path / "out")]) == errors.BAD_INPUT


@pytest.mark.parametrize("cut", ["checkpoint", "record", "no checkpoint"])
def test_an_arm_whose_files_are_cut_is_made_again_to_the_same_bits(rounds_spec, whole, tmp_path, cut):
    """Rather than failing for ever, or going on from a base that has forgotten an epoch."""
    spec = {**rounds_spec, "hyper": {**TINY, "merge": True}}
    shutil.copytree(whole, tmp_path / "out")
    state = tmp_path / "out" / "state"
    shutil.rmtree(tmp_path / "out" / "arms" / "pcpo" / "epoch-2")
    file = state / ("pcpo-1.json" if cut == "record" else "pcpo.pt")
    if cut == "no checkpoint":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:100])
    out = _job(spec, tmp_path)
    assert "started over" in (out / "metrics.jsonl").read_text()
    for name in ("adapter", "arms", "merged"):
        assert dir_digest(out / name) == dir_digest(whole / name)


def test_sigterm_stops_at_the_next_step_with_a_checkpoint(miniature, monkeypatch):
    learner = miniature.learner("pcpo")
    learner.h = dataclasses.replace(learner.h, checkpoint=1000)
    learner.file = miniature.out / "stopped.pt"
    step = learner._step
    monkeypatch.setattr(learner, "_step", lambda at: (setattr(miniature.progress, "_stop", True), step(at))[1])
    with pytest.raises(errors.InterruptedJobError):
        learner.epoch(1)
    miniature.progress._stop = False
    assert torch.load(learner.file, weights_only=True)["step"] == 1


def test_sigterm_while_pytorch_is_imported_ends_with_5(rounds_spec, tmp_path):
    """The signal comes from inside the import, so there is nothing to wait for."""
    (tmp_path / "spec.json").write_text(json.dumps(rounds_spec))
    code = (
        "import os, runpy, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch': os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "sys.argv = ['job', *sys.argv[1:]]\n"
        "runpy.run_module('ctrloop_trainer.job', run_name='__main__')\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "spec.json"), "--out", str(tmp_path / "out")]
    env = {**os.environ, "PYTHONPATH": str(Path(rounds.__file__).parents[2])}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == errors.INTERRUPTED, done.stderr
    assert "SIGTERM" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_not_finite_ends_the_job(rounds_spec, run_job, monkeypatch):
    monkeypatch.setattr(losses, "dpo", lambda *a: torch.tensor(float("nan"), requires_grad=True))
    assert run_job(rounds_spec)[0] == errors.DIVERGED


def test_the_arm_that_ships_ends_after_failing_epochs(miniature, monkeypatch):
    monkeypatch.setattr(miniature, "h", dataclasses.replace(miniature.h, epochs=5, patience=2))
    monkeypatch.setattr(miniature, "learner", lambda arm: types.SimpleNamespace(running=None))
    bad = [{"name": "kl", "value": 99.0, "passed": False}]
    monkeypatch.setattr(miniature, "_epoch", lambda arm, learner, n: {"epoch": n, "gates": bad})
    assert len(miniature.run_arm("pcpo")) == 2
    assert len(miniature.run_arm("dpo")) == 5
    assert gates.choose([{"gates": bad, "referee_gain": 1.0}]) == (0, False)


# ---- settings


def test_arms_replace_settings_that_exist():
    known = {f.name for f in dataclasses.fields(settings.Hyper)}
    for arm, changes in settings.ARMS.items():
        assert set(changes) <= known, arm
        settings.check(settings.arm_hyper(settings.Hyper(), arm))
    assert settings.arm_hyper(settings.Hyper(), "dpo").w_pcpo == 0
    assert settings.arm_hyper(settings.Hyper(beta=0.7), "pcpo") == settings.Hyper(beta=0.7)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"arms": "dpo,ppo"}, "ppo"),
        ({"arms": "dpo,dpo"}, "different"),
        ({"arms": ""}, "known are"),
        ({"main": "placebo"}, "hyper.main"),
        ({"beta": 0.0}, "hyper.beta"),
        ({"w_pcpo": -1.0}, "hyper.w_pcpo"),
        ({"w_nll": float("nan")}, "hyper.w_nll"),
        ({"decay": 0.0}, "hyper.decay"),
        ({"mask_share": 1.5}, "hyper.mask_share"),
        ({"corrupt": "product,both"}, "unknown kinds .'both'."),
        ({"descriptions": 1}, "hyper.descriptions"),
        ({"relevance_samples": 0}, "hyper.relevance_samples"),
    ],
)
def test_settings_outside_their_range_are_refused(change, told):
    with pytest.raises(BadInputError, match=told):
        settings.check(settings.Hyper(**change))
