"""What all arms of a rounds job share: products with their plain views, the renderer, the reward models."""

import dataclasses
from pathlib import Path

import numpy as np

from ..data import Product, load_catalogue, split
from ..errors import BadInputError
from ..grammar import Grammar
from ..prompt.model import PromptModel
from ..render import Renderer, Shot
from ..reward import forms
from ..reward.scorer import PairScorer
from ..spec import Spec


@dataclasses.dataclass
class Shop:
    """Read once per job. Held-out products are for figures only: draw() never sees them."""

    grammar: Grammar
    train: list[Product]  # hue variants included
    held: list[Product]
    plain: dict[str, np.ndarray]  # product's id -> its view without a background, uint8 (px, px, 3)
    renderer: Renderer
    reward: PairScorer
    referee: PairScorer | None

    @staticmethod
    def open(spec: Spec, renderer: Renderer) -> "Shop":
        train, held = split(load_catalogue(Path(spec.catalogue)))
        if len({p.category for p in train}) < 2:
            raise BadInputError("the catalogue's training products are of one category: there is no other product")
        everything = [*train, *held]
        plain = renderer.render([Shot(p.id, "") for p in everything])[0]
        return Shop(
            Grammar.load(Path(spec.grammar)),
            train,
            held,
            {p.id: image for p, image in zip(everything, plain, strict=True)},
            renderer,
            forms.load(spec.reward_model, spec),
            forms.load(spec.referee_model, spec) if spec.referee_model else None,
        )

    def show(self, v: PromptModel) -> None:
        """Registers every plain view with a model."""
        keys = list(self.plain)
        v.add_images(keys, np.stack([self.plain[k] for k in keys]))
