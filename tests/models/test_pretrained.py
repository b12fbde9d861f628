"""Loading and saving whole models: dtypes, devices, memory, damage, and saves that replace a folder in use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from musicgen_train.hub.folder import PretrainedFolder
from musicgen_train.hub.weights import CheckpointError
from musicgen_train.models.config import (
    EncodecConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    PretrainedConfig,
    T5Config,
)
from musicgen_train.models.pretrained import PretrainedModel
from musicgen_train.models.t5 import T5EncoderModel


@dataclass(init=False, repr=False, eq=False)
class TinyConfig(PretrainedConfig):
    model_type: ClassVar[str] = "tiny"
    composite_key: ClassVar[str | None] = "decoder"

    width: int = 3
    dropout: float = 0.5

    def validate(self) -> None:
        self._require_positive("width")


class Tiny(PretrainedModel[TinyConfig]):
    """Layers with and without the range of float16, buffers of every kind, and one tensor with two names."""

    average: torch.Tensor
    steps: torch.Tensor

    config_class: ClassVar[type[PretrainedConfig]] = TinyConfig
    tied_keys: ClassVar[dict[str, str]] = {"tied.weight": "first.weight", "old_name": "first.weight"}
    keep_in_float32: ClassVar[tuple[str, ...]] = ("wo",)

    def __init__(self, config: TinyConfig) -> None:
        super().__init__(config)
        self.first = nn.Embedding(11, config.width)
        self.wo = nn.Linear(config.width, 5)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.tied = nn.Embedding(11, config.width)
        self.register_buffer("average", torch.zeros(7))
        self.register_buffer("steps", torch.tensor(13))
        self.dropout = nn.Dropout(config.dropout)
        self.notes = "fresh"
        self.tie_weights()

    def tie_weights(self) -> None:
        self.tied.weight = self.first.weight

    @classmethod
    def model_key(cls, file_key: str) -> str | None:
        if file_key.startswith("position_table"):
            return None
        return file_key.replace("gamma", "weight")

    def _read_companions(self, folder: PretrainedFolder) -> None:
        path = folder.find("notes.txt")
        self.notes = path.read_text() if path else "none"

    def _write_companions(self, folder: Path) -> None:
        (folder / "notes.txt").write_text(self.notes)


SAVED_KEYS = ["average", "first.weight", "frozen", "steps", "wo.bias", "wo.weight"]


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Tiny]:
    model = Tiny(TinyConfig(width=4))
    with torch.no_grad():
        model.average.normal_()
        model.steps.fill_(17)
    model.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny", model


def assert_same_state(model: nn.Module, other: nn.Module) -> None:
    mine, theirs = model.state_dict(), other.state_dict()
    assert list(mine) == list(theirs)
    for name, value in mine.items():
        assert value.dtype == theirs[name].dtype, name
        assert torch.equal(value, theirs[name]), name


def write_weights(folder: Path, change: Any) -> None:
    """Rewrite the weights after `change` has altered their dict."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


# ------------------------------------------------------------------------------------------------------- round trip


def test_round_trip(saved: tuple[Path, Tiny]) -> None:
    folder, model = saved
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "notes.txt"]
    assert sorted(load_file(folder / "model.safetensors")) == SAVED_KEYS
    config = json.loads((folder / "config.json").read_text())
    assert config == {
        "architectures": ["Tiny"],
        "dropout": 0.5,
        "dtype": "float32",
        "model_type": "tiny",
        "width": 4,
    }
    loaded = Tiny.from_pretrained(folder)
    assert_same_state(loaded, model)
    assert loaded.tied.weight is loaded.first.weight
    assert not loaded.training
    assert {name: value.requires_grad for name, value in loaded.named_parameters()} == {
        "first.weight": True,
        "wo.weight": True,
        "wo.bias": True,
        "frozen": False,
    }
    assert (loaded.notes, loaded.config.width, loaded.dtype, loaded.device.type) == ("fresh", 4, torch.float32, "cpu")
    assert loaded.num_parameters() == 11 * 4 + 4 * 5 + 5 + 2
    assert loaded.num_parameters(only_trainable=True) == 11 * 4 + 4 * 5 + 5


@pytest.mark.parametrize("old_format", [None, "zip", "legacy"])
@pytest.mark.parametrize("spelling", ["first.gamma", "tied.weight", "old_name"])
def test_files_with_other_names(spelling: str, old_format: str | None, saved: tuple[Path, Tiny]) -> None:
    folder, model = saved

    def rename(state: dict[str, torch.Tensor]) -> None:
        state[spelling] = state.pop("first.weight")
        state["position_table"] = torch.zeros(3)

    write_weights(folder, rename)
    if old_format:
        state = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=old_format == "zip")
    assert_same_state(Tiny.from_pretrained(folder), model)


def test_of_two_tied_names_the_written_one_counts(saved: tuple[Path, Tiny]) -> None:
    folder, model = saved
    # "old_name" sorts after "first.weight", "aaa" would before; what counts is which one is the alias.
    write_weights(
        folder, lambda state: state.update({"old_name": torch.zeros(11, 4), "tied.weight": torch.ones(11, 4)})
    )
    with pytest.raises(CheckpointError, match=r"has first.weight twice: as old_name and as tied.weight"):
        Tiny.from_pretrained(folder)
    write_weights(folder, lambda state: state.pop("tied.weight"))
    assert_same_state(Tiny.from_pretrained(folder), model)
    write_weights(folder, lambda state: state.update({"first.gamma": torch.zeros(11, 4)}))
    with pytest.raises(CheckpointError, match=r"has first.weight twice: as first.gamma and as first.weight"):
        Tiny.from_pretrained(folder)


def test_sharded_and_back(saved: tuple[Path, Tiny]) -> None:
    folder, model = saved
    (folder / "README.md").write_text("kept")
    model.save_pretrained(folder, max_shard_size=100)
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        "README.md",
        "config.json",
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
        "notes.txt",
    ]
    assert_same_state(Tiny.from_pretrained(folder), model)
    model.save_pretrained(folder, max_shard_size=260)
    assert sum(path.name.startswith("model-") for path in folder.iterdir()) == 2
    assert_same_state(Tiny.from_pretrained(folder), model)
    model.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "notes.txt",
    ]
    assert_same_state(Tiny.from_pretrained(folder), model)


def test_a_state_dict_in_place_of_the_models_own(saved: tuple[Path, Tiny]) -> None:
    folder, model = saved
    average = {name: torch.full_like(value, 3) for name, value in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=average)
    assert all(bool((value == 3).all()) for value in Tiny.from_pretrained(folder).state_dict().values())
    before = (folder / "model.safetensors").read_bytes()
    del average["wo.bias"]
    average["other"] = torch.zeros(1)
    average["frozen"] = torch.zeros(3)
    message = r"not a state of Tiny .*1 missing: wo.bias; 1 unexpected: other; 1 of another shape: frozen is \[3\], the"
    with pytest.raises(CheckpointError, match=message):
        model.save_pretrained(folder, state_dict=average)
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_model_without_values_is_not_saved(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = Tiny(TinyConfig())
    with pytest.raises(CheckpointError, match=r"tensors without values, on the meta device: frozen, average,"):
        model.save_pretrained(tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_loading_draws_no_random_numbers(saved: tuple[Path, Tiny]) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    Tiny.from_pretrained(saved[0])
    assert torch.equal(torch.rand(3), expected)


# --------------------------------------------------------------------------------------------------- dtype and device


@pytest.mark.parametrize(
    ("asked", "expected", "wo"),
    [
        (None, torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        ("bfloat16", torch.bfloat16, torch.bfloat16),
        ("torch.float64", torch.float64, torch.float64),
        # Only float16 lacks the range.
        (torch.float16, torch.float16, torch.float32),
        ("half", torch.float16, torch.float32),
        ("auto", torch.float32, torch.float32),
    ],
)
@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_dtypes(name: str, asked: Any, expected: torch.dtype, wo: torch.dtype, saved: tuple[Path, Tiny]) -> None:
    folder, model = saved
    loaded = Tiny.from_pretrained(folder, **{name: asked})
    for key, value in loaded.state_dict().items():
        original = model.state_dict()[key]
        target = original.dtype if key == "steps" else wo if key.startswith("wo.") else expected
        assert value.dtype == target, key
        assert torch.equal(value, original.to(target)), key


def test_dtype_auto_is_that_of_the_files(saved: tuple[Path, Tiny]) -> None:
    folder, model = saved
    model.to(torch.bfloat16).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert_same_state(Tiny.from_pretrained(folder, dtype="auto"), model)
    assert Tiny.from_pretrained(folder).dtype == torch.float32
    model.to(torch.float16).save_pretrained(folder)
    loaded = Tiny.from_pretrained(folder, dtype="auto")
    assert (loaded.first.weight.dtype, loaded.wo.weight.dtype) == (torch.float16, torch.float32)


def test_dtype_wins_over_its_older_name(saved: tuple[Path, Tiny]) -> None:
    assert Tiny.from_pretrained(saved[0], dtype="bfloat16", torch_dtype="float16").dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["float31", "int64", torch.int64, "Tensor", "", 16, "bf16"])
def test_what_is_no_dtype(dtype: Any, saved: tuple[Path, Tiny]) -> None:
    with pytest.raises(
        ValueError, match=r"dtype is .*; allowed are 'float32', 'bfloat16', 'float16', 'auto' or a torch"
    ):
        Tiny.from_pretrained(saved[0], dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_reference_takes_the_dtype_we_wrote(dtype: torch.dtype, tmp_path: Path) -> None:
    # A config from an older file says float32 in the older key too; neither may belie the weights.
    config = T5Config(d_model=12, d_kv=2, d_ff=10, num_layers=1, num_heads=3, vocab_size=17, torch_dtype="float32")
    T5EncoderModel(config).to(dtype).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["dtype"] == written["torch_dtype"] == str(dtype).removeprefix("torch.")
    assert transformers.T5EncoderModel.from_pretrained(tmp_path, dtype="auto").dtype == dtype


def test_device(saved: tuple[Path, Tiny]) -> None:
    for device in ("cpu", torch.device("cpu")):
        assert Tiny.from_pretrained(saved[0], device=device).device == torch.device("cpu")
    with pytest.raises(RuntimeError, match="no_such_device"):
        Tiny.from_pretrained(saved[0], device="no_such_device")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda(saved: tuple[Path, Tiny]) -> None:
    folder, model = saved
    loaded = Tiny.from_pretrained(folder, device="cuda", dtype="bfloat16")
    assert {value.device.type for value in loaded.state_dict().values()} == {"cuda"}
    loaded.save_pretrained(folder)
    assert_same_state(Tiny.from_pretrained(folder, dtype="auto"), model.to(torch.bfloat16))


# ----------------------------------------------------------------------------------------------------------- configs


def test_config_and_overrides(saved: tuple[Path, Tiny]) -> None:
    folder, _ = saved
    assert Tiny.from_pretrained(folder, dropout=0.25).dropout.p == 0.25
    config = TinyConfig(width=4, dropout=0.125)
    loaded = Tiny.from_pretrained(folder, config=config, output_attentions=True)
    assert (loaded.config.dropout, loaded.config.output_attentions) == (0.125, True)
    # The caller's config is not changed, nor is it shared.
    assert "output_attentions" not in config
    assert loaded.config is not config
    with pytest.raises(ValueError, match=r"TinyConfig has no 'droput'; did you mean 'dropout'"):
        Tiny.from_pretrained(folder, droput=0.25)
    with pytest.raises(ValueError, match=r"TinyConfig has no 'droput'; did you mean 'dropout'"):
        Tiny.from_pretrained(folder, config=config, droput=0.25)
    with pytest.raises(ValueError, match=r"TinyConfig.width is -1; allowed: a number above 0"):
        Tiny.from_pretrained(folder, width=-1)


def test_a_config_of_another_model(saved: tuple[Path, Tiny]) -> None:
    with pytest.raises(ValueError, match=r"Tiny needs a TinyConfig, got T5Config"):
        Tiny.from_pretrained(saved[0], config=T5Config())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"T5EncoderModel needs a T5Config, got transformers\..*\.T5Config"):
        T5EncoderModel(transformers.T5Config())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"config.json: model_type is 'tiny'; expected 't5'"):
        T5EncoderModel.from_pretrained(saved[0])


def test_a_config_changed_by_assignment_is_checked() -> None:
    config = TinyConfig()
    config.width = 0
    with pytest.raises(ValueError, match=r"TinyConfig.width is 0; allowed: a number above 0"):
        Tiny(config)


# ------------------------------------------------------------------------------------------------------------- damage


def test_all_that_does_not_fit_is_one_error(saved: tuple[Path, Tiny]) -> None:
    folder, _ = saved

    def damage(state: dict[str, torch.Tensor]) -> None:
        del state["wo.bias"], state["steps"]
        state["wo.weight"] = torch.zeros(4, 5)
        state["average"] = torch.zeros(8)
        state["extra.weight"] = torch.zeros(1)

    write_weights(folder, damage)
    with pytest.raises(CheckpointError) as caught:
        Tiny.from_pretrained(folder)
    assert str(caught.value) == (
        f"{folder} does not fit Tiny (6 tensors): 2 missing: steps, wo.bias; 1 unexpected: extra.weight; 2 of another "
        "shape: average is [8], the model's is [7], wo.weight is [4, 5], the model's is [5, 4]"
    )


def test_many_names_are_cut(saved: tuple[Path, Tiny]) -> None:
    write_weights(saved[0], lambda state: state.update({f"x{n:02}": torch.zeros(1) for n in range(20)}))
    with pytest.raises(CheckpointError, match=r"20 unexpected: x00, x01, .*x07 and 12 more$"):
        Tiny.from_pretrained(saved[0])


def test_folders_that_hold_no_model(saved: tuple[Path, Tiny], tmp_path: Path) -> None:
    folder, _ = saved
    with pytest.raises(FileNotFoundError, match=r"no-such/model/here is no folder on this machine"):
        Tiny.from_pretrained("no-such/model/here")
    with pytest.raises(
        FileNotFoundError, match=r"no-such/model is no folder on this machine and not in the hub's cache"
    ):
        Tiny.from_pretrained("no-such/model")
    with pytest.raises(NotADirectoryError, match=r"config.json is a file; give the folder"):
        Tiny.from_pretrained(folder / "config.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"has no config.json \(the file that TinyConfig .* The folder is empty"
    ):
        Tiny.from_pretrained(tmp_path / "empty")
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"has no weights: expected .* The folder holds: config.json, notes.txt"
    ):
        Tiny.from_pretrained(folder)


def test_a_subfolder(saved: tuple[Path, Tiny], tmp_path: Path) -> None:
    assert_same_state(Tiny.from_pretrained(tmp_path, subfolder="tiny"), saved[1])


# -------------------------------------------------------------------------------------------------------- composites


def test_the_part_of_a_composite(tmp_path: Path) -> None:
    """Every part of a composite that transformers wrote loads from its folder, and nothing else of it is read."""
    reference = transformers.MusicgenForConditionalGeneration(
        transformers.MusicgenConfig(
            text_encoder={
                "model_type": "t5",
                "d_model": 12,
                "d_kv": 2,
                "d_ff": 10,
                "num_layers": 2,
                "num_heads": 3,
                "vocab_size": 17,
            },
            audio_encoder={
                "model_type": "encodec",
                "num_filters": 2,
                "hidden_size": 6,
                "codebook_size": 16,
                "target_bandwidths": [1.2],
                "num_lstm_layers": 1,
            },
            decoder={
                "hidden_size": 8,
                "num_attention_heads": 2,
                "num_hidden_layers": 1,
                "ffn_dim": 10,
                "vocab_size": 16,
                "pad_token_id": 16,
                "bos_token_id": 16,
            },
        )
    )
    reference.save_pretrained(tmp_path)
    ours = T5EncoderModel.from_pretrained(tmp_path)
    theirs = reference.text_encoder.state_dict()
    assert ours.config.d_ff == 10
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs[name]), name
    ours.save_pretrained(tmp_path / "alone")
    report: Any = transformers.T5EncoderModel.from_pretrained(tmp_path / "alone", output_loading_info=True)
    assert not report[1]["missing_keys"]
    assert not report[1]["unexpected_keys"]


def test_a_part_by_prefix(saved: tuple[Path, Tiny]) -> None:
    folder, model = saved
    state = load_file(folder / "model.safetensors")
    whole = {f"decoder.{name}": value for name, value in state.items()}
    save_file(
        {**whole, "text_encoder.x": torch.zeros(1), "enc_to_dec_proj.bias": torch.zeros(2)},
        folder / "model.safetensors",
    )
    config = MusicgenConfig().to_dict()
    config["decoder"] = model.config.to_dict()
    (folder / "config.json").write_text(json.dumps(config))
    assert_same_state(Tiny.from_pretrained(folder), model)
    # A config given by the caller does not change where the tensors are.
    assert_same_state(Tiny.from_pretrained(folder, config=TinyConfig(width=4)), model)


# ------------------------------------------------------------------------------------------------------------ memory


def test_training_a_mapped_model_leaves_its_file(saved: tuple[Path, Tiny]) -> None:
    folder, _ = saved
    file = folder / "model.safetensors"
    before = file.read_bytes()
    loaded = Tiny.from_pretrained(folder)
    assert str(file) in Path("/proc/self/maps").read_text()
    optimizer = torch.optim.SGD(loaded.parameters(), lr=1.0)
    start = {name: value.clone() for name, value in loaded.state_dict().items()}
    loaded.wo(loaded.tied(torch.tensor([1, 2]))).sum().backward()
    optimizer.step()
    loaded.average.add_(1)
    for name in ("first.weight", "wo.weight", "wo.bias", "average"):
        assert not torch.equal(loaded.state_dict()[name], start[name]), name
    assert file.read_bytes() == before
    assert torch.equal(Tiny.from_pretrained(folder).first.weight, start["first.weight"])


@pytest.mark.parametrize("max_shard_size", ["5GB", "100KB"])
def test_a_mapped_model_keeps_its_values_when_its_folder_is_replaced(
    max_shard_size: str, saved: tuple[Path, Tiny]
) -> None:
    folder, model = saved
    live = Tiny.from_pretrained(folder)
    other = Tiny(TinyConfig(width=4))
    other.save_pretrained(folder, max_shard_size=max_shard_size)
    assert_same_state(live, model)
    assert_same_state(Tiny.from_pretrained(folder), other)
    # It may also be saved over the files that it maps.
    reloaded = Tiny.from_pretrained(folder)
    with torch.no_grad():
        reloaded.first.weight.mul_(2)
    reloaded.save_pretrained(folder)
    assert torch.equal(Tiny.from_pretrained(folder).first.weight, other.first.weight * 2)


# Loads argv[1] and prints by how many bytes peak memory grew, and whether torch's compiler came along.
MEASURE = """
import resource, sys
import torch
from musicgen_train.models.t5 import T5EncoderModel

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before = peak()
model = T5EncoderModel.from_pretrained(sys.argv[1], dtype="auto")
print(peak() - before, "torch._dynamo" in sys.modules)
"""


def test_loading_maps_the_files(tmp_path: Path) -> None:
    config = T5Config(vocab_size=100_000, d_model=500, d_kv=2, d_ff=10, num_layers=1, num_heads=3)
    with torch.device("meta"):
        model = T5EncoderModel(config)
    model.to_empty(device="cpu").save_pretrained(tmp_path)
    size = os.path.getsize(tmp_path / "model.safetensors")
    assert size > 200_000_000
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    grown, compiler = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert int(grown) < size / 8
    assert compiler == "False"


class Forgetful(Tiny):
    def __init__(self, config: TinyConfig) -> None:
        super().__init__(config)
        self.register_buffer("table", torch.zeros(3), persistent=False)


def test_a_tensor_that_no_file_fills_is_our_bug(saved: tuple[Path, Tiny]) -> None:
    with pytest.raises(AssertionError, match=r"Forgetful has tensors that no file gives values: \['table'\]"):
        Forgetful.from_pretrained(saved[0])


def test_from_config_has_random_weights() -> None:
    torch.manual_seed(3)
    first = Tiny.from_config(TinyConfig())
    assert first.training
    assert not torch.equal(first.wo.weight, Tiny.from_config(TinyConfig()).wo.weight)


def test_save_writes_what_the_config_has_become(saved: tuple[Path, Tiny]) -> None:
    folder, model = saved
    model.config.update(dropout=0.75)
    model.save_pretrained(folder)
    assert TinyConfig.from_pretrained(folder).dropout == 0.75
    model.config.dropout = "high"  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"TinyConfig.dropout is 'high', a str; expected float"):
        model.save_pretrained(folder)
    assert TinyConfig.from_pretrained(folder).dropout == 0.75


def test_parts_of_a_composite_config_have_the_dtype_too(tmp_path: Path) -> None:
    class Whole(PretrainedModel[MusicgenConfig]):
        config_class: ClassVar[type[PretrainedConfig]] = MusicgenConfig

        def __init__(self, config: MusicgenConfig) -> None:
            super().__init__(config)
            self.linear = nn.Linear(2, 3)

    config = MusicgenConfig(
        text_encoder=T5Config(torch_dtype="float32"),
        audio_encoder=EncodecConfig(),
        decoder=MusicgenDecoderConfig(dtype="float16"),
    )
    Whole(config).to(torch.bfloat16).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    parts = [written, written["text_encoder"], written["audio_encoder"], written["decoder"]]
    assert [part["dtype"] for part in parts] == ["bfloat16"] * 4
    assert written["text_encoder"]["torch_dtype"] == "bfloat16"
    assert "torch_dtype" not in written["decoder"]
    assert transformers.AutoConfig.from_pretrained(tmp_path).dtype == torch.bfloat16
