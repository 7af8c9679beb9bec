"""The prompt model: a Hugging Face folder of any image-text-to-text family, and what the jobs do with it.

Everything goes through the processor and its chat template, so that this package's server, vLLM and a 7 B model see
the same tokens; prompting.json beside it says how to ask and how to sample. The embedded model is a real LLaVA
configuration of 1.7 M parameters; LLaVA-1.6 and Qwen2.5-VL are loaded by path and run through the same code
(families.py has what differs).
"""

import dataclasses
import json
import warnings
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from .. import weights
from ..accelerator import Accelerate
from ..errors import BadInputError
from ..pictures import VIEW_PX
from ..placement import Placement
from ..progress import write_json
from . import families
from .markup import Markup

MIN_VIEW_PX, MAX_VIEW_PX = 8, 1024  # of the server that draws and sends views
EMBEDDED = "prompt-base"  # name of the base that the project ships, in adapters made from it
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "<|user|>", "<|assistant|>", "<|system|>"]
CHAT_TEMPLATE = (
    "<s>{% for m in messages %}{{ '<|' + m['role'] + '|>' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] in ['image', 'image_url'] %}<image>{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# How a model that was never told is asked (a folder without prompting.json).
INSTRUCTIONS = (
    "describe a background for this product",
    "write a background prompt",
    "which background suits this product",
)


@dataclasses.dataclass(frozen=True)
class Prompting:
    """prompting.json: how to ask the model, and how to sample from it."""

    instructions: tuple[str, ...]
    view_px: int = VIEW_PX
    temperature: float = 1.0
    # Tokens below this share of the likeliest one are never drawn: without it a small model derails now and then
    # and invalid descriptions grow from round to round.
    min_p: float = 0.03
    max_tokens: int = 32
    name: str = ""  # by which others find the model, such as "Qwen/Qwen2.5-VL-7B-Instruct"; adapters carry it

    def __post_init__(self) -> None:
        if not (isinstance(self.view_px, int) and MIN_VIEW_PX <= self.view_px <= MAX_VIEW_PX):
            raise TypeError(f"view_px: {self.view_px!r}, want a whole number from {MIN_VIEW_PX} to {MAX_VIEW_PX}")

    @staticmethod
    def load(folder: Path) -> "Prompting":
        try:
            raw = json.loads((Path(folder) / "prompting.json").read_text())
            return Prompting(**{**raw, "instructions": tuple(raw["instructions"])})
        except (OSError, json.JSONDecodeError, KeyError, TypeError) as e:
            raise BadInputError(f"{folder} has no usable prompting.json: {e!r}") from e

    def save(self, folder: Path) -> None:
        told = dataclasses.asdict(self)
        if not self.name:
            del told["name"]
        write_json(Path(folder) / "prompting.json", told)

    @staticmethod
    def of(folder: Path, family: families.Family) -> "Prompting":
        """That of a folder; one without prompting.json, as downloaded, gets INSTRUCTIONS and its family's view. This is
        the one place that says how large a view is: sampling, training, serving and the dry run all ask here."""
        if (Path(folder) / "prompting.json").is_file():
            return Prompting.load(folder)
        return Prompting(INSTRUCTIONS, view_px=family.view_px, max_tokens=64)

    @staticmethod
    def view_of(folder: Path) -> int:
        """Side of the view of a model folder in pixels, from its small files alone: for who draws pictures for it."""
        folder = Path(folder)
        if (folder / "prompting.json").is_file():
            return Prompting.load(folder).view_px
        try:
            told = json.loads((folder / "config.json").read_text())["architectures"]
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise BadInputError(f"{folder} is not a model folder: its config.json names no architecture: {e!r}") from e
        family = families.of_config(told)
        return family.view_px if family else families.UNLISTED_VIEW_PX


@dataclasses.dataclass(frozen=True)
class Size:
    """Shape of an embedded model."""

    hidden: int = 128
    layers: int = 4
    feed_forward: int = 344
    vision_hidden: int = 128
    vision_layers: int = 4
    patch: int = 16  # 16 picture tokens; patches of 8 see a little better and cost three times as much


def make_tokenizer(texts: Iterable[str], vocabulary: int = 1024) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on texts: any string is encodable, the shop's own words are short."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    t.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=t,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        extra_special_tokens={"image_token": "<image>"},
    )


def build(
    tokenizer: PreTrainedTokenizerFast, size: Size, seed: int
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A LLaVA with fresh weights, and its processor."""
    torch.manual_seed(seed)
    images = CLIPImageProcessor(
        size={"shortest_edge": VIEW_PX},
        crop_size={"height": VIEW_PX, "width": VIEW_PX},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=size.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the tower's class token, which "default" drops again
        image_token="<image>",
        chat_template=CHAT_TEMPLATE,
    )
    ids = {s: tokenizer.convert_tokens_to_ids(s) for s in SPECIAL}
    vision = CLIPVisionConfig(
        hidden_size=size.vision_hidden,
        intermediate_size=size.vision_hidden * 3,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=size.vision_hidden // 32,
        image_size=VIEW_PX,
        patch_size=size.patch,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=size.feed_forward,
        num_hidden_layers=size.layers,
        num_attention_heads=size.hidden // 32,
        num_key_value_heads=size.hidden // 64,
        max_position_embeddings=512,
        pad_token_id=ids["<pad>"],
        bos_token_id=ids["<s>"],
        eos_token_id=ids["</s>"],
        tie_word_embeddings=True,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=ids["<image>"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(VIEW_PX // size.patch) ** 2,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.pad_token_id = ids["<pad>"]
    model.generation_config.eos_token_id = ids["</s>"]
    return model, processor


def load_parts(folder: Path, placement: Placement | None = None) -> tuple[torch.nn.Module, ProcessorMixin, Prompting]:
    """Model, processor and prompting of a folder, ready to answer (on the CPU in fp32 unless told otherwise).

    Checks that weights are finite. A folder without prompting.json, as downloaded, gets INSTRUCTIONS and its family's
    picture size.
    """
    folder, placement = Path(folder), placement or Placement()
    if not (folder / "config.json").is_file():
        raise BadInputError(f"{folder} is not a model folder: no config.json")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, told = AutoModelForImageTextToText.from_pretrained(
                folder, output_loading_info=True, **placement.loading()
            )
            processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as e:
        raise BadInputError(f"cannot load the model in {folder}: {e}") from e
    if missing := sorted(told["missing_keys"]):
        # The library would fill them with random numbers and go on.
        raise BadInputError(
            f"{folder} lacks {len(missing)} weights of a {type(model).__name__}, such as {missing[0]}: "
            "it is another model's folder, or was copied in part"
        )
    weights.check(model.named_parameters(), folder)
    families.plain_generation(model)
    model = placement.place(model)
    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token_id is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return model.eval(), processor, Prompting.of(folder, families.of(model))


def sample_batch(parameters: int) -> int:
    """Answers sampled together: keys and values of 256 long prompts do not fit beside a 7 B model."""
    return 256 if parameters < 50_000_000 else 16


def hub_name(folder: Path) -> str:
    """Name of a model on its hub, when the folder is one of the hub's own cache (models--owner--name/snapshots/...)."""
    part = next((p for p in Path(folder).resolve().parts[::-1] if p.startswith("models--")), "")
    return "/".join(part.split("--")[1:])


@dataclasses.dataclass(frozen=True)
class Ask:
    """One request: the user's text, and a picture by key (see PromptModel.add_image)."""

    text: str
    image: Hashable


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A request as tokens."""

    ids: list[int]
    types: dict[str, list[int]]  # further inputs of one number a token, zero for text (mm_token_type_ids)


class PromptModel:
    """A loaded model with cached inputs: tokens by text and picture size, pixels by picture.

    model may be wrapped in PEFT by assignment; wrapped is what accelerate made of it (FSDP, DDP) when it runs in
    several processes, and forward passes go through it.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        processor: ProcessorMixin,
        prompting: Prompting,
        placement: Placement | None = None,
    ):
        self.model, self.processor, self.prompting = model, processor, prompting
        self.placement = placement or Placement()
        self.accelerate = Accelerate.none()
        self.wrapped: torch.nn.Module | None = None
        self.family = families.of(model)
        self.name = prompting.name or EMBEDDED  # by which others find it
        self.tokenizer = processor.tokenizer
        self.markup = Markup.of(processor)
        self.eos, self.pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        self.sample_batch = sample_batch(sum(p.numel() for p in model.parameters()))
        told = model.generation_config.eos_token_id
        self._stops = sorted({self.eos, *(told if isinstance(told, list) else [told])} - {None})
        self._pictures: dict[Hashable, dict[str, torch.Tensor]] = {}
        self._sizes: dict[Hashable, tuple[int, int]] = {}
        self._prompts: dict[tuple[str, tuple[int, int]], Prompt] = {}

    @staticmethod
    def load(folder: Path, placement: Placement | None = None) -> "PromptModel":
        v = PromptModel(*load_parts(folder, placement), placement)
        v.name = v.prompting.name or hub_name(folder) or EMBEDDED
        return v

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.model.parameters()).device

    # ---- pictures

    def add_image(self, key: Hashable, image: np.ndarray) -> None:
        """Registers a picture, uint8 (height, width, 3); adding a key twice replaces it."""
        self.add_images([key], image[None])

    def add_images(self, keys: Sequence[Hashable], images: np.ndarray) -> None:
        """Registers many pictures of one size at once, uint8 (n, height, width, 3)."""
        for i in range(0, len(keys), 256):
            batch = [Image.fromarray(x) for x in images[i : i + 256]]
            try:
                out = dict(self.processor.image_processor(images=batch, return_tensors="pt"))
            except ValueError as e:  # of a shape that this family's processor does not take
                size = f"{batch[0].width} x {batch[0].height}"
                raise BadInputError(
                    f"pictures of {size} px such as {keys[i]!r} cannot be shown to the model: {e}"
                ) from e
            for key, inputs in zip(keys[i : i + 256], self.family.split(out, len(batch)), strict=True):
                self._pictures[key] = inputs
                self._sizes[key] = batch[0].size

    def drop_images(self, keys: Iterable[Hashable]) -> None:
        """Forgets pictures that are not needed any more."""
        for key in keys:
            self._pictures.pop(key, None)
            self._sizes.pop(key, None)

    def pixels(self, keys: Sequence[Hashable]) -> torch.Tensor:
        """Normalised pixels of registered pictures, as the vision tower takes them: (n, 3, px, px) for LLaVA."""
        return self.pictures(keys)["pixel_values"]

    def size(self, key: Hashable) -> tuple[int, int]:
        """(width, height) of a registered picture, in pixels."""
        return self._sizes[key]

    def pictures(self, keys: Sequence[Hashable]) -> dict[str, torch.Tensor]:
        """All inputs of registered pictures, as one batch in this order, on the model's device."""
        try:
            inputs = families.join([self._pictures[k] for k in keys])
        except KeyError as e:
            raise BadInputError(f"no picture for {e}: every product needs its plain view") from e
        dtype = self.placement.dtype
        return {k: x.to(self.device, dtype if x.is_floating_point() else None) for k, x in inputs.items()}

    # ---- tokens

    def prompt_ids(self, text: str, image: Hashable = None) -> list[int]:
        """Tokens of one user message, picture first, up to where the answer starts.

        How many of them are the picture's depends on its size; without a picture's key it is the view's size.
        """
        view = self.prompting.view_px
        return self.prompt(text, self._sizes.get(image, (view, view))).ids

    def prompt(self, text: str, size: tuple[int, int]) -> Prompt:
        """Tokens of one user message about a picture of that (width, height): in every family the number of picture
        tokens is a function of the size alone, so a blank picture stands for all of it."""
        if (text, size) not in self._prompts:
            if not text.strip():
                raise BadInputError("an empty text cannot be asked: the product has no caption")
            self._prompts[text, size] = self.tokens(messages(text), [size])
        return self._prompts[text, size]

    def tokens(self, conversation: list[dict], sizes: Sequence[tuple[int, int]]) -> Prompt:
        """A conversation with pictures of these (width, height) as tokens, up to where the answer starts. Its texts are
        data: what spells a control token in them is taken apart."""
        rendered = self.processor.apply_chat_template(
            escaped(conversation, self.markup), add_generation_prompt=True, tokenize=False
        )
        blanks = [Image.new("RGB", s) for s in sizes]
        # add_special_tokens=False: the template writes them, as in vLLM.
        out = self.processor(text=[rendered], images=blanks, add_special_tokens=False)
        types = {k: list(v[0]) for k, v in out.items() if k.endswith("token_type_ids")}
        return Prompt(list(out["input_ids"][0]), types)

    def answer_ids(self, text: str) -> list[int]:
        """Tokens of an answer, end token included; a control token that it spells is text, as in tokens()."""
        return [*self.tokenizer.encode(self.markup.escape(text), add_special_tokens=False), self.eos]

    def inputs(self, asks: Sequence[Ask], answers: Sequence[list[int]] | None = None) -> dict[str, torch.Tensor]:
        """Model inputs of requests, with the tokens of their answers when given, padded on the left."""
        images = self.pictures([a.image for a in asks])
        return {**self.padded([self.prompt(a.text, self._sizes[a.image]) for a in asks], answers), **images}

    def padded(self, prompts: Sequence[Prompt], answers: Sequence[list[int]] | None = None) -> dict[str, torch.Tensor]:
        """Token inputs of prompts with their answers' tokens, (n, longest), padded on the left."""
        tails = answers or [[]] * len(prompts)
        n = max(len(p.ids) + len(t) for p, t in zip(prompts, tails, strict=True))
        ids = torch.full((len(prompts), n), self.pad)
        mask = torch.zeros((len(prompts), n), dtype=torch.long)
        types = {k: torch.zeros((len(prompts), n), dtype=torch.long) for k in prompts[0].types}
        for i, (p, t) in enumerate(zip(prompts, tails, strict=True)):
            row = [*p.ids, *t]
            ids[i, n - len(row) :] = torch.tensor(row)
            mask[i, n - len(row) :] = 1
            for k, v in p.types.items():
                types[k][i, n - len(row) : n - len(t)] = torch.tensor(v)
        tokens = {"input_ids": ids, "attention_mask": mask, **types}
        return {k: x.to(self.device) for k, x in tokens.items()}

    # ---- the model

    def token_logps(self, asks: Sequence[Ask], answers: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of the answers' tokens, fp32 (n, longest), zero after an answer's end, and the answers'
        lengths in tokens, (n,); with gradient."""
        replies = [self.answer_ids(t) for t in answers]
        lengths = torch.tensor([len(r) for r in replies], device=self.device)
        longest = int(lengths.max())
        # Padded on the left, answers end together: the vocabulary projection runs over the last positions only
        # (prompts are three quarters of the tokens and more), and through the model's own forward pass, which FSDP and
        # DDP hook into. The token at position t is predicted by the output at t - 1.
        with self.placement.computing():
            logits = (self.wrapped or self.model)(
                **self.inputs(asks, replies), use_cache=False, logits_to_keep=longest + 1
            ).logits[:, :-1]
        place = torch.arange(longest, device=self.device)
        at_end, at_start = place >= longest - lengths[:, None], place < lengths[:, None]
        target = torch.tensor([t for r in replies for t in r], device=self.device)
        logp = torch.log_softmax(logits[at_end].float(), -1).gather(1, target[:, None])[:, 0]
        return torch.zeros(at_start.shape, device=self.device).masked_scatter(at_start, logp), lengths

    def logps(self, asks: Sequence[Ask], answers: Sequence[str]) -> torch.Tensor:
        """Sums over the answers' tokens, (n,), with gradient."""
        return self.token_logps(asks, answers)[0].sum(1)

    def generation(self, greedy: bool) -> GenerationConfig:
        """How answers are generated: from the distribution that token_logps measures, cut by min_p only."""
        about = {"max_new_tokens": self.prompting.max_tokens, "pad_token_id": self.pad, "eos_token_id": self._stops}
        if greedy:
            return GenerationConfig(do_sample=False, **about)
        p = self.prompting
        return GenerationConfig(do_sample=True, temperature=p.temperature, min_p=p.min_p, top_k=0, top_p=1.0, **about)

    @torch.no_grad()
    def sample(self, asks: Sequence[Ask], seed: int, batch: int | None = None, greedy: bool = False) -> list[str]:
        """One answer per request, by the folder's sampling settings, or greedily. In several processes each answers
        its share, and all get the whole."""
        self.model.eval()
        # Requests for one product are neighbours and go to different processes: one seed would answer them alike.
        torch.manual_seed(seed + self.accelerate.rank)
        batch = batch or self.sample_batch
        # Sorted by length: less padding, and the order is a function of the requests alone.
        order = sorted(range(len(asks)), key=lambda i: (len(self.prompt_ids(asks[i].text, asks[i].image)), i))
        mine, texts = self.accelerate.share(order), []
        for s in range(0, len(mine), batch):
            inputs = self.inputs([asks[i] for i in mine[s : s + batch]])
            ids = self.model.generate(
                **inputs, generation_config=self.generation(greedy), synced_gpus=self.accelerate.sharded
            )
            replies = ids[:, inputs["input_ids"].shape[1] :]
            texts += [t.strip() for t in self.tokenizer.batch_decode(replies, skip_special_tokens=True)]
        said = dict(self.accelerate.gather(list(zip(mine, texts, strict=True))))
        return [said[i] for i in range(len(asks))]


def escaped(conversation: Sequence[dict], markup: Markup) -> list[dict]:
    """A conversation whose texts hold no control tokens; contents are lists of parts."""

    def part(p: dict) -> dict:
        return {**p, "text": markup.escape(p["text"])} if p["type"] == "text" else p

    return [{**m, "content": [part(p) for p in m["content"]]} for m in conversation]


def messages(text: str) -> list[dict]:
    """The one conversation shape that every caller uses: picture, then text."""
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


def question(caption: str, instruction: str) -> str:
    """Text of a request for a background."""
    if not caption.strip():
        raise BadInputError("empty caption: a product needs at least a title")
    return f"{caption}. {instruction}"
