"""The one way in which a LoRA gets onto a model: on the language side, by the model's own family."""

import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from ..errors import BadInputError
from .families import LORA_TARGETS, Family


def attach(
    model: torch.nn.Module, family: Family, rank: int, dropout: float, seed: int, alpha: int = 0, base_name: str = ""
) -> PeftModel:
    """model with a fresh LoRA on its language side, everything else frozen; alpha is twice the rank unless told.

    base_name goes into adapter_config.json: what others find the base by. BadInputError where a module on the
    picture's side would be adapted, or none on the language side.
    """
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha or 2 * rank,
        lora_dropout=dropout,
        target_modules=list(LORA_TARGETS),
        exclude_modules=family.lora_exclude,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_name,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the name of the base, which is set right below
        adapted = get_peft_model(model, config)
    # PEFT puts the folder in its place: a path of this machine, in an artifact that others are to read.
    adapted.peft_config["default"].base_model_name_or_path = base_name
    _check_place(adapted, family)
    return adapted


def _check_place(model: PeftModel, family: Family) -> None:
    prefix = "base_model.model."
    modules = {n.removeprefix(prefix).partition(".lora_")[0] for n, _ in model.named_parameters() if ".lora_" in n}
    outside = sorted(m for m in modules if not m.startswith(f"{family.language}."))
    if outside or not modules:
        what = f"would land on {outside[0]}" if outside else f"found no linear layer of {family.language}"
        raise BadInputError(
            f"the LoRA {what}: the language side of a {family.name} model is not where it was looked for; add a row to "
            "prompt/families.py"
        )
