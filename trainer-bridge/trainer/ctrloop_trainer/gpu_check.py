"""`python -m ctrloop_trainer.gpu_check [--model DIR]`: does this machine train what production trains? Ten minutes.

Parts, each told with what it measured; the exit code is 0 when all that could run passed:

1. environment: versions, device, memory, bf16, bitsandbytes, vLLM;
2. miniatures of LLaVA-1.6 and Qwen2.5-VL: log-probabilities in bf16 on the device against fp32 on the CPU;
3. one step of DPO + PCPO on a LoRA with gradient checkpointing, on the miniatures and, with --model, on the real model:
   peak memory, seconds a step, losses;
4. the adapter's keys against those that vLLM applies, and that it reloads to the same numbers;
5. with --vllm: vLLM itself loads model and adapter, and the adapter changes its answer.

Without a GPU it says so and does the same on the CPU with the miniatures.
"""

import argparse
import dataclasses
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import load_file

from . import lineage, losses
from .errors import JobError
from .placement import Placement
from .prompt import families, lora, miniatures
from .prompt.model import Ask, Prompting, PromptModel, question

# Relative difference of a log-probability in bf16 (8 bits of mantissa, some dozens of roundings in a row).
BF16_TOLERANCE = 0.05
TEXTS = [
    "oak kitchen table, warm amber tones, soft morning light, fresh leaves",
    "white marble slab, cool blue tones, bright studio light, a linen cloth",
]
CAPTIONS = ("tea pot, pale red. kitchen/tea and coffee", "tennis ball, yellow. sports/balls")
INSTRUCTION = "write a background prompt"


class CheckError(Exception):
    """A part of the check failed; the message says how."""


@dataclasses.dataclass
class Part:
    """One line of the report."""

    name: str
    ok: bool | None  # None: not run
    told: str

    def __str__(self) -> str:
        sign = {True: "ok  ", False: "FAIL", None: "--  "}[self.ok]
        return f"{sign} {self.name}: {self.told}"


def environment() -> str:
    """Versions, device and optional packages, in one line."""
    packages = ", ".join(f"{k} {v}" for k, v in lineage.versions().items() if k in ("python", "torch", "transformers"))
    extra = [n for n in ("bitsandbytes", "vllm", "deepspeed") if importlib.util.find_spec(n)]
    told = f"{packages}; {lineage.device()}"
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        told += f"; {free / 2**30:.1f} of {total / 2**30:.1f} GiB free; bf16 {torch.cuda.is_bf16_supported()}"
    else:
        told += "; NO GPU: the parts below run on the CPU, with miniatures"
    return f"{told}; optional packages: {', '.join(extra) or 'none'}"


def prepared(folder: Path, placement: Placement, rank: int = 0) -> PromptModel:
    """A model with two pictures, and a fresh LoRA when rank is not 0."""
    v = PromptModel.load(folder, placement)
    px = v.prompting.view_px
    rng = np.random.default_rng(0)
    for key in range(2):
        v.add_image(key, rng.integers(0, 255, (px, px, 3), dtype=np.uint8))
    grey = np.full((px, px, 3), 127, np.uint8)
    v.add_image("masked", grey)
    if rank:
        v.model = lora.attach(v.model, v.family, rank, 0.05, 0)
    return v


def asks(v: PromptModel) -> list[Ask]:
    """One request per picture."""
    return [Ask(question(c, INSTRUCTION), i) for i, c in enumerate(CAPTIONS)]


@torch.no_grad()
def precision(folder: Path, device: str) -> str:
    """Log-probabilities in bf16 on the device against fp32 on the CPU."""
    plain = prepared(folder, Placement())
    half = prepared(folder, Placement(device=device, precision="bf16"))
    want, got = plain.logps(asks(plain), TEXTS), half.logps(asks(half), TEXTS).cpu()
    off = ((got - want).abs() / want.abs()).max().item()
    if not off < BF16_TOLERANCE:
        raise CheckError(f"bf16 is {100 * off:.1f} % away from fp32, more than {100 * BF16_TOLERANCE:.0f} %")
    return f"largest relative difference {100 * off:.2f} %"


def step(v: PromptModel, lr: float, steps: int) -> str:
    """Some steps of DPO + PCPO on one pair a product, the reference being the same model without its adapter."""
    x = asks(v)
    rows = [*x, *x, *(Ask(a.text, "masked") for a in x)]
    answers = [*TEXTS, *reversed(TEXTS), *TEXTS]
    cuda = v.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    v.model.eval()
    with torch.no_grad(), v.model.disable_adapter():
        ref = v.logps(rows, answers).view(3, -1)
    trained = [p for p in v.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr)
    v.model.train()
    curve, took = [], []
    for _ in range(steps):
        start = time.monotonic()
        logp = v.logps(rows, answers).view(3, -1)
        loss = losses.dpo(logp[0], logp[1], ref[0], ref[1], 0.5) + losses.pcpo(logp[0], logp[2], ref[0], ref[2], 0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())  # waits for the device
        took.append(time.monotonic() - start)
    v.model.eval()
    if not all(np.isfinite(curve)) or not curve[-1] < curve[0]:
        raise CheckError(f"the loss did not fall over {steps} steps: {[round(c, 4) for c in curve]}")
    count = sum(p.numel() for p in trained)
    peak = f", peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if cuda else ""
    return (
        f"loss {curve[0]:.3f} -> {curve[-1]:.3f} in {steps} steps of {len(rows)} sequences, "
        f"{count:,} parameters trained, {1 / statistics.median(took):.2f} steps/s{peak}"
    )


def adapter(v: PromptModel, folder: Path, placement: Placement, out: Path) -> str:
    """Saves the adapter, holds its keys against vLLM's, and loads it into a fresh base."""
    v.model.save_pretrained(out)
    keys = load_file(out / "adapter_model.safetensors")
    problems = families.adapter_problems(v.family, keys)
    if problems:
        raise CheckError(f"{len(problems)} of {len(keys)} keys would not be applied by vLLM, such as {problems[0]}")
    fresh = prepared(folder, placement)
    fresh.model = PeftModel.from_pretrained(fresh.model, out).eval()
    with torch.no_grad():
        off = (fresh.logps(asks(v), TEXTS) - v.logps(asks(v), TEXTS)).abs().max().item()
    if off > 1e-3:
        raise CheckError(f"the reloaded adapter's log-probabilities differ by {off:.4f}")
    return f"{len(keys)} keys like {min(keys)}; reloaded, off by {off:.1e}"


VLLM_CHECK = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
model, adapter, rank, prompt = sys.argv[1:5]
llm = LLM(model, enable_lora=True, max_lora_rank=int(rank), max_model_len=4096, generation_config="vllm")
p = SamplingParams(temperature=0, max_tokens=24, logprobs=0)
def ask(lora):
    out = llm.chat([{"role": "user", "content": prompt}], p, lora_request=lora)[0].outputs[0]
    return [next(iter(x.values())).logprob for x in out.logprobs]
print("RESULT " + json.dumps([ask(None), ask(LoRARequest("a", 1, adapter))]))
"""


def vllm(folder: Path, out: Path, rank: int) -> str:
    """vLLM in a process of its own: answers with and without the adapter must differ."""
    if importlib.util.find_spec("vllm") is None:
        raise CheckError("the package vllm is not installed in this environment")
    command = [sys.executable, "-c", VLLM_CHECK, str(folder), str(out), str(rank), f"{CAPTIONS[0]}. {INSTRUCTION}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    lines = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
    if done.returncode or not lines:
        raise CheckError(f"vLLM ended with code {done.returncode}: {done.stderr[-500:]}")
    base, mine = json.loads(lines[-1].removeprefix("RESULT "))
    if base == mine:
        raise CheckError("the adapter changed nothing: vLLM loaded it and did not apply it")
    return "loaded base and adapter; the adapter changes the answer"


class Check:
    """Runs the parts and keeps their lines."""

    def __init__(self, echo: Callable[[str], None] = print):
        self.parts: list[Part] = []
        self._echo = echo

    def part(self, name: str, run: Callable[[], str]) -> bool:
        """One part; an exception is its failure, the others still run."""
        try:
            part = Part(name, True, run())
        except (CheckError, JobError) as e:
            part = Part(name, False, str(e))
        except Exception:
            part = Part(name, False, traceback.format_exc())
        self.parts.append(part)
        self._echo(str(part))
        return bool(part.ok)

    def skip(self, name: str, why: str) -> None:
        """A part that cannot run here."""
        self.parts.append(Part(name, None, why))
        self._echo(str(self.parts[-1]))

    @property
    def passed(self) -> bool:
        return all(p.ok is not False for p in self.parts)

    def model(self, name: str, folder: Path, placement: Placement, rank: int, lr: float, steps: int, out: Path) -> None:
        """Training and adapter of one model."""
        made: list[PromptModel] = []

        def train() -> str:
            made.append(prepared(folder, placement, rank))
            return step(made[0], lr, steps)

        if self.part(f"{name}: DPO + PCPO", train):
            self.part(f"{name}: adapter", lambda: adapter(made[0], folder, placement, out))


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 all passed, 1 something failed."""
    p = argparse.ArgumentParser(prog="ctrloop_trainer.gpu_check", description=__doc__.splitlines()[0])
    p.add_argument("--model", type=Path, help="folder of a real model: LLaVA-1.6 or Qwen2.5-VL")
    p.add_argument("--rank", type=int, default=128, help="of the LoRA on the real model")
    p.add_argument("--lr", type=float, default=2e-5)
    p.add_argument("--steps", type=int, default=5)
    p.add_argument("--quantize", default="", help="4bit: QLoRA")
    p.add_argument("--vllm", action="store_true", help="load the real model and its new adapter in vLLM, too")
    a = p.parse_args(argv)
    check, device = Check(), "auto"
    check.part("environment", environment)
    with tempfile.TemporaryDirectory() as tmp:
        for kind in miniatures.KINDS:
            folder = Path(tmp) / kind
            texts = [*TEXTS, *CAPTIONS, INSTRUCTION] * 3
            miniatures.save(kind, folder, texts, Prompting((INSTRUCTION,), 64, max_tokens=16))
            check.part(f"{kind} miniature: bf16 against fp32", lambda f=folder: precision(f, device))
            place = Placement(device=device, checkpointing=True)
            check.model(f"{kind} miniature", folder, place, 8, 5e-3, 5, Path(tmp) / f"{kind}-adapter")
        _real(check, a, Path(tmp) / "adapter")
    print("all passed" if check.passed else "FAILED")
    return 0 if check.passed else 1


def _real(check: Check, a: argparse.Namespace, out: Path) -> None:
    if not a.model:
        check.skip("real model", "give its folder with --model")
        return
    place = Placement(device="auto", precision="bf16", quantize=a.quantize, checkpointing=True)
    if not check.part("placement", lambda: str(place.check())):
        return
    check.model(a.model.name, a.model, place, a.rank, a.lr, a.steps, out)
    if not a.vllm:
        check.skip("vLLM", "ask for it with --vllm")
        return
    torch.cuda.empty_cache()
    check.part("vLLM", lambda: vllm(a.model, out, a.rank))


if __name__ == "__main__":
    sys.exit(main())
