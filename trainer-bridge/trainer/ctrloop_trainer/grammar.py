"""The scene grammar: what a background description may say. Go owns it (`ctrloop render grammar`)."""

import dataclasses
import json
import random
from pathlib import Path

from .errors import BadInputError

Tokens = tuple[int, int, int, int]  # indices of scene (clickbait after the plain ones), palette, light, prop


@dataclasses.dataclass(frozen=True)
class Grammar:
    """Closed vocabulary of "<scene>, <palette> tones, <light>, <prop>"."""

    scenes: tuple[str, ...]
    clickbait: tuple[str, ...]
    palettes: tuple[str, ...]
    lights: tuple[str, ...]
    props: tuple[str, ...]

    @staticmethod
    def load(path: Path) -> "Grammar":
        """Reads the output of `ctrloop render grammar`."""
        try:
            raw = json.loads(Path(path).read_text())
            g = Grammar(*(tuple(raw[f.name]) for f in dataclasses.fields(Grammar)))
        except (OSError, json.JSONDecodeError, KeyError, TypeError) as e:
            raise BadInputError(f"cannot use the grammar {path}: {e!r}; write it with `ctrloop render grammar`") from e
        if not all(getattr(g, f.name) for f in dataclasses.fields(Grammar)):
            raise BadInputError(f"the grammar {path} has an empty list; write it with `ctrloop render grammar`")
        return g

    @property
    def all_scenes(self) -> tuple[str, ...]:
        return self.scenes + self.clickbait

    @property
    def sizes(self) -> Tokens:
        """How many values each part has."""
        return len(self.all_scenes), len(self.palettes), len(self.lights), len(self.props)

    def describe(self, t: Tokens) -> str:
        return f"{self.all_scenes[t[0]]}, {self.palettes[t[1]]} tones, {self.lights[t[2]]}, {self.props[t[3]]}"

    def parse(self, text: str) -> Tokens | None:
        """Tokens of a well-formed description, else None."""
        parts = [p.strip() for p in text.split(",")]
        if len(parts) != 4 or not parts[1].endswith(" tones"):
            return None
        parts[1] = parts[1].removesuffix(" tones")
        lists = (self.all_scenes, self.palettes, self.lights, self.props)
        if any(p not in vocabulary for p, vocabulary in zip(parts, lists, strict=True)):
            return None
        return tuple(vocabulary.index(p) for p, vocabulary in zip(parts, lists, strict=True))  # type: ignore[return-value]

    def is_clickbait(self, t: Tokens) -> bool:
        return t[0] >= len(self.scenes)

    def random(self, rng: random.Random) -> Tokens:
        return tuple(rng.randrange(n) for n in self.sizes)  # type: ignore[return-value]
