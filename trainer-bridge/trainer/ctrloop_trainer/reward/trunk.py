"""The reward model's eye: a small convolutional trunk, taught to name rendered scenes, then frozen.

Clicks are far too few to learn seeing from. The labels here are free (we know what we asked the renderer for), and
the pictures are of training products only. The world's own eye is another model with other data.
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
from safetensors.torch import load_file, save_file
from torch import nn

from .. import lineage
from ..data import load_catalogue, split
from ..errors import BadInputError
from ..grammar import Grammar
from ..progress import Progress, check_loss, write_json
from ..render import Renderer, Shot
from ..spec import Spec, hyper

WIDTHS = (24, 40, 64, 64)
FEATURES = 160
COLOURS = 17  # columns of colours()


class Trunk(nn.Module):
    """Four strided stages with one residual block each; 64 px in, FEATURES numbers out, and a naming head."""

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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for down, residual in zip(self.down, self.residual, strict=True):
            x = down(x)
            x = x + residual(x)
        return F.gelu(self.project(x.flatten(1)))

    def names(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits of scene, palette, light and prop."""
        return self.name(features).split(self.sizes, 1)

    @torch.no_grad()
    def describe(self, images: np.ndarray, batch: int = 256) -> torch.Tensor:
        """What the reward head reads: features of unit spread, soft names, colour statistics."""
        out = []
        for i in range(0, len(images), batch):
            x = to_pixels(images[i : i + batch])
            f = self(x)
            names = torch.cat([n.softmax(1) for n in self.names(f)], 1)
            scaled = f / (f.std(1, keepdim=True) + 1e-3)
            out.append(torch.cat([scaled, names, colours(x)], 1))
        return torch.cat(out)

    @property
    def described(self) -> int:
        """Columns of describe()."""
        return FEATURES + sum(self.sizes) + COLOURS

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), folder / "trunk.safetensors")
        write_json(folder / "trunk.json", {"sizes": list(self.sizes), "view_px": 64})

    @staticmethod
    def load(folder: Path) -> "Trunk":
        folder = Path(folder)
        if not (folder / "trunk.json").is_file():
            raise BadInputError(f"{folder} holds no trunk (trunk.json): leave hyper.trunk out to use the shipped one")
        try:
            trunk = Trunk(tuple(json.loads((folder / "trunk.json").read_text())["sizes"]))
            trunk.load_state_dict(load_file(folder / "trunk.safetensors"))
        except (OSError, KeyError, RuntimeError, json.JSONDecodeError) as e:
            raise BadInputError(f"cannot load the trunk in {folder}: {e}") from e
        return trunk.requires_grad_(False).eval()


def to_pixels(images: np.ndarray) -> torch.Tensor:
    """uint8 (n, px, px, 3) -> float (n, 3, px, px) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def colours(x: torch.Tensor) -> torch.Tensor:
    """Statistics that any picture of a product in front of something has, (n, COLOURS): colours of centre (product)
    and frame (background), how near their hues are, contrast, brightness, clutter. x is in [-1, 1]."""
    px = x.shape[-1]
    frame = torch.ones(px, px, dtype=torch.bool)
    frame[px // 9 : -(px // 9), px // 9 : -(px // 9)] = False  # products fill 0.78 of the canvas
    around, centre = x[:, :, frame], x[:, :, px * 3 // 8 : px * 5 // 8, px * 3 // 8 : px * 5 // 8].mean((2, 3))
    back = around.mean(2)

    def chroma(c: torch.Tensor) -> torch.Tensor:
        return torch.stack([c[:, 0] - (c[:, 1] + c[:, 2]) / 2, 0.866 * (c[:, 1] - c[:, 2])], 1)

    luma = x.new_tensor([0.299, 0.587, 0.114])
    near = (F.normalize(chroma(centre), dim=1) * F.normalize(chroma(back), dim=1)).sum(1)
    vivid = chroma(centre).norm(dim=1), chroma(back).norm(dim=1)
    light = (x * luma[:, None, None]).sum(1)
    clutter = light.diff(dim=1).abs().mean((1, 2)) + light.diff(dim=2).abs().mean((1, 2))
    contrast = ((centre - back) @ luma).abs()
    single = (near, near**2, *vivid, vivid[0] * vivid[1] * near, contrast, clutter, light.mean((1, 2)))
    return torch.cat([centre, back, around.std(2), torch.stack(single, 1)], 1)


@dataclasses.dataclass
class Hyper:
    """Of trunk pre-training."""

    steps: int = 500
    batch: int = 64
    lr: float = 2e-3
    pictures: int = 4_000
    eval_pictures: int = 500  # of held-out products


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
        images, truth = _pictures(renderer, [p.id for p in train], g, h.pictures, rng)
        trunk = Trunk(g.sizes)
        losses = _fit(trunk, images, truth, h, rng, progress)
        test_images, test_truth = _pictures(renderer, [p.id for p in held], g, h.eval_pictures, rng)
    trunk.eval()
    with torch.no_grad():
        logits = trunk.names(trunk(to_pixels(test_images)))
    named = {
        part: float((x.argmax(1) == test_truth[:, i]).float().mean())
        for i, (part, x) in enumerate(zip(("scene", "palette", "light", "prop"), logits, strict=True))
    }
    figures = {
        "held_out_naming": named,
        "loss_first": float(np.mean(losses[:25])),
        "loss_last": float(np.mean(losses[-25:])),
        "parameters": sum(p.numel() for p in trunk.parameters()),
        "seconds": round(time.monotonic() - start, 1),
    }
    trunk.save(out / "model")
    lineage.write_figures(out / "model", spec, figures, dataclasses.asdict(h))
    write_json(out / "metrics.json", {"kind": "trunk", "figures": figures})


def _pictures(
    renderer: Renderer, products: list[str], g: Grammar, n: int, rng: random.Random
) -> tuple[np.ndarray, torch.Tensor]:
    truth = [g.random(rng) for _ in range(n)]
    shots = [Shot(rng.choice(products), g.describe(t), rng.randrange(1 << 30)) for t in truth]
    return renderer.render(shots)[0], torch.tensor(truth)


def _fit(
    trunk: Trunk, images: np.ndarray, truth: torch.Tensor, h: Hyper, rng: random.Random, progress: Progress
) -> list[float]:
    optimizer = torch.optim.AdamW(trunk.parameters(), h.lr, weight_decay=0.02)
    losses = []
    for step in range(h.steps):
        progress.check_interrupted()
        for group in optimizer.param_groups:
            group["lr"] = h.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / h.steps)))
        rows = [rng.randrange(len(images)) for _ in range(h.batch)]
        logits = trunk.names(trunk(to_pixels(images[rows])))
        loss = sum(F.cross_entropy(x, truth[rows, i]) for i, x in enumerate(logits))
        check_loss(loss.item(), f"trunk step {step}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            progress.log(stage="trunk", step=step + 1, loss=round(float(np.mean(losses[-50:])), 4))
    return losses
