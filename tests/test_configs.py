"""Every config file of training: it composes, says what it is, and runs as far as this machine can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tiny_latents import write_composite, write_latents
from tiny_run import TRAIN, VALIDATION, compose

from musicgen_train import MusicgenDecoderConfig, MusicgenForCausalLM
from musicgen_train.launch import CONFIG_FOLDER
from musicgen_train.training.run import run
from musicgen_train.training.settings import read_settings

GROUPS = (
    "model",
    "data",
    "adapter",
    "optimizer",
    "schedule",
    "trainer",
    "callbacks",
    "logger",
    "hardware",
    "experiment",
)
CHOICES = [(group, path.stem) for group in GROUPS for path in sorted((CONFIG_FOLDER / group).glob("*.yaml"))]
FILES = sorted([*(CONFIG_FOLDER / f"{group}/{name}.yaml" for group, name in CHOICES), CONFIG_FOLDER / "train.yaml"])
GIVEN = ["data.path=LATENTS", "output=RUN"]
STEPS = "trainer.max_steps=3"

# Millions of parameters, mono (field notes 4.2; the sizes of the files on the hub), and what stereo adds.
PUBLISHED = {"small": (419.6, 16.8), "medium": (1837.6, 25.1), "large": (3255.4, 33.4)}


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("configs")
    return write_latents(folder / "latents", write_composite(folder / "composite"), TRAIN, VALIDATION)


def test_the_groups_are_not_empty() -> None:
    assert {group for group, _ in CHOICES} == set(GROUPS)


@pytest.mark.parametrize(("group", "name"), CHOICES, ids=lambda value: str(value))
def test_every_choice_composes_into_settings(group: str, name: str) -> None:
    needs = [] if (group, name) == ("experiment", "scratch") else ["init_from=MODEL"]
    steps = [] if group == "experiment" and name != "demo" else [STEPS]
    given = ["data.mix=[{path: LATENTS}]", "output=RUN"] if (group, name) == ("data", "mix") else GIVEN
    config = compose("train", *given, *needs, *steps, f"{group}={name}")
    settings = read_settings(config)
    assert settings.max_steps >= 1
    instantiate(config.optimizer)
    [instantiate(callback) for callback in config.callbacks.values()]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIG_FOLDER)))
def test_every_file_says_what_it_is(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if "@package" not in line]
    assert lines[0].startswith("# ")


# What Hydra or torch name, what a name says, or what the line above it explains for a group of keys.
_SELF_EXPLAINING = {"defaults", "_target_", "_partial_", "_convert_", "lr", "betas", "eps", "momentum", "weight_decay"}
_SELF_EXPLAINING |= {"dirpath", "filename", "monitor", "mode", "enable_version_counter", "num_nodes", "temperature"}
_SELF_EXPLAINING |= {"project", "save_dir", "offline", "checks", "samples", "export", "progress", "last", "best"}
_SELF_EXPLAINING |= {"early_stopping", "wandb", "shape", "architecture"}


@pytest.mark.parametrize(
    "name", ["train", "data/latents", "data/mix", "trainer/auto", "model/inherited", "schedule/cosine", "adapter/lora"]
)
def test_settings_are_explained_where_they_stand(name: str) -> None:
    lines = (CONFIG_FOLDER / f"{name}.yaml").read_text().splitlines()
    for number, line in enumerate(lines):
        key = line.strip().partition(":")[0]
        if not line.strip() or line.strip().startswith(("#", "- ")) or key in _SELF_EXPLAINING:
            continue
        assert lines[number - 1].strip().startswith("#"), f"{name}.yaml: {key} has no comment above it"


@pytest.mark.parametrize("size", PUBLISHED)
def test_sizes_are_those_of_the_released_models(size: str) -> None:
    mono, more = PUBLISHED[size]
    counts = []
    for name in (size, f"{size}_stereo"):
        architecture = OmegaConf.to_container(compose("train", f"model={name}").model.architecture)
        with torch.device("meta"):
            model = MusicgenForCausalLM(MusicgenDecoderConfig(**architecture))  # type: ignore[arg-type]
        counts.append(model.num_parameters() / 1e6)
    assert counts[0] == pytest.approx(mono, abs=0.06)
    assert counts[1] - counts[0] == pytest.approx(more, abs=0.2)


def test_tiny_differs_from_small_in_size_only() -> None:
    tiny, small = (yaml.safe_load((CONFIG_FOLDER / f"model/{name}.yaml").read_text()) for name in ("tiny", "small"))
    assert tiny.keys() == small.keys()
    assert tiny["architecture"].keys() == small["architecture"].keys()
    with torch.device("meta"):
        model = MusicgenForCausalLM(MusicgenDecoderConfig(**tiny["architecture"]))
    assert model.num_parameters() / 1e6 == pytest.approx(3, abs=0.5)


@pytest.mark.parametrize("name", [name for group, name in CHOICES if group == "experiment"])
def test_every_experiment_runs(name: str, latents: Path, tmp_path: Path) -> None:
    # Only sizes, and devices this machine has not, are changed.
    small: dict[str, Any] = {
        "data.path": latents,
        "output": tmp_path / "run",
        "trainer": "cpu",
        "trainer.fast_dev_run": "true",
        "data.global_batch_size": 2,
        "data.workers": 0,
        "samples.seconds": 0.2,
        "trainer.max_steps": 3,
    }
    if name == "scratch":
        small["model"] = "tiny"
        small |= {"model.architecture.hidden_size": 16, "model.architecture.ffn_dim": 24}
    else:
        small["init_from"] = latents.parent / "composite"
    made = run(compose("train", f"experiment={name}", *(f"{key}={value}" for key, value in small.items())))
    assert made.trainer.global_step == 1
    assert (made.composite / "model.safetensors").is_file()
