"""Does a background suit its product? Figures over descriptions that a prompt model wrote."""

import numpy as np

from .data import Product
from .grammar import Grammar


def text_figures(products: list[Product], texts: list[str], g: Grammar) -> dict[str, float]:
    """Share of valid, matching (scene fits and palette harmonises), clickbait and distinct descriptions."""
    tokens = [g.parse(t) for t in texts]
    both = list(zip(products, tokens, strict=True))
    scene = [t is not None and g.all_scenes[t[0]] in p.fits for p, t in both]
    palette = [t is not None and g.palettes[t[1]] in p.harmonious for p, t in both]
    distinct: dict[str, set] = {}
    for p, text in zip(products, texts, strict=True):
        distinct.setdefault(p.id, set()).add(text)
    return {
        "valid": float(np.mean([t is not None for t in tokens])),
        "matching": float(np.mean(np.array(scene) & np.array(palette))),
        "scene_fit": float(np.mean(scene)),
        "harmony": float(np.mean(palette)),
        "clickbait": float(np.mean([t is not None and g.is_clickbait(t) for t in tokens])),
        "distinct": sum(len(s) for s in distinct.values()) / len(texts),
    }
