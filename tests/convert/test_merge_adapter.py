"""`musicgen-train convert merge-adapter`, as a command."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_latents import write_composite

from musicgen_train import MusicgenForConditionalGeneration
from musicgen_train.convert.__main__ import main
from musicgen_train.training.weights.adapter_files import save_adapter
from musicgen_train.training.weights.adapters import AdapterSettings, add_adapter, merged_state
from musicgen_train.training.weights.freezing import FreezeSettings


def test_an_adapter_becomes_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_composite(tmp_path / "base")
    model = MusicgenForConditionalGeneration.from_pretrained(base)
    settings = AdapterSettings(rank=2, alpha=4, dropout=0, targets=["heads"], dora=False, rank_stabilized=False)
    record = add_adapter(model, settings, FreezeSettings().trains(2), model.config.decoder, base=str(base), seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    save_adapter(model, record, tmp_path / "adapter", "card")

    moved = base.rename(tmp_path / "moved")
    arguments = ["merge-adapter", str(tmp_path / "adapter"), str(tmp_path / "merged")]
    assert main(arguments) == 1
    assert str(base) in capsys.readouterr().err
    assert main([*arguments, "--base", str(moved)]) == 0
    assert "read back and equal: all tensors" in capsys.readouterr().out
    found = MusicgenForConditionalGeneration.from_pretrained(tmp_path / "merged").state_dict()
    expected = merged_state(model)
    assert all(torch.equal(found[name], value) for name, value in expected.items())

    assert main([*arguments, "--base", str(moved)]) == 1
    assert "is not empty; choose another folder, or add --overwrite" in capsys.readouterr().err
    assert main([*arguments, "--base", str(moved), "--overwrite"]) == 0
