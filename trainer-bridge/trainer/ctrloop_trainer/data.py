"""Products (catalogue.jsonl) and preference datasets (Arrow IPC files) as the jobs see them."""

import collections
import dataclasses
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from . import pictures
from .errors import BadInputError, NoEvidenceError


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
    # Scenes that suit the department, and palettes that go with the product's colour: the built-in judge's knowledge,
    # which no real catalogue has. None where nobody judges.
    fits: frozenset[str] | None = None
    harmonious: frozenset[str] | None = None

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


JUDGED = ("fits", "harmonious")


def judged(raw: dict) -> dict[str, frozenset[str]]:
    """What a line of the catalogue says of what suits its product: both lists or neither."""
    given = [k for k in JUDGED if k in raw]
    if given and (len(given) < len(JUDGED) or not all(isinstance(raw[k], list) for k in given)):
        raise TypeError(f"{' and '.join(JUDGED)} must both be lists, or both be left out")
    return {k: frozenset(raw[k]) for k in given}


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
            values = {k: raw[k] for k in fields if k not in JUDGED} | judged(raw)
        except (json.JSONDecodeError, KeyError, TypeError) as e:
            raise BadInputError(f"{path}:{n}: not a product: {e!r}; write it with `ctrloop render catalogue`") from e
        product = Product(**values)
        if not (product.caption or "").strip():
            raise BadInputError(f"{path}:{n}: product {product.id} has an empty caption: models need one")
        out.append(product)
    if not out:
        raise BadInputError(f"the catalogue {path} is empty")
    known = [p.fits is not None for p in out]
    if any(known) and not all(known):
        lacking = out[known.index(False)].id
        raise BadInputError(f"{path}: product {lacking} lacks {' and '.join(JUDGED)}, which others have: all or none")
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


TRAIN, TEST, LATER = SPLITS = ("train", "test", "later")


@dataclasses.dataclass
class Pairs:
    """Columns of pairs.arrow; left and right are rows of Creatives."""

    ids: list[str]
    products: list[str]
    left: np.ndarray
    right: np.ndarray
    left_wins: np.ndarray  # bool
    weight: np.ndarray  # evidence, 2 P(hi > lo) - 1
    split: (
        np.ndarray
    )  # one of SPLITS: products never trained on are "test"; "later" is evidence after the training span
    # (n, 2), left and right, within the pair's own cell (placement, window); None where the data set does not tell.
    impressions: np.ndarray | None = None
    clicks: np.ndarray | None = None
    placements: list[str] | None = None  # None where the data set does not tell

    @property
    def test(self) -> np.ndarray:
        """bool: pairs of held-out products."""
        return self.split == TEST

    @property
    def training(self) -> np.ndarray:
        """bool: pairs that a model may learn from."""
        return self.split == TRAIN

    def of(self, split: str) -> "Pairs":
        """The pairs of one split."""
        return self.take(np.flatnonzero(self.split == split))

    def take(self, keep: np.ndarray) -> "Pairs":
        """The pairs at these positions."""
        ix = np.asarray(keep, int)
        return Pairs(
            [self.ids[i] for i in ix],
            [self.products[i] for i in ix],
            self.left[ix],
            self.right[ix],
            self.left_wins[ix],
            self.weight[ix],
            self.split[ix],
            None if self.impressions is None else self.impressions[ix],
            None if self.clicks is None else self.clicks[ix],
            None if self.placements is None else [self.placements[i] for i in ix],
        )

    def __len__(self) -> int:
        return len(self.ids)


# What the tables must hold beside captions, descriptions and pictures; a null in one of these has no meaning.
CREATIVE_COLUMNS = {
    "creative": pa.string(),
    "product": pa.string(),
    "impressions": pa.int64(),
    "clicks": pa.int64(),
    "posterior_mean": pa.float64(),
}
PAIR_COLUMNS = {
    "pair_id": pa.string(),
    "product": pa.string(),
    "left": pa.string(),
    "right": pa.string(),
    "left_wins": pa.bool_(),
    "weight": pa.float64(),
    "split": pa.string(),
}
MAX_VIEW_PX = 2048  # a side of a picture; larger ones are no view but an original, or an attack on the memory


def load_dataset(folder: Path) -> tuple[Creatives, Pairs]:
    """Reads and checks a dataset folder; BadInputError names file, row and remedy."""
    c = _table(Path(folder) / "creatives.arrow", CREATIVE_COLUMNS)
    p = _table(Path(folder) / "pairs.arrow", PAIR_COLUMNS)
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
            np.array(p["split"].to_pylist(), object),
            _sides(p, "impressions"),
            _sides(p, "clicks"),
            p["placement"].to_pylist() if "placement" in p.schema.names else None,
        )
    except KeyError as e:
        raise BadInputError(f"the dataset {folder} lacks {e}: a column, or a creative that pairs.arrow names") from e
    _check(creatives, pairs, folder)
    return creatives, pairs


def _table(path: Path, columns: dict[str, pa.DataType]) -> pa.Table:
    """Reads a table; those of the columns that it has are of their type and without nulls."""
    try:
        with pa.memory_map(str(path)) as f:
            table = pa.ipc.open_file(f).read_all()
    except (OSError, pa.ArrowInvalid) as e:
        raise BadInputError(f"cannot read {path}: {e}") from e
    for at, name in enumerate(table.column_names):
        if name not in columns:
            continue
        column = table.column(at)
        if column.null_count:
            row = column.is_null().index(True).as_py()
            raise BadInputError(f"{path}: {name} of row {row} is missing: every row needs one")
        try:
            table = table.set_column(at, name, column.cast(columns[name]))
        except pa.ArrowException as e:
            raise BadInputError(f"{path}: column {name} is {column.type}, it must be {columns[name]}: {e}") from e
    return table


def _sides(p: pa.Table, what: str) -> np.ndarray | None:
    """Columns left_<what> and right_<what>, (n, 2); older data sets and foreign ones lack them."""
    names = (f"left_{what}", f"right_{what}")
    return np.stack([p[n].to_numpy() for n in names], 1) if set(names) <= set(p.schema.names) else None


def _images(ids: list[str], pngs: list[bytes | None]) -> np.ndarray:
    out = []
    for i, png in zip(ids, pngs, strict=True):
        if not png:
            raise BadInputError(f"creative {i} has no image: every creative of a dataset needs its view")
        try:
            out.append(np.asarray(pictures.read(png, max_side=MAX_VIEW_PX)))
        except pictures.BadPictureError as e:
            raise BadInputError(f"the image of creative {i} {e}; build the dataset again") from e
    shapes = {x.shape for x in out}
    if len(shapes) > 1:
        raise BadInputError(f"images of the dataset differ in size: {sorted(shapes)}")
    return np.stack(out) if out else np.zeros((0, pictures.VIEW_PX, pictures.VIEW_PX, 3), np.uint8)


def _check(c: Creatives, p: Pairs, folder: Path) -> None:
    for i, caption in zip(c.ids, c.captions, strict=True):
        if not (caption or "").strip():
            raise BadInputError(f"creative {i} has an empty caption: the reward model reads it")
    if len(set(c.ids)) < len(c.ids):
        twice = next(i for i in c.ids if c.ids.count(i) > 1)
        raise BadInputError(f"creative {twice} is twice in {folder}: which row a pair means is not known")
    for i, k, n in zip(c.ids, c.clicks, c.impressions, strict=True):
        if not 0 <= k <= n:
            raise BadInputError(f"creative {i} has {k} clicks on {n} impressions: count again")
    bad = [i for i, m in zip(c.ids, c.posterior_mean, strict=True) if not 0 < m < 1]
    if bad:
        raise BadInputError(f"posterior_mean of creative {bad[0]} is not inside (0, 1)")
    if not np.isfinite(p.weight).all() or (p.weight < 0).any() or (len(p) and p.weight.max() > 1 + 1e-9):
        raise BadInputError(f"the dataset {folder} has a pair weight outside [0, 1]")
    unknown = sorted({str(x) for x in p.split} - set(SPLITS))
    if unknown:
        raise BadInputError(f"the dataset {folder} has a pair of split {unknown[0]!r}: known are {', '.join(SPLITS)}")
    if not p.training.any():
        raise NoEvidenceError(f"the dataset {folder} has no training pairs: wait for more clicks")
    if not p.weight[p.training].any():
        raise NoEvidenceError(f"all training pairs of {folder} have weight 0, they are ties: wait for more clicks")
    _check_pairs(c, p, folder)
    _check_leaks(c, p, folder)


def _check_pairs(c: Creatives, p: Pairs, folder: Path) -> None:
    """Every pair is of two creatives of the product that it names, and is there once."""
    seen: dict[tuple, str] = {}
    repeated = [i for i, n in collections.Counter(p.ids).items() if n > 1]
    if repeated:
        raise BadInputError(f"pair {repeated[0]} is twice in {folder}: it would weigh double; build the dataset again")
    for n, (i, product, left, right) in enumerate(zip(p.ids, p.products, p.left, p.right, strict=True)):
        if left == right:
            raise BadInputError(f"pair {i} of {folder} holds creative {c.ids[left]} against itself: it has no winner")
        for side, row in (("left", left), ("right", right)):
            if c.products[row] != product:
                raise BadInputError(
                    f"pair {i} of {folder} is of product {product}, and its {side} creative {c.ids[row]} of "
                    f"{c.products[row]}: products are what keeps training and test apart; build the dataset again"
                )
        key = (*_cell(p, n), *_side_by_side(p, n))
        if (first := seen.setdefault(key, i)) != i:
            raise BadInputError(
                f"pairs {first} and {i} of {folder} are the same two creatives on the same evidence: they would weigh "
                "double; keep one"
            )


def _cell(p: Pairs, n: int) -> tuple:
    return p.split[n], p.placements[n] if p.placements else ""


def _side_by_side(p: Pairs, n: int) -> list[tuple]:
    """Both sides of a pair with their counts, whichever is left."""
    counts = [[] if x is None else x[n].tolist() for x in (p.impressions, p.clicks)]
    return sorted((int(row), *(x[k] for x in counts if x)) for k, row in enumerate((p.left[n], p.right[n])))


def _check_leaks(c: Creatives, p: Pairs, folder: Path) -> None:
    """No product, and no picture, is both learned from and examined on."""

    def products(rows: np.ndarray) -> set[str]:
        return {c.products[i] for side in (p.left, p.right) for i in side[rows]}

    both = products(p.test) & products(p.training)
    if both:
        raise BadInputError(f"product {sorted(both)[0]} is in the training and in the test split of {folder}")
    learned = products(p.training)
    pictures_of = {_digest(c.images[i]): i for i, product in enumerate(c.products) if product in learned}
    for i in sorted({int(i) for side in (p.left, p.right) for i in side[p.test]}):
        if (other := pictures_of.get(_digest(c.images[i]))) is not None:
            raise BadInputError(
                f"creatives {c.ids[other]} of training product {c.products[other]} and {c.ids[i]} of test product "
                f"{c.products[i]} in {folder} are the same picture: the test would be about what was learned; keep "
                "both products on one side of the split, or leave the test pairs of this creative out"
            )


def _digest(image: np.ndarray) -> bytes:
    return hashlib.sha256(image.tobytes()).digest()


def log_odds(mean: np.ndarray) -> np.ndarray:
    return np.log(mean) - np.log1p(-mean)


def bootstrap_interval(values: np.ndarray, seed: int = 0, draws: int = 1000) -> tuple[float, float]:
    """95 % interval of the mean of values (one per product: products are drawn, not rows)."""
    rng = np.random.default_rng(seed)
    if not len(values):
        return math.nan, math.nan
    means = values[rng.integers(0, len(values), (draws, len(values)))].mean(1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))
