"""Optimizers that depend on what is installed and on the device, and stopping early."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny_run import RunWith
from torch import nn

from musicgen_train.training.step.optimizers import adamw, adamw_8bit


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


def pretend(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Let a package be found whose optimizer is what it was made of."""

    def made_of(parameters: list[nn.Parameter], **settings: Any) -> Any:
        return package, parameters, settings

    for name in (package, f"{package}.optim"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, loader=None)
        module.AdamW8bit = made_of  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize(
    ("installed", "taken"),
    [({"bitsandbytes"}, "bitsandbytes"), ({"torchao"}, "torchao"), ({"bitsandbytes", "torchao"}, "bitsandbytes")],
)
def test_8_bits_are_those_of_what_is_installed(
    monkeypatch: pytest.MonkeyPatch, installed: set[str], taken: str
) -> None:
    for package in ("bitsandbytes", "torchao"):
        monkeypatch.setitem(sys.modules, package, None)  # not found, even where it is installed
    for package in installed:
        pretend(monkeypatch, package)
    parameter = nn.Parameter(torch.ones(3))
    assert adamw_8bit([parameter], **SETTINGS) == (taken, [parameter], SETTINGS)  # type: ignore[arg-type]


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
