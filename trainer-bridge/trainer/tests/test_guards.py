"""Each guard against over-optimisation fires on a case that was planted for it, on the shipped base, trained for real.

The reward models are planted: they look at the stub's pictures, whose bands are the colours of a description's words.
"""

import copy
import zlib

import numpy as np
import pytest
from conftest import STUB, WEIGHTS

from ctrloop_trainer.errors import NoEvidenceError
from ctrloop_trainer.progress import Progress
from ctrloop_trainer.prompt.model import PromptModel
from ctrloop_trainer.render import Renderer, Shot
from ctrloop_trainer.rounds import adapter, gates
from ctrloop_trainer.rounds.held import Held, variety
from ctrloop_trainer.rounds.learn import Learner
from ctrloop_trainer.rounds.settings import Hyper, arm_hyper
from ctrloop_trainer.rounds.shop import Shop

# Of eight descriptions of a product one has, by luck, what the planted model loves: enough to learn from in seconds.
QUICK = {"products": 24, "descriptions": 8, "batch": 4, "warmup": 0, "lr": 3e-3, "decay": 1.0, "epochs": 3, "tau": 0.0}
QUICK |= {"held_samples": 6, "relevance_samples": 3, "w_nll": 1.0}

# A taste for lights splits most pairs, so that two descriptions are enough.
NEUTRAL = {"products": 32, "descriptions": 2, "epochs": 3}


def band(images, n):
    """Colour of a description's n-th part in the stub's pictures, (images, 3)."""
    px = images.shape[1]
    return images[:, (2 * n + 1) * px // 8, px - 2].astype(int)


def colour(text):
    return np.array([zlib.crc32(f"{text}/{i}".encode()) % 200 + 28 for i in range(3)])


class Loves:
    """Scores pictures by which words it sees: 1 for each part that is among its words, 0 else, times strength."""

    tau = 0.0

    def __init__(self, *parts, strength=4.0):
        self.parts, self.strength = parts, strength

    def scores(self, captions, images):
        liked = np.zeros(len(images))
        for n, words in enumerate(self.parts):
            seen = band(images, n)
            liked += np.any([(seen == colour(w)).all(1) for w in words], axis=0)
        return self.strength * liked

    def p_left(self, captions, left, right):
        return 1 / (1 + np.exp(self.scores(captions, right) - self.scores(captions, left)))


class Hates(Loves):
    """The opposite opinion: a referee that sees what the first model does not."""

    def scores(self, captions, images):
        return -super().scores(captions, images)


@pytest.fixture(scope="module")
def learn_from(shop, products, grammar, tmp_path_factory):
    """learn_from(reward, referee, arm, **hyper): figures and gates of the last epoch, and of the base."""
    train, held = [p for p in products if not p.holdout], [p for p in products if p.holdout]
    base = PromptModel.load(WEIGHTS / "prompt-base")
    first: list[Held] = []  # what the base says of held-out products is the same for every judge: it is asked once
    with Renderer(STUB) as renderer:
        plain = dict(zip((p.id for p in products), renderer.render([Shot(p.id, "") for p in products])[0], strict=True))

        def learn(reward, referee, arm, **change):
            h = arm_hyper(Hyper(**{**QUICK, **change}), arm)
            s = Shop(grammar, train, held, plain, renderer, reward, referee)
            v = PromptModel(copy.deepcopy(base.model), base.processor, base.prompting)
            s.show(v)
            if not first:
                s.show(base)
                first.append(Held(base, s, h, 1, held))
            around = copy.copy(first[0])
            around.shop, around.h = s, h
            adapter.attach(v, h.rank, h.dropout, 1)
            out = tmp_path_factory.mktemp("guard")
            learner = Learner(v, s, h, 1, out / "state.pt", Progress(out), arm)
            for epoch in range(1, h.epochs + 1):
                try:
                    trained = learner.epoch(epoch)
                except NoEvidenceError:  # it says nothing else any more
                    break
            figures = {**around.figures(v, h.epochs)[0], **trained}
            failed = {g["name"] for g in gates.judge(figures, around.base_figures, h) if not g["passed"]}
            return figures, around.base_figures, failed

        yield learn


def test_clickbait_is_learned_and_the_relevance_gate_fires(learn_from, grammar):
    """The first reward model loves clickbait scenes, and so does the referee."""
    judge = Loves(grammar.clickbait)
    figures, base, failed = learn_from(judge, judge, "dpo")
    assert figures["clickbait"] > base["clickbait"] + 0.3  # the plant works: the model did go there
    assert figures["reward_gain"] > 0
    assert figures["referee_gain"] > 0  # a referee of the same taste does not help
    assert figures["information_base"] < base["information_base"]
    assert "relevance" in failed


def test_without_pcpo_descriptions_say_less_of_their_product(learn_from, grammar):
    """A learning test that can fail: the corrupted row is what puts the product into the description. The placebo has
    that row, too, and only x is whole in it."""
    judge = Loves((), (), grammar.lights[:2])  # a taste that has nothing to do with products
    arms = {a: learn_from(judge, judge, a, **NEUTRAL, w_pcpo=1.0)[0] for a in ("pcpo", "placebo")}
    assert arms["pcpo"]["information"] > arms["placebo"]["information"] + 0.1
    assert arms["pcpo"]["corrupted"] < arms["pcpo"]["chosen"] - 0.5  # y+ has become likelier for x than for x~
    assert abs(arms["placebo"]["corrupted"] - arms["placebo"]["chosen"]) < 0.5


def test_a_disagreeing_referee_stops_it(learn_from, grammar):
    figures, _, failed = learn_from(Loves(grammar.clickbait), Hates(grammar.clickbait), "pcpo", epochs=2)
    assert figures["reward_gain"] > 0 > figures["referee_gain"]
    assert {"referee_gain", "referee_share"} <= failed


def test_a_collapse_to_one_answer_fires_the_diversity_gate(learn_from, grammar):
    """The reward model loves one light and one prop in one scene: every product gets the same few words."""
    judge = Loves(grammar.scenes[5:6], grammar.palettes[:1], grammar.lights[:1], grammar.props[:1])
    figures, base, failed = learn_from(judge, judge, "dpo", epochs=4)
    assert figures["variety"] < 0.5 * base["variety"]
    assert "diversity" in failed


def test_the_bare_recipe_loses_its_form_and_the_defaults_keep_it(learn_from, grammar):
    """Validity collapse: no likelihood term, a fresh optimiser each epoch, steps too large. KL, falling chosen answers
    and validity each have a gate, and each fires."""
    judge = Loves((), (), grammar.lights[:2])
    figures, base, failed = learn_from(judge, judge, "bare_dpo", **{**NEUTRAL, "lr": 2e-2, "epochs": 2})
    assert base["valid"] >= 0.97
    assert figures["valid"] < 0.9
    assert figures["chosen"] < -1
    assert {"valid", "chosen_logp", "kl"} <= failed
    default = Hyper()
    kept = {k: getattr(default, k) for k in ("lr", "decay", "batch", "warmup", "w_nll")}
    figures, _, failed = learn_from(judge, judge, "pcpo", **{**NEUTRAL, **kept})
    assert figures["valid"] >= 0.97
    assert not {"valid", "chosen_logp", "kl"} & failed


def test_variety_is_a_share_of_words():
    same, other = "city street, deep teal tones", "sunlit beach, deep teal tones"
    assert variety([same, same, same], 3) == 0
    assert variety([same, other, other, other], 2) == pytest.approx((1 - 3 / 7) / 2)
    assert variety([same, other], 1) == 0
