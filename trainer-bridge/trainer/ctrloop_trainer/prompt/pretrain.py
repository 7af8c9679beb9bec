"""Pre-training of the prompt model on the three task families of CAIG, from the training products only.

1. image understanding: picture -> the background it shows, or the product;
2. image and text -> background description;
3. prompt generation and rewriting: picture and caption, with or without a draft prompt -> background description.

The teacher is imperfect on purpose (clickbait, scenes and palettes that do not suit): clicks have something to teach.
"""

import dataclasses
import json
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from .. import lineage
from ..data import Product, load_catalogue, split
from ..grammar import Grammar, Tokens
from ..matching import text_figures
from ..progress import Progress, check_loss, write_json
from ..render import Renderer, Shot
from ..spec import Spec, hyper
from .model import Ask, Prompting, PromptModel, Size, build, make_tokenizer, question

INSTRUCTIONS = (
    "describe a background for this product",
    "write a background prompt",
    "which background suits this product",
)
SEE = "describe the background you see"
NAME = "name this product"
REWRITE = "improve this background prompt"
PARTS = ("scene", "palette", "light", "prop")


@dataclasses.dataclass
class Hyper:
    """Defaults made the weights that ship; hidden..patch are the model's shape."""

    steps: int = 450
    vision_steps: int = 600  # of naming alone, through the vision tower
    vision_batch: int = 96
    vision_lr: float = 1e-3
    batch: int = 48
    lr: float = 2.5e-3
    weight_decay: float = 0.02
    pictures: int = 6_000  # rendered scenes for image understanding
    seeing: float = 0.35  # share of image understanding among the examples
    clean: float = 0.0  # share of the steps, at the start, with a faultless teacher: its signal is learnt sooner
    clickbait: float = 0.08  # teacher: share of clickbait scenes
    fit: float = 0.70  # teacher: share of scenes chosen among those that fit
    harmony: float = 0.70  # teacher: share of palettes chosen among the harmonious
    eval_samples: int = 8  # descriptions per held-out product
    eval_pictures: int = 300  # of held-out products, to be described
    vocabulary: int = 1024
    hidden: int = 128
    layers: int = 4
    feed_forward: int = 344
    vision_hidden: int = 128
    vision_layers: int = 4
    patch: int = 16


def teacher(p: Product, g: Grammar, h: Hyper, rng: random.Random) -> Tokens:
    """A background for p as a hurried designer would pick it."""
    u = rng.random()
    if u < h.clickbait:
        scene = len(g.scenes) + rng.randrange(len(g.clickbait))
    elif u < h.clickbait + h.fit:
        scene = g.scenes.index(rng.choice(sorted(p.fits)))
    else:
        scene = rng.randrange(len(g.scenes))
    suits = sorted(p.harmonious)
    palette = g.palettes.index(rng.choice(suits)) if rng.random() < h.harmony else rng.randrange(len(g.palettes))
    return scene, palette, rng.randrange(len(g.lights)), rng.randrange(len(g.props))


def corpus(products: list[Product], g: Grammar, rng: random.Random) -> list[str]:
    """Text that the tokenizer is trained on."""
    texts = [p.caption for p in products] + [p.caption_without_colour for p in products]
    texts += [*INSTRUCTIONS, SEE, NAME, REWRITE] * 20
    return texts + [g.describe(g.random(rng)) for _ in range(1500)]


class Tasks:
    """Draws training examples: (request, answer)."""

    def __init__(
        self, products: list[Product], g: Grammar, h: Hyper, scenes: list[tuple[int, Tokens]], rng: random.Random
    ):
        self.products, self.g, self.h, self.scenes, self.rng = products, g, h, scenes, rng

    def draw(self, seeing: float) -> tuple[Ask, str]:
        """One example; seeing is the share of image understanding."""
        r, g = self.rng, self.g
        p = r.choice(self.products)
        if r.random() < seeing:
            if r.random() < 0.85:
                n = r.randrange(len(self.scenes))
                return Ask(SEE, ("scene", n)), g.describe(self.scenes[n][1])
            return Ask(NAME, ("plain", p.id)), p.caption
        answer = g.describe(teacher(p, g, self.h, r))
        # A quarter of the captions hide the colour, an eighth of the requests has none: then only the picture tells.
        caption = p.caption if r.random() < 0.75 else p.caption_without_colour
        u = r.random()
        if u < 0.12:
            return Ask(r.choice(INSTRUCTIONS), ("plain", p.id)), answer
        if u < 0.27:
            draft = g.describe(g.random(r)).split(", ")
            kept = ", ".join(draft[: r.randrange(1, 5)])
            return Ask(f"{question(caption, REWRITE)}: {kept}", ("plain", p.id)), answer
        return Ask(question(caption, r.choice(INSTRUCTIONS)), ("plain", p.id)), answer


def fit_vision(v: PromptModel, tasks: Tasks, h: Hyper, progress: Progress) -> float:
    """Teaches the vision tower to name scenes, and products by department and colour, before the language model joins:
    a classifier learns in a minute what the answer's few scene tokens would teach in an hour. Returns the last loss.
    The heads are thrown away."""
    departments = sorted({p.department for p in tasks.products})
    colours = sorted({p.colour for p in tasks.products})
    sizes = [*tasks.g.sizes, len(departments), len(colours)]
    tower = v.model.model.vision_tower
    head = torch.nn.Linear(h.vision_hidden, sum(sizes))
    parameters = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, h.vision_lr, weight_decay=0.05)
    half, last = h.vision_batch // 2, []
    for step in range(h.vision_steps):
        progress.check_interrupted()
        warm, cosine = min(1.0, (step + 1) / 100), 0.5 * (1 + math.cos(math.pi * step / h.vision_steps))
        for group in optimizer.param_groups:
            group["lr"] = h.vision_lr * warm * (0.03 + 0.97 * cosine)
        scenes = [tasks.rng.randrange(len(tasks.scenes)) for _ in range(h.vision_batch)]
        products = [tasks.rng.choice(tasks.products) for _ in range(half)]
        keys = [*(("scene", n) for n in scenes), *(("plain", p.id) for p in products)]
        named = torch.tensor([tasks.scenes[n][1] for n in scenes])
        known = torch.tensor([(departments.index(p.department), colours.index(p.colour)) for p in products])
        # The projector reads the last layer's patch tokens, without the class token: so do the heads.
        patches = tower(v.pixels(keys)).last_hidden_state[:, 1:]
        logits = head(patches.mean(1)).split(sizes, 1)
        loss = sum(F.cross_entropy(logits[i][: len(scenes)], named[:, i]) for i in range(4))
        loss = loss + sum(F.cross_entropy(logits[4 + i][len(scenes) :], known[:, i]) for i in range(2))
        check_loss(loss.item(), f"vision step {step}")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        last = [*last[-49:], loss.item()]
        if (step + 1) % 50 == 0:
            right = {
                n: (logits[i][: len(scenes)].argmax(1) == named[:, i]).float().mean().item()
                for i, n in enumerate(PARTS)
            }
            progress.log(stage="vision", step=step + 1, loss=round(float(np.mean(last)), 4), **right)
    return float(np.mean(last)) if last else math.nan


def fit(v: PromptModel, tasks: Tasks, h: Hyper, progress: Progress) -> list[float]:
    """The training loop: next-token cross-entropy on the answer. Returns the loss of every step.

    The vision tower stays as fit_vision left it, as LLaVA's does: the few products would be learnt by heart.
    """
    v.model.model.vision_tower.requires_grad_(False)
    parameters = [p for p in v.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, h.lr, weight_decay=h.weight_decay)
    losses = []
    for step in range(h.steps):
        progress.check_interrupted()
        warm, cosine = min(1.0, (step + 1) / 30), 0.5 * (1 + math.cos(math.pi * step / h.steps))
        for group in optimizer.param_groups:
            group["lr"] = h.lr * warm * (0.03 + 0.97 * cosine)
        v.model.train()
        tasks.h = h if step >= h.clean * h.steps else dataclasses.replace(h, clickbait=0.0, fit=1.0, harmony=1.0)
        batch = [tasks.draw(h.seeing) for _ in range(h.batch)]
        logp, length = v.token_logps([a for a, _ in batch], [t for _, t in batch])
        loss = -logp.sum() / length.sum()
        check_loss(loss.item(), f"pre-training step {step}")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 25 == 0:
            progress.log(stage="pretrain", step=step + 1, loss=round(float(np.mean(losses[-25:])), 4))
    v.model.requires_grad_(True).eval()
    return losses


def describe_figures(v: PromptModel, products: list[Product], g: Grammar, n: int, seed: int) -> dict[str, float]:
    """Figures of n sampled descriptions per product; invalid ones count as not matching."""
    rng = random.Random(seed)
    rows = [p for p in products for _ in range(n)]
    asks = [Ask(question(p.caption, rng.choice(v.prompting.instructions)), ("plain", p.id)) for p in rows]
    return text_figures(rows, v.sample(asks, seed), g)


def understanding(
    v: PromptModel, held: list[Product], g: Grammar, renderer: Renderer, n: int, seed: int
) -> dict[str, float]:
    """Share of held-out pictures whose scene, palette, light and prop are named rightly."""
    rng = random.Random(seed)
    truth = [g.random(rng) for _ in range(n)]
    shots = [Shot(rng.choice(held).id, g.describe(t), rng.randrange(1 << 30)) for t in truth]
    keys = [("see", i) for i in range(n)]
    v.add_images(keys, renderer.render(shots)[0])
    said = [g.parse(t) for t in v.sample([Ask(SEE, k) for k in keys], seed, greedy=True)]
    v.drop_images(keys)
    return {
        part: float(np.mean([s is not None and s[i] == t[i] for s, t in zip(said, truth, strict=True)]))
        for i, part in enumerate(PARTS)
    }


def starting_point(spec: Spec, h: Hyper, texts: list[str]) -> PromptModel:
    """The base to continue from, or a fresh model."""
    if spec.base:
        return PromptModel.load(Path(spec.base))
    size = Size(h.hidden, h.layers, h.feed_forward, h.vision_hidden, h.vision_layers, h.patch)
    model, processor = build(make_tokenizer(texts, h.vocabulary), size, spec.seed)
    return PromptModel(model, processor, Prompting(INSTRUCTIONS))


ARTIFACT = "model"


def parents(spec: Spec) -> dict[str, str | None]:
    """Folders that the job was made from, by role."""
    return {}


def run(spec: Spec, out: Path, progress: Progress) -> None:
    """The job: writes model/ (the folder that ships as weights/prompt-base) and metrics.json."""
    start = time.monotonic()
    h: Hyper = hyper(Hyper, spec.hyper)
    g = Grammar.load(Path(spec.grammar))
    train, held = split(load_catalogue(Path(spec.catalogue)))
    rng = random.Random(spec.seed)
    v = starting_point(spec, h, corpus(train, g, rng))
    with Renderer(spec.renderer) as renderer:
        plain = [*train, *held]
        v.add_images([("plain", p.id) for p in plain], renderer.render([Shot(p.id, "") for p in plain])[0])
        scenes = [(i, g.random(rng)) for i in range(h.pictures)]
        shots = [Shot(rng.choice(train).id, g.describe(t), rng.randrange(1 << 30)) for _, t in scenes]
        v.add_images([("scene", i) for i, _ in scenes], renderer.render(shots)[0])
        progress.log(stage="rendered", pictures=len(shots) + len(plain))
        tasks = Tasks(train, g, h, scenes, rng)
        if h.vision_steps:
            fit_vision(v, tasks, h, progress)
        losses = fit(v, tasks, h, progress)
        figures = describe_figures(v, held, g, h.eval_samples, spec.seed)
        seen = understanding(v, held, g, renderer, h.eval_pictures, spec.seed)
    folder = out / "model"
    v.model.save_pretrained(folder)
    v.processor.save_pretrained(folder)
    v.prompting.save(folder)
    figures = {
        **figures,
        "understanding": seen,
        "loss_first": float(np.mean(losses[:25])),
        "loss_last": float(np.mean(losses[-25:])),
        "parameters": sum(p.numel() for p in v.model.parameters()),
        "train_products": len({p.base for p in train}),
        "held_out_products": len(held),
        "seconds": round(time.monotonic() - start, 1),
    }
    lineage.write_figures(folder, spec, figures, dataclasses.asdict(h))
    write_json(out / "metrics.json", {"kind": "pretrain", "figures": figures})
    progress.log(stage="done", **json.loads(json.dumps(figures)))
