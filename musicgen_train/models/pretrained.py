"""The base class of all models: it reads weights from a hub folder, strictly, and writes them, atomically."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from musicgen_train.files import atomic_folder, read_json, write_json
from musicgen_train.hub.folder import CONFIG_NAME, PretrainedFolder
from musicgen_train.hub.weights import (
    CheckpointError,
    WeightFiles,
    is_weight_file,
    list_some,
    open_weights,
    save_weights,
)
from musicgen_train.models.config import MusicgenConfig, PretrainedConfig

ConfigT = TypeVar("ConfigT", bound=PretrainedConfig)


class PretrainedModel(nn.Module, Generic[ConfigT]):
    """Is the base of models with a config and with the hub's state-dict names and layouts.

    Subclasses have no non-persistent buffers: what depends on the config alone is computed where it is used, so a
    model built on the meta device needs nothing but its weights.
    """

    config_class: ClassVar[type[PretrainedConfig]]
    # Other names for a tensor: hub files may hold either or both, and only the second is written.
    tied_keys: ClassVar[Mapping[str, str]] = {}
    # Parts of parameter names that stay float32 whatever dtype is asked for.
    keep_in_float32: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: ConfigT) -> None:
        super().__init__()
        if not isinstance(config, self.config_class):
            raise ValueError(f"{type(self).__name__} needs a {self.config_class.__name__}, got {_kind_of(config)}")
        config.check()
        self.config = config

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def num_parameters(self, *, only_trainable: bool = False) -> int:
        """Count the numbers in the parameters, shared ones once."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)

    @classmethod
    def from_config(cls, config: ConfigT) -> Self:
        """Make a model with new random weights."""
        return cls(config)

    @classmethod
    def model_key(cls, file_key: str) -> str | None:
        """Map a tensor's name in a file to its state-dict name; None skips the tensor.

        Subclasses translate the names of older files, and skip tensors that are not part of the model.
        """
        return file_key

    @classmethod
    def composite_prefix(cls) -> str | None:
        """Returns the prefix of this model's tensors in a composite's files; None if it is no part of one."""
        key = cls.config_class.composite_key
        return None if key is None else f"{key}."

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        config: ConfigT | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        subfolder: str = "",
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        **config_overrides: Any,
    ) -> Self:
        """Read a model from a local folder or hub id; from a composite's folder, the part of this class.

        The model is built without memory, then takes its tensors from the memory-mapped files. On the CPU, in the dtype
        of the files, that costs next to nothing until the weights are used; otherwise memory holds the model and, while
        it loads, pages of the files that the system may take back at any time. The model is in eval mode and its
        parameters are trainable; training leaves the files as they are.

        Args:
            name_or_path: a folder in the hub's layout, or a hub id such as `facebook/musicgen-small`.
            config: use a copy of this config in place of the folder's.
            dtype: floating-point type of the weights, as a torch dtype, its name, or "auto" for that of the files.
                Default float32. Parts that exceed the range of float16 stay float32 when that is asked for.
            torch_dtype: the older name of `dtype`, which wins where both are given.
            device: where the weights go; default the CPU.
            subfolder, revision, token, cache_dir, local_files_only: as for `PretrainedFolder`.
            config_overrides: as for the config's `update`, e.g. `dropout=0.0`.

        Raises:
            FileNotFoundError: no such folder, or files are missing.
            CheckpointError: damaged files, or tensors that do not fit the model (all are listed at once).
            ValueError: the config is that of another model, an override is unknown, or `dtype` is no such type.
        """
        asked_dtype = _as_dtype(torch_dtype if dtype is None else dtype)
        folder = PretrainedFolder(
            name_or_path,
            subfolder=subfolder,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        if config is None:
            config = cast(ConfigT, cls.config_class.from_pretrained(folder, **config_overrides))
        else:
            config = copy.deepcopy(config)
            config.update(**config_overrides)
        with torch.device("meta"), _WithoutInitialization():
            model = cls(config)
        model._load(open_weights(folder), cls._prefix_in(folder), asked_dtype, device, str(folder))
        model._read_companions(folder)
        return model.eval()

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        state_dict: Mapping[str, torch.Tensor] | None = None,
        max_shard_size: int | str = "5GB",
    ) -> None:
        """Write config and weights in the hub's layout, atomically (see `atomic_folder`).

        All weight files of an earlier save are removed. A model that has them memory-mapped keeps its values.

        Args:
            folder: target, created if missing. Other files in it, such as a processor's, stay.
            state_dict: write these tensors in place of the model's own, e.g. an average of its weights.
            max_shard_size: the largest weight file, in bytes or like "5GB"; above it weights are split.

        Raises:
            CheckpointError: `state_dict` does not fit the model, or is on the meta device.
            ValueError: a value assigned to the config is not allowed, or `max_shard_size` is no size.
            OSError: the folder cannot be written.
        """
        self.config.check()
        state = self._state_to_save(self.state_dict() if state_dict is None else state_dict)
        config = _with_dtype(self.config.to_dict(), _main_dtype(state))
        with atomic_folder(folder, obsolete=is_weight_file) as staging:
            save_weights(state, staging, max_shard_size)
            write_json(staging / CONFIG_NAME, {**config, "architectures": [type(self).__name__]})
            self._write_companions(staging)

    def _read_companions(self, folder: PretrainedFolder) -> None:
        """Read further files of the folder, e.g. the generation config."""

    def _write_companions(self, folder: Path) -> None:
        """Write further files of the folder."""

    @classmethod
    def _prefix_in(cls, folder: PretrainedFolder) -> str:
        path = folder.find(CONFIG_NAME)
        composite = path is not None and read_json(path).get("model_type") == MusicgenConfig.model_type
        return (cls.composite_prefix() or "") if composite else ""

    def _load(
        self,
        weights: WeightFiles,
        prefix: str,
        dtype: torch.dtype | str,
        device: torch.device | str | None,
        source: str,
    ) -> None:
        file_keys = self._names_in(weights, prefix, source)
        expected = {name: value for name, value in self.state_dict().items() if name not in self.tied_keys}
        found = {name: weights.shape(file_key) for name, file_key in file_keys.items()}
        check_state_dict(expected, found, f"{source} does not fit {type(self).__name__}")

        state: dict[str, torch.Tensor] = {}
        for name, file_key in file_keys.items():
            value = weights.tensor(file_key)
            target = self._dtype_of(name, value.dtype, dtype) if value.is_floating_point() else value.dtype
            state[name] = value.to(device=device or "cpu", dtype=target)
        aliases = {alias: state[name] for alias, name in self.tied_keys.items() if alias in self.state_dict()}
        # assign=True, since meta tensors must be replaced and cannot be copied into.
        self.load_state_dict({**state, **aliases}, strict=True, assign=True)
        self.tie_weights()
        left = [name for name, value in (*self.named_parameters(), *self.named_buffers()) if value.is_meta]
        assert not left, f"{type(self).__name__} has tensors that no file gives values: {left}"

    def _names_in(self, weights: WeightFiles, prefix: str, source: str) -> dict[str, str]:
        """Maps state-dict names of this model to tensor names in the files."""
        main: dict[str, str] = {}
        tied: dict[str, str] = {}
        for file_key in weights:
            name = self.model_key(file_key.removeprefix(prefix)) if file_key.startswith(prefix) else None
            if name is None:
                continue
            keys, name = (tied, self.tied_keys[name]) if name in self.tied_keys else (main, name)
            if name in keys:
                raise CheckpointError(f"{source} has {name} twice: as {keys[name]} and as {file_key}")
            keys[name] = file_key
        return {**tied, **main}

    def _dtype_of(self, name: str, stored: torch.dtype, asked: torch.dtype | str) -> torch.dtype:
        target = stored if isinstance(asked, str) else asked
        if target == torch.float16 and any(part in name.split(".") for part in self.keep_in_float32):
            return torch.float32
        return target

    def cast(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move to a device and a dtype, except for parameters that loading in that dtype also leaves in float32.

        `to` has no exceptions: it casts those too, and they overflow.
        """
        kept = {
            name: parameter.detach().to(device)
            for name, parameter in self.named_parameters()
            if self._dtype_of(name, parameter.dtype, dtype) != dtype
        }
        self.to(device=device, dtype=dtype)
        for name, value in kept.items():
            self.get_parameter(name).data = value

    def tie_weights(self) -> None:
        """Share the parameters of `tied_keys` again, since loading gives each name a parameter of its own."""

    def _state_to_save(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        kept = {name: value for name, value in state.items() if name not in self.tied_keys}
        expected = {name: value for name, value in self.state_dict().items() if name not in self.tied_keys}
        check_state_dict(
            expected,
            {name: tuple(value.shape) for name, value in kept.items()},
            f"not a state of {type(self).__name__}",
        )
        return kept


class _WithoutInitialization(TorchFunctionMode):
    """Skips random initialization; on the meta device its only effect is to import torch's compiler (1 s, 150 MB)."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        # Matches normal_, trunc_normal_, kaiming_uniform_ and so on, of tensors and of nn.init.
        if getattr(func, "__name__", "").endswith(("normal_", "uniform_")):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def check_state_dict(expected: Mapping[str, torch.Tensor], found: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Compare the names and shapes of two state dicts.

    Args:
        expected: the model's own.
        found: names and shapes of the tensors to load.
        what: the start of the error's sentence.

    Raises:
        CheckpointError: they differ; the message lists missing, unexpected and misshapen tensors together.
    """
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    misshapen = [
        f"{name} is {list(found[name])}, the model's is {list(value.shape)}"
        for name, value in expected.items()
        if name in found and found[name] != tuple(value.shape)
    ]
    problems = [
        f"{len(names)} {label}: {list_some(names)}"
        for names, label in ((missing, "missing"), (unexpected, "unexpected"), (misshapen, "of another shape"))
        if names
    ]
    if problems:
        raise CheckpointError(f"{what} ({len(expected)} tensors): " + "; ".join(problems))


def _as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | str:
    if dtype is None:
        return torch.float32
    if dtype == "auto":
        return "auto"
    value = dtype if isinstance(dtype, torch.dtype) else getattr(torch, str(dtype).removeprefix("torch."), None)
    if not isinstance(value, torch.dtype) or not value.is_floating_point:
        raise ValueError(f"dtype is {dtype!r}; allowed are 'float32', 'bfloat16', 'float16', 'auto' or a torch dtype")
    return value


def _main_dtype(state: Mapping[str, torch.Tensor]) -> torch.dtype:
    """Returns the floating-point dtype that most numbers of a state dict have."""
    numbers: Counter[torch.dtype] = Counter()
    for value in state.values():
        if value.is_floating_point():
            numbers[value.dtype] += value.numel()
    return numbers.most_common(1)[0][0]


def _with_dtype(config: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Returns a file's config with the dtype of the weights, in which transformers loads them by default."""
    name = str(dtype).removeprefix("torch.")
    parts = {
        key: _with_dtype(part, dtype) for key, part in config.items() if isinstance(part, dict) and "model_type" in part
    }
    # "torch_dtype" is the key's older name.
    return {**config, **parts, "dtype": name, **({"torch_dtype": name} if "torch_dtype" in config else {})}


def _kind_of(config: object) -> str:
    kind = type(config)
    return kind.__name__ if kind.__module__.startswith("musicgen_train.") else f"{kind.__module__}.{kind.__name__}"
