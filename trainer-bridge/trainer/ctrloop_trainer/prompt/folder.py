"""Pre-training examples from any folder of product pictures and texts.

The folder holds `products.jsonl`, one object a line, and the pictures that it names (PNG, JPEG or WebP):

| field | |
|---|---|
| `image` | picture of the product, a path inside the folder; a cut-out with transparency is put on light grey |
| `title`, `category` | texts, not empty |
| `attributes` | optional: a text, or an object of names and values |
| `background` | optional: the background that a designer wrote for this product |
| `creative` | optional, with `background`: a finished picture that shows it |
| `product` | optional: id, by default the title; entries of one product stay on one side of the split |
| `holdout` | optional: true keeps the product for evaluation; where no line says so, a hash holds a fifth out |

Everything is checked before any work starts; errors name file, line and remedy.
"""

import dataclasses
import json
import random
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import pictures
from ..errors import BadInputError
from .model import INSTRUCTIONS, Ask, PromptModel, question
from .tasks import NAME, REWRITE, SEE, TITLE, Example, Teacher

FILE = "products.jsonl"
REQUIRED = ("image", "title", "category")
KNOWN = (*REQUIRED, "attributes", "background", "creative", "product", "holdout")
MAX_PROBLEMS = 20  # of one file, before the list is cut short
HELD_OUT = 0.2


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of products.jsonl."""

    number: int  # of the line
    image: Path
    title: str
    category: str
    attributes: str
    background: str
    creative: Path | None
    product: str
    holdout: bool | None

    @property
    def caption(self) -> str:
        """The text that stands for the product in a request: as the shop's captions are built."""
        return f"{self.title}, {self.attributes}. {self.category}" if self.attributes else self.caption_without

    @property
    def caption_without(self) -> str:
        """The caption without attributes."""
        return f"{self.title}. {self.category}"


class Folder:
    """Draws examples of the families that the entries have texts for."""

    def __init__(self, entries: Sequence[Entry]):
        self.entries = list(entries)
        self.written = [e for e in self.entries if e.background]
        self.seen = [e for e in self.written if e.creative]
        self.families = ("image", "content", "prompt") if self.written else ("image", "content")

    def register(self, v: PromptModel) -> None:
        """Hands the pictures to the model, as large as it reads them."""
        for e in self.entries:
            v.add_image(("entry", e.number), picture(e.image, v.prompting.view_px))
            if e.creative:
                v.add_image(("creative", e.number), picture(e.creative, v.prompting.view_px))

    def corpus(self) -> list[str]:
        """Text that a fresh tokenizer is trained on."""
        texts = [t for e in self.entries for t in (e.caption, e.caption_without, e.background) if t]
        return texts + [*INSTRUCTIONS, SEE, NAME, TITLE, REWRITE] * 20

    def draw(self, family: str, teacher: Teacher, rng: random.Random) -> Example:
        """One example of a family; the folder's designers are its teacher, so `teacher` is not asked."""
        if family == "prompt":
            return self._prompt(rng)
        return self._image(rng) if family == "image" else self._content(rng)

    def _image(self, rng: random.Random) -> Example:
        if self.seen and rng.random() < 0.6:
            e = rng.choice(self.seen)
            return Example("image", "see", Ask(SEE, ("creative", e.number)), e.background)
        e = rng.choice(self.entries)
        return Example("image", "name", Ask(NAME, ("entry", e.number)), e.caption)

    def _content(self, rng: random.Random) -> Example:
        if self.seen and rng.random() < 0.4:
            e = rng.choice(self.seen)
            return Example(
                "content", "see_with_text", Ask(question(e.caption, SEE), ("creative", e.number)), e.background
            )
        e = rng.choice(self.entries)
        known = f"{e.attributes}. {e.category}" if e.attributes else e.category
        return Example("content", "title", Ask(f"{known}. {TITLE}", ("entry", e.number)), e.title)

    def _prompt(self, rng: random.Random) -> Example:
        e = rng.choice(self.written)
        key = ("entry", e.number)
        caption = e.caption if rng.random() < 2 / 3 else e.caption_without
        u = rng.random()
        if u < 0.1:
            return Example("prompt", "write", Ask(rng.choice(INSTRUCTIONS), key), e.background)
        if u < 0.3:
            draft = draft_of(rng.choice(self.written if rng.random() < 0.5 else [e]).background, rng)
            return Example("prompt", "rewrite", Ask(f"{question(caption, REWRITE)}: {draft}", key), e.background)
        return Example("prompt", "write", Ask(question(caption, rng.choice(INSTRUCTIONS)), key), e.background)


def draft_of(background: str, rng: random.Random) -> str:
    """The beginning of a background text, at least one word: what a hurried writer leaves."""
    words = background.split()
    return " ".join(words[: rng.randint(1, len(words))])


def load(folder: Path) -> tuple[Folder, Folder]:
    """Entries to learn from and held-out ones; BadInputError lists every problem found (at most MAX_PROBLEMS)."""
    path = Path(folder) / FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise BadInputError(f"cannot read {path}: {e}; a folder to learn from holds {FILE} and its pictures") from e
    entries, problems = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entries.append(read_entry(line, number, Path(folder)))
        except ValueError as e:
            problems.append(f"{path}:{number}: {e}")
    if problems:
        cut = [f"and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else []
        raise BadInputError("\n  ".join(["the folder cannot be learnt from:", *problems[:MAX_PROBLEMS], *cut]))
    held = held_out(entries)
    sides = [[e for e in entries if (e.product in held) is side] for side in (False, True)]
    if not all(sides):
        raise BadInputError(
            f"{path} has {len(sides[0])} entries to learn from and {len(sides[1])} held out, both are needed: "
            'add products, or mark some with "holdout": true'
        )
    return Folder(sides[0]), Folder(sides[1])


def held_out(entries: Sequence[Entry]) -> set[str]:
    """Products kept for evaluation: those that are marked, else a fifth by hash, which does not move when others
    join."""
    marked = {e.product for e in entries if e.holdout}
    if marked or any(e.holdout is False for e in entries):
        return marked
    return {e.product for e in entries if zlib.crc32(e.product.encode()) % 1000 < 1000 * HELD_OUT}


def read_entry(line: str, number: int, folder: Path) -> Entry:
    """One checked line; ValueError says what is wrong and what to do."""
    try:
        raw = json.loads(line)
    except json.JSONDecodeError as e:
        raise ValueError(f"not JSON ({e}): one object a line") from e
    if not isinstance(raw, dict):
        raise ValueError(f"must be an object, got {line[:40]!r}")
    if odd := sorted(set(raw) - set(KNOWN)):
        raise ValueError(f"unknown field {odd[0]!r}; known are {', '.join(KNOWN)}")
    for k in (*REQUIRED, "background", "creative", "product"):
        if k in raw and not isinstance(raw[k], str):
            raise ValueError(f"{k} must be a text, got {raw[k]!r}")
    if raw.get("holdout") not in (None, True, False):
        raise ValueError(f"holdout must be true or false, got {raw['holdout']!r}")
    for k in REQUIRED:
        if not raw.get(k, "").strip():
            raise ValueError(f"{k} is empty: a product needs picture, title and category; fill it or drop the line")
    if raw.get("creative") and not raw.get("background", "").strip():
        raise ValueError("creative without background: say what it shows, or drop it")
    creative = checked_picture(folder, raw["creative"]) if raw.get("creative") else None
    title = " ".join(raw["title"].split())
    return Entry(
        number,
        checked_picture(folder, raw["image"]),
        title,
        " ".join(raw["category"].split()),
        attributes_text(raw.get("attributes")),
        " ".join(raw.get("background", "").split()),
        creative,
        raw.get("product") or title,
        raw.get("holdout"),
    )


def attributes_text(raw: Any) -> str:
    """Attributes as one text: "red, cotton", or "colour: red, size: L" of an object."""
    if raw is None:
        return ""
    if isinstance(raw, dict):
        return ", ".join(f"{k}: {x}" for k, x in raw.items() if str(x).strip())
    if isinstance(raw, str):
        return " ".join(raw.split())
    raise ValueError(f"attributes must be a text or an object, got {raw!r}")


def checked_picture(folder: Path, name: str) -> Path:
    """Path of a picture that exists, lies inside the folder, is no giant and decodes; ValueError otherwise."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name} lies outside the folder: copy the picture into it")
    if not path.is_file():
        raise ValueError(f"no picture at {name}: add it or drop the line")
    picture(path, 8)
    return path


def picture(path: Path, side: int) -> np.ndarray:
    """The picture as a square, uint8 (side, side, 3), whole, on grey; ValueError when it cannot be used."""
    try:
        # A JPEG decodes small right away: twice the side is enough to reduce from.
        return pictures.square(pictures.load(path, smallest=2 * side), side)
    except pictures.BadPictureError as e:
        raise ValueError(f"not a readable picture: {e}; save it again or drop the line") from e
