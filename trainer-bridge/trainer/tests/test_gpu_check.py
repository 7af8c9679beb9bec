"""The GPU check on the CPU: it runs whole with miniatures, says that there is no GPU, and fails when it should."""

import torch

from ctrloop_trainer import gpu_check
from ctrloop_trainer.prompt import families, miniatures
from ctrloop_trainer.prompt.model import Prompting


def test_it_runs_whole_without_a_gpu(tmp_path, capsys, monkeypatch):
    """With a miniature in the place of the real model."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(miniatures, "KINDS", ("llava-1.6-mistral",))
    folder = miniatures.save(
        "qwen2.5-vl", tmp_path / "qwen", gpu_check.TEXTS * 3, Prompting(("ask",), 64, max_tokens=8)
    )
    code = gpu_check.main(["--model", str(folder), "--rank", "8", "--lr", "0.01"])
    out = capsys.readouterr().out
    assert code == 0, out
    assert "NO GPU" in out
    for part in ("bf16 against fp32", "qwen: DPO + PCPO", "qwen: adapter", "steps/s", "parameters trained"):
        assert part in out
    assert "all passed" in out


def test_a_wrong_prefix_and_a_loss_that_does_not_fall_are_failures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(miniatures, "KINDS", ("qwen2.5-vl",))
    monkeypatch.setattr(families, "adapter_problems", lambda family, keys: ["base_model.model.wrong"])
    assert gpu_check.main([]) == 1
    out = capsys.readouterr().out
    assert "would not be applied by vLLM" in out
    assert "FAILED" in out
    monkeypatch.setattr(gpu_check.losses, "dpo", lambda *a: torch.tensor(float("nan"), requires_grad=True))
    assert gpu_check.main([]) == 1
    assert "did not fall" in capsys.readouterr().out
