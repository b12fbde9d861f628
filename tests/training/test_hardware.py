"""The presets by GPU memory: what they promise fits by the estimate, and accumulation follows from the batch."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import yaml
from hydra.utils import instantiate
from tiny_run import compose
from torch import nn

from musicgen_train import MusicgenDecoderConfig, MusicgenForCausalLM
from musicgen_train.launch import CONFIG_FOLDER
from musicgen_train.training.memory import GIB, ModelMemory, Step
from musicgen_train.training.settings import read_settings
from musicgen_train.training.weights.adapters import AdapterRecord, AdapterSettings, inject, modules_pattern
from musicgen_train.training.weights.freezing import PARAMETER_GROUPS, group_predicate

GIVEN = ["data.path=LATENTS", "init_from=MODEL", "output=RUN", "trainer.max_steps=3"]
# Of the codec in float32; and what CUDA, the driver and the allocator take of a card.
CODEC, TAKEN = 0.24 * GIB, 1.2 * GIB
# torch.cuda.get_device_properties of cards sold as so many GB tells about so many GiB, or a little less.
CARDS = {"8g": 7.7, "16g": 15.6, "24g": 23.6, "80g": 79.1}
LORA = ["adapter=lora", "model.activation_checkpointing=true"]


@functools.cache
def model_of(size: str, adapted: bool) -> tuple[nn.Module, MusicgenDecoderConfig, AdapterRecord | None]:
    """Without values, with its adapter."""
    architecture = yaml.safe_load((CONFIG_FOLDER / f"model/{size}.yaml").read_text())["architecture"]
    config = MusicgenDecoderConfig(**{**architecture, "dropout": 0.0})
    with torch.device("meta"):
        model = nn.ModuleDict(
            {"decoder": MusicgenForCausalLM(config), "enc_to_dec_proj": nn.Linear(768, config.hidden_size)}
        )
    if not adapted:
        return model, config, None
    settings = AdapterSettings(**compose("train", *GIVEN, "adapter=lora").adapter)
    groups = [group_predicate(name, config.num_hidden_layers, "") for name in settings.targets]
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(group(f"{name}.") for group in groups)
    ]
    record = AdapterRecord(
        base="", base_fingerprint="", audio_channels=1, modules=modules_pattern(names), rank=settings.rank,
        alpha=settings.alpha, dropout=settings.dropout, dora=settings.dora, rank_stabilized=settings.rank_stabilized,
    )  # fmt: skip
    with torch.device("meta"):
        inject(model, record)
    return model, config, record


@pytest.mark.parametrize(
    ("preset", "size", "changes"),
    [
        ("8g", "small", []),
        ("16g", "small", []),
        ("16g", "medium", LORA),
        ("24g", "small", []),
        ("24g", "medium", LORA),
        ("24g", "large", LORA),
        ("80g", "medium", []),
        ("80g", "large", []),
    ],
)
def test_what_a_preset_promises_fits(preset: str, size: str, changes: list[str]) -> None:
    config = compose("train", *GIVEN, f"hardware={preset}", *changes)
    settings = read_settings(config)
    model, decoder_config, record = model_of(size, settings.adapter is not None)
    memory = ModelMemory(
        model, decoder_config, instantiate(config.optimizer), device=torch.device("cuda"), beside=int(CODEC),
        adapter=record,
    )  # fmt: skip
    needed = memory.of(
        Step(
            clips=settings.data.micro_batch(1),
            frames=1500,
            precision=config.trainer.precision,
            checkpointing=settings.model.activation_checkpointing,
            accumulate=settings.data.accumulate(1),
        )
    )
    assert needed.total + TAKEN < CARDS[preset] * GIB


@pytest.mark.parametrize("preset", CARDS)
def test_the_global_batch_stays_and_accumulation_follows(preset: str) -> None:
    data = read_settings(compose("train", *GIVEN, f"hardware={preset}", "data.global_batch_size=48")).data
    assert data.global_batch_size == 48
    for devices in (1, 2, 3):
        assert data.micro_batch(devices) * data.accumulate(devices) * devices == 48


def test_a_batch_that_does_not_divide_is_refused() -> None:
    data = read_settings(compose("train", *GIVEN, "hardware=16g", "data.global_batch_size=12")).data
    with pytest.raises(ValueError, match=r"global_batch_size=12 is no multiple of data.micro_batch_size=8"):
        data.accumulate(1)


def test_presets_win_over_experiments_and_the_command_line_over_both() -> None:
    def settings(*overrides: str) -> Any:
        return compose("train", *GIVEN, *overrides)

    both = settings("experiment=finetune", "hardware=8g")
    assert (both.optimizer.lr, both.data.micro_batch_size, both.adapter.rank) == (1e-4, 4, 16)
    assert both.samples.every == 400
    assert settings("experiment=finetune", "hardware=8g", "optimizer.lr=0.5").optimizer.lr == 0.5
    assert settings("experiment=finetune", "hardware=16g").optimizer.lr == 1e-5


def test_groups_that_an_adapter_takes_are_groups() -> None:
    assert set(compose("train", *GIVEN, "adapter=lora").adapter.targets) <= set(PARAMETER_GROUPS)
