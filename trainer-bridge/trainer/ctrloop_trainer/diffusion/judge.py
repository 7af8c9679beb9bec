"""Does a painted background show what was asked for? Named by eyes trained on the scene renderer's pictures."""

import random
from pathlib import Path

import numpy as np
import torch

from ..data import Product
from ..grammar import Grammar
from ..render import Renderer, Shot
from ..reward.trunk import Trunk, to_pixels
from .canvas import Canvas
from .model import ImageModel, Job

EYES = ("reward-trunk", "referee-trunk")
SHIPPED = Path(__file__).resolve().parents[2] / "weights"
BAR_PROMPTS = 24


def canvases(renderer: Renderer, products: list[str]) -> list[Canvas]:
    """Every product in its place, from its plain view and its coverage."""
    plain = renderer.render([Shot(p, "") for p in products])[0]
    alpha = renderer.render([Shot(p, "", view="alpha") for p in products])[0]
    return [Canvas.of_plain(c, a[..., 0]) for c, a in zip(plain, alpha, strict=True)]


@torch.no_grad()
def names(trunk: Trunk, images: np.ndarray) -> np.ndarray:
    """Most likely scene, palette, light and prop of every picture, (n, 4)."""
    features, _ = trunk(to_pixels(images))
    return torch.stack([x.argmax(1) for x in trunk.names(features)], 1).numpy()


def naming(model: ImageModel, renderer: Renderer, held: list[Product], g: Grammar, n: int, seed: int) -> dict:
    """Shares of n pictures of held-out products whose parts are named rightly, by eye, painted and as the scene
    renderer draws them (which is the most that can be had); the bar's counts; the largest product error."""
    rng = random.Random(f"naming/{seed}")
    truth = [g.random(rng) for _ in range(n)]
    chosen = [rng.choice(held).id for _ in range(n)]
    seeds = [rng.randrange(1 << 30) for _ in range(n)]
    texts = [g.describe(t) for t in truth]
    places = dict(zip(sorted(set(chosen)), canvases(renderer, sorted(set(chosen))), strict=True))
    jobs = [Job(t, places[p], s) for t, p, s in zip(texts, chosen, seeds, strict=True)]
    painted = np.stack(model.paint(jobs))
    drawn = renderer.render([Shot(p, t, s) for p, t, s in zip(chosen, texts, seeds, strict=True)])[0]
    want = np.array(truth)
    out: dict = {"pictures": n}
    for eye in EYES:
        trunk = Trunk.load(SHIPPED / eye)
        for kind, images in (("painted", painted), ("scene_renderer", drawn)):
            right = names(trunk, images) == want
            shares = dict(zip(("scene", "palette", "light", "prop"), right.mean(0).tolist(), strict=True))
            first = right[:BAR_PROMPTS]
            shares["of_24"] = {"scene": int(first[:, 0].sum()), "palette": int(first[:, 1].sum())}
            out.setdefault(eye.split("-")[0], {})[kind] = shares
    exact = [
        np.abs(x.astype(int) - j.canvas.colour)[j.canvas.alpha == 255].max(initial=0)
        for x, j in zip(painted, jobs, strict=True)
    ]
    out["product_max_error"] = int(max(exact))
    return out
