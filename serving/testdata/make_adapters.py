"""Makes adapters of a base model as a training job would leave them: random weights, with their golden answers.

usage: make_adapters.py BASE OUT BASE_DIGEST

OUT/good is sound; OUT/other has other weights under good's golden answers; OUT/zero fits and does nothing.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from ctrloop_trainer.prompt import lora
from ctrloop_trainer.prompt.model import Ask, PromptModel
from ctrloop_trainer.rounds import probe
from safetensors.torch import load_file, save_file

base, out, digest = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
v = PromptModel.load(base)
v.model = lora.attach(v.model, v.family, rank=8, dropout=0.0, seed=0, alpha=8, base_name=v.name)


def randomise() -> None:
    with torch.no_grad():
        for name, p in v.model.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.15)  # enough to be heard, little enough to keep the grammar


randomise()
good = out / "good"
v.model.save_pretrained(good)
image = np.full((64, 64, 3), 245, np.uint8)
image[16:48, 16:48] = (170, 40, 40)
ask = Ask("running shoes, dark red. fashion/shoes. " + v.prompting.instructions[0], "view")
v.add_image("view", image)
(good / "probe.json").write_text(json.dumps(probe.make(v, [(ask, image)])))
(good / "lineage.json").write_text(json.dumps({"base_digest": digest}))

for name in ("other", "zero"):
    shutil.copytree(good, out / name)
weights = load_file(good / "adapter_model.safetensors")
save_file({k: t * ("lora_A" in k) for k, t in weights.items()}, out / "zero" / "adapter_model.safetensors")
randomise()
v.model.save_pretrained(out / "other")
