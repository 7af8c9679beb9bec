"""probe.json: a question whose answer tells the new adapter from the base, asked again after every load.

Engines answer 200 to adapters that they did not apply. The only proof that a version is live is that it talks like it.
"""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..prompt.model import Ask, PromptModel, messages


@torch.no_grad()
def greedy(v: PromptModel, ask: Ask) -> tuple[str, list[float]]:
    """Greedy answer and the log-probability of each generated token, end token included."""
    v.model.eval()
    inputs = v.inputs([ask])
    out = v.model.generate(
        **inputs,
        max_new_tokens=v.prompting.max_tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    ids = out.sequences[0, inputs["input_ids"].shape[1] :]
    logp = [torch.log_softmax(x[0].float(), -1)[i].item() for x, i in zip(out.logits, ids, strict=True)]
    return v.tokenizer.decode(ids, skip_special_tokens=True).strip(), logp


def make(v: PromptModel, asks: Sequence[tuple[Ask, np.ndarray]]) -> dict[str, Any]:
    """The golden file: the first of asks whose greedy answer the adapter changed; if there is none, the one whose
    log-probabilities moved most. v carries the adapter; disabling it gives the base."""
    best: tuple[float, dict[str, Any]] | None = None
    for ask, image in asks:
        answer, logp = greedy(v, ask)
        with v.model.disable_adapter():
            base_answer, base_logp = greedy(v, ask)
        moved = max(abs(a - b) for a, b in zip(logp, base_logp, strict=False))
        found = {
            "image_png_base64": png_base64(image),
            "text": ask.text,
            "messages": messages(ask.text),
            "max_tokens": v.prompting.max_tokens,
            "answer": answer,
            "logprobs": logp,
            "base_answer": base_answer,
            "base_logprobs": base_logp,
        }
        if answer != base_answer:
            return found
        if best is None or moved > best[0]:
            best = (moved, found)
    return best[1]


def png_base64(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
