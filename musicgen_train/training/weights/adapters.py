"""Low-rank adapters (LoRA, Hu et al. 2021; DoRA, Liu et al. 2024), made by peft within the composite.

The layers are peft's; here is what belongs to MusicGen: which modules get one, what a checkpoint holds, and the weights
without them. Names are the composite's, so that peft reads an adapter on top of transformers' model too.
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

# peft's name of an adapter where there is only one; it is in the names of a model's tensors, and in no file of peft's.
ADAPTER_NAME = "default"

# The entry of a training checkpoint that holds the adapter's record.
ADAPTER_KEY = "adapter"

# What decides the decoder's output beside its tensors.
_IDENTITY = ("num_attention_heads", "activation_function", "num_codebooks", "audio_channels")
_WITHOUT_ADAPTERS = "norms"


@dataclass(kw_only=True)
class AdapterSettings:
    """What is added to the decoder."""

    rank: int
    """Of the two factors; parameters grow with it."""
    alpha: float
    """The adapter's output is multiplied by alpha / rank, or with `rank_stabilized` by alpha / sqrt(rank)."""
    dropout: float
    """Of the adapter's input, while training."""
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
    """What an adapter is and what it belongs to; plain values, kept in every checkpoint and file of it."""

    base: str
    """The model it was trained on, as `init_from` named it."""
    base_fingerprint: str
    """See `base_fingerprint`."""
    audio_channels: int
    """Of the base; 2 where `base` names a mono model too, which was made stereo first."""
    rank: int
    alpha: float
    dropout: float
    dora: bool
    rank_stabilized: bool
    modules: str
    """A regular expression that matches the names of the modules that have an adapter."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str) -> AdapterRecord:
        """Read one.

        Raises:
            CheckpointError: `source` holds another kind of record.
        """
        try:
            return cls(**values)
        except TypeError as error:
            raise CheckpointError(
                f"{source} has a record of an adapter that this version cannot read: {error}"
            ) from error

    def check_base(self, found: str, what: str) -> None:
        """Refuse another base.

        Args:
            found: the fingerprint of the base at hand.
            what: its name.

        Raises:
            ValueError: it is not the one that the adapter was trained on.
        """
        if found != self.base_fingerprint:
            raise ValueError(
                f"the adapter was trained on {self.base} (fingerprint {self.base_fingerprint[:12]}), and {what} has "
                f"other weights ({found[:12]}). An adapter means nothing on another model; give the one that it was "
                "trained on, in the version that it had then"
            )


def require_peft() -> None:
    """Refuse to go on without peft.

    Raises:
        ValueError: it is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise ValueError("adapters need peft, which is not installed: pip install -e '.[lora]'")


def base_fingerprint(model: nn.Module, config: MusicgenDecoderConfig) -> str:
    """SHA-256, hex, of what an adapter is trained on: decoder and projection of the text, in float32.

    Reads all weights once, which takes seconds per billion parameters.

    Args:
        model: see `add_adapter`; without an adapter.
        config: of the decoder.
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
    """Put a new adapter into a model; of all its parameters, only the adapter's are trained from then on.

    It begins as zero: the model's output stays what it was until the first step.

    Args:
        model: a composite, or any module with its `decoder` and, where there is one, `enc_to_dec_proj`.
        settings: which adapter.
        trained: names outside of it get none, see `FreezeSettings.trains`.
        config: of the decoder.
        base: the model's name, for the record.
        seed: of the adapter's first factor.

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
    """Put the layers of a recorded adapter into its base, with new values.

    Args:
        model: see `add_adapter`.
        record: of the adapter.
    """
    require_peft()
    # Imported here: it brings transformers and takes seconds.
    from peft import inject_adapter_in_model

    mode = model.training
    inject_adapter_in_model(lora_config(record), model, adapter_name=ADAPTER_NAME)
    model.train(mode)


def lora_config(record: AdapterRecord) -> LoraConfig:
    """An adapter's description in peft's terms."""
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
    """Overwrite the values of a model's adapter.

    Raises:
        CheckpointError: tensors are missing, or do not fit.
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
    """Refuse to go on with a checkpoint of another adapter, or of another base.

    Args:
        saved: our part of the checkpoint, with or without an adapter's entry.
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
    """Whether a model has an adapter."""
    return any(_is_of_adapter(name) for name, _ in model.named_parameters())


def adapter_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The adapter's tensors alone, under their names in the model; they share its memory."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if _is_of_adapter(name)}


def merged_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """A model's state dict with the adapter added to the weights, under the names that it has without one.

    Nothing is changed. Without an adapter it is the state dict.
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
    """Leave the frozen base out of a module's state dict, also of its copies, and take it as given when one is loaded.

    So a checkpoint has the size of the adapter, and loading it stays strict.
    """
    module.register_state_dict_post_hook(_leave_base_out)
    module.register_load_state_dict_pre_hook(_take_base_as_given)


def modules_pattern(names: Iterable[str]) -> str:
    r"""A regular expression that matches exactly these module names: numbers of otherwise equal names in one group.

    E.g. `decoder\.lm_heads\.(0|1|2|3)`.
    """
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
