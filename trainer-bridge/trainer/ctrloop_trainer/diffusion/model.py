"""A loaded image model: Stable Diffusion with a canny ControlNet, by folder, whoever trained it.

The folder is diffusers' own layout, ControlNet inside (the shipped weights) or beside it (Stable Diffusion 1.5 and a
canny ControlNet by two paths). How to sample is in generation.json where the folder has one, else as for Stable
Diffusion 1.5: 512 px, 30 steps Euler ancestral, guidance 7.5, control scale 1.0.
"""

import contextlib
import dataclasses
import inspect
import io
import json
import logging
import os
import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import diffusers
import numpy as np
import torch
from diffusers import ControlNetModel, EulerAncestralDiscreteScheduler, StableDiffusionControlNetInpaintPipeline

from .. import weights
from ..errors import BadInputError
from ..progress import write_json
from . import build
from .canvas import Canvas, resize, spread

MAX_PROMPT_CHARACTERS = 2000
PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SCHEDULERS = ("as saved", "euler ancestral")


@dataclasses.dataclass(frozen=True)
class Settings:
    """generation.json: how to sample. Defaults are for Stable Diffusion 1.5."""

    px: int = 512  # side at which the model paints; larger and smaller pictures are resized from it
    steps: int = 30
    guidance: float = 7.5  # classifier-free; 1 is none
    control_scale: float = 1.0
    scheduler: str = "euler ancestral"

    @staticmethod
    def load(folder: Path) -> "Settings":
        """Of a model's folder; BadInputError names what is wrong with it."""
        file = Path(folder) / "generation.json"
        if not file.is_file():
            return Settings()
        try:
            return Settings(**json.loads(file.read_text())).checked()
        except (OSError, json.JSONDecodeError, TypeError) as e:
            raise BadInputError(f"cannot use {file}: {e}") from e

    def checked(self) -> "Settings":
        """Itself, or BadInputError."""
        if self.px < 8 or self.px % 8 or self.steps < 1 or self.guidance < 0 or self.scheduler not in SCHEDULERS:
            raise BadInputError(f"generation settings are not usable: {self}")
        return self


@dataclasses.dataclass(frozen=True)
class Job:
    """One picture to paint."""

    prompt: str
    canvas: Canvas  # of any size; the picture has the same
    seed: int = 0


class PromptError(ValueError):
    """A prompt that the text encoder would cut or cannot read."""


def sanitise(prompt: str) -> str:
    """The prompt as one line of printable text. Angle brackets go: engines behind the same call read files and weights
    named in them (<lora:...>, <sd_cpp_extra_args>)."""
    text = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in prompt)
    return re.sub(r" +", " ", re.sub(r"[<>]", "", text)).strip()


class ImageModel:
    """The pipeline and how to use it. Not for several threads at once."""

    def __init__(self, pipe: StableDiffusionControlNetInpaintPipeline, settings: Settings):
        self.pipe, self.settings = pipe, settings.checked()
        pipe.set_progress_bar_config(disable=True)
        # 1.5's own scheduler (PNDM) is replaced; a folder that says "as saved" knows its own.
        if settings.scheduler == "euler ancestral":
            pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
        # Steps that draw fresh noise, and those only, need each picture's own generator.
        self._stochastic = "generator" in inspect.signature(pipe.scheduler.step).parameters

    @staticmethod
    def load(
        folder: Path, controlnet: Path | None = None, device: str = "cpu", precision: str = "float32"
    ) -> "ImageModel":
        """From a diffusers folder; controlnet is given when the folder has none. Nothing is downloaded."""
        folder = Path(folder)
        if not (folder / "model_index.json").is_file():
            raise BadInputError(
                f"{folder} is no diffusers folder (model_index.json): give the folder of the whole model"
            )
        if precision not in PRECISIONS:
            raise BadInputError(f"precision {precision!r} is unknown, use one of {', '.join(PRECISIONS)}")
        own = folder / "controlnet"
        if controlnet is None and not own.is_dir():
            raise BadInputError(f"{folder} has no controlnet: give the folder of a canny ControlNet with --controlnet")
        dtype = PRECISIONS[precision]
        try:
            with _quiet():
                control = ControlNetModel.from_pretrained(controlnet or own, torch_dtype=dtype, local_files_only=True)
                pipe = StableDiffusionControlNetInpaintPipeline.from_pretrained(
                    folder,
                    controlnet=control,
                    torch_dtype=dtype,
                    local_files_only=True,
                    # It would black out products now and then; the guards are elsewhere (docs/security.md).
                    safety_checker=None,
                    requires_safety_checker=False,
                )
                pipe.to(device)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as e:
            raise BadInputError(f"cannot load the image model in {folder}: {e}") from e
        for name, part in (("unet", pipe.unet), ("controlnet", pipe.controlnet), ("vae", pipe.vae)):
            if not all(torch.isfinite(p).all() for p in part.parameters()):
                raise BadInputError(f"the {name} in {folder} has weights that are not finite: use another copy")
        return ImageModel(pipe, Settings.load(folder))

    @staticmethod
    def assemble(
        vae: Any, text_encoder: Any, tokenizer: Any, unet: Any, controlnet: Any, settings: Settings
    ) -> "ImageModel":
        """From parts in memory."""
        pipe = StableDiffusionControlNetInpaintPipeline(
            vae=vae.eval(),
            text_encoder=text_encoder.eval(),
            tokenizer=tokenizer,
            unet=unet.eval(),
            controlnet=controlnet.eval(),
            scheduler=build.scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        return ImageModel(pipe, dataclasses.replace(settings, scheduler="as saved"))

    def save(self, folder: Path) -> None:
        """The diffusers folder and generation.json, weights in half precision: the file is half, and loading brings
        them back to what they were rounded to."""
        kept = {}
        for name in ("vae", "text_encoder", "unet", "controlnet"):
            part = getattr(self.pipe, name)
            weights.check_made(part.named_parameters(), name)
            kept[name] = {k: v.clone() for k, v in part.state_dict().items()}
            part.half()
        with _quiet():
            self.pipe.save_pretrained(folder, safe_serialization=True)
        for name, state in kept.items():
            part = getattr(self.pipe, name).float()
            part.load_state_dict(state)
        for file in Path(folder).rglob("README.md"):
            file.unlink()  # a model card template
        for file in (*Path(folder).glob("*.json"), *Path(folder).glob("*/config.json")):
            # Where a part was loaded from: a path of this machine, and another digest for the same weights.
            told = json.loads(file.read_text())
            if told.pop("_name_or_path", None) is not None:
                write_json(file, told)
        write_json(Path(folder) / "generation.json", dataclasses.asdict(self.settings))

    def check_prompt(self, prompt: str) -> str:
        """The prompt, sanitised; PromptError when it is empty or too long to be read whole."""
        text = sanitise(prompt)
        if not text:
            raise PromptError("the prompt is empty: describe the background")
        if len(text) > MAX_PROMPT_CHARACTERS:
            raise PromptError(f"the prompt has {len(text)} characters, at most {MAX_PROMPT_CHARACTERS} are read")
        with _quiet():  # it warns of what is checked here
            most, n = self.pipe.tokenizer.model_max_length, len(self.pipe.tokenizer(text).input_ids)
        if n > most:
            raise PromptError(f"the prompt has {n} tokens and this model reads {most}: shorten it")
        return text

    @torch.no_grad()
    def paint(self, jobs: Sequence[Job], batch: int = 32) -> list[np.ndarray]:
        """The pictures, uint8 (px, px, 3) each of its canvas's size: painted around the product at the model's own
        size, the product pasted from the canvas. One picture depends on its own job alone, up to rounding."""
        out: list[np.ndarray] = []
        for i in range(0, len(jobs), batch):
            part = jobs[i : i + batch]
            for job, painted in zip(part, self._paint(part), strict=True):
                own = job.canvas.resized(self.settings.px)
                ground = resize(spread(painted, own.alpha), job.canvas.px)
                out.append(job.canvas.composite(ground))
        return out

    def _paint(self, jobs: Sequence[Job]) -> np.ndarray:
        s, own = self.settings, [j.canvas.resized(self.settings.px) for j in jobs]
        latents, generators = self._noise([j.seed for j in jobs])
        with _quiet():
            out = self.pipe(
                prompt=[j.prompt for j in jobs],
                image=_tensor([c.plain() for c in own]) * 2 - 1,
                mask_image=_tensor([c.mask()[..., None] for c in own]),
                control_image=_tensor([c.control() for c in own]),
                height=s.px,
                width=s.px,
                strength=1.0,
                num_inference_steps=s.steps,
                guidance_scale=s.guidance,
                controlnet_conditioning_scale=s.control_scale,
                latents=latents,
                generator=generators,
                output_type="np",
            ).images
        if not np.isfinite(out).all():
            raise FloatingPointError("the painted picture is not finite: use --precision float32 or other weights")
        return np.rint(out * 255).clip(0, 255).astype(np.uint8)

    def _noise(self, seeds: list[int]) -> tuple[torch.Tensor, list[torch.Generator]]:
        """First latents and the generators behind them, from each picture's seed alone."""
        side = self.settings.px // self.pipe.vae_scale_factor
        shape = (self.pipe.vae.config.latent_channels, side, side)
        # On the CPU whatever the device: the same seed is the same noise everywhere.
        generators = [torch.Generator().manual_seed(seed & (1 << 64) - 1) for seed in seeds]
        noise = torch.stack([torch.randn(shape, generator=g) for g in generators])
        return noise.to(self.pipe.device, self.pipe.unet.dtype), generators


def _tensor(images: Sequence[np.ndarray]) -> torch.Tensor:
    """(n, c, px, px) in [0, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """diffusers and transformers talk about defaults; errors are raised."""
    before = diffusers.logging.get_verbosity()
    diffusers.logging.set_verbosity(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            diffusers.logging.set_verbosity(before)
