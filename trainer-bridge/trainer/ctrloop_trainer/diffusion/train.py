"""The diffusion job: the project's own small Stable-Diffusion-type weights, distilled from the scene renderer.

1. Pictures of training products in front of random backgrounds, with the descriptions that drew them.
2. An autoencoder in the VAE's place (64 px to 16 x 16 x 4). Its first three latents are held to luma and chroma of the
   picture, a quarter the size: a freely learnt latent space was too rough for a small UNet in little time.
3. UNet, text encoder and ControlNet together, on v-prediction with zero terminal signal-to-noise (Lin et al., 2024,
   "Common Diffusion Noise Schedules and Sample Steps are Flawed"). The loss counts where the pipeline paints; edges of
   the product go through the ControlNet, so that backgrounds and shadows meet it.

Leaves model/, a diffusers folder that StableDiffusionControlNetInpaintPipeline.from_pretrained loads.
"""

import copy
import dataclasses
import json
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler

from .. import lineage, resume
from ..data import Product, load_catalogue, split
from ..errors import BadInputError, InterruptedJobError
from ..grammar import Grammar
from ..progress import Progress, check_loss, replaced, write_json
from ..render import Renderer, Shot
from ..spec import Spec, derive, hyper
from . import build
from .canvas import Canvas
from .judge import canvases, naming
from .model import ImageModel, Settings

ARTIFACT = "model"

FREE_SPREAD = 0.7  # standard deviation of the fourth latent


@dataclasses.dataclass
class Hyper:
    """Defaults made the weights that ship; the last four are the model's shape."""

    pictures: int = 4_000  # rendered scenes
    vae_steps: int = 300
    vae_batch: int = 16
    vae_lr: float = 2e-3
    vae_anchor: float = 0.3  # weight of what holds the latents: three to luma and chroma, the fourth to some spread
    vae_noise: float = 0.05  # added to the latents: a decoder that reads finer differences would see ghosts
    steps: int = 9_000
    batch: int = 16
    lr: float = 1.5e-3
    weight_decay: float = 0.01
    ema: float = 0.998  # of the weights that are kept
    without_text: float = 0.1  # share of examples with an empty prompt, for classifier-free guidance
    partial_text: float = 0.1  # share with only some parts of the description: prompts of others are shorter
    outside: float = 0.1  # weight of the loss where the pipeline does not paint
    keep_every: int = 100  # steps between checkpoints
    sample_steps: int = 6  # of the shipped settings
    guidance: float = 1.0  # of the shipped settings; 1 is none and half the work
    eval_pictures: int = 96  # of held-out products, named by the judge
    unet_widths: str = "32,48,80"
    vae_width: int = 16
    text_width: int = 96
    vocabulary: int = 700


@dataclasses.dataclass
class Pictures:
    """What is learnt from; row i of every tensor is one picture."""

    texts: list[str]
    product: torch.Tensor  # (n,) rows of the next two
    control: torch.Tensor  # uint8 (products, px, px): edges
    mask: torch.Tensor  # uint8 (products, px, px): 255 where the pipeline paints


def parents(spec: Spec) -> dict[str, str | None]:
    """Folders that the job was made from, by role."""
    return {"base": spec.base}


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """uint8 (n, px, px, 3) to float (n, 3, px, px) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def anchor(x: torch.Tensor) -> torch.Tensor:
    """Luma and chroma of a quarter of the picture x, (n, 3, px / 4, px / 4)."""
    return torch.einsum("ij,njhw->nihw", x.new_tensor(build.LUMA_CHROMA), F.avg_pool2d(x, 4))


def draw(
    renderer: Renderer, products: list[Product], g: Grammar, n: int, rng: random.Random
) -> tuple[Pictures, np.ndarray, list[Canvas]]:
    """n pictures of products in front of random backgrounds."""
    places = canvases(renderer, [p.id for p in products])
    rows = [rng.randrange(len(products)) for _ in range(n)]
    texts = [g.describe(g.random(rng)) for _ in range(n)]
    shots = [Shot(products[i].id, t, rng.randrange(1 << 30)) for i, t in zip(rows, texts, strict=True)]
    images = renderer.render(shots)[0]
    control = torch.from_numpy(np.stack([c.control()[..., 0] for c in places]))
    mask = torch.from_numpy(np.stack([c.mask() for c in places]))
    return Pictures(texts, torch.tensor(rows), control, mask), images, places


def corpus(g: Grammar, rng: random.Random) -> list[str]:
    """Text that the tokenizer learns its merges from: the shop's words become one token each."""
    return [g.describe(g.random(rng)) for _ in range(2000)]


class Trainer:
    """The parts in training, and what is needed to go on after an interruption."""

    def __init__(self, spec: Spec, h: Hyper, out: Path, progress: Progress):
        self.spec, self.h, self.out, self.progress = spec, h, out, progress
        self.state = out / "state"
        self.state.mkdir(parents=True, exist_ok=True)
        self.rng = random.Random(f"diffusion/{spec.seed}")
        self.grammar = Grammar.load(Path(spec.grammar))
        torch.manual_seed(spec.seed)
        if spec.base:
            parts = ImageModel.load(Path(spec.base)).pipe
            self.tokenizer, self.vae = parts.tokenizer, parts.vae
            self.text, self.unet, self.control = parts.text_encoder, parts.unet, parts.controlnet
        else:
            widths = _widths(h.unet_widths)
            self.tokenizer = build.make_tokenizer(corpus(self.grammar, self.rng), h.vocabulary)
            self.vae = build.vae(h.vae_width)
            self.text = build.text_encoder(self.tokenizer, h.text_width)
            self.unet = build.unet(widths, h.text_width)
            self.control = build.controlnet(widths, h.text_width)
        self.vae_losses: list[float] = []
        self.losses: list[float] = []

    # ---- VAE

    def fit_vae(self, images: np.ndarray, plain: np.ndarray) -> None:
        """Trains the VAE on the pictures, plain views among them, unless it is there already."""
        kept = self.state / "vae.pt"
        if self.spec.base:
            return
        if (saved := resume.checkpoint(kept, self.progress)) is not None:
            self.vae.load_state_dict(saved["vae"])
            self.vae_losses = saved["losses"]
            return
        h, optimizer = self.h, torch.optim.AdamW(self.vae.parameters(), self.h.vae_lr, weight_decay=0.0)
        for step in range(h.vae_steps):
            self.progress.check_interrupted()
            _rate(optimizer, h.vae_lr, step, h.vae_steps)
            rows = [self.rng.randrange(len(images)) for _ in range(h.vae_batch - 2)]
            ground = [self.rng.randrange(len(plain)) for _ in range(2)]
            loss, point = self._vae_loss(to_tensor(np.concatenate([images[rows], plain[ground]])))
            check_loss(loss.item(), f"VAE step {step}")
            _step(optimizer, loss, list(self.vae.parameters()))
            self.vae_losses.append(point["l1"])
            if (step + 1) % 50 == 0:
                self.progress.log(stage="vae", step=step + 1, **{k: round(v, 4) for k, v in point.items()})
        self._save(kept, vae=self.vae.state_dict(), losses=self.vae_losses)

    def _vae_loss(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        z = self.vae.encode(x).latents
        l1 = F.l1_loss(self.vae.decode(z + self.h.vae_noise * torch.randn_like(z)).sample, x)
        # The fourth latent is free for what the means do not tell; left alone it shrinks to nothing or grows.
        held = F.mse_loss(z[:, :3], anchor(x)) + (z[:, 3].std() - FREE_SPREAD).square() + z[:, 3].mean().square()
        return l1 + self.h.vae_anchor * held, {"l1": l1.item(), "held": held.item()}

    @torch.no_grad()
    def latents(self, images: np.ndarray) -> torch.Tensor:
        """Latents of the pictures, half precision: (n, 4, px / 4, px / 4). They have about unit spread unscaled."""
        parts = [self.vae.encode(to_tensor(images[i : i + 64])).latents.half() for i in range(0, len(images), 64)]
        return torch.cat(parts)

    # ---- diffusion

    def fit(self, pictures: Pictures, latents: torch.Tensor) -> None:
        """Trains UNet, text encoder and ControlNet; goes on from the last checkpoint."""
        h = self.h
        parts = torch.nn.ModuleDict({"text": self.text, "unet": self.unet, "control": self.control})
        parameters = list(parts.parameters())
        average = copy.deepcopy(parts)
        optimizer = torch.optim.AdamW(parameters, h.lr, betas=(0.9, 0.99), weight_decay=h.weight_decay)
        noise = DDPMScheduler.from_config(build.scheduler().config)
        first = self._resume(parts, average, optimizer)
        for step in range(first, h.steps):
            try:
                self.progress.check_interrupted()
            except InterruptedJobError:
                self._keep(step, parts, average, optimizer)
                parts.load_state_dict(average.state_dict())
                self.model().save(self.out / ARTIFACT)  # usable as it is, and as the base of another run
                raise
            _rate(optimizer, h.lr, step, h.steps)
            loss = self._loss(pictures, latents, noise, step)
            check_loss(loss.item(), f"diffusion step {step}")
            _step(optimizer, loss, parameters)
            self.losses.append(loss.item())
            share = min(h.ema, (step + 1) / (step + 10))
            with torch.no_grad():
                for kept, p in zip(average.parameters(), parameters, strict=True):
                    kept.lerp_(p, 1 - share)
            if (step + 1) % 50 == 0:
                self.progress.log(stage="diffusion", step=step + 1, loss=round(float(np.mean(self.losses[-50:])), 4))
            if (step + 1) % h.keep_every == 0:
                self._keep(step + 1, parts, average, optimizer)
        parts.load_state_dict(average.state_dict())

    def _loss(self, data: Pictures, latents: torch.Tensor, noise: DDPMScheduler, step: int) -> torch.Tensor:
        """Mean squared error of v; randomness is by step, so that a resumed job draws what an unbroken one would."""
        r = torch.Generator().manual_seed(derive(self.spec.seed, "step", step))
        rows = torch.randint(len(latents), (self.h.batch,), generator=r)
        x = latents[rows].float()
        e = torch.randn(x.shape, generator=r)
        # Stratified over the batch: the loss of one step says more.
        t = (torch.arange(self.h.batch) + torch.rand(self.h.batch, generator=r)) / self.h.batch
        t = (t * noise.config.num_train_timesteps).long()
        noisy, target = noise.add_noise(x, e, t), noise.get_velocity(x, e, t)
        words = self.text(self._ids([self._text(data.texts[i], r) for i in rows.tolist()]))[0]
        product = data.product[rows]
        edges = (data.control[product].float() / 255)[:, None].expand(-1, 3, -1, -1)
        down, middle = self.control(noisy, t, words, edges, return_dict=False)
        v = self.unet(
            noisy, t, words, down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample
        # As the pipeline brings the mask to the latents' size.
        paint = F.interpolate((data.mask[product].float() / 255)[:, None], size=x.shape[-2:])
        weight = torch.where(paint > 0.5, 1.0, self.h.outside)
        return ((v - target).square() * weight).sum() / (weight.sum() * x.shape[1])

    def _text(self, text: str, r: torch.Generator) -> str:
        u = float(torch.rand((), generator=r))
        if u < self.h.without_text:
            return ""
        if u < self.h.without_text + self.h.partial_text:
            parts = text.split(", ")
            keep = torch.rand(len(parts), generator=r) < 0.6
            return ", ".join(p for p, k in zip(parts, keep.tolist(), strict=True) if k)
        return text

    def _ids(self, texts: list[str]) -> torch.Tensor:
        return self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids

    # ---- checkpoints

    def _save(self, path: Path, **what: object) -> None:
        with replaced(path) as tmp:
            torch.save(what, tmp)

    def _keep(self, step: int, parts: torch.nn.Module, average: torch.nn.Module, o: torch.optim.Optimizer) -> None:
        self._save(
            self.state / "unet.pt",
            step=step,
            parts=parts.state_dict(),
            average=average.state_dict(),
            optimizer=o.state_dict(),
            losses=self.losses,
        )

    def _resume(self, parts: torch.nn.Module, average: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
        if (saved := resume.checkpoint(self.state / "unet.pt", self.progress)) is None:
            return 0
        parts.load_state_dict(saved["parts"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        self.losses = saved["losses"]
        self.progress.log(stage="resumed", step=saved["step"])
        return saved["step"]

    def model(self) -> ImageModel:
        """The pipeline with the parts as they are."""
        settings = Settings(px=build.NATIVE_PX, steps=self.h.sample_steps, guidance=self.h.guidance)
        return ImageModel.assemble(self.vae, self.text, self.tokenizer, self.unet, self.control, settings)


def _widths(text: str) -> tuple[int, ...]:
    try:
        widths = tuple(int(w) for w in text.split(","))
    except ValueError:
        widths = ()
    if len(widths) != 3 or any(w <= 0 or w % 8 for w in widths):
        raise BadInputError(f"hyper.unet_widths: {text!r} is not three widths that 8 divides, such as 32,64,96")
    return widths


def _rate(optimizer: torch.optim.Optimizer, lr: float, step: int, steps: int) -> None:
    """Warm-up, a plateau, and down to nothing over the last third: a run that is broken off on the plateau has an
    average worth keeping."""
    rate = lr * min(1, (step + 1) / 50, 3 * (steps - step) / steps)
    for group in optimizer.param_groups:
        group["lr"] = rate


def _step(optimizer: torch.optim.Optimizer, loss: torch.Tensor, parameters: list[torch.nn.Parameter]) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def run(spec: Spec, out: Path, progress: Progress) -> None:
    """The job: writes model/ (the folder that ships as weights/image-model) and metrics.json."""
    start = time.monotonic()
    h: Hyper = hyper(Hyper, spec.hyper)
    train, held = split(load_catalogue(Path(spec.catalogue)))
    resume.claim(out / "spec.json", spec, [out / "state"])
    t = Trainer(spec, h, out, progress)
    with Renderer(spec.renderer, px=build.NATIVE_PX) as renderer:
        pictures, images, places = draw(renderer, train, t.grammar, h.pictures, t.rng)
        progress.log(stage="rendered", pictures=len(images), products=len(places))
        t.fit_vae(images, np.stack([c.plain() for c in places]))
        latents = t.latents(images)
        del images
        t.fit(pictures, latents)
        folder = out / "model"
        t.model().save(folder)
        # What ships is judged: the weights as they are stored.
        named = naming(ImageModel.load(folder), renderer, held, t.grammar, h.eval_pictures, spec.seed)
    figures = {
        **named,
        "vae_l1_last": float(np.mean(t.vae_losses[-50:])) if t.vae_losses else None,
        "loss_first": float(np.mean(t.losses[:25])),
        "loss_last": float(np.mean(t.losses[-100:])),
        "parameters": {
            "unet": build.parameters(t.unet),
            "controlnet": build.parameters(t.control),
            "text_encoder": build.parameters(t.text),
            "vae": build.parameters(t.vae),
        },
        "train_products": len({p.base for p in train}),
        "held_out_products": len(held),
        "seconds": round(time.monotonic() - start, 1),
    }
    lineage.write_figures(folder, spec, figures, dataclasses.asdict(h))
    write_json(out / "metrics.json", {"kind": "diffusion", "figures": figures})
    progress.log(stage="done", **json.loads(json.dumps(figures)))
