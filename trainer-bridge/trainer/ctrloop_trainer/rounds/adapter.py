"""The LoRA of a prompt model: made, saved, loaded, and merged into a model of its own."""

import json
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

from ..errors import BadInputError
from ..progress import write_json
from ..prompt.model import LORA_EXCLUDE, LORA_TARGETS, PromptModel

BASE_NAME = "prompt-base"  # in adapter_config.json: the folder's path would put a machine's paths into an artifact


def attach(v: PromptModel, rank: int, dropout: float, seed: int) -> None:
    """Puts a fresh LoRA on the language side of v: answers do not change before it is trained."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=dropout,
        target_modules=LORA_TARGETS,
        exclude_modules=LORA_EXCLUDE,
        task_type="CAUSAL_LM",
        base_model_name_or_path=BASE_NAME,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the name of the base, which is set right below
        v.model = get_peft_model(v.model, config)
    v.model.peft_config["default"].base_model_name_or_path = BASE_NAME
    v.model.eval()  # new layers begin in training mode: dropout would make every answer a draw


def save(v: PromptModel, folder: Path) -> None:
    """Writes adapter_model.safetensors and adapter_config.json, the same bytes for the same weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "no config file in prompt-base": a name, not a folder
        v.model.save_pretrained(folder, state_dict=v.accelerate.state_dict(v))
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's model card template: says nothing
    # PEFT writes sets in hash order, which differs from process to process, and the digest with it.
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"] = sorted(config["target_modules"])
    write_json(folder / "adapter_config.json", dict(sorted(config.items())))


def load(v: PromptModel, folder: Path) -> None:
    """Puts a saved adapter's weights into the model's own LoRA; keys and shapes must be exactly its."""
    try:
        saved = load_file(folder / "adapter_model.safetensors")
    except (OSError, RuntimeError) as e:
        raise BadInputError(f"cannot read the adapter in {folder}: {e}") from e
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
