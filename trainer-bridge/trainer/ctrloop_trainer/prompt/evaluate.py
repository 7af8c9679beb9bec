"""Figures of a prompt model on held-out products: per task, what it writes, and whether it looks at the product."""

import dataclasses
import random
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
import torch

from ..data import Product
from ..grammar import Grammar
from ..matching import text_figures
from ..rounds.corrupt import MASK_GREY, mask_patches, other_product
from .folder import Folder
from .model import Ask, PromptModel, question
from .tasks import FAULTLESS, REWRITE, SEE, Example, Scene, Shop, Teacher, plain

PARTS = ("scene", "palette", "light", "prop")
MASK_SHARE, MASK_PATCH = 0.75, 8  # CAIG's 32 px squares of 512 px, at 64 px a cell twice as wide
ANSWERS = 8  # suitable answers per product, whose likelihood is compared


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much is sampled."""

    samples: int  # descriptions per held-out product
    pictures: int  # scenes to be named
    examples: int  # per task


def shop_figures(
    v: PromptModel, shop: Shop, views: np.ndarray, teacher: Teacher, n: Budget, seed: int
) -> dict[str, object]:
    """All figures of a model on a held-out shop; views are the plain pictures of its products, in order."""
    g, products = shop.g, list(shop.products)
    texts, rows = written(v, products, n.samples, seed)
    fits = np.mean([len(p.fits) for p in products])
    suits = np.mean([len(p.harmonious) for p in products])
    return {
        **text_figures(rows, texts, g),
        "teacher_matching": teacher.matching(fits, len(g.scenes), suits, len(g.palettes)),
        **spread(rows, texts, g),
        "understanding": named(v, shop.scenes[: n.pictures], g, seed),
        "tasks": task_figures(v, shop, n.examples, seed),
        "rewriting": rewriting(v, products, g, n.samples, seed),
        "looking": looking(v, products, views, g, seed),
        "sampled_without": sampled_without(v, products, g, n.samples, seed),
    }


def folder_figures(v: PromptModel, folder: Folder, n: Budget, seed: int) -> dict[str, object]:
    """Figures of a model on the held-out entries of a folder."""
    return {"tasks": task_figures(v, folder, n.examples, seed)}


def written(v: PromptModel, products: Sequence[Product], n: int, seed: int) -> tuple[list[str], list[Product]]:
    """n sampled descriptions per product, as the product server asks for them."""
    rng = random.Random(seed)
    rows = [p for p in products for _ in range(n)]
    asks = [Ask(question(p.caption, rng.choice(v.prompting.instructions)), plain(p)) for p in rows]
    return v.sample(asks, seed), rows


def spread(rows: Sequence[Product], texts: Sequence[str], g: Grammar) -> dict[str, float]:
    """Is there anything left to explore? Scenes and palettes that occur at all, the entropy of scenes given the
    product's department (nats), and the share of plain scenes that do not fit."""
    tokens = [g.parse(t) for t in texts]
    valid = [(p, t) for p, t in zip(rows, tokens, strict=True) if t]
    by: dict[str, Counter] = {}
    for p, t in valid:
        by.setdefault(p.department, Counter())[t[0]] += 1
    entropy = sum(c.total() * _entropy(list(c.values())) for c in by.values()) / max(1, len(valid))
    unfit = [g.all_scenes[t[0]] not in p.fits and not g.is_clickbait(t) for p, t in valid]
    return {
        "scenes_used": len({t[0] for _, t in valid}) / len(g.all_scenes),
        "palettes_used": len({t[1] for _, t in valid}) / len(g.palettes),
        "scene_entropy": entropy,
        "unfit_plain_scenes": float(np.mean(unfit)) if unfit else 0.0,
    }


def _entropy(counts: list[int]) -> float:
    p = np.array(counts) / sum(counts)
    return float(-(p * np.log(p)).sum())


def named(v: PromptModel, scenes: Sequence[Scene], g: Grammar, seed: int) -> dict[str, float]:
    """Share of held-out pictures whose scene, palette, light and prop are named rightly (greedy)."""
    said = [g.parse(t) for t in v.sample([Ask(SEE, s.key) for s in scenes], seed, greedy=True)]
    right = [[t is not None and t[i] == s.tokens[i] for i in range(4)] for s, t in zip(scenes, said, strict=True)]
    return dict(zip(PARTS, np.mean(right, 0).tolist(), strict=True)) if right else {}


def task_figures(v: PromptModel, source: Shop | Folder, n: int, seed: int) -> dict[str, dict[str, float | str]]:
    """Per task: nats per token of faultless answers, greedy answers that are exactly right, and word overlap (F1)."""
    out = {}
    for task, examples in sorted(by_task(source, n, seed).items()):
        asks, answers = [e.ask for e in examples], [e.answer for e in examples]
        said = v.sample(asks, seed, greedy=True)
        out[task] = {
            "family": examples[0].family,
            "examples": len(examples),
            "loss": loss(v, asks, answers),
            "exact": float(np.mean([a == b for a, b in zip(said, answers, strict=True)])),
            "word_f1": float(np.mean([word_f1(a, b) for a, b in zip(said, answers, strict=True)])),
        }
    return out


def by_task(source: Shop | Folder, n: int, seed: int) -> dict[str, list[Example]]:
    """Up to n examples of every task of a source."""
    rng, out = random.Random(f"{seed}/by task"), {}
    for family in source.families:
        for _ in range(4 * n):
            e = source.draw(family, FAULTLESS, rng)
            if len(out.setdefault(e.task, [])) < n:
                out[e.task].append(e)
    return out


@torch.no_grad()
def scores(v: PromptModel, asks: Sequence[Ask], answers: Sequence[str], batch: int = 128) -> tuple[np.ndarray, int]:
    """Log-probability of every answer, and how many tokens all of them have."""
    out, tokens = [], 0
    for i in range(0, len(asks), batch):
        logp, length = v.token_logps(asks[i : i + batch], answers[i : i + batch])
        out.append(logp.sum(1).cpu().numpy())
        tokens += int(length.sum())
    return np.concatenate(out), tokens


def loss(v: PromptModel, asks: Sequence[Ask], answers: Sequence[str]) -> float:
    """Nats per token of the answers."""
    total, tokens = scores(v, asks, answers)
    return float(-total.sum() / tokens)


def word_f1(said: str, answer: str) -> float:
    """Overlap of two texts as bags of words: 2 common / (words of one + words of the other)."""
    a, b = Counter(said.lower().split()), Counter(answer.lower().split())
    return 2 * (a & b).total() / max(1, a.total() + b.total())


def rewriting(v: PromptModel, products: Sequence[Product], g: Grammar, n: int, seed: int) -> dict[str, float]:
    """Random whole drafts rewritten (sampled): share that matches before and after, and light and prop kept."""
    rng = random.Random(f"{seed}/rewriting")
    rows = [p for p in products for _ in range(n)]
    drafts = [g.random(rng) for _ in rows]
    asks = [
        Ask(f"{question(p.caption, REWRITE)}: {g.describe(d)}", plain(p)) for p, d in zip(rows, drafts, strict=True)
    ]
    texts = v.sample(asks, seed)
    tokens = [g.parse(t) for t in texts]
    kept = [t is not None and t[2:] == d[2:] for t, d in zip(tokens, drafts, strict=True)]
    return {
        "matching_before": text_figures(rows, [g.describe(d) for d in drafts], g)["matching"],
        "matching": text_figures(rows, texts, g)["matching"],
        "light_and_prop_kept": float(np.mean(kept)),
    }


def looking(v: PromptModel, products: Sequence[Product], views: np.ndarray, g: Grammar, seed: int) -> dict[str, dict]:
    """What the likelihood of suitable answers loses when the picture, or the caption, is not the product's: mean drop
    of an answer's log-probability (nats), and the share of answers that drop. PCPO needs both above chance (0, 0.5).

    picture_masked: as in CAIG's x~; picture_gone: all grey; other_picture, other_caption: of another product.
    """
    rng = random.Random(f"{seed}/looking")
    rows = [p for p in products for _ in range(ANSWERS)]
    answers = [g.describe(FAULTLESS.write(p, g, rng)) for p in rows]
    instruction = [rng.choice(v.prompting.instructions) for _ in rows]
    others = [other_product(p, products, rng) for p in rows]
    view = {p.id: x for p, x in zip(products, views, strict=True)}
    masked = [mask_patches(view[p.id], rng, MASK_SHARE, MASK_PATCH) for p in rows]
    v.add_images([("masked", i) for i in range(len(rows))], np.stack(masked))
    v.add_image("gone", np.full_like(views[0], MASK_GREY))

    def score(captions: Sequence[str], pictures: Sequence[Hashable]) -> np.ndarray:
        asks = [Ask(question(c, t), k) for c, t, k in zip(captions, instruction, pictures, strict=True)]
        return scores(v, asks, answers)[0]

    own = [p.caption for p in rows], [plain(p) for p in rows]
    arms = {
        "picture_masked": (own[0], [("masked", i) for i in range(len(rows))]),
        "picture_gone": (own[0], ["gone"] * len(rows)),
        "other_picture": (own[0], [plain(p) for p in others]),
        "other_caption": ([p.caption for p in others], own[1]),
    }
    before = score(*own)
    out = {}
    for name, arm in arms.items():
        drop = before - score(*arm)
        out[name] = {"drop": float(drop.mean()), "dropped": float((drop > 0).mean())}
    v.drop_images([("masked", i) for i in range(len(rows))] + ["gone"])
    return out


def sampled_without(
    v: PromptModel, products: Sequence[Product], g: Grammar, n: int, seed: int
) -> dict[str, dict[str, float]]:
    """Figures of descriptions when a source of knowledge is missing: the colour word, the whole text, the picture."""
    rng = random.Random(f"{seed}/without")
    rows = [p for p in products for _ in range(n)]
    instruction = [rng.choice(v.prompting.instructions) for _ in rows]
    v.add_image("gone", np.full((v.prompting.view_px, v.prompting.view_px, 3), MASK_GREY, np.uint8))
    asks = {
        "colour_word": [Ask(question(p.caption_without_colour, t), plain(p)) for p, t in _zip(rows, instruction)],
        "text": [Ask(t, plain(p)) for p, t in _zip(rows, instruction)],
        "picture": [Ask(question(p.caption, t), "gone") for p, t in _zip(rows, instruction)],
    }
    kept = ("valid", "matching", "scene_fit", "harmony")
    out = {}
    for name, requests in asks.items():
        figures = text_figures(rows, v.sample(requests, seed), g)
        out[name] = {k: figures[k] for k in kept}
    v.drop_images(["gone"])
    return out


def _zip(rows: Sequence[Product], texts: Sequence[str]) -> zip:
    return zip(rows, texts, strict=True)
