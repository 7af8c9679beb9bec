"""The reward model's eye: a small convolutional trunk, taught to name scenes and to tell product from background.

Clicks are far too few to learn seeing from. The labels here are free: we know what we asked the renderer for, and
where the product is follows from the cut-out's alpha. What the reward head reads (describe()) are the soft names and
the statistics of a photographer: colours, brightness, saturation, clutter, contrast and hue harmony of product and
background, each measured where the eye says that it is. The pictures are of training products only. The world's own
eye is another model with other data.
"""

import dataclasses
import json
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from .. import lineage, pictures, weights
from ..data import load_catalogue, split
from ..errors import BadInputError
from ..grammar import Grammar
from ..pictures import VIEW_PX
from ..progress import Progress, check_loss, replaced, write_json
from ..render import Renderer, Shot
from ..spec import Spec, hyper

PARTS = ("scene", "palette", "light", "prop")
WIDTHS = (24, 40, 64, 64)
FEATURES = 160
MASK_WIDTH = 16
# Columns of statistics(), in order. b: background, p: product; luma, chroma and the opponent axes u (red against
# green and blue) and v (green against blue) are of RGB in [0, 1].
STATISTICS = (
    *("p_area", "p_luma", "p_u", "p_v", "p_chroma"),
    *("b_luma", "b_u", "b_v", "b_chroma", "b_saturation", "b_luma_spread", "b_clutter"),
    *("luma", "saturation", "clutter", "luma_spread"),
    *("luma_step", "luma_contrast", "colour_contrast", "chroma_step", "edge_luma_contrast", "edge_colour_contrast"),
    *("hue_near", "hue_opposite", "hue_triad", "vivid_near", "vivid_opposite", "vivid_triad", "mean_hue_near"),
    *("b_luma_squared", "b_saturation_squared", "b_clutter_squared", "colour_contrast_squared"),
)


class Trunk(nn.Module):
    """Four strided stages with one residual block each; 64 px in; FEATURES numbers, names and a product mask out."""

    def __init__(self, sizes: tuple[int, ...]):
        super().__init__()
        self.sizes = tuple(sizes)
        self.down, self.residual, last = nn.ModuleList(), nn.ModuleList(), 3
        for w in WIDTHS:
            self.down.append(nn.Sequential(nn.Conv2d(last, w, 3, 2, 1), nn.GroupNorm(4, w), nn.GELU()))
            self.residual.append(nn.Sequential(nn.Conv2d(w, w, 3, 1, 1), nn.GroupNorm(4, w), nn.GELU()))
            last = w
        self.project = nn.Linear(last * 16, FEATURES)
        self.name = nn.Linear(FEATURES, sum(sizes))
        # Mask at half resolution: what is deep knows what a product is, what is shallow knows where its edge is.
        self.lateral = nn.ModuleList(nn.Conv2d(w, MASK_WIDTH, 1) for w in WIDTHS)
        self.edge = nn.Sequential(nn.Conv2d(MASK_WIDTH, MASK_WIDTH, 3, 1, 1), nn.GELU(), nn.Conv2d(MASK_WIDTH, 1, 1))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures (n, 3, 64, 64) in [-1, 1] -> features (n, FEATURES), mask logits (n, 1, 32, 32)."""
        levels = []
        for down, residual in zip(self.down, self.residual, strict=True):
            x = down(x)
            x = x + residual(x)
            levels.append(x)
        y = self.lateral[-1](levels[-1])
        for lateral, level in zip(reversed(self.lateral[:-1]), reversed(levels[:-1]), strict=True):
            y = F.interpolate(y, scale_factor=2, mode="nearest") + lateral(level)
        return F.gelu(self.project(x.flatten(1))), self.edge(F.gelu(y))

    def names(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits of scene, palette, light and prop."""
        return self.name(features).split(self.sizes, 1)

    @torch.no_grad()
    def describe(self, images: np.ndarray, batch: int = 256) -> torch.Tensor:
        """What the reward head reads, (n, described): soft names, then statistics(). images: uint8 (n, px, px, 3),
        px at least 64."""
        images = pictures.fit(images, VIEW_PX, "this eye")
        out = [torch.zeros(0, self.described)]
        for i in range(0, len(images), batch):
            x = to_pixels(images[i : i + batch])
            features, mask = self(x)
            names = torch.cat([n.softmax(1) for n in self.names(features)], 1)
            out.append(torch.cat([names, statistics(x, mask.sigmoid())], 1))
        return torch.cat(out)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of describe(); the soft names come first."""
        names = (f"{part} {i}" for part, n in zip(PARTS, self.sizes, strict=True) for i in range(n))
        return (*names, *STATISTICS)

    @property
    def described(self) -> int:
        """How many columns describe() has."""
        return len(self.columns)

    def save(self, folder: Path) -> None:
        """Writes trunk.safetensors and trunk.json."""
        folder.mkdir(parents=True, exist_ok=True)
        weights.check_made(self.state_dict().items(), "the trunk")
        with replaced(folder / "trunk.safetensors") as tmp:
            save_file(self.state_dict(), tmp)
        write_json(folder / "trunk.json", {"sizes": list(self.sizes), "view_px": VIEW_PX})

    @staticmethod
    def load(folder: Path) -> "Trunk":
        """Reads what save wrote, frozen; BadInputError when it is not there or does not fit this code."""
        folder = Path(folder)
        if not (folder / "trunk.json").is_file():
            raise BadInputError(f"{folder} holds no trunk (trunk.json): leave hyper.trunk out to use the shipped one")
        try:
            trunk = Trunk(tuple(json.loads((folder / "trunk.json").read_text())["sizes"]))
            trunk.load_state_dict(weights.load(folder / "trunk.safetensors", "the trunk"))
        except (OSError, KeyError, RuntimeError, json.JSONDecodeError) as e:
            raise BadInputError(f"cannot load the trunk in {folder}: {e}") from e
        return trunk.requires_grad_(False).eval()


def to_pixels(images: np.ndarray) -> torch.Tensor:
    """uint8 (n, px, px, 3) -> float (n, 3, px, px) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def statistics(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """STATISTICS of pictures (n, 3, px, px) in [-1, 1] under a soft product mask (n, 1, px/2, px/2); (n, columns).

    Means are weighted by the squared mask (product) and the squared rest (background): unsure pixels, mostly the
    blended ones on the edge, then count little for either.
    """
    light, clutter = _luma(F.avg_pool2d((x + 1) / 2, 2)), _clutter((x + 1) / 2)
    rgb = F.avg_pool2d((x + 1) / 2, 2)
    opponent = torch.stack([rgb[:, 0] - (rgb[:, 1] + rgb[:, 2]) / 2, 0.866 * (rgb[:, 1] - rgb[:, 2])], 1)
    chroma = opponent.norm(dim=1, keepdim=True)
    high = rgb.amax(1, keepdim=True)
    saturation = (high - rgb.amin(1, keepdim=True)) / (high + 0.05)
    product, back = mask**2, (1 - mask) ** 2
    every = torch.ones_like(mask)

    p_luma, b_luma = _mean(light, product), _mean(light, back)
    p_uv, b_uv = _mean(opponent, product), _mean(opponent, back)
    p_chroma, b_chroma = _mean(chroma, product), _mean(chroma, back)
    b_saturation, b_clutter = _mean(saturation, back), _mean(clutter, back)
    near = (F.normalize(p_uv, dim=1) * F.normalize(b_uv, dim=1)).sum(1, keepdim=True)
    colour_contrast = torch.cat([p_luma - b_luma, p_uv - b_uv], 1).norm(dim=1, keepdim=True)
    columns = [mask.mean((2, 3)), p_luma, p_uv, p_chroma]
    columns += [b_luma, b_uv, b_chroma, b_saturation, _spread(light, back), b_clutter]
    columns += [_mean(light, every), _mean(saturation, every), _mean(clutter, every), _spread(light, every)]
    columns += [p_luma - b_luma, (p_luma - b_luma).abs(), colour_contrast, p_chroma - b_chroma]
    columns += [*_edge(light, opponent, mask), *_harmony(opponent, chroma, product, back), near]
    columns += [b_luma**2, b_saturation**2, b_clutter**2, colour_contrast**2]
    return torch.cat(columns, 1)


def _luma(rgb: torch.Tensor) -> torch.Tensor:
    return (rgb * rgb.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)


def _mean(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (values * weight).sum((2, 3)) / (weight.sum((2, 3)) + 1e-3)


def _spread(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (_mean(values**2, weight) - _mean(values, weight) ** 2).clamp_min(1e-8).sqrt()


def _clutter(rgb: torch.Tensor) -> torch.Tensor:
    """Local change of luma at full resolution, averaged to half of it."""
    light = F.pad(_luma(rgb), (0, 1, 0, 1), mode="replicate")
    change = light.diff(dim=2)[..., :-1].abs() + light.diff(dim=3)[..., :-1, :].abs()
    return F.avg_pool2d(change, 2)


def _edge(light: torch.Tensor, opponent: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How far the product stands out where it meets the background: luma, and colour, across the mask's edge."""
    outside = (F.max_pool2d(mask, 5, 1, 2) - mask) * (1 - mask)
    inside = (mask + F.max_pool2d(-mask, 5, 1, 2)) * mask
    step = _mean(light, inside) - _mean(light, outside)
    colour = _mean(opponent, inside) - _mean(opponent, outside)
    return step.abs(), torch.cat([step, colour], 1).norm(dim=1, keepdim=True)


def _harmony(
    opponent: torch.Tensor, chroma: torch.Tensor, product: torch.Tensor, back: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Agreement of the two hue distributions, of their doubled and of their tripled angles: near hues, near or
    opposite ones, a triad. First relative to the colourfulness that there is, then times it (a grey wall neither
    agrees nor clashes). Angles are weighted by chroma: a grey pixel has no hue."""
    unit = opponent / (chroma + 1e-4)
    powers, z = [], unit
    for _ in range(3):
        powers.append(z)
        z = torch.stack([z[:, 0] * unit[:, 0] - z[:, 1] * unit[:, 1], z[:, 0] * unit[:, 1] + z[:, 1] * unit[:, 0]], 1)
    p, b = product * chroma, back * chroma
    relative = [(_mean(z, p) * _mean(z, b)).sum(1, keepdim=True) for z in powers]
    vivid = _mean(chroma, product) * _mean(chroma, back)
    return (*relative, *(r * vivid for r in relative))


@dataclasses.dataclass
class Hyper:
    """Of trunk pre-training."""

    steps: int = 3_000
    batch: int = 64
    lr: float = 2e-3  # at its peak; half a cosine down
    warmup: int = 100  # steps
    pictures: int = 12_000
    mask_weight: float = 2.0  # of the mask's cross-entropy beside the four names'
    eval_pictures: int = 640  # of held-out products


ARTIFACT = "model"


def parents(spec: Spec) -> dict[str, str | None]:
    """Folders that the job was made from, by role."""
    return {}


def run(spec: Spec, out: Path, progress: Progress) -> None:
    """The job: writes model/ (the folder that ships as weights/reward-trunk or weights/referee-trunk)."""
    start = time.monotonic()
    h: Hyper = hyper(Hyper, spec.hyper)
    g = Grammar.load(Path(spec.grammar))
    train, held = split(load_catalogue(Path(spec.catalogue)))
    rng = random.Random(f"trunk/{spec.seed}")
    torch.manual_seed(spec.seed)
    with Renderer(spec.renderer) as renderer:
        lesson = _lesson(renderer, [p.id for p in train], g, h.pictures, rng)
        test = _lesson(renderer, [p.id for p in held], g, h.eval_pictures, rng)
    trunk = Trunk(g.sizes)
    losses = _fit(trunk, lesson, h, rng, progress)
    figures = {
        **_examine(trunk.eval(), test),
        "loss_first": float(np.mean(losses[:25])),
        "loss_last": float(np.mean(losses[-25:])),
        "parameters": sum(p.numel() for p in trunk.parameters()),
        "seconds": round(time.monotonic() - start, 1),
    }
    trunk.save(out / "model")
    lineage.write_figures(out / "model", spec, figures, dataclasses.asdict(h))
    write_json(out / "metrics.json", {"kind": "trunk", "figures": figures})


@dataclasses.dataclass
class Lesson:
    """Pictures and what is true of them."""

    images: np.ndarray  # uint8 (n, 64, 64, 3)
    names: torch.Tensor  # (n, 4), indices
    masks: torch.Tensor  # (shapes, 1, 32, 32) in [0, 1]
    shape: np.ndarray  # (n,), row of masks


def _lesson(renderer: Renderer, products: list[str], g: Grammar, n: int, rng: random.Random) -> Lesson:
    names = [g.random(rng) for _ in range(n)]
    shots = [Shot(rng.choice(products), g.describe(t), rng.randrange(1 << 30)) for t in names]
    images = renderer.render(shots)[0]
    masks, shape = product_masks(images, [s.product for s in shots])
    return Lesson(images, torch.tensor(names), masks, shape)


def product_masks(images: np.ndarray, products: list[str]) -> tuple[torch.Tensor, np.ndarray]:
    """Where each product is: where its pictures do not change with the background.

    A pixel is alpha x product + (1 - alpha) x background and the product is never repainted, so its spread over the
    pictures of one product is (1 - alpha) times the background's, which the rim shows (no product reaches it). What
    is left of the spread under a shadow is above half and counts as background. Hue variants share their shape.
    Returns masks (shapes, 1, px/2, px/2) and each picture's row in it.
    """
    base = [p.split("~")[0] for p in products]
    rows = {b: i for i, b in enumerate(sorted(set(base)))}
    px = images.shape[1]
    square, count = np.zeros((len(rows), px, px)), np.zeros(len(rows))
    members: dict[str, list[int]] = {}
    for i, p in enumerate(products):
        members.setdefault(p, []).append(i)
    for p, ix in members.items():
        x = images[ix].astype(np.float32)
        square[rows[p.split("~")[0]]] += ((x - x.mean(0)) ** 2).mean(3).sum(0)
        count[rows[p.split("~")[0]]] += len(ix) - 1
    spread = np.sqrt(square / np.maximum(count, 1)[:, None, None])
    rim = np.ones((px, px), bool)
    rim[px // 16 : -(px // 16), px // 16 : -(px // 16)] = False
    alpha = 1 - spread / (np.median(spread[:, rim], axis=1)[:, None, None] + 1e-6)
    mask = torch.tensor(np.clip((alpha - 0.5) / 0.4, 0, 1), dtype=torch.float32)[:, None]
    return F.avg_pool2d(mask, 2), np.array([rows[b] for b in base])


def _fit(trunk: Trunk, lesson: Lesson, h: Hyper, rng: random.Random, progress: Progress) -> list[float]:
    optimizer = torch.optim.AdamW(trunk.parameters(), h.lr, weight_decay=0.02)
    losses = []
    for step in range(h.steps):
        progress.check_interrupted()
        rate = min((step + 1) / h.warmup, 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / h.steps)))
        for group in optimizer.param_groups:
            group["lr"] = h.lr * rate
        rows = [rng.randrange(len(lesson.images)) for _ in range(h.batch)]
        features, mask = trunk(to_pixels(lesson.images[rows]))
        loss = sum(F.cross_entropy(x, lesson.names[rows, i]) for i, x in enumerate(trunk.names(features)))
        truth = lesson.masks[lesson.shape[rows]]
        loss = loss + h.mask_weight * F.binary_cross_entropy_with_logits(mask, truth)
        check_loss(loss.item(), f"trunk step {step}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 50 == 0 or step + 1 == h.steps:
            progress.log(stage="trunk", step=step + 1, loss=round(float(np.mean(losses[-10:])), 4))
    return losses


@torch.no_grad()
def _examine(trunk: Trunk, test: Lesson, batch: int = 256) -> dict[str, object]:
    """Shares of names right, overlap of the masks (intersection over union at 0.5), error of the statistics.

    statistics_error is, per column, the root mean square difference to the statistics under the true mask in units
    of that column's spread; the median and the worst column are told.
    """
    right, overlap, seen, true = [], [], [], []
    for i in range(0, len(test.images), batch):
        x = to_pixels(test.images[i : i + batch])
        features, mask = trunk(x)
        guess, truth = mask.sigmoid(), test.masks[test.shape[i : i + batch]]
        named = [n.argmax(1) == test.names[i : i + batch, k] for k, n in enumerate(trunk.names(features))]
        right.append(torch.stack(named, 1).float())
        both, either = ((guess > 0.5) & (truth > 0.5)).sum((1, 2, 3)), ((guess > 0.5) | (truth > 0.5)).sum((1, 2, 3))
        overlap.append(both / either.clamp_min(1))
        seen.append(statistics(x, guess))
        true.append(statistics(x, truth))
    seen, true = torch.cat(seen), torch.cat(true)
    error = ((seen - true) ** 2).mean(0).sqrt() / (true.std(0) + 1e-9)
    return {
        "held_out_naming": dict(zip(PARTS, torch.cat(right).mean(0).tolist(), strict=True)),
        "held_out_mask_overlap": float(torch.cat(overlap).mean()),
        "held_out_statistics_error": {
            "median": float(error.median()),
            "worst": float(error.max()),
            "worst_column": STATISTICS[int(error.argmax())],
        },
    }
