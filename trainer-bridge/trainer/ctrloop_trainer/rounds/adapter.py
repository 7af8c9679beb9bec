"""The LoRA of a prompt model: made, saved, loaded, and merged into a model of its own."""

import json
import warnings
from pathlib import Path

from peft import get_peft_model_state_dict, set_peft_model_state_dict

from .. import weights
from ..errors import BadInputError
from ..progress import write_json, write_text
from ..prompt import lora
from ..prompt.model import PromptModel

CARD = """---
base_model: {base}
library_name: peft
pipeline_tag: image-text-to-text
tags: [lora, ctrloop]
---
# A background-prompt adapter of {base}

A LoRA (rank {rank}, alpha {alpha}) on the language side of `{base}`, trained by preference rounds: the model writes
background prompts for products, a reward model learned from clicks ranks the pictures, and DPO with a product-centric
term moves the adapter. Digest of the base: `{digest}`.

    from peft import PeftModel
    model = PeftModel.from_pretrained(base, "THIS FOLDER")

Ask as the base's `prompting.json` says. What it was made from is in `lineage.json`, what it was held against before it
might load in `metrics.json`, and how to tell that a server applies it in `probe.json`, where these lie beside it. It
writes prompts for the products and the vocabulary that it was trained on; nobody has looked at others.
"""


def attach(v: PromptModel, rank: int, dropout: float, seed: int) -> None:
    """Puts a fresh LoRA on the language side of v: answers do not change before it is trained."""
    v.model = lora.attach(v.model, v.family, rank, dropout, seed, base_name=v.name)
    v.model.eval()  # new layers begin in training mode: dropout would make every answer a draw


def save(v: PromptModel, folder: Path, base_digest: str = "") -> None:
    """Writes adapter_model.safetensors, adapter_config.json and a card, the same bytes for the same weights.
    DivergedError where a weight is not finite or absurdly large: no server must ever see it."""
    gathered = v.accelerate.state_dict(v)
    if gathered is None:
        weights.check_adapter(v.model)
    else:  # of many processes: nobody has a whole layer to compare with
        weights.check_made(((n, x) for n, x in gathered.items() if ".lora_" in n), "the adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "no config file in prompt-base": a name, not a folder
        v.model.save_pretrained(folder, state_dict=gathered)
    # PEFT writes sets in hash order, which differs from process to process, and the digest with it.
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"] = sorted(config["target_modules"])
    write_json(folder / "adapter_config.json", dict(sorted(config.items())))
    about = {"base": v.name, "rank": config["r"], "alpha": config["lora_alpha"], "digest": base_digest or "not told"}
    write_text(folder / "README.md", CARD.format(**about))  # instead of PEFT's template, which says nothing


def load(v: PromptModel, folder: Path) -> None:
    """Puts a saved adapter's weights into the model's own LoRA; keys and shapes must be exactly its."""
    saved = weights.load(folder / "adapter_model.safetensors", "the adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = get_peft_model_state_dict(v.model)
    if {k: x.shape for k, x in saved.items()} != {k: x.shape for k, x in own.items()}:
        raise BadInputError(f"the adapter in {folder} is not of this base and rank: remove the folder to start again")
    set_peft_model_state_dict(v.model, saved)


def merge(v: PromptModel, folder: Path) -> None:
    """Writes base + adapter as a model folder that loads like a base (PromptModel.load, vLLM) and answers like v.

    v is used up: its weights are merged in place. W + (alpha / r) B A is summed in the weights' own precision.
    """
    merged = v.model.merge_and_unload()
    folder.mkdir(parents=True, exist_ok=True)
    merged.save_pretrained(folder)
    v.processor.save_pretrained(folder)
    v.prompting.save(folder)
    v.model = merged
