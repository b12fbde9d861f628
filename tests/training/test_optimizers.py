"""Optimizers that depend on what is installed and on the device, and stopping early."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from tiny_run import RunWith
from torch import nn

from musicgen_train.training.optimizers import adamw, require_8bit


def steps(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> torch.Tensor:
    """A parameter after some steps with the same gradients every time."""
    random = torch.Generator().manual_seed(0)
    for _ in range(5):
        parameter.grad = torch.randn(parameter.shape, generator=random).to(parameter.device)
        optimizer.step()
    return parameter.detach().cpu()


SETTINGS = {"lr": 0.1, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


@pytest.mark.parametrize("fused", [None, True, False])
def test_adamw_is_torchs(fused: bool | None) -> None:
    start = torch.linspace(-1, 1, 30)
    one, other = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    expected = steps(torch.optim.AdamW([other], **SETTINGS), other)  # type: ignore[arg-type]
    optimizer = adamw([one], fused=fused, **SETTINGS)  # type: ignore[arg-type]
    assert optimizer.defaults["fused"] is fused
    torch.testing.assert_close(steps(optimizer, one), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_it_is_one_kernel() -> None:
    start = torch.linspace(-1, 1, 30)
    one, other = nn.Parameter(start.cuda()), nn.Parameter(start.clone())
    optimizer = adamw([one], **SETTINGS)  # type: ignore[arg-type]
    assert optimizer.defaults["fused"] is True
    expected = steps(torch.optim.AdamW([other], **SETTINGS), other)  # type: ignore[arg-type]
    torch.testing.assert_close(steps(optimizer, one), expected)


@pytest.mark.skipif(
    any(importlib.util.find_spec(package) for package in ("bitsandbytes", "torchao")), reason="it is installed"
)
def test_8_bits_need_a_package(run_with: RunWith, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs bitsandbytes .* or torchao, and neither is installed: pip install"):
        run_with(tmp_path / "run", "optimizer=adamw_8bit")
    assert not (tmp_path / "run").exists()


def test_either_package_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for installed in ("bitsandbytes", "torchao"):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, installed=installed: name == installed or None)
        require_8bit()


def test_adafactor_trains(run_with: RunWith, tmp_path: Path) -> None:
    made = run_with(tmp_path / "run", "optimizer=adafactor", "optimizer.lr=0.01")
    [state] = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["optimizer_states"]
    kept = sum(value.numel() for values in state["state"].values() for value in values.values())
    # Rows and columns in place of two moments.
    assert kept < 0.2 * sum(parameter.numel() for parameter in made.module.parameters())


def test_a_run_stops_early_and_exports_its_best(
    run_with: RunWith, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # So large a step that it only gets worse.
    worse = ["optimizer.lr=1", "validate_every=1", "trainer.max_steps=50", "export.weights=best"]
    made = run_with(tmp_path / "run", *worse, "callbacks=early_stopping", "callbacks.early_stopping.patience=2")
    best, last = (
        torch.load(tmp_path / f"run/checkpoints/{name}.ckpt", weights_only=True)["global_step"]
        for name in ("best", "last")
    )
    assert last == made.trainer.global_step == best + 2
    assert f"stopped early, after step {last}: Monitored metric val/loss did not improve" in capsys.readouterr().out


def test_a_run_that_gets_better_goes_on(run_with: RunWith, tmp_path: Path) -> None:
    better = ["data.cfg_dropout=0", "optimizer.lr=1e-3", "schedule=constant", "validate_every=1"]
    made = run_with(tmp_path / "run", *better, "callbacks=ema_early_stopping", "callbacks.early_stopping.patience=3")
    assert made.trainer.global_step == 4
