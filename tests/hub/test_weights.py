"""Tests weight files of every format, whole and damaged, against safetensors, torch and transformers."""

from __future__ import annotations

import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from musicgen_train.hub.folder import PretrainedFolder
from musicgen_train.hub.weights import (
    CheckpointError,
    WeightFiles,
    is_weight_file,
    open_weights,
    parse_size,
    save_weights,
)

STATE = {
    "b.weight": torch.arange(35, dtype=torch.float32).reshape(5, 7),
    "a.weight": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
    "steps": torch.tensor(11),
    "mask": torch.tensor([True, False, True]),
    "empty": torch.zeros(0, 3),
    "half": torch.full((13,), 0.1, dtype=torch.float16),
}


def assert_same(weights: WeightFiles, state: dict[str, torch.Tensor]) -> None:
    assert weights.keys() == list(weights) == sorted(state)
    assert len(weights) == len(state)
    for name, value in state.items():
        assert weights.shape(name) == tuple(value.shape)
        read = weights.tensor(name)
        assert read.dtype == value.dtype
        assert torch.equal(read, value)
        assert not read.requires_grad


def opened(path: Path) -> WeightFiles:
    return open_weights(PretrainedFolder(path))


# ---------------------------------------------------------------------------------------------------------- formats


def test_a_single_file(tmp_path: Path) -> None:
    save_weights(STATE, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert_same(opened(tmp_path), STATE)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    by_reference = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(by_reference[name], value) for name, value in STATE.items())


def test_shards_hold_as_much_as_the_limit_allows(tmp_path: Path) -> None:
    # Bytes: b.weight 140, a.weight 12, steps 8, mask 3, empty 0, half 26.
    save_weights(STATE, tmp_path, max_shard_size=37)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 140 + 12 + 8 + 3 + 26}
    shards: dict[str, list[str]] = {}
    for name, shard in index["weight_map"].items():
        shards.setdefault(shard, []).append(name)
    assert {shard: sorted(names) for shard, names in shards.items()} == {
        "model-00001-of-00003.safetensors": ["b.weight"],  # larger than the limit: alone
        "model-00002-of-00003.safetensors": ["a.weight", "empty", "mask", "steps"],
        "model-00003-of-00003.safetensors": ["half"],
    }
    for shard, names in shards.items():
        assert sorted(load_file(tmp_path / shard)) == sorted(names)
    assert_same(opened(tmp_path), STATE)


def test_a_limit_that_is_just_met(tmp_path: Path) -> None:
    total = sum(value.nbytes for value in STATE.values())
    save_weights(STATE, tmp_path / _made(tmp_path, "one"), max_shard_size=total)
    save_weights(STATE, tmp_path / _made(tmp_path, "two"), max_shard_size=total - 1)
    assert len(list((tmp_path / "one").iterdir())) == 1
    assert len(list((tmp_path / "two").iterdir())) == 3


def _made(parent: Path, name: str) -> str:
    (parent / name).mkdir()
    return name


class ReferenceModel(PreTrainedModel):
    """Is a model of transformers, which writes the reference's files."""

    config_class = PretrainedConfig

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        self.first = nn.Linear(7, 11)
        self.second = nn.Linear(11, 3, bias=False)
        self.post_init()


@pytest.mark.parametrize("limit", ["5GB", "200B"])
def test_files_of_the_reference(limit: str, tmp_path: Path) -> None:
    model = ReferenceModel(PretrainedConfig())
    model.save_pretrained(tmp_path, max_shard_size=400 if limit == "200B" else limit)
    assert (tmp_path / "model.safetensors.index.json").exists() == (limit == "200B")
    assert_same(opened(tmp_path), dict(model.state_dict()))


@pytest.mark.parametrize("limit", [10**9, 400])
def test_the_reference_reads_our_files(limit: int, tmp_path: Path) -> None:
    model = ReferenceModel(PretrainedConfig())
    model.config.save_pretrained(tmp_path)
    save_weights(model.state_dict(), tmp_path, limit)
    assert (tmp_path / "model.safetensors.index.json").exists() == (limit == 400)
    result: Any = ReferenceModel.from_pretrained(tmp_path, output_loading_info=True)
    loaded, report = result
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("zip_format", [True, False])
def test_old_bin_files(zip_format: bool, tmp_path: Path) -> None:
    torch.save(OrderedDict(STATE), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zip_format)
    assert_same(opened(tmp_path), STATE)


def test_old_bin_files_of_parameters(tmp_path: Path) -> None:
    torch.save({"weight": nn.Parameter(STATE["b.weight"])}, tmp_path / "pytorch_model.bin")
    assert_same(opened(tmp_path), {"weight": STATE["b.weight"]})


@pytest.mark.parametrize("zip_format", [True, False])
def test_old_bin_files_in_shards(zip_format: bool, tmp_path: Path) -> None:
    weight_map = {}
    for number, names in enumerate((["b.weight", "mask"], ["a.weight", "steps", "empty", "half"]), start=1):
        file_name = f"pytorch_model-{number:05d}-of-00002.bin"
        part = {name: STATE[name] for name in names}
        torch.save(part, tmp_path / file_name, _use_new_zipfile_serialization=zip_format)
        weight_map.update(dict.fromkeys(names, file_name))
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert_same(opened(tmp_path), STATE)


def test_which_file_is_read_where_there_are_several(tmp_path: Path) -> None:
    def value_read() -> float:
        return float(opened(tmp_path).tensor("x"))

    torch.save({"x": torch.tensor(2.0)}, tmp_path / "pytorch_model.bin")
    assert value_read() == 2
    save_file({"x": torch.tensor(3.0)}, tmp_path / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"x": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert value_read() == 3
    save_file({"x": torch.tensor(5.0)}, tmp_path / "model.safetensors")
    assert value_read() == 5


# ---------------------------------------------------------------------------------------------------------- mapping


@pytest.mark.parametrize("format_name", ["safetensors", "bin"])
def test_tensors_are_mapped_and_writing_to_them_leaves_the_file(format_name: str, tmp_path: Path) -> None:
    state = {"x": torch.arange(12.0).reshape(3, 4)}
    if format_name == "bin":
        torch.save(state, tmp_path / "pytorch_model.bin")
    else:
        save_weights(state, tmp_path)
    (file,) = tmp_path.iterdir()
    before = file.read_bytes()
    mapped = opened(tmp_path).tensor("x")
    assert str(file) in Path("/proc/self/maps").read_text()
    mapped.mul_(-1)
    assert torch.equal(mapped, -state["x"])
    assert file.read_bytes() == before
    assert torch.equal(opened(tmp_path).tensor("x"), state["x"])


def test_mapped_tensors_outlive_their_file(tmp_path: Path) -> None:
    save_weights(STATE, tmp_path)
    mapped = opened(tmp_path).tensor("b.weight")
    (tmp_path / "model.safetensors").unlink()
    assert torch.equal(mapped, STATE["b.weight"])


# ----------------------------------------------------------------------------------------------------------- damage


class Bomb:
    """Runs code when it is unpickled: it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zip_format", [True, False, None])
def test_a_pickle_with_code_is_refused_and_not_run(zip_format: bool | None, tmp_path: Path) -> None:
    ran, file = tmp_path / "ran", tmp_path / "pytorch_model.bin"
    if zip_format is None:
        file.write_bytes(pickle.dumps({"x": Bomb(ran)}, protocol=2))
    else:
        torch.save({"x": Bomb(ran)}, file, _use_new_zipfile_serialization=zip_format)
    message = r"pytorch_model.bin cannot be read as a file of tensors .* other Python objects, which are never executed"
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path)
    assert not ran.exists()


def test_the_bomb_is_live(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_files_cut_short(kind: str, share: float, tmp_path: Path) -> None:
    # Large enough that a cut falls into the header, the data, and the end.
    state = {"x": torch.arange(5000.0), "y": torch.arange(700.0)}
    if kind == "safetensors":
        save_weights(state, tmp_path)
    else:
        torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=kind == "zip")
    (file,) = tmp_path.iterdir()
    size = int(share * file.stat().st_size)
    os.truncate(file, size)
    message = rf"{file.name} cannot be read as .* damaged or cut short \({size:,} bytes\): copy or download it again"
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_git_lfs_pointer(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 2364426584\n")
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read .* only a Git LFS pointer .* `git lfs pull`"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], r"holds a list, expected a state dict \(names to tensors\)"),
        (torch.zeros(2), r"holds a Tensor, expected a state dict"),
        (
            {"state_dict": {"x": torch.zeros(2)}, "epoch": 3},
            r"since it holds 'state_dict' \(dict\), 'epoch' \(int\); a tr",
        ),
        ({0: torch.zeros(2)}, r"since it holds 0 \(Tensor\)"),
    ],
)
def test_a_bin_that_is_no_state_dict(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no weights: expected model.safetensors, .* The folder is empty"):
        opened(tmp_path)
    (tmp_path / "model.gguf").touch()
    with pytest.raises(FileNotFoundError, match=r"pytorch_model.bin.index.json. The folder holds: model.gguf\."):
        opened(tmp_path)


def test_missing_shards_are_all_named(tmp_path: Path) -> None:
    save_weights(STATE, tmp_path, max_shard_size=20)
    shards = sorted(tmp_path.glob("model-*"))
    assert len(shards) == 4
    for shard in (shards[0], shards[2]):
        shard.unlink()
    with pytest.raises(FileNotFoundError, match=rf"lacks 2 of 4 shards: {shards[0].name}, {shards[2].name}"):
        opened(tmp_path)


def test_a_shard_of_another_save(tmp_path: Path) -> None:
    save_weights({"x": torch.zeros(3), "y": torch.zeros(5)}, tmp_path, max_shard_size=20)
    save_file({"z": torch.zeros(5)}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"shards do not hold: y \(of model-00002-of-00002.safetensors\)"):
        opened(tmp_path)
    save_file({"x": torch.zeros(5)}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"model-00002.* holds tensors that another shard holds too: x"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"weight_map": ', r"index.json is not valid JSON: .*; without it the shards cannot be read"),
        ("[]", r"index.json holds a list, expected a JSON object"),
        ("{}", r"index.json has no weight_map; it is damaged or no index of weights"),
        ('{"weight_map": {}}', r"index.json has no weight_map"),
        ('{"weight_map": {"x": "../outside.safetensors"}}', r"names shards that are no plain file names: \.\./outside"),
        ('{"weight_map": {"x": "/etc/passwd"}}', r"names shards that are no plain file names: /etc/passwd"),
        ('{"weight_map": {"x": 3}}', r"names shards that are no plain file names: 3"),
    ],
)
def test_damaged_indexes(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path)


# ---------------------------------------------------------------------------------------------------------- writing


def test_views_and_shared_memory_are_written_whole_and_once_a_name(tmp_path: Path) -> None:
    fused = torch.arange(9 * 50_000.0).reshape(9, 50_000)
    state = {
        "query": fused[:3],
        "key": fused[3:6],
        "same": fused[3:6],
        "part": fused[6:, :7],
        "transposed": fused[:2, :3].T,
        "one": torch.ones(1).expand(5),
    }
    save_weights(state, tmp_path)
    assert_same(opened(tmp_path), state)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size < sum(value.nbytes for value in state.values()) + 1000


def test_two_names_of_one_tensor(tmp_path: Path) -> None:
    value = torch.arange(5.0)
    save_weights({"x": value, "y": value}, tmp_path)
    assert_same(opened(tmp_path), {"x": value, "y": value})


def test_a_view_alone_does_not_bring_its_base(tmp_path: Path) -> None:
    base = torch.zeros(100_000)
    save_weights({"x": base[:11]}, tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 1000
    assert_same(opened(tmp_path), {"x": base[:11]})


def test_parameters_are_written_without_their_graph(tmp_path: Path) -> None:
    parameter = nn.Parameter(torch.arange(3.0))
    save_weights({"x": parameter, "y": parameter * 2}, tmp_path)
    assert_same(opened(tmp_path), {"x": torch.arange(3.0), "y": torch.arange(3.0) * 2})


def test_tensors_without_values_are_refused(tmp_path: Path) -> None:
    state = {"x": torch.zeros(2), "y": torch.zeros(2, device="meta")}
    with pytest.raises(CheckpointError, match=r"cannot save tensors without values, on the meta device: y$"):
        save_weights(state, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (7, 7),
        ("5GB", 5 * 10**9),
        ("500MB", 5 * 10**8),
        ("1.5 kb", 1500),
        ("2KiB", 2048),
        (" 3 MiB ", 3 * 2**20),
        ("1GIB", 2**30),
    ],
)
def test_sizes(text: int | str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "5", "GB", "5TB", "-1GB", "five GB", "5GB5", 0, -3, 1.5, True, "0MB", None])
def test_what_is_no_size(text: Any, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"is no size; write bytes as a whole number above 0, or like 5GB, 500MB, 2GiB"
    ):
        save_weights(STATE, tmp_path, text)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("model.safetensors", True),
        ("model.safetensors.index.json", True),
        ("model-00003-of-00012.safetensors", True),
        ("model.safetensors.bak", False),
        ("my-model-00003-of-00012.safetensors", False),
        ("model-00003-of-00012.safetensors~", False),
        ("adapter_model.safetensors", False),
        ("pytorch_model.bin", False),
        ("config.json", False),
    ],
)
def test_which_files_a_save_replaces(name: str, ours: bool) -> None:
    assert is_weight_file(name) == ours
