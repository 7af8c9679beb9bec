"""A miniature shop: twelve products in four departments, the real vocabulary, flat-coloured pictures."""

import io
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest
import torch
from PIL import Image

from ctrloop_trainer.data import Product, load_catalogue
from ctrloop_trainer.grammar import Grammar
from ctrloop_trainer.render import Renderer, Shot

HERE = Path(__file__).parent
WEIGHTS = HERE.parent / "weights"
STUB = [sys.executable, str(HERE / "stub_render.py")]
THINGS = {
    "electronics": ("smartphone", "keyboard", "tablet"),
    "kitchen": ("frying pan", "tea pot", "chef knife"),
    "sports": ("tennis ball", "hockey stick", "yoga mat"),
    "music": ("red guitar", "snare drum", "studio microphone"),
}
FITS = {"electronics": (2, 7), "kitchen": (0, 1), "sports": (8, 3), "music": (12, 10)}


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def grammar() -> Grammar:
    return Grammar.load(HERE / "grammar.json")


@pytest.fixture(scope="session")
def shop(tmp_path_factory, grammar) -> Path:
    """Folder with grammar.json and catalogue.jsonl; one product of each department is held out."""
    d = tmp_path_factory.mktemp("shop")
    (d / "grammar.json").write_text((HERE / "grammar.json").read_text())
    rows = []
    for n, (department, title) in enumerate((k, t) for k, titles in THINGS.items() for t in titles):
        for hue in range(2):
            colour = ("dark blue", "pale red")[(n + hue) % 2]
            category = f"{department}/{department} things"
            rows.append(
                {
                    "id": f"p-{n}" + (f"~h{hue:02d}" if hue else ""),
                    "title": title,
                    "category": category,
                    "department": department,
                    "colour": colour,
                    "caption": f"{title}, {colour}. {category}",
                    "holdout": n % 3 == 2,
                    "fits": [grammar.scenes[i] for i in FITS[department]],
                    "harmonious": list(grammar.palettes[(n + hue) % 2 :: 2][:4]),
                }
            )
    (d / "catalogue.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return d


@pytest.fixture(scope="session")
def products(shop) -> list[Product]:
    return load_catalogue(shop / "catalogue.jsonl")


def png(image: np.ndarray) -> bytes:
    b = io.BytesIO()
    Image.fromarray(image).save(b, "PNG")
    return b.getvalue()


def write_arrow(path: Path, columns: dict) -> None:
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as f, pa.ipc.new_file(f, table.schema) as w:
        w.write_table(table)


class Data:
    """Columns of a dataset, to be damaged by tests before they are written."""

    def __init__(self, creatives: dict, pairs: dict):
        self.creatives, self.pairs = creatives, pairs

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        write_arrow(folder / "creatives.arrow", self.creatives)
        write_arrow(folder / "pairs.arrow", self.pairs)
        (folder / "manifest.json").write_text("{}")
        return folder


@pytest.fixture(scope="session")
def make_data(products, grammar):
    """make_data(value): a dataset in which the log of a creative's click-through rate moves with value(picture)."""

    def make(value, per: int = 10, names: int = 24, seed: int = 0) -> Data:
        rng = np.random.default_rng(seed)
        plain = [p for p in products if not p.is_variant]
        shots, rows = [], []
        # Many products from few pictures: each is listed under several ids, all on its own side of the split.
        for n in range(names):
            p = plain[n % len(plain)]
            for _ in range(per):
                t = tuple(int(rng.integers(k)) for k in grammar.sizes)
                shots.append(Shot(p.id, grammar.describe(t), 1))
                rows.append((f"{p.id}.{n // len(plain)}", p))
        with Renderer(STUB) as r:
            images, _ = r.render(shots)
        ctr = np.array([0.036 * np.exp(value(x)) for x in images])
        clicks = rng.binomial(4000, ctr)
        creatives = {
            "creative": [f"c-{i}" for i in range(len(rows))],
            "product": [r[0] for r in rows],
            "caption": [r[1].caption for r in rows],
            "description": [s.text for s in shots],
            "seed": pa.array([1] * len(rows), pa.uint64()),
            "image_png": [png(x) for x in images],
            "impressions": np.full(len(rows), 4000),
            "clicks": clicks,
            "posterior_mean": (clicks + 4) / (4000 + 110),
        }
        pairs = {k: [] for k in ("pair_id", "product", "left", "right", "left_wins", "weight", "split")}
        by: dict[str, list[int]] = {}
        for i, r in enumerate(rows):
            by.setdefault(r[0], []).append(i)
        for rows_of in by.values():
            for i, j in itertools.combinations(rows_of, 2):
                left, right = (i, j) if rng.random() < 0.5 else (j, i)
                split = "test" if rows[i][1].holdout else "train"
                values = (f"q-{len(pairs['left'])}", rows[i][0], f"c-{left}", f"c-{right}")
                values += (bool(clicks[left] > clicks[right]), 0.8, split)
                for k, v in zip(pairs, values, strict=True):
                    pairs[k].append(v)
        return Data(creatives, pairs)

    return make


@pytest.fixture(scope="session")
def make_spec(shop):
    """make_spec(kind, **fields): a specification as a dictionary."""

    def make(kind: str, hyper: dict | None = None, **fields) -> dict:
        return {
            "kind": kind,
            "id": f"test-{kind}",
            "seed": 5,
            "threads": 1,
            "renderer": STUB,
            "grammar": str(shop / "grammar.json"),
            "catalogue": str(shop / "catalogue.jsonl"),
            "hyper": hyper or {},
            **fields,
        }

    return make


@pytest.fixture
def run_job(tmp_path):
    """run_job(spec, name="out"): runs the job's command line in this process; returns (exit code, folder)."""
    from ctrloop_trainer import job

    def run(spec: dict, name: str = "out") -> tuple[int, Path]:
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(spec))
        return job.main([str(path), "--out", str(tmp_path / name)]), tmp_path / name

    return run
