"""Does a background suit its product? Figures over descriptions that a prompt model wrote."""

import numpy as np

from .data import Product
from .grammar import Grammar, Tokens


def text_figures(products: list[Product], texts: list[str], g: Grammar) -> dict[str, float | None]:
    """Share of valid, matching (scene fits and palette harmonises), clickbait and distinct descriptions. What
    only a judge can say is None where the catalogue has none."""
    tokens = [g.parse(t) for t in texts]
    distinct: dict[str, set] = {}
    for p, text in zip(products, texts, strict=True):
        distinct.setdefault(p.id, set()).add(text)
    return {
        "valid": float(np.mean([t is not None for t in tokens])),
        **_judged(products, tokens, g),
        "clickbait": float(np.mean([t is not None and g.is_clickbait(t) for t in tokens])),
        "distinct": sum(len(s) for s in distinct.values()) / len(texts),
    }


def _judged(products: list[Product], tokens: list[Tokens | None], g: Grammar) -> dict[str, float | None]:
    if any(p.fits is None for p in products):
        return dict.fromkeys(("matching", "scene_fit", "harmony"))
    both = list(zip(products, tokens, strict=True))
    scene = np.array([t is not None and g.all_scenes[t[0]] in p.fits for p, t in both])
    palette = np.array([t is not None and g.palettes[t[1]] in p.harmonious for p, t in both])
    return {
        "matching": float(np.mean(scene & palette)),
        "scene_fit": float(np.mean(scene)),
        "harmony": float(np.mean(palette)),
    }
