"""Chooses which of a model's parameters a run trains: all, some groups, or an adapter."""

from __future__ import annotations

import dataclasses
from typing import Any

from musicgen_train.training.weights.adapters import ADAPTER_KEY, AdapterRecord, AdapterSettings, add_adapter
from musicgen_train.training.weights.freezing import FreezeSettings, freeze_parameters, frozen_groups, is_trainable_part
from musicgen_train.training.weights.starting import SCRATCH, Start


def choose_parameters(
    start: Start, freezing: FreezeSettings, adapter: AdapterSettings | None, *, init_from: str, seed: int
) -> AdapterRecord | None:
    """Freeze the parameters that are not trained, and add the adapter if there is one.

    Args:
        start: its composite is changed in place.
        freezing: the groups that are trained; with an adapter, the groups that get one.
        adapter: None trains the weights themselves.
        init_from: where the weights came from, for the adapter's record.
        seed: the seed of the adapter.

    Returns:
        The adapter's record, if there is one.

    Raises:
        ValueError: a group is unknown, nothing is left to train, or something that has to be trained would not be.
    """
    composite, config = start.composite, start.composite.decoder.config
    if adapter is not None and init_from == SCRATCH:
        raise ValueError(
            "an adapter changes a trained model a little, and init_from=scratch is not trained; leave adapter= out, or "
            "give a model"
        )
    if adapter is not None and start.new_projection:
        raise ValueError(
            f"{init_from} has no projection for these text states, so a new one has to be trained as a whole, which "
            "an adapter does not; start from a composite, or leave adapter= out"
        )
    trained = freezing.trains(config.num_hidden_layers)
    record = None
    if adapter is not None:
        record = add_adapter(composite, adapter, trained, config, base=init_from, seed=seed)
    else:
        freeze_parameters(composite, freezing, config.num_hidden_layers)
    _require_what_is_new(start)
    return record


def adapter_entry(record: AdapterRecord | None) -> dict[str, Any]:
    """The entry of a training checkpoint for its adapter; empty if there is none."""
    return {} if record is None else {ADAPTER_KEY: dataclasses.asdict(record)}


def _require_what_is_new(start: Start) -> None:
    names = [name for name, _ in start.composite.named_parameters() if is_trainable_part(name)]
    trained = {name for name, parameter in start.composite.named_parameters() if parameter.requires_grad}
    frozen = frozen_groups(names, trained.__contains__)
    if start.new_projection and "text_projection" in frozen:
        raise ValueError(
            "the projection of the text is new and random, so text_projection has to be trained; take it out of "
            "freeze, or into train_only"
        )
    needed = [group for group in ("embeddings", "heads") if start.made_stereo and group in frozen]
    if needed:
        raise ValueError(
            f"a mono model made stereo begins with equal channels, which only differ once embeddings and heads are "
            f"trained; {' and '.join(needed)} would not be. Take them out of freeze, or into train_only or "
            "adapter.targets"
        )
