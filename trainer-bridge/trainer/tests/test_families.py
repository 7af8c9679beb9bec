"""LLaVA-1.6 and Qwen2.5-VL, in miniature with random weights: the same classes, processors and keys as those of 7 B.

What is held to: log-probabilities are those of the full logits; pictures of any shape; a round trains; an adapter's
keys are those that vLLM applies; the server answers like the trainer.
"""

import base64
import io
import json
import random
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import STUB
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file
from starlette.testclient import TestClient
from transformers import Idefics3Config, Idefics3ForConditionalGeneration

from ctrloop_trainer import errors, placement
from ctrloop_trainer import spec as specs
from ctrloop_trainer.progress import Progress
from ctrloop_trainer.prompt import families, lora, miniatures
from ctrloop_trainer.prompt.model import Ask, Prompting, PromptModel, load_parts
from ctrloop_trainer.render import Renderer
from ctrloop_trainer.rounds import shop
from ctrloop_trainer.rounds import train as rounds
from ctrloop_trainer.serve import Engine, Server

TEXT = "tea pot, pale red. kitchen/kitchen things. write a background prompt"
ANSWERS = ["oak kitchen table, warm amber tones, soft morning light, fresh leaves", "oak", "warm leaves, tones"]
SQUARE, WIDE = (64, 64), (40, 90)  # height, width


@pytest.fixture(scope="module", params=miniatures.KINDS)
def folder(request, tmp_path_factory, grammar):
    """A miniature's folder."""
    rng = random.Random(0)
    texts = [TEXT] * 20 + [grammar.describe(grammar.random(rng)) for _ in range(200)]
    out = tmp_path_factory.mktemp("miniature") / request.param
    return miniatures.save(request.param, out, texts, Prompting(("write a background prompt",), 64, max_tokens=12))


@pytest.fixture
def v(folder):
    model = PromptModel.load(folder)
    rng = np.random.default_rng(0)
    for key, shape in (("square", SQUARE), ("wide", WIDE), ("other", SQUARE)):
        model.add_image(key, rng.integers(0, 255, (*shape, 3), dtype=np.uint8))
    return model


def adapted(v: PromptModel, scale: float = 0.5) -> PromptModel:
    """v with a LoRA that does something."""
    torch.manual_seed(1)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=list(families.LORA_TARGETS), exclude_modules=v.family.lora_exclude
    )
    v.model = get_peft_model(v.model, config)
    for name, p in v.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=scale)
    v.model.eval()
    return v


def naive(v: PromptModel, ask: Ask, picture: Image.Image, answer: str) -> tuple[float, int]:
    """Sum of log-probabilities the long way: the processor on text and picture, all logits, one row, no cache."""
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": ask.text}]}]
    rendered = v.processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    inputs = v.processor(text=[rendered], images=[picture], add_special_tokens=False, return_tensors="pt")
    reply = torch.tensor([[*v.tokenizer.encode(answer, add_special_tokens=False), v.tokenizer.eos_token_id]])
    n = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], reply], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(reply)], 1)
    logp = torch.log_softmax(v.model(**inputs).logits[0].double(), -1)
    return sum(logp[n - 1 + i, t].item() for i, t in enumerate(reply[0].tolist())), reply.shape[1]


@torch.no_grad()
def test_token_logps_are_those_of_the_full_logits(v):
    """One batch with pictures of two shapes, prompts and answers of different lengths."""
    rng = np.random.default_rng(0)
    pictures = {k: Image.fromarray(rng.integers(0, 255, (*s, 3), dtype=np.uint8)) for k, s in
                (("square", SQUARE), ("wide", WIDE))}  # fmt: skip
    asks = [Ask(TEXT, "square"), Ask(f"{TEXT} in one or two words", "wide"), Ask("tea", "square")]
    got, lengths = v.token_logps(asks, ANSWERS)
    for i, (ask, answer) in enumerate(zip(asks, ANSWERS, strict=True)):
        want, length = naive(v, ask, pictures[ask.image], answer)
        assert lengths[i] == length
        assert got[i].sum().item() == pytest.approx(want, abs=2e-3)
        assert (got[i, length:] == 0).all()
        assert (got[i, :length] < 0).all()
    # The picture counts: another one of the same size gives other numbers.
    other = v.logps([Ask(TEXT, "other")], ANSWERS[:1])
    assert abs(other.item() - got[0].sum().item()) > 1e-3


def test_tokens_of_a_picture_follow_its_shape(v):
    image_token = v.processor.image_token_id

    def tokens(size):
        return v.prompt(TEXT, size).ids.count(image_token)

    square, wide = tokens(SQUARE[::-1]), tokens(WIDE[::-1])
    assert square != wide
    for size, n in ((SQUARE[::-1], square), (WIDE[::-1], wide)):
        _, h = size
        if v.family is families.LLAVA_NEXT:
            side = miniatures.TILE_PX // miniatures.PATCH_PX
            # A square of 64 px: the whole, 2 x 2 tiles and a newline a row; 90 x 40: two tiles, padding taken off.
            assert n == side * side + ((2 * side) * (2 * side) + 2 * side if h == 64 else 4 * 8 + 4)
        else:
            assert n == v._pictures["square" if h == 64 else "wide"]["image_grid_thw"].prod().item() // 4
    assert v.prompt_ids(TEXT, "wide") == v.prompt(TEXT, WIDE[::-1]).ids
    assert v.prompt_ids(TEXT) == v.prompt(TEXT, (64, 64)).ids


def test_samples_follow_the_seed_and_not_the_batch(v):
    asks = [Ask(TEXT, "square"), Ask(TEXT, "wide"), Ask("tea pot", "other")] * 2
    one = v.sample(asks, 3)
    assert one == v.sample(asks, 3)
    assert one != v.sample(asks, 4)
    greedy = v.sample(asks, 0, greedy=True)
    assert greedy == [v.sample([a], 0, greedy=True)[0] for a in asks]
    assert greedy[:3] == greedy[3:]


@torch.no_grad()
def test_generation_agrees_with_the_training_pass(v):
    """With its cache, padding and positions; and one picture's positions do not stay behind for the next."""
    for key in ("wide", "square"):
        asks = [Ask(TEXT, key), Ask(f"{TEXT}, longer than the other", "other")]
        inputs = v.inputs(asks)
        out = v.model.generate(**inputs, generation_config=v.generation(True), output_logits=True,
                               return_dict_in_generate=True)  # fmt: skip
        reply = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        assert len(reply) > 4
        for i in range(4):
            alone = v.model(**v.inputs(asks[:1], [reply[:i]])).logits[0, -1]
            assert torch.allclose(alone, out.logits[i][0], atol=2e-4)
            assert alone.argmax() == reply[i]


def test_a_folders_repetition_penalty_is_not_ours(folder, v, tmp_path):
    """Qwen2.5-VL is published with one: samples would not be of the distribution that is trained, nor the server's."""
    want = v.sample([Ask(TEXT, "square")], 0, greedy=True)
    odd = tmp_path / "odd"
    shutil.copytree(folder, odd)
    told = json.loads((odd / "generation_config.json").read_text())
    (odd / "generation_config.json").write_text(json.dumps({**told, "repetition_penalty": 50.0, "top_k": 1}))
    other = PromptModel.load(odd)
    other._pictures, other._sizes = v._pictures, v._sizes
    assert other.sample([Ask(TEXT, "square")], 0, greedy=True) == want
    assert Engine(str(odd), "base").model.generation_config.repetition_penalty is None


def test_adapters_have_the_names_that_vllm_applies(v, tmp_path):
    """vLLM answers 200 to an adapter under another prefix, and then like the base: so the names are held here."""
    base = v.logps([Ask(TEXT, "square")], ANSWERS[:1]).item()
    adapted(v)
    mine = v.logps([Ask(TEXT, "square")], ANSWERS[:1]).item()
    v.model.save_pretrained(tmp_path / "a")
    keys = load_file(tmp_path / "a" / "adapter_model.safetensors")
    want = {
        f"base_model.model.model.language_model.layers.{layer}.{part}.lora_{side}.weight"
        for layer in range(miniatures.LAYERS)
        for part in (*(f"self_attn.{x}_proj" for x in "qkvo"), *(f"mlp.{x}_proj" for x in ("gate", "up", "down")))
        for side in "AB"
    }
    assert set(keys) == want
    assert families.adapter_problems(v.family, keys) == []
    renamed = [k.replace("model.language_model.layers", "language_model.model.layers") for k in keys]
    assert len(families.adapter_problems(v.family, renamed)) == len(keys)
    assert abs(mine - base) > 0.1


def test_an_adapter_reloads_exactly(v, folder, tmp_path):
    adapted(v)
    asks = [Ask(TEXT, "square"), Ask(TEXT, "wide")]
    mine = v.logps(asks, ANSWERS[:2])
    v.model.save_pretrained(tmp_path / "a")
    fresh = PromptModel.load(folder)
    fresh._pictures, fresh._sizes = v._pictures, v._sizes
    fresh.model = PeftModel.from_pretrained(fresh.model, tmp_path / "a").eval()
    assert torch.equal(fresh.logps(asks, ANSWERS[:2]), mine)


def test_a_family_is_found_by_class_or_worked_out(v, folder):
    assert v.family.architectures[0] == type(v.model).__name__
    told = json.loads((folder / "config.json").read_text())["architectures"]
    assert families.of_config(told) is v.family
    guessed = families.generic(v.model)
    assert (guessed.language, guessed.vision, guessed.packed) == (v.family.language, v.family.vision, v.family.packed)
    names = [n for n, _ in v.model.named_modules() if n.endswith(families.LORA_TARGETS[0])]
    left = [n for n in names if not re.fullmatch(guessed.lora_exclude, n)]
    assert left
    assert left == [n for n in names if n.startswith(v.family.language)]
    with pytest.raises(errors.BadInputError, match=r"families\.py"):
        families.generic(v.model.model.language_model)


def idefics3():
    """A family without a row (Idefics3, SmolVLM), whose vision side has layers of the language side's names."""
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Idefics3Config(
        vision_config={**shape, "image_size": 32, "patch_size": 8},
        text_config={"model_type": "llama", "vocab_size": 300, "num_key_value_heads": 2, "pad_token_id": 0, **shape},
        image_token_id=5,
        scale_factor=2,
    )
    return Idefics3ForConditionalGeneration(config)


def test_a_family_without_a_row_gets_no_adapter_on_its_vision_side():
    model = idefics3()
    family = families.of(model)
    assert family.vision == ("model.vision_model", "model.connector")
    adapted_names = [n for n, _ in lora.attach(model, family, 4, 0.0, 0).named_parameters() if "lora_A" in n]
    assert len(adapted_names) == len(families.LORA_TARGETS)
    assert all(".text_model.layers.0." in n for n in adapted_names)


def test_a_folder_as_downloaded_needs_no_prompting(folder, tmp_path):
    """Without prompting.json a model is asked with the default instructions, at its family's picture size."""
    bare = tmp_path / "bare"
    bare.mkdir()
    for f in folder.iterdir():
        if f.name != "prompting.json":
            (bare / f.name).write_bytes(f.read_bytes())
    _, _, prompting = load_parts(bare)
    assert prompting.view_px == 336
    assert prompting.instructions


def test_precision_and_checkpointing_change_memory_and_not_the_gradient(folder, v):
    def gradient(place):
        m = PromptModel.load(folder, place)
        m._pictures, m._sizes = v._pictures, v._sizes
        adapted(m)
        m.model.train()
        m.logps([Ask(TEXT, "square"), Ask(TEXT, "wide")], ANSWERS[:2]).sum().backward()
        return torch.cat([p.grad.float().flatten() for n, p in m.model.named_parameters() if "lora_A" in n]), m

    plain, _ = gradient(placement.Placement())
    recomputed, m = gradient(placement.Placement(checkpointing=True))
    assert any(getattr(x, "gradient_checkpointing", False) for x in m.model.modules())
    assert torch.allclose(plain, recomputed, rtol=1e-4, atol=1e-5 * plain.abs().max().item())
    half, m = gradient(placement.Placement(precision="bf16"))
    assert {p.dtype for n, p in m.model.named_parameters() if "lora_" in n} == {torch.float32}
    assert {p.dtype for n, p in m.model.named_parameters() if "lora_" not in n} == {torch.bfloat16}
    assert torch.cosine_similarity(plain, half, 0) > 0.97


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"device": "tpu"}, "auto, cpu, cuda"),
        ({"precision": "fp8"}, "fp32, bf16, fp16"),
        ({"precision": "fp16"}, "cannot be trained on a CPU"),
        ({"quantize": "4bit"}, "bitsandbytes"),
        ({"quantize": "4bit", "full": True}, "adapter"),
        ({"quantize": "3bit"}, "4bit"),
    ],
)
def test_what_cannot_be_is_said_before_anything_loads(told, why, monkeypatch):
    monkeypatch.setattr(placement.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(errors.BadInputError, match=why):
        placement.Placement(**told).check()


class Judge:
    """A reward model for tests: likes bright right halves."""

    tau = 0.0

    def scores(self, captions, images):
        return images[:, :, images.shape[2] // 2 :].mean((1, 2, 3)) / 20.0

    def p_left(self, captions, left, right):
        return 1 / (1 + np.exp(self.scores(captions, right) - self.scores(captions, left)))


def test_a_round_trains_both_terms(folder, make_spec, grammar, tmp_path, monkeypatch):
    """One epoch of DPO and PCPO through the job's own loop: the losses fall, y+ rises over y- and over y+|x~.

    Descriptions are drawn from the grammar, since a random model writes none; pictures come from the stub renderer.
    """
    drawn = random.Random(1)
    monkeypatch.setattr(shop.forms, "load", lambda *_: Judge())
    monkeypatch.setattr(
        PromptModel, "sample", lambda self, asks, *a, **k: [grammar.describe(grammar.random(drawn)) for _ in asks]
    )
    hyper = {"epochs": 1, "products": 16, "descriptions": 2, "batch": 8, "rank": 8, "lr": 1e-2, "dropout": 0.0}
    hyper |= {"held_samples": 1, "relevance_samples": 1, "w_nll": 0.0, "w_form": 0.0, "arms": "pcpo"}
    hyper |= {"beta": 0.3, "beta_pcpo": 0.3}
    spec = specs.Spec(**make_spec("rounds", hyper, base=str(folder), reward_model=str(tmp_path)))
    with Renderer(STUB) as renderer:
        r = rounds.Rounds(spec, specs.hyper(rounds.Hyper, hyper), tmp_path, renderer, Progress(tmp_path))
        learner = r.learner("pcpo")
        for _ in range(3):  # the same samples again: there is no other way to fall within seconds
            last = learner.epoch(1)
            learner.running.step, learner.running.curve = 0, []
    log2 = float(np.log(2))  # where both losses begin
    assert last["dpo"] < 0.8 * log2
    assert last["pcpo"] < 0.97 * log2
    assert last["chosen"] > last["rejected"]
    assert last["chosen"] > last["corrupted"]


def data_url(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def test_the_server_answers_like_the_trainer(folder, v, tmp_path):
    """Base and adapter, two shapes of pictures, a request with two pictures; the probe of a swap rests on it."""
    rng = np.random.default_rng(0)
    pictures = {k: rng.integers(0, 255, (*s, 3), dtype=np.uint8) for k, s in (("square", SQUARE), ("wide", WIDE))}
    want = {("base", k): v.sample([Ask(TEXT, k)], 0, greedy=True)[0] for k in pictures}
    adapted(v, 0.3).model.save_pretrained(tmp_path / "a")
    want |= {("a", k): v.sample([Ask(TEXT, k)], 0, greedy=True)[0] for k in pictures}
    engine = Engine(str(folder), "base")
    engine.start()
    with TestClient(Server(engine).app()) as client:
        body = {"lora_name": "a", "lora_path": str(tmp_path / "a")}
        assert client.post("/v1/load_lora_adapter", json=body).status_code == 200

        def ask(model, *keys):
            images = [{"type": "image_url", "image_url": {"url": data_url(pictures[k])}} for k in keys]
            content = [*images, {"type": "text", "text": TEXT}]
            body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 12}
            reply = client.post("/v1/chat/completions", json={**body, "temperature": 0})
            assert reply.status_code == 200, reply.text
            return reply.json()["choices"][0]["message"]["content"].strip()

        got = {(m, k): ask(m, k) for m, k in want}
        ask("a", "square", "wide")
        assert ask("base", "wide") == want["base", "wide"]
    engine.stop()
    engine.thread.join(10)
    assert got == want
    assert got["a", "square"] != got["base", "square"]
