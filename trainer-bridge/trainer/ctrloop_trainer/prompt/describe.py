"""The describe job: what a prompt model writes for every product, for whoever evaluates it without a server."""

import dataclasses
import random
from pathlib import Path

import numpy as np

from ..data import load_catalogue
from ..grammar import Grammar
from ..matching import text_figures
from ..placement import Placement
from ..progress import Progress, write_json, write_lines
from ..render import Renderer, Shot
from ..spec import Spec, derive, hyper
from .model import Ask, PromptModel, question

ARTIFACT = None


@dataclasses.dataclass
class Hyper:
    """Of the sampling; temperature and min-p are the model's own (prompting.json)."""

    samples: int = 12  # descriptions per product


def parents(spec: Spec) -> dict[str, str | None]:
    """Folders that the job was made from, by role."""
    return {"base": spec.base}


def run(spec: Spec, out: Path, progress: Progress) -> None:
    """Writes descriptions.jsonl ({"product", "text"}, samples lines per product, hue variants left out)."""
    h: Hyper = hyper(Hyper, spec.hyper)
    products = [p for p in load_catalogue(Path(spec.catalogue)) if not p.is_variant]
    v = PromptModel.load(Path(spec.base), Placement.of(spec))
    with Renderer(spec.renderer, px=v.prompting.view_px) as renderer:
        plain = renderer.render([Shot(p.id, "") for p in products])[0]
    v.add_images([p.id for p in products], np.asarray(plain))
    rng = random.Random(f"describe/{spec.seed}")
    rows = [p for p in products for _ in range(h.samples)]
    asks = [Ask(question(p.caption, rng.choice(v.prompting.instructions)), p.id) for p in rows]
    texts = v.sample(asks, derive(spec.seed, "describe"))
    write_lines(out / "descriptions.jsonl", [{"product": p.id, "text": t} for p, t in zip(rows, texts, strict=True)])
    figures = text_figures(rows, texts, Grammar.load(Path(spec.grammar)))
    write_json(out / "metrics.json", {"kind": "describe", "figures": figures})
    progress.log(stage="done", **figures)
