"""The pretrain job: the prompt model on the three task families (tasks.py), from training products only.

Examples come from the shop (renderer, grammar and catalogue of the specification), from a folder of product pictures
and texts (`dataset`, see folder.py), or from both. It starts from fresh weights or from `base`, trains all weights or
a LoRA, and goes on where it was stopped. Evaluation per task is on held-out products.
"""

import dataclasses
import hashlib
import json
import math
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .. import lineage, weights
from ..accelerator import Accelerate
from ..data import Product, load_catalogue, split
from ..digest import code_digest, dir_digest
from ..errors import BadInputError
from ..grammar import Grammar
from ..pictures import VIEW_PX
from ..placement import Placement
from ..progress import Progress, write_json
from ..render import Renderer, Shot
from ..rounds import adapter
from ..spec import Spec, hyper
from . import evaluate, fitting, lora, tasks
from . import folder as folders
from .model import INSTRUCTIONS, Prompting, PromptModel, Size, build, make_tokenizer
from .tasks import FAULTLESS, Scene, Shop, Teacher

ARTIFACT = "model"
TUNINGS = ("full", "lora")
SHOP_FIELDS = ("renderer", "grammar", "catalogue")


@dataclasses.dataclass
class Hyper:
    """Defaults made the weights that ship; vocabulary to patch are the shape of a fresh model."""

    vision_steps: int = 900  # of naming alone, through the vision tower; only with a shop and full tuning
    vision_batch: int = 96  # scenes, and half as many products
    vision_lr: float = 1e-3
    suits_weight: float = 2.0  # of naming the harmonious palettes, against 1 for every other name
    steps: int = 760  # of the three task families
    batch: int = 64
    lr: float = 2.5e-3  # a LoRA on a large base wants 1e-4 or less
    weight_decay: float = 0.02
    warm_up: int = 60  # steps
    tuning: str = "full"  # or "lora": language-side linear layers only, merged at the end
    rank: int = 16
    alpha: int = 32  # of the LoRA; its scale is alpha / rank
    dropout: float = 0.05  # of the LoRA
    checkpoint_every: int = 200  # steps; 0 keeps a checkpoint only when SIGTERM comes
    image_share: float = 0.12  # of the examples: image understanding
    content_share: float = 0.28  # multimodal content understanding; the rest is prompt generation and rewriting
    folder_share: float = 0.5  # of the examples from the folder, where there is a shop, too
    pictures: int = 12_000  # rendered scenes to learn from
    clean: float = 0.6  # share of the steps, at the start, with a faultless teacher: its signal is learnt sooner
    clickbait: float = 0.06  # teacher: share of clickbait scenes
    fit: float = 0.75  # teacher: share of scenes chosen among those that fit
    harmony: float = 0.80  # teacher: share of palettes chosen among the harmonious
    eval_samples: int = 12  # descriptions per held-out product
    eval_pictures: int = 300  # of held-out products, to be described
    eval_examples: int = 150  # per task
    vocabulary: int = 1024
    hidden: int = 128
    layers: int = 4
    feed_forward: int = 344
    vision_hidden: int = 128
    vision_layers: int = 4
    patch: int = 16


def parents(spec: Spec) -> dict[str, str | None]:
    """Folders that the job was made from, by role."""
    return {"base": spec.base}


def run(spec: Spec, out: Path, progress: Progress) -> None:
    """The job: writes model/ (the folder that ships as weights/prompt-base), adapter/ when a LoRA was tuned, and
    metrics.json. Interrupted, it leaves checkpoint/, and the same command goes on from there."""
    h = checked(hyper(Hyper, spec.hyper), spec)
    inputs = load(spec, h)
    v = starting_point(spec, h, inputs)
    checkpoints = fitting.Checkpoints(out / "checkpoint", fingerprint(spec, h), h.checkpoint_every)
    inputs.register(v)
    progress.log(stage="inputs", **inputs.counts())
    losses = train(v, inputs, h, spec.seed, checkpoints, progress)
    figures = {
        **evaluated(v, inputs, h, spec.seed),
        "loss_first": mean(losses[:25]),
        "loss_last": mean(losses[-25:]),
        "parameters": sum(p.numel() for p in v.model.parameters()),
        **inputs.counts(),
    }
    write_model(v, spec, out, figures, h)
    write_json(out / "metrics.json", {"kind": "pretrain", "figures": figures})
    checkpoints.remove()
    progress.log(stage="done", **json.loads(json.dumps(figures)))


def checked(h: Hyper, spec: Spec) -> Hyper:
    """h where it can be run, with the stages that cannot apply left out; BadInputError lists what is wrong."""
    problems = []
    given = [f for f in SHOP_FIELDS if getattr(spec, f)]
    missing = [f for f in SHOP_FIELDS if f not in given]
    if not given and not spec.dataset:
        problems.append(
            f"no examples: give {', '.join(SHOP_FIELDS)}, or dataset (a folder with {folders.FILE}), or both"
        )
    elif given and missing:
        problems.append(f"{', '.join(missing)}: missing, {' and '.join(given)} alone draw nothing")
    if h.tuning not in TUNINGS:
        problems.append(f"hyper.tuning: {h.tuning!r} is unknown, use one of {', '.join(TUNINGS)}")
    if h.tuning == "lora" and not spec.base:
        problems.append("hyper.tuning: lora needs a base: a LoRA on fresh weights learns next to nothing")
    if spec.quantize:
        problems.append("quantize: the LoRA is merged into the base, which 4-bit weights cannot take; use bf16")
    problems += [f"hyper.{k}: must be at least 1" for k in ("steps", "batch") if getattr(h, k) < 1]
    shares = {k: getattr(h, k) for k in ("image_share", "content_share", "folder_share", "clean")}
    problems += [f"hyper.{k}: must be within 0 and 1, got {x}" for k, x in shares.items() if not 0 <= x <= 1]
    if h.image_share + h.content_share > 1:
        problems.append("hyper.image_share and hyper.content_share: together at most 1")
    if problems:
        raise BadInputError("the pre-training cannot run:\n  " + "\n  ".join(problems))
    if not given or h.tuning == "lora":
        h = dataclasses.replace(h, vision_steps=0)
    return h


def teacher(h: Hyper) -> Teacher:
    """The imperfect teacher of the specification."""
    return Teacher(h.clickbait, h.fit, h.harmony)


def mean(values: list[float]) -> float:
    """Mean, NaN of nothing."""
    return float(np.mean(values)) if values else math.nan


@dataclasses.dataclass
class Inputs:
    """Sources of examples to learn from and held-out ones, and every picture that they name."""

    shop: Shop | None = None
    held_shop: Shop | None = None
    folder: folders.Folder | None = None
    held_folder: folders.Folder | None = None
    texts: list[str] = dataclasses.field(default_factory=list)
    pictures: list[tuple[list, np.ndarray]] = dataclasses.field(default_factory=list)
    held_views: np.ndarray | None = None  # plain pictures of the held-out products, in order

    def register(self, v: PromptModel) -> None:
        """Hands all pictures to the model, which keeps them in the form that it reads."""
        for keys, images in self.pictures:
            v.add_images(keys, images)
        self.pictures = []
        for part in (self.folder, self.held_folder):
            if part:
                part.register(v)

    def counts(self) -> dict[str, int]:
        """How much there is of what."""
        out = {}
        if self.shop:
            out |= {"train_products": len({p.base for p in self.shop.products}), "scenes": len(self.shop.scenes)}
            out |= {"train_views": len(self.shop.products), "held_out_products": len(self.held_shop.products)}
        if self.folder:
            out |= {"folder_entries": len(self.folder.entries), "held_out_entries": len(self.held_folder.entries)}
        return out


def load(spec: Spec, h: Hyper) -> Inputs:
    """Reads and renders everything that the specification names."""
    inputs, rng = Inputs(), random.Random(spec.seed)
    if spec.catalogue:
        g = Grammar.load(Path(spec.grammar))
        train, held = split(load_catalogue(Path(spec.catalogue)))
        if train[0].fits is None:
            raise BadInputError(
                f"the catalogue {spec.catalogue} does not say what suits its products (fits, harmonious), which is "
                "what the shop's tasks teach: learn from a folder of pictures and texts instead (`dataset`)"
            )
        inputs.texts += tasks.corpus(train, g, rng)
        px = Prompting.view_of(Path(spec.base)) if spec.base else VIEW_PX
        with Renderer(spec.renderer, px=px) as renderer:
            inputs.shop = open_shop(train, "scene", h.pictures, g, renderer, rng, inputs.pictures)
            inputs.held_shop = open_shop(held, "held", h.eval_pictures, g, renderer, rng, inputs.pictures)
        inputs.held_views = inputs.pictures[-2][1]
    if spec.dataset:
        inputs.folder, inputs.held_folder = folders.load(Path(spec.dataset))
        inputs.texts += inputs.folder.corpus()
    return inputs


def open_shop(
    products: list[Product],
    name: str,
    scenes: int,
    g: Grammar,
    renderer: Renderer,
    rng: random.Random,
    pictures: list[tuple[list, np.ndarray]],
) -> Shop:
    """A shop of these products with that many rendered scenes; appends (keys, images) to pictures."""
    drawn = [Scene((name, i), rng.choice(products), g.random(rng)) for i in range(scenes)]
    shots = [Shot(s.product.id, g.describe(s.tokens), rng.randrange(1 << 30)) for s in drawn]
    pictures.append(([tasks.plain(p) for p in products], renderer.render([Shot(p.id, "") for p in products])[0]))
    pictures.append(([s.key for s in drawn], renderer.render(shots)[0]))
    return Shop(products, drawn, g)


def evaluated(v: PromptModel, inputs: Inputs, h: Hyper, seed: int) -> dict[str, Any]:
    """Figures on held-out products: of the shop at the top, of the folder under "folder"."""
    n, out = evaluate.Budget(h.eval_samples, h.eval_pictures, h.eval_examples), {}
    if inputs.held_shop:
        out = evaluate.shop_figures(v, inputs.held_shop, inputs.held_views, teacher(h), n, seed)
    if inputs.held_folder:
        out["folder"] = evaluate.folder_figures(v, inputs.held_folder, n, seed)
    return out


def starting_point(spec: Spec, h: Hyper, inputs: Inputs) -> PromptModel:
    """The base to continue from, or a fresh model."""
    if spec.base:
        v = PromptModel.load(Path(spec.base), Placement.of(spec, full=h.tuning != "lora"))
        v.name = spec.base_name or v.name
        return v
    size = Size(h.hidden, h.layers, h.feed_forward, h.vision_hidden, h.vision_layers, h.patch)
    model, processor = build(make_tokenizer(inputs.texts, h.vocabulary), size, spec.seed)
    placement = Placement.of(spec, full=True)
    return PromptModel(placement.place(model), processor, Prompting(INSTRUCTIONS), placement)


def fingerprint(spec: Spec, h: Hyper) -> str:
    """Digest of everything that decides the weights: a checkpoint of other inputs must not be continued."""
    made_from = {
        "code": code_digest(),  # two versions of the code in one model would be no version's
        "seed": spec.seed,
        "hyper": {k: x for k, x in dataclasses.asdict(h).items() if not k.startswith(("eval_", "checkpoint_"))},
        "folders": [dir_digest(Path(d)) for d in (spec.base, spec.dataset) if d],
        "files": [hashlib.sha256(Path(f).read_bytes()).hexdigest() for f in (spec.grammar, spec.catalogue) if f],
    }
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def train(
    v: PromptModel, inputs: Inputs, h: Hyper, seed: int, checkpoints: fitting.Checkpoints, progress: Progress
) -> list[float]:
    """Both stages; v ends with the tuned weights (a LoRA still on it). Returns the losses of the second."""
    stages = ["vision", "pretrain"] if h.vision_steps else ["pretrain"]
    tower = {f"model.{n}": p for n, p in v.model.named_parameters() if "vision_tower" in n} if h.vision_steps else {}
    if h.vision_steps:
        torch.manual_seed(seed)  # of the heads
        stage, heads = vision_stage(v, inputs.shop, h)
        named = {f"heads.{n}": p for n, p in heads.named_parameters()}
        fitting.fit(stage, stages, {**tower, **named}, {}, seed, checkpoints, progress)
    if h.tuning == "lora":
        v.model = lora.attach(v.model, v.family, h.rank, h.dropout, seed, h.alpha, v.name)
    else:
        # The tower stays as the first stage left it, as LLaVA's does: the few products would be learnt by heart.
        v.model.requires_grad_(True)
        for n, p in v.model.named_parameters():
            p.requires_grad_(not n.startswith(f"{v.family.vision[0]}."))
    trained = {f"model.{n}": p for n, p in v.model.named_parameters() if p.requires_grad}
    v.model.train()
    v.accelerate = Accelerate.of(v.placement)
    v.accelerate.wrap(v)
    losses = fitting.fit(task_stage(v, inputs, h), stages, trained, tower, seed, checkpoints, progress, v.accelerate)
    v.model.requires_grad_(True).eval()
    return losses


def vision_stage(v: PromptModel, shop: Shop, h: Hyper) -> tuple[fitting.Stage, torch.nn.Module]:
    """Teaches the vision tower to name scenes, and products by department, colour and harmonious palettes, before the
    language model joins: a classifier learns in a minute what the answer's few tokens would teach in an hour. The
    heads (second result) are thrown away."""
    if v.family.name != "llava":
        raise BadInputError(
            f"hyper.vision_steps: the vision stage is for the embedded model; {type(v.model).__name__} comes with a "
            "tower that sees, set vision_steps to 0"
        )
    g = shop.g
    departments, colours = (sorted({getattr(p, k) for p in shop.products}) for k in ("department", "colour"))
    sizes = [*g.sizes, len(departments), len(colours), len(g.palettes)]
    tower = v.model.model.vision_tower
    heads = torch.nn.Linear(tower.config.hidden_size, sum(sizes)).to(v.device)

    def loss(_: int, rng: random.Random) -> torch.Tensor:
        scenes = [rng.choice(shop.scenes) for _ in range(h.vision_batch)]
        products = [rng.choice(shop.products) for _ in range(h.vision_batch // 2)]
        x = v.pixels([*(s.key for s in scenes), *(tasks.plain(p) for p in products)])
        # A mirrored picture shows the same: cheap variety against learning the few products by heart.
        mirrored = torch.tensor([rng.random() < 0.5 for _ in range(len(x))])
        x[mirrored] = x[mirrored].flip(-1)
        # The projector reads the last layer's patch tokens, without the class token: so do the heads.
        logits = heads(tower(x).last_hidden_state[:, 1:].mean(1)).split(sizes, 1)
        right = [torch.tensor([s.tokens[i] for s in scenes]) for i in range(4)]
        right += [torch.tensor([departments.index(p.department) for p in products])]
        right += [torch.tensor([colours.index(p.colour) for p in products])]
        suits = torch.tensor([[float(q in p.harmonious) for q in g.palettes] for p in products], device=v.device)
        parts = [*(part[: len(scenes)] for part in logits[:4]), *(part[len(scenes) :] for part in logits[4:])]
        # The six names; the last part, the palettes that suit, is several yes-or-no questions.
        total = sum(F.cross_entropy(x, y.to(v.device)) for x, y in zip(parts[:6], right, strict=True))
        return total + h.suits_weight * F.binary_cross_entropy_with_logits(parts[6], suits)

    tower.requires_grad_(True).train()
    return fitting.Stage("vision", h.vision_steps, h.vision_lr, 0.05, 100, loss), heads


def task_stage(v: PromptModel, inputs: Inputs, h: Hyper) -> fitting.Stage:
    """Next-token cross-entropy on the answers of the three families."""
    imperfect = teacher(h)

    def loss(step: int, rng: random.Random) -> torch.Tensor:
        who = FAULTLESS if step < h.clean * h.steps else imperfect
        batch = v.accelerate.share([draw(inputs, h, who, rng) for _ in range(h.batch)])
        logp, length = v.token_logps([e.ask for e in batch], [e.answer for e in batch])
        return -logp.sum() / length.sum()

    return fitting.Stage("pretrain", h.steps, h.lr, h.weight_decay, h.warm_up, loss)


def draw(inputs: Inputs, h: Hyper, who: Teacher, rng: random.Random) -> tasks.Example:
    """One example: first the source, then the family (of those that the source has), by their shares."""
    use_folder = inputs.folder and (not inputs.shop or rng.random() < h.folder_share)
    source = inputs.folder if use_folder else inputs.shop
    shares = {"image": h.image_share, "content": h.content_share}
    shares["prompt"] = 1 - sum(shares.values())
    weights = [max(shares[f], 1e-9) for f in source.families]
    return source.draw(rng.choices(source.families, weights)[0], who, rng)


def write_model(v: PromptModel, spec: Spec, out: Path, figures: Mapping, h: Hyper) -> None:
    """model/ as a whole Hugging Face folder, in place at once; with a LoRA also adapter/, and model/ is the merge."""
    weights.check_made(v.model.named_parameters(), "the model")
    if h.tuning == "lora":
        adapter.save(v, out / "adapter", dir_digest(Path(spec.base)))
        v.model = v.model.merge_and_unload()
    done, tmp = out / ARTIFACT, out / (ARTIFACT + ".tmp")
    shutil.rmtree(tmp, ignore_errors=True)
    v.model.save_pretrained(tmp)
    v.processor.save_pretrained(tmp)
    v.prompting.save(tmp)
    lineage.write_figures(tmp, spec, dict(figures), dataclasses.asdict(h))
    shutil.rmtree(done, ignore_errors=True)
    os.replace(tmp, done)
