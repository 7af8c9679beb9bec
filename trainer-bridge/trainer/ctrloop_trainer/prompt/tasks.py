"""The three task families of pre-training, as CAIG has them, and the shop that draws their examples.

1. image understanding: a picture -> the background it shows, or the product;
2. multimodal content understanding: picture and text -> the background description, the title, or what suits;
3. prompt generation and rewriting: picture and/or text, or a draft prompt -> background prompt.

The shop (catalogue, scene grammar, renderer) knows every answer because it asked for the picture. folder.py draws the
same families from any folder of pictures and texts.
"""

import dataclasses
import random
from collections.abc import Hashable, Sequence

from ..data import Product
from ..grammar import Grammar, Tokens
from .model import INSTRUCTIONS, Ask, question

FAMILIES = ("image", "content", "prompt")

SEE = "describe the background you see"
NAME = "name this product"
TITLE = "write a title for this product"
SUITS = "list scenes and tones that suit this product"
REWRITE = "improve this background prompt"


@dataclasses.dataclass(frozen=True)
class Example:
    """One training example: family and task by name, what is asked, and the answer to learn."""

    family: str  # one of FAMILIES
    task: str  # "see", "name", "see_with_text", "title", "suits", "write", "rewrite"
    ask: Ask
    answer: str


@dataclasses.dataclass(frozen=True)
class Teacher:
    """Writes backgrounds as a hurried designer would: imperfect on purpose, so that clicks have something to teach."""

    clickbait: float  # share of clickbait scenes
    fit: float  # share of scenes chosen among those that fit; the rest is drawn from all plain scenes
    harmony: float  # share of palettes chosen among the harmonious; the rest is drawn from all

    def write(self, p: Product, g: Grammar, rng: random.Random) -> Tokens:
        """A background for p; light and prop are matters of taste, drawn evenly."""
        scene, palette = self._scene(p, g, rng), self._palette(p, g, rng)
        return scene, palette, rng.randrange(len(g.lights)), rng.randrange(len(g.props))

    def rewrite(self, p: Product, draft: Sequence[str], g: Grammar, rng: random.Random) -> Tokens:
        """A background that keeps what is good of a draft (the first parts of a description): a scene that fits, a
        harmonious palette, any light and prop; the rest is written anew."""
        scene, palette, light, prop = self.write(p, g, rng)
        if draft and draft[0] in p.fits:
            scene = g.scenes.index(draft[0])
        if len(draft) > 1 and (tone := draft[1].removesuffix(" tones")) in p.harmonious:
            palette = g.palettes.index(tone)
        if len(draft) > 2:
            light = g.lights.index(draft[2])
        if len(draft) > 3:
            prop = g.props.index(draft[3])
        return scene, palette, light, prop

    def matching(self, scenes_that_fit: int, plain: int, harmonious: int, palettes: int) -> float:
        """Expected share of descriptions that suit their product: what a perfect pupil reaches."""
        scene = self.fit + (1 - self.fit - self.clickbait) * scenes_that_fit / plain
        return scene * (self.harmony + (1 - self.harmony) * harmonious / palettes)

    def _scene(self, p: Product, g: Grammar, rng: random.Random) -> int:
        u = rng.random()
        if u < self.clickbait:
            return len(g.scenes) + rng.randrange(len(g.clickbait))
        if u < self.clickbait + self.fit:
            return g.scenes.index(rng.choice(sorted(p.fits)))
        return rng.randrange(len(g.scenes))

    def _palette(self, p: Product, g: Grammar, rng: random.Random) -> int:
        if rng.random() < self.harmony:
            return g.palettes.index(rng.choice(sorted(p.harmonious)))
        return rng.randrange(len(g.palettes))


FAULTLESS = Teacher(clickbait=0.0, fit=1.0, harmony=1.0)


@dataclasses.dataclass(frozen=True)
class Scene:
    """A rendered picture whose background is known."""

    key: Hashable
    product: Product
    tokens: Tokens


def plain(p: Product) -> Hashable:
    """Key of a product's plain view."""
    return ("plain", p.id)


class Shop:
    """Draws examples of every family from products and rendered scenes."""

    families = FAMILIES

    def __init__(self, products: Sequence[Product], scenes: Sequence[Scene], g: Grammar):
        self.products, self.scenes, self.g = products, scenes, g

    def draw(self, family: str, teacher: Teacher, rng: random.Random) -> Example:
        """One example of a family."""
        if family == "prompt":
            return self._prompt(teacher, rng)
        return self._image(rng) if family == "image" else self._content(rng)

    def _image(self, rng: random.Random) -> Example:
        if rng.random() < 0.6:
            s = rng.choice(self.scenes)
            return Example("image", "see", Ask(SEE, s.key), self.g.describe(s.tokens))
        p = rng.choice(self.products)
        return Example("image", "name", Ask(NAME, plain(p)), p.caption)

    def _content(self, rng: random.Random) -> Example:
        u = rng.random()
        if u < 0.25:
            s = rng.choice(self.scenes)
            ask = Ask(question(s.product.caption, SEE), s.key)
            return Example("content", "see_with_text", ask, self.g.describe(s.tokens))
        p = rng.choice(self.products)
        if u < 0.4:
            return Example("content", "title", Ask(f"{p.colour}. {p.category}. {TITLE}", plain(p)), p.title)
        return Example("content", "suits", Ask(question(caption(p, rng), SUITS), plain(p)), what_suits(p, self.g))

    def _prompt(self, teacher: Teacher, rng: random.Random) -> Example:
        p, g = rng.choice(self.products), self.g
        u = rng.random()
        if u < 0.1:  # the picture alone
            answer = g.describe(teacher.write(p, g, rng))
            return Example("prompt", "write", Ask(rng.choice(INSTRUCTIONS), plain(p)), answer)
        if u < 0.3:
            draft = g.describe(g.random(rng)).split(", ")[: rng.randrange(1, 5)]
            answer = g.describe(teacher.rewrite(p, draft, g, rng))
            ask = Ask(f"{question(caption(p, rng), REWRITE)}: {', '.join(draft)}", plain(p))
            return Example("prompt", "rewrite", ask, answer)
        answer = g.describe(teacher.write(p, g, rng))
        return Example("prompt", "write", Ask(question(caption(p, rng), rng.choice(INSTRUCTIONS)), plain(p)), answer)


def caption(p: Product, rng: random.Random) -> str:
    """A third of the captions hide the colour: then only the picture tells which palettes suit, so that the model
    has to look (and masking the picture, as PCPO does, means something)."""
    return p.caption if rng.random() < 2 / 3 else p.caption_without_colour


def what_suits(p: Product, g: Grammar) -> str:
    """All scenes that fit and all harmonious palettes, in the grammar's order: the densest lesson about a product."""
    return f"{', '.join(s for s in g.scenes if s in p.fits)}; {', '.join(q for q in g.palettes if q in p.harmonious)}"


def corpus(products: Sequence[Product], g: Grammar, rng: random.Random) -> list[str]:
    """Text of the shop that a fresh tokenizer is trained on."""
    texts = [p.caption for p in products] + [p.caption_without_colour for p in products]
    texts += [*INSTRUCTIONS, SEE, NAME, TITLE, SUITS, REWRITE] * 20
    return texts + [g.describe(g.random(rng)) for _ in range(1500)]
