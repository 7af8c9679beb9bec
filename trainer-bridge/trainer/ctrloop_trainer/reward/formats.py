"""Public creative data, read into dataset folders: CAIG's pair files and the CreativeRanking lists.

    python -m ctrloop_trainer.reward.formats caig FILE --images DIR --out DATASET
    python -m ctrloop_trainer.reward.formats creative-ranking DIR --out DATASET
    python -m ctrloop_trainer.reward.formats join TRAIN_DATASET TEST_DATASET --out DATASET

What is known of the two layouts, from the published readers and writers of the data (not from the data itself):

- CAIG (data_utils, eval_reward_model.py): a JSON list of records {"id", "image", "left_ctr", "right_ctr",
  "conversations" or "question", "target"}; `image` names one picture, two creatives side by side; `target` is "left"
  or "right". The part of `id` before the last "_" is a key that its own two scripts use for different things (product,
  or running number of a pair), so pairs that share a picture count as one product, too: see _components.
- CreativeRanking (VAM/data_loader.py, VAM/train.py): train_data_list.txt and test_data_list.txt, lines of five
  tab-separated fields without a header: item, picture's file name, day, impressions, clicks. One line per day;
  counts of the same item and picture add up. There is no text.

Every column name, position and file name can be given, should the data differ from its readers.
"""

import argparse
import dataclasses
import hashlib
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from .. import pictures
from ..digest import file_digest
from ..errors import BadInputError
from ..pictures import BadPictureError
from . import evidence as ev
from .dataset_writer import CREATIVES, PAIRS, TEST, TRAIN, CreativeRow, PairRow, Writer, new_dataset

BY_HASH, BY_LISTS = "hash", "lists"
CAIG_FIELDS = ("id", "image", "left_ctr", "right_ctr", "target", "caption", "category", "question", "conversations")
# The product in CAIG's captioned questions: "... for the product 'NAME' ...".
CAPTION_PATTERN = r"product '(.+)'"
RANKING_COLUMNS = "0,1,2,3,4"
RANKING_FOLDERS = ("", "data", "list", "lists")  # where the lists are looked for
CHUNK = 256  # pictures decoded and written at once
SHOWN = 20  # problems in a message


class Bad:
    """Problems found, each with file and line; more than the budget of them end the conversion."""

    def __init__(self, budget: int):
        self.budget, self.found = budget, []

    def add(self, where: str, why: str) -> None:
        """Remembers one. Reading goes on a little, so that the message can show more than the first."""
        self.found.append(f"{where}: {why}")
        if len(self.found) >= self.budget + SHOWN:
            self.settle()

    def settle(self) -> None:
        """BadInputError if the budget is exceeded."""
        if len(self.found) > self.budget:
            shown, more = self.found[:SHOWN], len(self.found) - SHOWN
            tail = f"\n  and {more} more" if more > 0 else ""
            raise BadInputError(
                f"{len(self.found)} problems or more, --skip-bad allows {self.budget}:\n  "
                + "\n  ".join(shown)
                + tail
                + "\nmend the data, or give --skip-bad a number that you can answer for"
            )


# --- text of products ----------------------------------------------------------------------------------------------


def caption_of(caption: str | None, category: str | None, default: str) -> str:
    """ "<caption>. <category>", as our own captions end; the default where there is no text."""
    caption, category = (" ".join(str(x or "").split()) for x in (caption, category))
    if caption and category:
        return f"{caption}. {category}"
    return caption or category or default


def read_captions(path: Path, names: dict[str, str], bad: Bad) -> dict[str, str]:
    """JSON lines {"product", "caption", "category"} by product."""
    out = {}
    for n, line in enumerate(_lines(path), 1):
        try:
            row = json.loads(line)
            text = caption_of(row.get(names["caption"]), row.get(names["category"]), "")
            product = str(row[names["product"]])
        except (ValueError, KeyError, AttributeError) as e:
            bad.add(f"{path}:{n}", f"not a JSON object with {names['product']!r}: {e!r}")
            continue
        if text:
            out[product] = text
        else:
            bad.add(f"{path}:{n}", f"product {product} has neither caption nor category")
    return out


def _lines(path: Path) -> Iterator[str]:
    """Lines of a text file; one that is not UTF-8 comes with replacement marks and fails where it is used."""
    try:
        with open(path, encoding="utf-8", errors="replace", newline="\n") as f:
            for line in f:
                yield line.rstrip("\r\n")
    except OSError as e:
        raise BadInputError(f"cannot read {path}: {e}") from e


# --- CAIG ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class CaigRecord:
    """A usable record; left and right are digests of the two pictures' pixels."""

    where: str
    key: str
    left: str
    right: str
    left_wins: bool
    ctr: tuple[float, float] | None
    caption: str


def records(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, value) of a JSON list or of JSON lines; a value that is not JSON is a ValueError instance."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise BadInputError(f"cannot read {path}: {e}") from e
    if not text.lstrip().startswith("["):
        for n, line in enumerate(text.splitlines(), 1):
            if line.strip():
                try:
                    yield n, json.loads(line)
                except ValueError as e:
                    yield n, e
        return
    decode, at, n = json.JSONDecoder().raw_decode, text.index("[") + 1, 1 + text.count("\n", 0, text.index("["))
    while True:
        start = re.compile(r"[\s,]*").match(text, at).end()
        n += text.count("\n", at, start)
        if text[start : start + 1] == "]":
            return
        try:
            value, at = decode(text, start)
        except ValueError as e:
            # Where a list breaks, nothing after it can be trusted: no budget covers that.
            raise BadInputError(f"{path}:{n}: not JSON: {e}; the file is damaged or cut") from None
        yield n, value
        n += text.count("\n", start, at)


def _caig_values(row: Any, field: dict[str, str], pattern: re.Pattern, default: str) -> dict[str, Any]:
    """Checked values of a record; ValueError says what is wrong."""
    if isinstance(row, ValueError):
        raise ValueError(f"not JSON: {row}")
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    target = row.get(field["target"])
    if target not in ("left", "right"):
        raise ValueError(f"{field['target']} must be left or right, got {target!r}")
    if not isinstance(row.get(field["image"]), str) or not row[field["image"]]:
        raise ValueError(f"{field['image']} must name a picture, got {row.get(field['image'])!r}")
    rates = [row.get(field[k]) for k in ("left_ctr", "right_ctr")]
    ctr = None
    if rates != [None, None]:
        if not all(isinstance(r, int | float) and not isinstance(r, bool) and 0 < r < 1 for r in rates):
            raise ValueError(f"click-through rates must lie between 0 and 1, got {rates}")
        ctr = (float(rates[0]), float(rates[1]))
        if (ctr[0] > ctr[1]) != (target == "left"):
            raise ValueError(f"target {target} contradicts the click-through rates {rates}")
    question = row.get(field["question"])
    if question is None:
        turns = row.get(field["conversations"])
        question = turns[0].get("value") if isinstance(turns, list) and turns and isinstance(turns[0], dict) else ""
    # Only the product's name is taken: templates for questions can also hold the product's click-through rate.
    named = pattern.search(str(question))
    caption = row.get(field["caption"]) or (named[1] if named else "")
    return {
        "key": str(row.get(field["id"]) or ""),
        "image": row[field["image"]],
        "left_wins": target == "left",
        "ctr": ctr,
        "caption": caption_of(caption, row.get(field["category"]), default),
    }


def read_caig(a: argparse.Namespace, bad: Bad) -> tuple[list[CaigRecord], dict[str, bytes]]:
    """Usable records, and the view of each picture by digest."""
    field = _mapping(a.field, CAIG_FIELDS)
    pattern = re.compile(a.caption_pattern)
    out, views, rate = [], {}, {}
    for n, row in records(a.file):
        where = f"{a.file}:{n}"
        try:
            v = _caig_values(row, field, pattern, a.caption)
            both = pictures.halves(pictures.load(pictures.find(a.images, v["image"]), a.max_pixels))
            digests = [hashlib.sha256(pictures.pixels(x)).hexdigest()[:24] for x in both]
            if digests[0] == digests[1]:
                raise ValueError("both halves are the same picture")
            for d, r in zip(digests, v["ctr"] or (), strict=False):
                if not math.isclose(rate.setdefault(d, r), r, rel_tol=1e-6):
                    raise ValueError(f"a picture has click-through rate {r}, and {rate[d]} in an earlier record")
        except (ValueError, BadPictureError) as e:
            bad.add(where, str(e))
            continue
        for d, half in zip(digests, both, strict=True):
            if d not in views:
                views[d] = pictures.view(half, a.px)
        out.append(CaigRecord(where, v["key"], *digests, v["left_wins"], v["ctr"], v["caption"]))
    bad.settle()
    return out, views


def _components(rows: list[CaigRecord], by: str) -> list[str]:
    """Product of each record: connected by shared pictures, by the id's part before its last "_", or by both."""
    parent: dict[str, str] = {}

    def root(x: str) -> str:
        parent.setdefault(x, x)
        while parent[x] != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        return x

    names = []
    for r in rows:
        key = re.fullmatch(r"(.+)_\d+", r.key)
        nodes = [f"id {key[1] if key else r.key}"] if r.key and by != "pictures" else []
        nodes += [r.left, r.right] if by != "id" or not nodes else []
        names.append(nodes[0])
        for x in nodes[1:]:
            # The smaller name wins, so that the order of the file does not matter.
            lo, hi = sorted((root(nodes[0]), root(x)))
            parent[hi] = lo
    return ["caig-" + hashlib.sha256(root(x).encode()).hexdigest()[:16] for x in names]


def caig(a: argparse.Namespace) -> dict[str, Any]:
    """Pairs come as they are, weight 1 (the hard rule that chose them); impressions are assumed to be the floor."""
    bad = Bad(a.skip_bad)
    _need_folder(a.images, "--images")
    rows, views = read_caig(a, bad)
    products = _components(rows, a.product_by)
    known = [c for r in rows if r.ctr for c in r.ctr]
    usual = float(np.mean(known)) if known else 0.5
    facts: dict[str, tuple[str, str, float | None]] = {}
    for r, product in zip(rows, products, strict=True):
        for d, c in zip((r.left, r.right), r.ctr or (None, None), strict=True):
            facts[d] = (product, r.caption, c if c is not None else facts.get(d, ("", "", None))[2])

    def counts(d: str) -> tuple[int, int]:
        c = facts[d][2]
        return (0, 0) if c is None else (a.impressions, max(1, round(c * a.impressions)))

    with new_dataset(a.out) as w:
        for d in sorted(facts):
            product, caption, c = facts[d]
            n, k = counts(d)
            w.creatives([CreativeRow(f"caig-{d}", product, caption, views[d], n, k, usual if c is None else c)])
        out, ids, judged, repeated = [], set(), set(), 0
        for r, product in zip(rows, products, strict=True):
            pair_id = "pair-" + hashlib.sha256(f"{r.key}\x00{r.left}\x00{r.right}".encode()).hexdigest()[:16]
            if pair_id in ids:
                bad.add(r.where, "the same record again")
                continue
            ids.add(pair_id)
            # Other records of the same two pictures say the same once more: a pair that is there twice weighs double.
            if (both := frozenset((r.left, r.right))) in judged:
                repeated += 1
                continue
            judged.add(both)
            split = _split(a.split, product, a.holdout)
            sides = f"caig-{r.left}", f"caig-{r.right}"
            out.append(PairRow(pair_id, product, *sides, r.left_wins, 1.0, *counts(r.left), *counts(r.right), split))
        bad.settle()
        source = {"format": "caig", "file": file_digest(a.file), "assumed_impressions": a.impressions}
        return w.finish(out, ev.CAIG, {**source, "px": a.px, "skipped": bad.found, "repeated": repeated})


# --- CreativeRanking -----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Shown:
    """What a list says of one picture of one item."""

    where: str  # file and line of its first mention
    impressions: int = 0
    clicks: int = 0
    lists: set[str] = dataclasses.field(default_factory=set)


def read_list(path: Path, name: str, a: argparse.Namespace, bad: Bad, into: dict[tuple[str, str], Shown]) -> None:
    """Adds one list's counts to into, by (item, picture)."""
    columns = _columns(a.columns)
    separator = a.separator.encode().decode("unicode_escape")
    for n, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        fields = line.split(separator)
        try:
            if len(fields) <= max(columns.values()):
                raise ValueError(
                    f"{len(fields)} fields, {max(columns.values()) + 1} are needed (--columns, --separator)"
                )
            item, image = (fields[columns[k]].strip() for k in ("item", "image"))
            pv, clk = (_whole(fields[columns[k]]) for k in ("impressions", "clicks"))
            if not item or not image or "\ufffd" in item + image:
                raise ValueError("item or picture is empty or not UTF-8")
            if clk > pv:
                raise ValueError(f"{clk} clicks on {pv} impressions")
        except ValueError as e:
            bad.add(f"{path}:{n}", str(e))
            continue
        if a.max_products and not _chosen(item, a.sample):
            continue
        shown = into.setdefault((item, image), Shown(f"{path}:{n}"))
        shown.impressions, shown.clicks = shown.impressions + pv, shown.clicks + clk
        shown.lists.add(name)


def _columns(text: str) -> dict[str, int]:
    parts = text.split(",")
    if len(parts) != 5 or not all(p.strip().isdigit() for p in parts):
        raise BadInputError(f"--columns {text}: want five positions from 0, as {RANKING_COLUMNS}")
    return dict(zip(("item", "image", "day", "impressions", "clicks"), map(int, parts), strict=True))


def _whole(text: str) -> int:
    """A count: digits, or a float without a fraction as some exports write it."""
    value = float(text)
    if not (0 <= value < 2**53 and value == int(value)):
        raise ValueError(f"{text!r} is not a count")
    return int(value)


def _chosen(item: str, share: float) -> bool:
    """A hash decides, so that the same items are chosen each time and from both lists."""
    return int.from_bytes(hashlib.sha256(b"sample/" + item.encode()).digest()[:8]) < share * 2**64


def _find_list(a: argparse.Namespace, given: Path | None, name: str) -> Path | None:
    if given:
        if not given.is_file():
            raise BadInputError(f"no list at {given}")
        return given
    return next((p for f in RANKING_FOLDERS if (p := a.dir / f / name).is_file()), None)


def creative_ranking(a: argparse.Namespace) -> dict[str, Any]:
    """Pairs by the rules of the pairer: weights from Beta posteriors; test pairs by CAIG's rule by default."""
    bad = Bad(a.skip_bad)
    _need_folder(a.dir, "DIR")
    images = a.images or a.dir / "images"
    _need_folder(images, "--images")
    lists = {
        TRAIN: _find_list(a, a.train_list, "train_data_list.txt"),
        TEST: _find_list(a, a.test_list, "test_data_list.txt"),
    }
    if not any(lists.values()):
        raise BadInputError(
            f"no train_data_list.txt or test_data_list.txt in {a.dir}: give --train-list or --test-list"
        )
    a.split = a.split or (BY_LISTS if all(lists.values()) else BY_HASH)
    if a.split == BY_LISTS and not all(lists.values()):
        raise BadInputError("--split lists needs both lists")
    a.sample = _share(lists.values(), a) if a.max_products else 1.0
    shown: dict[tuple[str, str], Shown] = {}
    for name, path in lists.items():
        if path:
            read_list(path, name, a, bad, shown)
    names = _mapping(a.field, ("product", "caption", "category"))
    captions = read_captions(a.captions, names, bad) if a.captions else {}
    bad.settle()
    if not shown:
        raise BadInputError("the lists name no creative")
    prior = ev.fit_prior(*(np.array([getattr(s, k) for s in shown.values()]) for k in ("impressions", "clicks")))
    ids = {k: "cr-" + hashlib.sha256("\x00".join(k).encode()).hexdigest()[:24] for k in shown}
    test = _test_items(a, shown)
    rows = [(ev.Evidence(k[0], ids[k], s.impressions, s.clicks), k[0] in test) for k, s in shown.items()]
    pairs: list[tuple[ev.Pair, str]] = []
    for split, policy in ((TRAIN, a.policy), (TEST, a.test_policy)):
        rule = ev.Rule(policy, a.min_impressions, a.min_weight, a.max_pairs_per_product)
        pairs += [(p, split) for p in ev.build(rule, prior, [e for e, is_test in rows if is_test == (split == TEST)])]
    with new_dataset(a.out) as w:
        wanted = {e.creative for p, _ in pairs for e in (p.chosen, p.rejected)}
        todo = sorted((ids[k], k) for k in shown if ids[k] in wanted)
        caption = {k: captions.get(k[0], a.caption) for _, k in todo}
        missing = _write_creatives(w, todo, shown, caption, prior, images, a, bad)
        bad.settle()
        out = [_row(p, split) for p, split in pairs if not {p.chosen.creative, p.rejected.creative} & missing]
        source = {
            "format": "creative-ranking",
            "lists": {k: file_digest(p) for k, p in lists.items() if p},
            "prior": [prior.alpha, prior.beta],
            "split": a.split,
            "items_in_both_lists": len(_items(shown, TRAIN) & _items(shown, TEST)),
            "test_policy": a.test_policy,
            "sample": a.sample,
            "px": a.px,
            "skipped": bad.found,
        }
        return w.finish(out, a.policy, source)


def _share(lists: Iterable[Path | None], a: argparse.Namespace) -> float:
    """Share of the items that --max-products is, from one look at the lists' first column of items."""
    column, separator = _columns(a.columns)["item"], a.separator.encode().decode("unicode_escape")
    items = {line.split(separator)[column] for p in lists if p for line in _lines(p) if line.count(separator) >= column}
    return min(1.0, a.max_products / max(1, len(items)))


def _test_items(a: argparse.Namespace, shown: dict[tuple[str, str], Shown]) -> set[str]:
    """Items of the test split. One that both lists name is test only: no product is on both sides."""
    if a.split == BY_LISTS:
        return _items(shown, TEST)
    return {item for item, _ in shown if ev.holdout(item, a.holdout)}


def _items(shown: dict[tuple[str, str], Shown], name: str) -> set[str]:
    return {item for (item, _), s in shown.items() if name in s.lists}


def _row(p: ev.Pair, split: str) -> PairRow:
    left, right = (p.chosen, p.rejected) if p.chosen_is_left else (p.rejected, p.chosen)
    counts = left.impressions, left.clicks, right.impressions, right.clicks
    return PairRow(p.id, p.product, left.creative, right.creative, p.chosen_is_left, p.weight, *counts, split)


def _write_creatives(
    w: Writer,
    todo: list[tuple[str, tuple[str, str]]],
    shown: dict[tuple[str, str], Shown],
    caption: dict[tuple[str, str], str],
    prior: ev.Prior,
    images: Path,
    a: argparse.Namespace,
    bad: Bad,
) -> set[str]:
    """Decodes and writes in chunks; returns the ids of creatives whose picture is bad."""

    def view(k: tuple[str, str]) -> bytes | str:
        try:
            picture = pictures.load(pictures.find(images, k[1]), a.max_pixels, smallest=2 * a.px)
            return pictures.view(picture, a.px)
        except BadPictureError as e:
            return str(e)

    missing = set()
    with ThreadPoolExecutor(a.threads) as pool:
        for i in range(0, len(todo), CHUNK):
            chunk = todo[i : i + CHUNK]
            rows = []
            for (creative, k), got in zip(chunk, pool.map(view, [k for _, k in chunk]), strict=True):
                if isinstance(got, str):
                    bad.add(shown[k].where, got)
                    missing.add(creative)
                    continue
                e = ev.Evidence(k[0], creative, shown[k].impressions, shown[k].clicks)
                rows.append(CreativeRow(creative, k[0], caption[k], got, e.impressions, e.clicks, prior.mean(e)))
            w.creatives(rows)
    return missing


# --- join ----------------------------------------------------------------------------------------------------------


def join(a: argparse.Namespace) -> dict[str, Any]:
    """Training pairs of one data set, all pairs of another as test: to be scored on somebody's published test pairs.

    Products that both have leave the training pairs.
    """
    train, test = (_read(x) for x in (a.train, a.test))
    theirs = {p["product"] for p in test[1]}
    mine = [p for p in train[1] if p["split"] == TRAIN and p["product"] not in theirs]
    wanted = {p[k] for p in mine for k in ("left", "right")}
    known = {c["creative"] for c in test[0]}
    if both := wanted & known:
        raise BadInputError(f"creative {min(both)} is in both data sets under different products")
    with new_dataset(a.out) as w:
        for rows in ([c for c in train[0] if c["creative"] in wanted], test[0]):
            for i in range(0, len(rows), CHUNK):
                w.creatives([CreativeRow(**{k: c[k] for k in CREATIVES.names}) for c in rows[i : i + CHUNK]])
        out = [PairRow(**{k: p.get(k, "") for k in PAIRS.names}) for p in mine]
        out += [PairRow(**{k: p.get(k, "") for k in PAIRS.names} | {"split": TEST}) for p in test[1]]
        dropped = sum(p["split"] == TRAIN for p in train[1]) - len(mine)
        if not mine:
            raise BadInputError(
                f"no training pairs are left: {a.train} has none, or all of its products are in {a.test}"
            )
        return w.finish(out, "joined", {"format": "join", "dropped_training_pairs": dropped})


def _read(folder: Path) -> tuple[list[dict], list[dict]]:
    out = []
    for name in ("creatives.arrow", "pairs.arrow"):
        try:
            with pa.memory_map(str(folder / name)) as f:
                out.append(pa.ipc.open_file(f).read_all().to_pylist())
        except (OSError, pa.ArrowInvalid) as e:
            raise BadInputError(f"cannot read {folder / name}: {e}") from e
    return out[0], out[1]


# --- command line --------------------------------------------------------------------------------------------------


def _split(how: str, product: str, fraction: float) -> str:
    if how == BY_HASH:
        return TEST if ev.holdout(product, fraction) else TRAIN
    return how


def _mapping(given: list[str], known: tuple[str, ...]) -> dict[str, str]:
    """--field NAME=KEY: our name -> the file's."""
    out = {k: k for k in known}
    for text in given:
        name, eq, key = text.partition("=")
        if not eq or name not in known or not key:
            raise BadInputError(f"--field {text}: want NAME=KEY with NAME one of {', '.join(known)}")
        out[name] = key
    return out


def _need_folder(path: Path, option: str) -> None:
    if not path.is_dir():
        raise BadInputError(f"{option}: no folder at {path}")


def _arguments() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="ctrloop_trainer.reward.formats", description=__doc__.splitlines()[0])
    sub = p.add_subparsers(dest="command", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], dict], text: str) -> argparse.ArgumentParser:
        c = sub.add_parser(name, help=text, description=text)
        c.set_defaults(run=run)
        c.add_argument("--out", type=Path, required=True, help="the data set's folder; must not exist")
        return c

    def common(c: argparse.ArgumentParser) -> None:
        c.add_argument(
            "--px", type=int, default=pictures.VIEW_PX, help="side of the models' view (64 for the embedded models)"
        )
        c.add_argument("--holdout", type=float, default=0.2, help="share of products in the test split, by hash")
        c.add_argument("--skip-bad", type=int, default=0, metavar="N", help="go on with up to N bad lines or pictures")
        c.add_argument("--max-pixels", type=int, default=pictures.MAX_PIXELS, help="larger pictures are bad")
        c.add_argument("--caption", default="product", help="text of products that have none")
        c.add_argument("--field", action="append", default=[], metavar="NAME=KEY", help="the file's name for a field")

    c = command("caig", caig, "CAIG's pair file: a JSON list, each record with two creatives in one picture")
    c.add_argument("file", type=Path)
    c.add_argument("--images", type=Path, required=True, help="folder of the pictures")
    c.add_argument(
        "--split", choices=(BY_HASH, TRAIN, TEST), default=BY_HASH, help="all pairs in one split, or by hash"
    )
    c.add_argument("--product-by", choices=("both", "pictures", "id"), default="both", help="what makes a product")
    c.add_argument("--impressions", type=int, default=ev.CAIG_IMPRESSIONS, help="assumed for every creative")
    c.add_argument("--caption-pattern", default=CAPTION_PATTERN, help="finds the product's name in the question")
    common(c)

    c = command("creative-ranking", creative_ranking, "CreativeRanking: lists of impressions and clicks, and pictures")
    c.add_argument("dir", type=Path)
    c.add_argument("--images", type=Path, help="folder of the pictures; DIR/images if not given")
    c.add_argument("--train-list", type=Path)
    c.add_argument("--test-list", type=Path)
    c.add_argument("--columns", default=RANKING_COLUMNS, help="positions of item, picture, day, impressions, clicks")
    c.add_argument("--separator", default="\\t")
    c.add_argument("--split", choices=(BY_LISTS, BY_HASH), help="lists where both are there, else hash")
    c.add_argument("--policy", choices=ev.POLICIES, default=ev.POSTERIOR, help="of the training pairs")
    c.add_argument("--test-policy", choices=ev.POLICIES, default=ev.CAIG, help="of the test pairs")
    c.add_argument("--min-impressions", type=int, default=ev.CAIG_IMPRESSIONS, help="of a creative in a pair")
    c.add_argument("--min-weight", type=float, default=0.02, help="pairs below are ties")
    c.add_argument("--max-pairs-per-product", type=int, default=0, help="the heaviest; 0: all")
    c.add_argument("--max-products", type=int, default=0, help="about so many items, by hash; 0: all")
    c.add_argument("--captions", type=Path, help='JSON lines {"product", "caption", "category"}')
    c.add_argument("--threads", type=int, default=1, help="that decode pictures")
    common(c)

    c = command("join", join, "training pairs of one data set, all pairs of another as test")
    c.add_argument("train", type=Path)
    c.add_argument("test", type=Path)
    return p


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0, or 2 for bad input with nothing left behind."""
    a = _arguments().parse_args(argv)
    try:
        for k in ("px", "max_pixels", "impressions", "threads"):
            if getattr(a, k, 1) < 1:
                raise BadInputError(f"--{k.replace('_', '-')} must be at least 1")
        m = a.run(a)
    except BadInputError as e:
        print(e, file=sys.stderr)
        return e.exit_code
    if both := m["source"].get("items_in_both_lists"):
        print(
            f"{both} items are in both lists: they are test items, their training pairs are left out", file=sys.stderr
        )
    for problem in m["source"].get("skipped", []):
        print(f"skipped {problem}", file=sys.stderr)
    known = ("pairs", "train", "test", "creatives", "products")
    print(json.dumps({k: m[k] for k in known} | {"out": str(a.out)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
