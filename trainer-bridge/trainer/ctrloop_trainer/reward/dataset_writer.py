"""Writes a dataset folder (pairs.arrow, creatives.arrow, manifest.json) as the pairer does (Go, pairer/dataset)."""

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc

from ..digest import file_digest
from ..errors import BadInputError
from ..progress import write_json

PAIRS = pa.schema(
    [
        ("pair_id", pa.string()),
        ("product", pa.string()),
        ("placement", pa.string()),
        ("left", pa.string()),
        ("right", pa.string()),
        ("left_wins", pa.bool_()),
        ("weight", pa.float64()),
        ("left_impressions", pa.int64()),
        ("left_clicks", pa.int64()),
        ("right_impressions", pa.int64()),
        ("right_clicks", pa.int64()),
        ("split", pa.string()),
    ]
)
CREATIVES = pa.schema(
    [
        ("creative", pa.string()),
        ("product", pa.string()),
        ("caption", pa.string()),
        ("description", pa.string()),
        ("seed", pa.uint64()),
        ("image_png", pa.binary()),
        ("impressions", pa.int64()),
        ("clicks", pa.int64()),
        ("posterior_mean", pa.float64()),
    ]
)
TRAIN, TEST = "train", "test"


@dataclasses.dataclass
class PairRow:
    """A row of pairs.arrow."""

    pair_id: str
    product: str
    left: str
    right: str
    left_wins: bool
    weight: float
    left_impressions: int
    left_clicks: int
    right_impressions: int
    right_clicks: int
    split: str
    placement: str = ""


@dataclasses.dataclass
class CreativeRow:
    """A row of creatives.arrow."""

    creative: str
    product: str
    caption: str
    image_png: bytes
    impressions: int
    clicks: int
    posterior_mean: float
    description: str = ""
    seed: int = 0


class Writer:
    """Creatives in batches, so that a large set need not fit in memory; then the pairs and the manifest."""

    def __init__(self, folder: Path):
        self._folder, self._creatives = folder, 0
        self._file = pa.OSFile(str(folder / "creatives.arrow"), "wb")
        self._table = pa.ipc.new_file(self._file, CREATIVES)

    def creatives(self, rows: list[CreativeRow]) -> None:
        """One record batch."""
        if rows:
            self._table.write_batch(_batch(rows, CREATIVES))
            self._creatives += len(rows)

    def finish(self, rows: list[PairRow], policy: str, source: dict[str, Any]) -> dict[str, Any]:
        """Writes pairs and manifest; returns the manifest. source says what the data was made from."""
        self._table.close()
        self._file.close()
        if not rows:
            raise BadInputError("no pairs are left: lower the floor of impressions, or look at what was skipped")
        with pa.OSFile(str(self._folder / "pairs.arrow"), "wb") as f, pa.ipc.new_file(f, PAIRS) as w:
            w.write_batch(_batch(rows, PAIRS))
        train = [r for r in rows if r.split == TRAIN]
        manifest = {
            "schema": 1,
            "pairs": len(rows),
            "train": len(train),
            "test": len(rows) - len(train),
            "effective": sum(r.weight for r in train),
            "creatives": self._creatives,
            "products": len({r.product for r in rows}),
            "from_ms": 0,
            "to_ms": 0,
            "policy": policy,
            "seed": 0,
            "sha256": {f: file_digest(self._folder / f) for f in ("pairs.arrow", "creatives.arrow")},
            "source": source,
        }
        write_json(self._folder / "manifest.json", manifest)
        return manifest


def _batch(rows: list[Any], schema: pa.Schema) -> pa.RecordBatch:
    return pa.record_batch([pa.array([getattr(r, f.name) for r in rows], f.type) for f in schema], schema=schema)


@contextlib.contextmanager
def new_dataset(out: Path) -> Iterator[Writer]:
    """A writer whose folder appears at out when the block ends well, and not at all when it does not."""
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInputError(f"{out} exists: data sets do not change, give another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    tmp = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield Writer(tmp)
        tmp.chmod(0o755)  # mkdtemp makes it private
        os.rename(tmp, out)
    except BaseException:
        shutil.rmtree(tmp, ignore_errors=True)
        raise
