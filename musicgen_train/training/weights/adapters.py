"""Low-rank adapters (LoRA, Hu et al. 2021; DoRA, Liu et al. 2024) in the composite.

The layers are peft's. This file decides which modules of a MusicGen get one, what a checkpoint holds of them, and
merges them into the weights. Names are those of the composite, so that peft reads an adapter for transformers' model.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from musicgen_train.hub.weights import CheckpointError
from musicgen_train.models.config import MusicgenDecoderConfig
from musicgen_train.models.fingerprint import add_tensors
from musicgen_train.training.weights.freezing import PARAMETER_GROUPS, InGroup, group_predicate, is_trainable_part

if TYPE_CHECKING:
    from peft import LoraConfig

# peft's name for the only adapter of a model. It is part of the names of tensors in the model, but not in peft's files.
ADAPTER_NAME = "default"

# The entry of a training checkpoint that holds the adapter's record.
ADAPTER_KEY = "adapter"

# The fields of the config that decide the decoder's output beside its tensors.
_IDENTITY = ("num_attention_heads", "activation_function", "num_codebooks", "audio_channels")
_WITHOUT_ADAPTERS = "norms"


@dataclass(kw_only=True)
class AdapterSettings:
    """The adapter that is added to the decoder."""

    rank: int
    """Rank of the two factors; the number of parameters is proportional to it."""
    alpha: float
    """The adapter's output is multiplied by alpha / rank, or with `rank_stabilized` by alpha / sqrt(rank)."""
    dropout: float
    """Dropout of the adapter's input, while training."""
    targets: list[str] = field(default_factory=list)
    """Groups whose linear layers and embeddings get an adapter; see `freezing.PARAMETER_GROUPS`."""
    dora: bool
    """Learn the length of each weight vector beside its direction (DoRA)."""
    rank_stabilized: bool
    """See `alpha` (Kalajdzievski 2023); for ranks of 64 and above."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"adapter.rank is {self.rank}; it must be 1 or more")
        if self.alpha <= 0:
            raise ValueError(f"adapter.alpha is {self.alpha:g}; it must be above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"adapter.dropout is {self.dropout:g}; it must be 0 or more, and below 1")
        if not self.targets:
            raise ValueError("adapter.targets is empty; name groups such as self_attention")
        if _WITHOUT_ADAPTERS in self.targets:
            raise ValueError("adapter.targets names norms, which have no matrix; leave them out")
        require_peft()


@dataclass(frozen=True, kw_only=True)
class AdapterRecord:
    """The settings of an adapter and the base it belongs to: plain values, kept in every checkpoint and file of it."""

    base: str
    """The model that the adapter was trained on, as `init_from` named it."""
    base_fingerprint: str
    """See `base_fingerprint`."""
    audio_channels: int
    """Channels of the base; 2 also if `base` names a mono model that was made stereo first."""
    rank: int
    alpha: float
    dropout: float
    dora: bool
    rank_stabilized: bool
    modules: str
    """A regular expression that matches the names of the modules that have an adapter."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str) -> AdapterRecord:
        """Make a record from the plain values that `source`, named in errors, holds.

        Raises:
            CheckpointError: they are those of another kind of record.
        """
        try:
            return cls(**values)
        except TypeError as error:
            raise CheckpointError(
                f"{source} has a record of an adapter that this version cannot read: {error}"
            ) from error

    def check_base(self, found: str, what: str) -> None:
        """Check that a model is the base that the adapter was trained on.

        Args:
            found: the fingerprint of the model; see `base_fingerprint`.
            what: its name, for errors.

        Raises:
            ValueError: it is another model.
        """
        if found != self.base_fingerprint:
            raise ValueError(
                f"the adapter was trained on {self.base} (fingerprint {self.base_fingerprint[:12]}), and {what} has "
                f"other weights ({found[:12]}). An adapter means nothing on another model; give the one that it was "
                "trained on, in the version that it had then"
            )


def require_peft() -> None:
    """Check that peft is installed.

    Raises:
        ValueError: it is not.
    """
    if importlib.util.find_spec("peft") is None:
        raise ValueError("adapters need peft, which is not installed: pip install -e '.[lora]'")


def base_fingerprint(model: nn.Module, config: MusicgenDecoderConfig) -> str:
    """SHA-256, in hex, of the decoder and the text projection in float32: what an adapter is trained on.

    It reads all weights once, which takes seconds per billion parameters.

    Args:
        model: see `add_adapter`; it has no adapter.
        config: the config of its decoder.
    """
    digest = hashlib.sha256()
    identity = {name: getattr(config, name) for name in _IDENTITY}
    digest.update(json.dumps(identity, sort_keys=True).encode())
    add_tensors(digest, {name: value for name, value in model.state_dict().items() if is_trainable_part(name)})
    return digest.hexdigest()


def add_adapter(
    model: nn.Module,
    settings: AdapterSettings,
    trained: InGroup,
    config: MusicgenDecoderConfig,
    *,
    base: str,
    seed: int,
) -> AdapterRecord:
    """Add a new adapter to a model; from then on, only the adapter's parameters are trained.

    The adapter starts as zero, so the model's output does not change before the first step.

    Args:
        model: a composite, or any module with its `decoder` and, where there is one, `enc_to_dec_proj`.
        settings: the adapter to add.
        trained: tells which names may get an adapter; see `FreezeSettings.trains`.
        config: the config of the decoder.
        base: the model's name, for the record.
        seed: the seed of the adapter's first factor.

    Raises:
        ValueError: an unknown group, or no module is left.
    """
    groups = [group_predicate(name, config.num_hidden_layers, "adapter.targets") for name in settings.targets]
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding)
        and is_trainable_part(f"{name}.")
        and any(group(f"{name}.") for group in groups)
        and trained(f"{name}.")
    ]
    if not names:
        raise ValueError(
            f"adapter.targets={settings.targets} leaves nothing to train beside freeze and train_only; name other "
            f"groups: {', '.join(name for name in PARAMETER_GROUPS if name != _WITHOUT_ADAPTERS)}"
        )
    record = AdapterRecord(
        base=base,
        base_fingerprint=base_fingerprint(model, config),
        audio_channels=config.audio_channels,
        rank=settings.rank,
        alpha=settings.alpha,
        dropout=settings.dropout,
        dora=settings.dora,
        rank_stabilized=settings.rank_stabilized,
        modules=modules_pattern(names),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject(model, record)
    return record


def inject(model: nn.Module, record: AdapterRecord) -> None:
    """Add the layers of a recorded adapter to its base, with newly initialized values.

    Args:
        model: see `add_adapter`.
        record: the adapter's record.
    """
    require_peft()
    # Imported here: it brings transformers and takes seconds.
    from peft import inject_adapter_in_model

    mode = model.training
    inject_adapter_in_model(lora_config(record), model, adapter_name=ADAPTER_NAME)
    model.train(mode)


def lora_config(record: AdapterRecord) -> LoraConfig:
    """peft's config of an adapter."""
    from peft import LoraConfig

    return LoraConfig(
        r=record.rank,
        # peft annotates an int and divides.
        lora_alpha=record.alpha,  # type: ignore[arg-type, unused-ignore]
        lora_dropout=record.dropout,
        use_dora=record.dora,
        use_rslora=record.rank_stabilized,
        target_modules=record.modules,
        base_model_name_or_path=record.base,
    )


def load_adapter_state(model: nn.Module, state: Mapping[str, torch.Tensor], what: str) -> None:
    """Load tensors into the adapter of a model.

    Args:
        model: the model with the adapter.
        state: the adapter's tensors, under their names in the model.
        what: where they came from, for errors.

    Raises:
        CheckpointError: tensors are missing, unexpected, or of another shape.
    """
    own = adapter_state(model)
    missing = sorted(set(own) - set(state))
    unexpected = sorted(set(state) - set(own))
    misshapen = [name for name in own if name in state and own[name].shape != state[name].shape]
    if missing or unexpected or misshapen:
        raise CheckpointError(
            f"the adapter of {what} does not fit: {len(missing)} tensors are missing, {len(unexpected)} unexpected, "
            f"{len(misshapen)} of another shape; the first is {[*missing, *unexpected, *misshapen][0]}"
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(state[name])


def check_resumed_adapter(saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Check that a checkpoint holds the adapter of this run, on the same base.

    Args:
        saved: our entry of the checkpoint (`CHECKPOINT_KEY`), with or without an adapter's record.
        own: the same of this run.

    Raises:
        ValueError: says what differs.
    """
    before, now = saved.get(ADAPTER_KEY), own.get(ADAPTER_KEY)
    if before is None and now is None:
        return
    if before is None or now is None:
        kinds = ("no adapter", "an adapter") if before is None else ("an adapter", "none")
        raise ValueError(
            f"the checkpoint to resume has {kinds[0]} and this run {kinds[1]}; resume with the adapter= that it was "
            "started with, or start a new run with init_from"
        )
    AdapterRecord.from_dict(before, "the checkpoint to resume").check_base(now["base_fingerprint"], now["base"])
    different = [
        f"{name} {before[name]}, this run's {now[name]}"
        for name in now
        if name not in ("base", "dropout") and before[name] != now[name]
    ]
    if different:
        raise ValueError(
            f"the checkpoint to resume has an adapter with other settings: {'; '.join(different)}. Resume with those "
            "that it was started with, or start a new run"
        )


def has_adapter(model: nn.Module) -> bool:
    """Returns True if a model has an adapter."""
    return any(_is_of_adapter(name) for name, _ in model.named_parameters())


def adapter_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The adapter's tensors, under their names in the model, whose memory they share."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if _is_of_adapter(name)}


def merged_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict that a model would have with its adapter merged into the weights; the model is not changed.

    Without an adapter it is the model's own state dict.
    """
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "base_layer")}
    inside = tuple(f"{name}." for name in layers)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith(inside)}
    for name, layer in layers.items():
        merged: Any = copy.deepcopy(layer)
        merged.merge(safe_merge=True)
        state.update({f"{name}.{key}": value for key, value in merged.get_base_layer().state_dict().items()})
    return state


def keep_only_adapter_in_state(module: nn.Module) -> None:
    """Leave the frozen base out of the state dict of a module and of its copies, and not expect it on loading.

    So a checkpoint has the size of the adapter, and loading it stays strict.
    """
    module.register_state_dict_post_hook(_leave_base_out)
    module.register_load_state_dict_pre_hook(_take_base_as_given)


def modules_pattern(names: Iterable[str]) -> str:
    r"""A regular expression that matches exactly these module names, e.g. `decoder\.lm_heads\.(0|1|2|3)`."""
    numbers: dict[tuple[str, str], list[str]] = {}
    for name in names:
        match = re.fullmatch(r"(.*?)\.(\d+)(\..*|)", name)
        start, number, end = (name, "", "") if match is None else (match[1], match[2], match[3])
        numbers.setdefault((start, end), []).append(number)
    return "|".join(
        re.escape(start) + (rf"\.({'|'.join(found)})" if found[0] else "") + re.escape(end)
        for (start, end), found in numbers.items()
    )


def _is_of_adapter(name: str) -> bool:
    return ".lora_" in name


def _leave_base_out(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in list(state):
        if name.startswith(prefix) and not _is_of_adapter(name):
            del state[name]


def _take_base_as_given(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, parameter in module.named_parameters():
        if not _is_of_adapter(name):
            state.setdefault(prefix + name, parameter.detach())
