"""Reads and writes the weights of a hub folder: safetensors, single or sharded; reads the older pytorch_model.bin."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from musicgen_train.files import read_json, write_json
from musicgen_train.hub.folder import PretrainedFolder

SAFETENSORS_NAME = "model.safetensors"
SAFETENSORS_INDEX_NAME = "model.safetensors.index.json"
BIN_NAME = "pytorch_model.bin"
BIN_INDEX_NAME = "pytorch_model.bin.index.json"

_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_SIZE_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_NAMES_SHOWN = 8


class CheckpointError(RuntimeError):
    """Raised for weights that cannot be read, or that do not fit the model they were given to."""


class WeightFiles:
    """Gives the tensors of one checkpoint by name, and reads each from disk only when it is asked for.

    Files are memory-mapped (except .bin files older than torch 1.6), so a tensor on the CPU costs no memory until its
    pages are touched. The mapping is private: a tensor may be written to, and the file does not change. Tensors stay
    valid after their file was replaced by another, but not after it was truncated or overwritten in place.

    Raises:
        CheckpointError: a file is damaged, a .bin holds more than tensors, or two files hold a tensor of one name.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.files = tuple(files)
        self._readers: dict[str, _SafetensorsFile | _BinFile] = {}
        for path in self.files:
            reader = _SafetensorsFile(path) if path.suffix == ".safetensors" else _BinFile(path)
            names = reader.keys()
            twice = [name for name in names if name in self._readers]
            if twice:
                raise CheckpointError(f"{path} holds tensors that another shard holds too: {list_some(twice)}")
            self._readers.update(dict.fromkeys(names, reader))

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self._readers)

    def keys(self) -> list[str]:
        """Return all tensor names, sorted."""
        return sorted(self._readers)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading its values."""
        return self._readers[name].shape(name)

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor on the CPU, in the dtype of the file."""
        return self._readers[name].tensor(name)


class _SafetensorsFile:
    def __init__(self, path: Path) -> None:
        try:
            # The file stays open as long as tensors of it are read.
            self._file = safe_open(str(path), framework="pt", device="cpu")
        except SafetensorError as error:
            raise CheckpointError(f"{path} cannot be read as safetensors ({error}); {_likely_cause(path)}") from error

    def keys(self) -> list[str]:
        return list(self._file.keys())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def tensor(self, name: str) -> torch.Tensor:
        return self._file.get_tensor(name)


class _BinFile:
    def __init__(self, path: Path) -> None:
        # Only the zip format of torch 1.6 and later can be memory-mapped.
        is_zip = _first_bytes(path).startswith(b"PK")
        try:
            # With weights_only a pickle cannot run code.
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        except Exception as error:  # whatever a damaged or hostile pickle makes torch raise
            reason = str(error).strip().partition("\n")[0]
            raise CheckpointError(
                f"{path} cannot be read as a file of tensors ({type(error).__name__}: {reason}); "
                f"{_likely_cause(path)}, or it holds other Python objects, which are never executed"
            ) from error
        self._state = _require_state_dict(state, path)

    def keys(self) -> list[str]:
        return list(self._state)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._state[name].shape)

    def tensor(self, name: str) -> torch.Tensor:
        return self._state[name].detach()


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)


def _likely_cause(path: Path) -> str:
    if _first_bytes(path).startswith(b"version https://git-lfs"):
        return "it is only a Git LFS pointer to the file: fetch that with `git lfs pull`"
    return f"it is damaged or cut short ({path.stat().st_size:,} bytes): copy or download it again"


def _require_state_dict(state: object, path: Path) -> dict[str, torch.Tensor]:
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, expected a state dict (names to tensors)")
    other = [f"{name!r} ({type(value).__name__})" for name, value in state.items() if not _is_entry(name, value)]
    if other:
        raise CheckpointError(
            f"{path} holds no state dict (names to tensors), since it holds {list_some(other)}; a training checkpoint "
            "keeps the state dict under one of its keys: save that alone"
        )
    return dict(state)


def _is_entry(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, torch.Tensor)


def list_some(names: Iterable[str]) -> str:
    """Return the first few names, separated by commas, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def open_weights(folder: PretrainedFolder) -> WeightFiles:
    """Open the weights of a hub folder; safetensors win over .bin, a single file over shards.

    Raises:
        FileNotFoundError: there are no weights, or shards that the index names are missing (all are listed).
        CheckpointError: a file is damaged, a .bin holds more than tensors, or shards do not hold what the index says.
    """
    for name, index_name in ((SAFETENSORS_NAME, SAFETENSORS_INDEX_NAME), (BIN_NAME, BIN_INDEX_NAME)):
        single = folder.find(name)
        if single is not None:
            return WeightFiles([single])
        index = folder.find(index_name)
        if index is not None:
            return _open_shards(folder, index)
    raise FileNotFoundError(
        f"{folder} has no weights: expected {SAFETENSORS_NAME}, {SAFETENSORS_INDEX_NAME}, {BIN_NAME} or "
        f"{BIN_INDEX_NAME}. {folder.describe()}"
    )


def _open_shards(folder: PretrainedFolder, index: Path) -> WeightFiles:
    shard_of = _read_index(index)
    names = sorted(set(shard_of.values()))
    paths = {name: folder.find(name) for name in names}
    missing = [name for name, path in paths.items() if path is None]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {len(missing)} of {len(names)} shards: {list_some(missing)}")
    weights = WeightFiles(path for path in paths.values() if path is not None)
    held = set(weights)
    lost = [f"{name} (of {shard})" for name, shard in shard_of.items() if name not in held]
    if lost:
        raise CheckpointError(f"{index.name} of {folder} names tensors that its shards do not hold: {list_some(lost)}")
    return weights


def _read_index(index: Path) -> dict[str, str]:
    try:
        shard_of = read_json(index).get("weight_map")
    except ValueError as error:
        raise CheckpointError(f"{error}; without it the shards cannot be read") from error
    if not isinstance(shard_of, dict) or not shard_of:
        raise CheckpointError(f"{index} has no weight_map; it is damaged or no index of weights")
    # A path in a downloaded index must not lead out of its folder.
    outside = [str(shard) for shard in shard_of.values() if not isinstance(shard, str) or Path(shard).name != shard]
    if outside:
        raise CheckpointError(f"{index} names shards that are no plain file names: {list_some(outside)}")
    return shard_of


def save_weights(state: Mapping[str, torch.Tensor], folder: Path, max_shard_size: int | str = "5GB") -> None:
    """Write a state dict as safetensors, in one file or, above `max_shard_size`, in shards with an index.

    Tensors are moved to the CPU shard by shard. Each name is written with its own values: for a view only what it
    shows, for tensors that share memory a copy each (so drop the names of tied weights before).

    Args:
        state: names to tensors.
        folder: an existing folder.
        max_shard_size: the largest file, in bytes or as text such as "5GB" or "500MiB"; a tensor that is larger has a
            file of its own.

    Raises:
        CheckpointError: a tensor is on the meta device and has no values.
        ValueError: `max_shard_size` is no size.
    """
    empty = [name for name, value in state.items() if value.is_meta]
    if empty:
        raise CheckpointError(f"cannot save tensors without values, on the meta device: {list_some(empty)}")
    shards = _plan_shards(state, parse_size(max_shard_size))
    if len(shards) == 1:
        _write_shard(state, shards[0], folder / SAFETENSORS_NAME)
        return
    shard_of: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(state, names, folder / file_name)
        shard_of.update(dict.fromkeys(names, file_name))
    total = sum(value.nbytes for value in state.values())
    write_json(folder / SAFETENSORS_INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": shard_of})


def _plan_shards(state: Mapping[str, torch.Tensor], limit: int) -> list[list[str]]:
    """Return the names in each shard: as many as fit, in the order of the state dict."""
    shards: list[list[str]] = [[]]
    shard_bytes = 0
    for name, value in state.items():
        if shards[-1] and shard_bytes + value.nbytes > limit:
            shards.append([])
            shard_bytes = 0
        shards[-1].append(name)
        shard_bytes += value.nbytes
    return shards


def _write_shard(state: Mapping[str, torch.Tensor], names: list[str], path: Path) -> None:
    tensors = {name: state[name].detach().to("cpu").contiguous() for name in names}
    sharing = Counter(value.untyped_storage().data_ptr() for value in tensors.values())
    for name, value in tensors.items():
        # safetensors refuses tensors that share memory, such as three views of one fused weight.
        if sharing[value.untyped_storage().data_ptr()] > 1:
            tensors[name] = value.clone()
    save_file(tensors, path, metadata={"format": "pt"})


def is_weight_file(name: str) -> bool:
    """Return True for a file name that `save_weights` writes."""
    return name in (SAFETENSORS_NAME, SAFETENSORS_INDEX_NAME) or _SHARD.fullmatch(name) is not None


def parse_size(size: int | str) -> int:
    """Return the number of bytes of a size given as a number, or as text such as "5GB" (10**9) or "500MiB" (2**20).

    Raises:
        ValueError: it is no size, or not above 0.
    """
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]i?B)\s*", size, flags=re.IGNORECASE)
        number = int(float(match[1]) * _SIZE_UNITS[match[2].upper()]) if match is not None else 0
    else:
        number = size
    if isinstance(size, bool) or not isinstance(number, int) or number <= 0:
        raise ValueError(f"{size!r} is no size; write bytes as a whole number above 0, or like 5GB, 500MB, 2GiB")
    return number
