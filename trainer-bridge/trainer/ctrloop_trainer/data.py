"""Products (catalogue.jsonl) and preference datasets (Arrow IPC files) as the jobs see them."""

import dataclasses
import io
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from PIL import Image, UnidentifiedImageError

from .errors import BadInputError


@dataclasses.dataclass(frozen=True)
class Product:
    """One line of `ctrloop render catalogue`."""

    id: str
    title: str
    category: str
    department: str
    colour: str
    caption: str
    holdout: bool
    fits: frozenset[str]  # scenes that suit the department
    harmonious: frozenset[str]  # palettes that go with the product's colour

    @property
    def base(self) -> str:
        """Id of the product that a hue variant was made from; its own id otherwise."""
        return self.id.split("~")[0]

    @property
    def is_variant(self) -> bool:
        return "~" in self.id

    @property
    def caption_without_colour(self) -> str:
        return f"{self.title}. {self.category}"


def load_catalogue(path: Path) -> list[Product]:
    """All products and hue variants, in file order."""
    fields = [f.name for f in dataclasses.fields(Product)]
    out = []
    try:
        lines = Path(path).read_text().splitlines()
    except OSError as e:
        raise BadInputError(f"cannot read the catalogue {path}: {e}") from e
    for n, line in enumerate(lines, 1):
        try:
            raw = json.loads(line)
            values = {k: frozenset(raw[k]) if k in ("fits", "harmonious") else raw[k] for k in fields}
        except (json.JSONDecodeError, KeyError, TypeError) as e:
            raise BadInputError(f"{path}:{n}: not a product: {e!r}; write it with `ctrloop render catalogue`") from e
        product = Product(**values)
        if not product.caption.strip():
            raise BadInputError(f"{path}:{n}: product {product.id} has an empty caption: models need one")
        out.append(product)
    if not out:
        raise BadInputError(f"the catalogue {path} is empty")
    return out


def split(products: list[Product]) -> tuple[list[Product], list[Product]]:
    """Training products with their hue variants, and held-out products without. The two never mix."""
    train = [p for p in products if not p.holdout]
    held = [p for p in products if p.holdout and not p.is_variant]
    if not train or not held:
        raise BadInputError(f"the catalogue has {len(train)} training and {len(held)} held-out products: need both")
    return train, held


@dataclasses.dataclass
class Creatives:
    """Columns of creatives.arrow; row i is one creative."""

    ids: list[str]
    products: list[str]
    captions: list[str]
    descriptions: list[str]
    images: np.ndarray  # uint8 (n, px, px, 3), the model view
    impressions: np.ndarray
    clicks: np.ndarray
    posterior_mean: np.ndarray  # of the click-through rate


@dataclasses.dataclass
class Pairs:
    """Columns of pairs.arrow; left and right are rows of Creatives."""

    ids: list[str]
    products: list[str]
    left: np.ndarray
    right: np.ndarray
    left_wins: np.ndarray  # bool
    weight: np.ndarray  # evidence, 2 P(hi > lo) - 1
    test: np.ndarray  # bool: held-out products

    def take(self, keep: np.ndarray) -> "Pairs":
        """The pairs at these positions."""
        ix = np.asarray(keep)
        return Pairs(
            [self.ids[i] for i in ix],
            [self.products[i] for i in ix],
            self.left[ix],
            self.right[ix],
            self.left_wins[ix],
            self.weight[ix],
            self.test[ix],
        )

    def __len__(self) -> int:
        return len(self.ids)


def load_dataset(folder: Path) -> tuple[Creatives, Pairs]:
    """Reads and checks a dataset folder; BadInputError names file, row and remedy."""
    c, p = _table(Path(folder) / "creatives.arrow"), _table(Path(folder) / "pairs.arrow")
    try:
        creatives = Creatives(
            c["creative"].to_pylist(),
            c["product"].to_pylist(),
            c["caption"].to_pylist(),
            c["description"].to_pylist(),
            _images(c["creative"].to_pylist(), c["image_png"].to_pylist()),
            c["impressions"].to_numpy(),
            c["clicks"].to_numpy(),
            c["posterior_mean"].to_numpy(),
        )
        row = {k: i for i, k in enumerate(creatives.ids)}
        pairs = Pairs(
            p["pair_id"].to_pylist(),
            p["product"].to_pylist(),
            np.array([row[k] for k in p["left"].to_pylist()], int),
            np.array([row[k] for k in p["right"].to_pylist()], int),
            np.array(p["left_wins"].to_pylist(), bool),
            p["weight"].to_numpy(),
            np.array([s == "test" for s in p["split"].to_pylist()], bool),
        )
    except KeyError as e:
        raise BadInputError(f"the dataset {folder} lacks {e}: a column, or a creative that pairs.arrow names") from e
    _check(creatives, pairs, folder)
    return creatives, pairs


def _table(path: Path) -> pa.Table:
    try:
        with pa.memory_map(str(path)) as f:
            return pa.ipc.open_file(f).read_all()
    except (OSError, pa.ArrowInvalid) as e:
        raise BadInputError(f"cannot read {path}: {e}") from e


def _images(ids: list[str], pngs: list[bytes | None]) -> np.ndarray:
    out = []
    for i, png in zip(ids, pngs, strict=True):
        if not png:
            raise BadInputError(f"creative {i} has no image: every creative of a dataset needs its 64 px view")
        try:
            out.append(np.asarray(Image.open(io.BytesIO(png)).convert("RGB")))
        except UnidentifiedImageError as e:
            raise BadInputError(f"the image of creative {i} is not a picture: {e}") from e
    shapes = {x.shape for x in out}
    if len(shapes) > 1:
        raise BadInputError(f"images of the dataset differ in size: {sorted(shapes)}")
    return np.stack(out) if out else np.zeros((0, 64, 64, 3), np.uint8)


def _check(c: Creatives, p: Pairs, folder: Path) -> None:
    for i, caption in zip(c.ids, c.captions, strict=True):
        if not (caption or "").strip():
            raise BadInputError(f"creative {i} has an empty caption: the reward model reads it")
    bad = [i for i, m in zip(c.ids, c.posterior_mean, strict=True) if not 0 < m < 1]
    if bad:
        raise BadInputError(f"posterior_mean of creative {bad[0]} is not inside (0, 1)")
    if not np.isfinite(p.weight).all() or (p.weight < 0).any() or (len(p) and p.weight.max() > 1 + 1e-9):
        raise BadInputError(f"the dataset {folder} has a pair weight outside [0, 1]")
    if not len(p) or p.test.all():
        raise BadInputError(f"the dataset {folder} has no training pairs: wait for more clicks")
    both = {c.products[i] for i in p.left[p.test]} & {c.products[i] for i in p.left[~p.test]}
    if both:
        raise BadInputError(f"product {sorted(both)[0]} is in the training and in the test split of {folder}")


def log_odds(mean: np.ndarray) -> np.ndarray:
    return np.log(mean) - np.log1p(-mean)


def bootstrap_interval(values: np.ndarray, seed: int = 0, draws: int = 1000) -> tuple[float, float]:
    """95 % interval of the mean of values (one per product: products are drawn, not rows)."""
    rng = np.random.default_rng(seed)
    if not len(values):
        return math.nan, math.nan
    means = values[rng.integers(0, len(values), (draws, len(values)))].mean(1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))
