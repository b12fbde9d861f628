"""The memory estimate against what torch keeps, allocates and stores."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import RunWith
from torch import nn

from musicgen_train import MusicgenDecoderConfig, MusicgenForCausalLM
from musicgen_train.models.delay_pattern import training_labels
from musicgen_train.training.memory import GIB, MakeOptimizer, ModelMemory, Step, capacity_of, require_room
from musicgen_train.training.step.optimizers import adamw
from musicgen_train.training.step.scores import score
from musicgen_train.training.weights.adapters import AdapterSettings, add_adapter
from musicgen_train.training.weights.freezing import FreezeSettings, freeze_parameters

CPU = torch.device("cpu")
ADAMW = functools.partial(adamw, lr=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
LAYERS, CLIPS, FRAMES, TEXT = 5, 3, 200, 7
SCALARS = 100  # bytes that a loss itself keeps


def adapter(**changes: Any) -> AdapterSettings:
    targets = ["self_attention", "cross_attention", "feed_forward"]
    values: dict[str, Any] = {"rank": 3, "alpha": 6, "dropout": 0.0, "dora": False, "rank_stabilized": False}
    return AdapterSettings(targets=targets, **{**values, **changes})


class Training:
    """A small decoder with its projection, ready for a step."""

    def __init__(
        self, adapter: AdapterSettings | None = None, freezing: FreezeSettings | None = None, dropout: float = 0.0
    ) -> None:
        self.config = MusicgenDecoderConfig(
            vocab_size=160,
            pad_token_id=160,
            bos_token_id=160,
            hidden_size=64,
            ffn_dim=200,
            num_hidden_layers=LAYERS,
            num_attention_heads=2,
            dropout=dropout,
        )
        self.decoder, self.projection = MusicgenForCausalLM(self.config), nn.Linear(24, 64)
        self.model = nn.ModuleDict({"decoder": self.decoder, "enc_to_dec_proj": self.projection}).train()
        freezing = freezing or FreezeSettings()
        record = None
        if adapter is not None:
            record = add_adapter(self.model, adapter, freezing.trains(LAYERS), self.config, base="base", seed=0)
        else:
            freeze_parameters(self.model, freezing, LAYERS)
        self.memory = ModelMemory(self.model, self.config, ADAMW, device=CPU, adapter=record)

    def loss(self, half: bool) -> torch.Tensor:
        codes = torch.randint(0, 160, (CLIPS, 4, FRAMES))
        labels = training_labels(codes, self.decoder.delays, 160)
        # As Lightning has it.
        with torch.autocast("cpu", torch.bfloat16, enabled=half, cache_enabled=False):
            text = self.model["enc_to_dec_proj"](torch.randn(CLIPS, TEXT, 24))
            return score(self.decoder, labels, text, torch.ones(CLIPS, TEXT)).loss


def step(half: bool = False, **changes: Any) -> Step:
    values: dict[str, Any] = {"clips": CLIPS, "frames": FRAMES, "text_length": TEXT, "checkpointing": False}
    return Step(**{"precision": "bf16-mixed" if half else "32-true", **values, **changes})


def bytes_kept(training: Training, half: bool) -> int:
    """What the graph of a loss keeps for its backward pass, but for the weights, their rounded copies and gradients."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in training.model.parameters()}
    shapes = {parameter.shape for parameter in training.model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        copy_of_weight = tensor.dim() > 1 and (tensor.shape in shapes or tensor.mT.shape in shapes)
        if tensor.untyped_storage().data_ptr() not in weights and not copy_of_weight:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        training.loss(half)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [
        ({}, 0.002),
        ({"dropout": 0.1}, 0.002),
        ({"freezing": FreezeSettings(freeze=["layers.0-2", "embeddings", "text_projection"])}, 0.01),
        # What the first layer keeps, below which nothing is trained, is counted as if something were.
        ({"adapter": adapter()}, 0.05),
        ({"adapter": adapter(dropout=0.1)}, 0.05),
        # What DoRA's lengths keep for a moment is seen by the hooks, too.
        ({"adapter": adapter(dora=True)}, 0.1),
        ({"freezing": FreezeSettings(train_only=["cross_attention"])}, 0.12),
        ({"freezing": FreezeSettings(train_only=["heads"])}, 0.0),
    ],
    ids=["full", "dropout", "upper layers", "lora", "lora with dropout", "dora", "cross-attention", "heads"],
)
def test_what_the_backward_pass_keeps(kind: dict[str, Any], tolerance: float, half: bool) -> None:
    training = Training(**kind)
    assert training.memory.saved_bytes(step(half)) == pytest.approx(
        bytes_kept(training, half), rel=tolerance, abs=SCALARS
    )


def peak_of(work: Any) -> int:
    """The most bytes that torch holds at once on the CPU during some work, beyond those before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = profile.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    peak = held = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


# torch 2.11 warns of what it does by default.
@pytest.mark.filterwarnings("ignore:.*Profiler clears events:UserWarning")
@pytest.mark.parametrize(
    ("kind", "checkpointing", "half"),
    [({}, False, False), ({}, False, True), ({}, True, True), ({"adapter": adapter()}, True, True)],
    ids=["all", "all in bfloat16", "checkpointed", "lora, checkpointed"],
)
def test_the_peak_of_a_step(kind: dict[str, Any], checkpointing: bool, half: bool) -> None:
    training = Training(**kind)
    if checkpointing:
        training.decoder.gradient_checkpointing_enable()
    parameters = [parameter for parameter in training.model.parameters() if parameter.requires_grad]
    optimizer = ADAMW(parameters)
    training.loss(half).backward()
    optimizer.step()

    def second_micro_batch() -> None:
        training.loss(half).backward()

    # Of a second micro-batch: weights, gradients and optimizer are there before.
    found = training.memory.of(step(half, checkpointing=checkpointing, accumulate=2))
    assert found.activations == pytest.approx(peak_of(second_micro_batch), rel=0.25 if checkpointing else 0.1)
    assert found.gradients == sum(parameter.grad.nbytes for parameter in parameters if parameter.grad is not None)
    assert found.weights == sum(parameter.nbytes for parameter in training.model.parameters())
    assert found.optimizer == stored(optimizer)


def stored(optimizer: torch.optim.Optimizer) -> int:
    tensors = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize(
    "make",
    [
        ADAMW,
        functools.partial(torch.optim.Adam, lr=0.1),
        functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        functools.partial(torch.optim.SGD, lr=0.1),
        functools.partial(torch.optim.Adafactor, lr=0.1),
    ],
    ids=["adamw", "adam", "momentum", "sgd", "adafactor"],
)
def test_the_optimizer_is_counted_exactly(make: MakeOptimizer) -> None:
    training = Training()
    found = ModelMemory(training.model, training.config, make, device=CPU).of(step()).optimizer
    before = [parameter.clone() for parameter in training.model.parameters()]
    optimizer = make(training.model.parameters())  # type: ignore[arg-type]
    assert all(torch.equal(*pair) for pair in zip(before, training.model.parameters(), strict=True))
    training.loss(False).backward()
    optimizer.step()
    assert found == stored(optimizer)


def test_what_adds_up() -> None:
    training = Training()
    parameters = 4 * sum(parameter.numel() for parameter in training.model.parameters())
    averaged = ModelMemory(training.model, training.config, ADAMW, device=CPU, averages=True, beside=1000)
    found = averaged.of(step(world_size=2))
    assert found.weights == parameters + 1000
    assert found.average == parameters
    assert found.gradients == 2 * parameters
    assert found.lasting == found.weights + found.optimizer + found.average
    assert found.total == found.lasting + max(found.gradients, found.activations)
    assert averaged.of(step(accumulate=2)).total == found.lasting + parameters + found.activations
    assert averaged.of(step(precision="bf16-true")).weights == parameters // 2 + 1000


def test_released_sizes() -> None:
    # 420 million parameters of 4 bytes, their gradients and two moments: 6.3 GiB, as docs/training.md says.
    config = MusicgenDecoderConfig()
    with torch.device("meta"):
        model = nn.ModuleDict({"decoder": MusicgenForCausalLM(config), "enc_to_dec_proj": nn.Linear(768, 1024)})
    found = ModelMemory(model, config, ADAMW, device=CPU).of(step(clips=1, frames=1500))
    assert found.needed / GIB == pytest.approx(6.3, abs=0.05)


def test_too_large_a_step_is_told_and_what_would_fit() -> None:
    memory, asked = Training().memory, step(clips=4, frames=400)
    size = memory.of(asked)
    assert require_room(memory, asked, None) is None
    assert require_room(memory, asked, size.total) is None
    warning = require_room(memory, asked, size.total - 1)
    assert warning is not None
    assert "What would fit: data.micro_batch_size=2 (" in warning
    # Too little for anything but single clips, computed twice.
    least = memory.of(step(clips=1, frames=400, checkpointing=True, accumulate=4)).total
    warning = require_room(memory, asked, least)
    assert warning is not None
    assert warning.endswith(
        f"What would fit: data.micro_batch_size=1 model.activation_checkpointing=true ({least / GIB:.2f} GiB)"
    )
    warning = require_room(memory, asked, size.needed + 1)
    assert warning is not None
    assert "What would fit: data.crop_seconds below what it is, or adapter=lora" in warning


def test_a_model_that_cannot_fit_is_refused() -> None:
    memory = Training().memory
    with pytest.raises(ValueError, match=r"weights, gradients and optimizer alone take .* adapter=lora, or optimizer="):
        require_room(memory, step(), memory.of(step()).needed - 1)


def test_a_run_tells_estimate_and_peak(
    run_with: RunWith, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(tmp_path / "run", "callbacks=ema")
    printed = capsys.readouterr().out
    assert "memory: about 0.00 GiB (weights 0.00, gradients 0.00, optimizer 0.00, average 0.00, activ" in printed
    assert "more at the peak than before training" in printed
    monkeypatch.setattr("musicgen_train.training.memory.capacity_of", lambda device: 10_000)
    with pytest.raises(ValueError, match="weights, gradients and optimizer alone take"):
        run_with(tmp_path / "other")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not forget a peak")
def test_what_was_needed_before_training_is_not_counted(
    run_with: RunWith, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("musicgen_train.training.run.run_checks", lambda *_: torch.ones(2**27))  # half a GiB
    run_with(tmp_path / "run", "checks.enabled=true")
    [peak] = re.findall(r"memory: ([\d.]+) GiB more at the peak than before training", capsys.readouterr().out)
    assert float(peak) < 0.3


def test_the_cpu_has_what_the_system_says() -> None:
    found = capacity_of(CPU)
    assert found is not None
    assert 2**28 < found < 2**45
