"""Freezing: which parts of the decoder are trained, by named groups of parameters and ranges of layers.

Names are those of the composite: `decoder.*` and `enc_to_dec_proj.*`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import nn

_LAYER = r"decoder\.model\.decoder\.layers\.\d+\."

# Every parameter of a decoder and its projection is in exactly one of these groups, and in at most one layer.
PARAMETER_GROUPS = {
    "embeddings": r"decoder\.model\.decoder\.embed_tokens\.",
    "heads": r"decoder\.lm_heads\.",
    "self_attention": _LAYER + r"self_attn\.",
    "cross_attention": _LAYER + r"encoder_attn\.",
    "feed_forward": _LAYER + r"fc[12]\.",
    "norms": rf"({_LAYER}\w+_layer_norm|decoder\.model\.decoder\.layer_norm)\.",
    "text_projection": r"enc_to_dec_proj\.",
}
_LAYER_RANGE = re.compile(r"layers\.(\d+)(?:-(\d+))?")
_LAYER_NUMBER = re.compile(r"decoder\.model\.decoder\.layers\.(\d+)\.")

InGroup = Callable[[str], bool]
"""Tells of the name of a parameter whether it belongs to a group."""


@dataclass(kw_only=True)
class FreezeSettings:
    """Which groups of parameters are trained.

    A group is a name in `PARAMETER_GROUPS`, a layer (`layers.3`), or a range of layers with both ends (`layers.0-11`).
    """

    freeze: list[str] = field(default_factory=list)
    """Groups that are not trained."""
    train_only: list[str] = field(default_factory=list)
    """If given, only these groups are trained."""

    def __post_init__(self) -> None:
        if self.freeze and self.train_only:
            raise ValueError("freeze and train_only are both given; use one of them")

    def trains(self, num_layers: int) -> InGroup:
        """A function that tells whether the parameter of a name is trained.

        Raises:
            ValueError: there is no such group, or no such layer in a decoder with `num_layers`.
        """
        frozen = [group_predicate(name, num_layers, "freeze") for name in self.freeze]
        only = [group_predicate(name, num_layers, "train_only") for name in self.train_only]

        def trained(name: str) -> bool:
            return (not only or any(group(name) for group in only)) and not any(group(name) for group in frozen)

        return trained


def group_predicate(group: str, num_layers: int, setting: str) -> InGroup:
    """A function that tells whether the parameter of a name belongs to a group.

    Args:
        group: a name in `PARAMETER_GROUPS`, `layers.N` or `layers.FIRST-LAST`.
        num_layers: layers of the decoder.
        setting: the setting that names the group, for errors.

    Raises:
        ValueError: there is no such group, or no such layer.
    """
    if group in PARAMETER_GROUPS:
        pattern = re.compile(PARAMETER_GROUPS[group])
        return lambda name: pattern.match(name) is not None
    match = _LAYER_RANGE.fullmatch(group)
    if match is None:
        close = difflib.get_close_matches(group, PARAMETER_GROUPS, n=1)
        nearest = f"; the nearest is {close[0]}" if close else ""
        raise ValueError(
            f"{setting} names the group {group!r}, which there is not{nearest}. There are: "
            f"{', '.join(PARAMETER_GROUPS)}, and layers such as layers.0 or layers.0-{num_layers - 1}"
        )
    first = int(match[1])
    last = first if match[2] is None else int(match[2])
    if not first <= last < num_layers:
        raise ValueError(f"{setting} names {group}, but the decoder has the layers 0 to {num_layers - 1}")
    return lambda name: (number := _LAYER_NUMBER.match(name)) is not None and first <= int(number[1]) <= last


def freeze_parameters(model: nn.Module, settings: FreezeSettings, num_layers: int) -> None:
    """Set `requires_grad` to False for all parameters that are not to be trained; the optimizer leaves those out.

    Args:
        model: a module with the parts `decoder` and, where there is one, `enc_to_dec_proj`.
        settings: which groups are trained.
        num_layers: layers of the decoder.

    Raises:
        ValueError: an unknown group, or nothing is left to train.
    """
    trained = settings.trains(num_layers)
    for name, parameter in model.named_parameters():
        if is_trainable_part(name) and not trained(name):
            parameter.requires_grad_(False)
    require_something_to_train(model)


def require_something_to_train(model: nn.Module) -> None:
    """Check that a model has a parameter to train.

    Raises:
        ValueError: all are frozen.
    """
    if not any(parameter.requires_grad for _, parameter in model.named_parameters()):
        raise ValueError("freeze and train_only leave nothing to train; leave a group out of freeze")


def frozen_groups(names: Iterable[str], trained: InGroup) -> list[str]:
    """The groups that have parameters, none of which are trained.

    Args:
        names: the names of all parameters.
        trained: tells whether the parameter of a name is trained.
    """
    present = list(names)
    frozen = []
    for group, pattern in PARAMETER_GROUPS.items():
        members = [name for name in present if re.match(pattern, name)]
        if members and not any(trained(name) for name in members):
            frozen.append(group)
    return frozen


def is_trainable_part(name: str) -> bool:
    """Returns True if a tensor of a composite belongs to the decoder or the projection, not to a frozen encoder."""
    return name.startswith(("decoder.", "enc_to_dec_proj."))
