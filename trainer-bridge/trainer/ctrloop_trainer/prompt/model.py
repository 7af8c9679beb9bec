"""The prompt model: a Hugging Face folder (LLaVA type) plus prompting.json, and what the jobs do with it.

Everything goes through the processor and its chat template, so that this package's server, vLLM and a large LLaVA
see the same tokens. The embedded model is a real LLaVA configuration of 1.7 M parameters.
"""

import dataclasses
import json
import warnings
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from ..errors import BadInputError

VIEW_PX = 64
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "<|user|>", "<|assistant|>", "<|system|>"]
CHAT_TEMPLATE = (
    "<s>{% for m in messages %}{{ '<|' + m['role'] + '|>' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] in ['image', 'image_url'] %}<image>{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Language-side linear layers, as CAIG has it. The vision tower has layers of the same names: LORA_EXCLUDE keeps
# them out. A list and not a regular expression, because vLLM reads target_modules as a list of names.
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA_EXCLUDE = r".*(vision_tower|multi_modal_projector).*"


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

    @staticmethod
    def load(folder: Path) -> "Prompting":
        try:
            raw = json.loads((Path(folder) / "prompting.json").read_text())
            return Prompting(**{**raw, "instructions": tuple(raw["instructions"])})
        except (OSError, json.JSONDecodeError, KeyError, TypeError) as e:
            raise BadInputError(f"{folder} has no usable prompting.json: {e!r}") from e

    def save(self, folder: Path) -> None:
        (Path(folder) / "prompting.json").write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")


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


def load_parts(folder: Path) -> tuple[torch.nn.Module, LlavaProcessor, Prompting]:
    """Model, processor and prompting of a folder, on the CPU, ready to answer. Checks that weights are finite."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise BadInputError(f"{folder} is not a model folder: no config.json")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
            processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError) as e:
        raise BadInputError(f"cannot load the model in {folder}: {e}") from e
    check_finite(model, folder)
    processor.tokenizer.padding_side = "left"
    return model.eval(), processor, Prompting.load(folder)


def check_finite(model: torch.nn.Module, where: object) -> None:
    """BadInputError when a weight is NaN or infinite: such a model answers garbage without complaint."""
    for name, p in model.named_parameters():
        if not torch.isfinite(p).all():
            raise BadInputError(f"weights of {where} are not finite ({name}): the model is broken, use another")


@dataclasses.dataclass(frozen=True)
class Ask:
    """One request: the user's text, and a picture by key (see PromptModel.add_image)."""

    text: str
    image: Hashable


class PromptModel:
    """A loaded model with cached inputs: token ids by text, pixels by picture."""

    def __init__(self, model: torch.nn.Module, processor: LlavaProcessor, prompting: Prompting):
        self.model, self.processor, self.prompting = model, processor, prompting
        self.tokenizer = processor.tokenizer
        self.eos, self.pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        self._pixels: dict[Hashable, dict[str, torch.Tensor]] = {}
        self._ids: dict[str, list[int]] = {}
        # Any picture of the view's size gives the same number of image tokens, so ids depend on the text alone.
        self._blank = Image.new("RGB", (prompting.view_px, prompting.view_px))

    @staticmethod
    def load(folder: Path) -> "PromptModel":
        return PromptModel(*load_parts(folder))

    def add_image(self, key: Hashable, image: np.ndarray) -> None:
        """Registers a picture, uint8 (px, px, 3); adding a key twice replaces it."""
        out = self.processor.image_processor(images=[Image.fromarray(image)], return_tensors="pt")
        self._pixels[key] = dict(out)

    def add_images(self, keys: Sequence[Hashable], images: np.ndarray) -> None:
        """Registers many pictures of one size at once."""
        for i in range(0, len(keys), 256):
            batch = [Image.fromarray(x) for x in images[i : i + 256]]
            out = self.processor.image_processor(images=batch, return_tensors="pt")
            for j, key in enumerate(keys[i : i + 256]):
                self._pixels[key] = {k: v[j : j + 1] for k, v in out.items()}

    def drop_images(self, keys: Iterable[Hashable]) -> None:
        """Forgets pictures that are not needed any more."""
        for key in keys:
            self._pixels.pop(key, None)

    def pixels(self, keys: Sequence[Hashable]) -> torch.Tensor:
        """Normalised pixels of registered pictures, (n, 3, px, px)."""
        return torch.cat([self._pixels[k]["pixel_values"] for k in keys])

    def prompt_ids(self, text: str) -> list[int]:
        """Tokens of one user message, picture first, up to where the answer starts."""
        if text not in self._ids:
            if not text.strip():
                raise BadInputError("an empty text cannot be asked: the product has no caption")
            rendered = self.processor.apply_chat_template(messages(text), add_generation_prompt=True, tokenize=False)
            out = self.processor(text=[rendered], images=[self._blank], add_special_tokens=False)
            self._ids[text] = list(out["input_ids"][0])
        return self._ids[text]

    def answer_ids(self, text: str) -> list[int]:
        """Tokens of an answer, end token included."""
        return [*self.tokenizer.encode(text, add_special_tokens=False), self.eos]

    def _inputs(self, rows: list[list[int]], asks: Sequence[Ask], left: bool) -> dict[str, torch.Tensor]:
        n = max(len(r) for r in rows)
        ids = torch.full((len(rows), n), self.pad)
        mask = torch.zeros((len(rows), n), dtype=torch.long)
        for i, r in enumerate(rows):
            at = slice(n - len(r), n) if left else slice(0, len(r))
            ids[i, at] = torch.tensor(r)
            mask[i, at] = 1
        try:
            pixels = [self._pixels[a.image] for a in asks]
        except KeyError as e:
            raise BadInputError(f"no picture for {e}: every product needs its plain view") from e
        images = {k: torch.cat([p[k] for p in pixels]) for k in pixels[0]}
        return {"input_ids": ids, "attention_mask": mask, **images}

    def token_logps(self, asks: Sequence[Ask], answers: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of the answers' tokens, (n, longest), zero where padded, and the answers' lengths."""
        prompts = [self.prompt_ids(a.text) for a in asks]
        replies = [self.answer_ids(t) for t in answers]
        inputs = self._inputs([p + r for p, r in zip(prompts, replies, strict=True)], asks, left=False)
        hidden = self._hidden(inputs)
        longest = max(len(r) for r in replies)
        at = torch.zeros((len(asks), longest), dtype=torch.long)
        target = torch.zeros((len(asks), longest), dtype=torch.long)
        keep = torch.zeros((len(asks), longest), dtype=torch.bool)
        for i, (p, r) in enumerate(zip(prompts, replies, strict=True)):
            # The token at position t is predicted by the output at t - 1.
            at[i, : len(r)] = torch.arange(len(p) - 1, len(p) - 1 + len(r))
            target[i, : len(r)] = torch.tensor(r)
            keep[i, : len(r)] = True
        picked = hidden[torch.arange(len(asks))[:, None], at][keep]
        logp = torch.log_softmax(self._head(picked).float(), -1).gather(1, target[keep][:, None])[:, 0]
        out = torch.zeros(at.shape).masked_scatter(keep, logp)
        return out, keep.sum(1)

    def _hidden(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        # The vocabulary projection runs over the answer's positions only: prompts are three quarters of the tokens.
        return self._core().model(**inputs, use_cache=False).last_hidden_state

    def _head(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._core().lm_head(hidden)

    def _core(self) -> torch.nn.Module:
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def logps(self, asks: Sequence[Ask], answers: Sequence[str]) -> torch.Tensor:
        """Sums over the answers' tokens, (n,), with gradient."""
        return self.token_logps(asks, answers)[0].sum(1)

    @torch.no_grad()
    def sample(self, asks: Sequence[Ask], seed: int, batch: int = 256, greedy: bool = False) -> list[str]:
        """One answer per request, by the folder's sampling settings, or greedily."""
        self.model.eval()
        torch.manual_seed(seed)
        settings: dict = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if not greedy:
            p = self.prompting
            settings = {"do_sample": True, "temperature": p.temperature, "min_p": p.min_p, "top_k": 0, "top_p": 1.0}
        # Sorted by length: less padding, and the order is a function of the requests alone.
        order = sorted(range(len(asks)), key=lambda i: (len(self.prompt_ids(asks[i].text)), i))
        out = [""] * len(asks)
        for s in range(0, len(order), batch):
            part = order[s : s + batch]
            prompts = [self.prompt_ids(asks[i].text) for i in part]
            inputs = self._inputs(prompts, [asks[i] for i in part], left=True)
            ids = self.model.generate(**inputs, max_new_tokens=self.prompting.max_tokens, **settings)
            replies = ids[:, inputs["input_ids"].shape[1] :]
            texts = self.tokenizer.batch_decode(replies, skip_special_tokens=True)
            for i, text in zip(part, texts, strict=True):
                out[i] = text.strip()
        return out


def messages(text: str) -> list[dict]:
    """The one conversation shape that every caller uses: picture, then text."""
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


def question(caption: str, instruction: str) -> str:
    """Text of a request for a background."""
    if not caption.strip():
        raise BadInputError("empty caption: a product needs at least a title")
    return f"{caption}. {instruction}"
