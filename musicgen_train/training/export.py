"""Writing a composite as a folder in the hub's layout, which is read back and compared before it counts as written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from musicgen_train.data.batch import Batch
from musicgen_train.files import atomic_folder
from musicgen_train.hub.weights import CheckpointError, is_weight_file, list_some
from musicgen_train.models.musicgen import MusicgenForConditionalGeneration
from musicgen_train.processing.musicgen_processor import MusicgenProcessor
from musicgen_train.training.weights.adapters import has_adapter, load_adapter_state, merged_state


def export_composite(
    composite: MusicgenForConditionalGeneration,
    processor: MusicgenProcessor,
    folder: Path,
    *,
    batch: Batch,
    trained: Mapping[str, torch.Tensor] | None = None,
    card: str,
) -> None:
    """Write a composite, and check that what was written is what was trained.

    Args:
        composite: encoders, decoder and projection, on any device; an adapter in it is merged into the weights.
        processor: the composite's processor.
        folder: the folder to write, which is made if need be.
        batch: the batch on which the logits of both are compared.
        trained: tensors that take the place of the composite's own decoder and projection, under its names
            (`decoder.*`, `enc_to_dec_proj.*`), e.g. those of the best checkpoint. Where the composite has an adapter,
            the tensors of the adapter alone, which are loaded into the composite.
        card: the model card, written as README.md.

    Raises:
        CheckpointError: what was read back differs from what was to be written.
    """
    adapted = has_adapter(composite)
    if adapted and trained is not None:
        load_adapter_state(composite, trained, "the weights to export")
    state = {name: value for name, value in merged_state(composite).items() if name not in composite.tied_keys}
    if trained is not None and not adapted:
        unknown = [name for name in trained if name not in state]
        if unknown:
            raise CheckpointError(f"the weights to export have tensors the model has not: {list_some(unknown)}")
        state.update(trained)
    plain = _with_state(composite, state)
    if adapted:
        # Going through train mode, because in eval mode peft keeps DoRA's norms from before the weights changed.
        composite.train().eval()
        _require_close(_logits(plain, batch), _logits(composite, batch))
    # A folder that was there before is only replaced once the new one was read back and is right.
    with atomic_folder(folder, obsolete=is_weight_file) as staging:
        plain.save_pretrained(staging)
        processor.save_pretrained(staging)
        (staging / "README.md").write_text(card, encoding="utf-8")
        compare_with_folder(plain, state, staging, batch, name=folder)


@torch.no_grad()
def compare_with_folder(
    composite: MusicgenForConditionalGeneration,
    state: Mapping[str, torch.Tensor],
    folder: Path,
    batch: Batch,
    name: Path | None = None,
) -> None:
    """Read a folder back and compare every tensor bit by bit, and the logits of a batch up to rounding.

    Args:
        composite: the model that was written.
        state: its tensors.
        folder: the folder that was written.
        batch: the batch whose logits are compared.
        name: the folder's name in errors, where it is not `folder`.

    Raises:
        CheckpointError: they differ.
    """
    again = MusicgenForConditionalGeneration.from_pretrained(folder, dtype="auto")
    MusicgenProcessor.from_pretrained(folder)
    found = again.state_dict()
    different = [name for name, value in state.items() if not torch.equal(found[name], value.cpu())]
    if different:
        raise CheckpointError(
            f"{name or folder} was read back with other tensors than were written: {list_some(different)}"
        )
    # A copy, so that the trained model stays as it is. The logits may differ in the last bits: the order in which
    # products are summed depends on where weights lie in memory, and mapped files lie elsewhere.
    expected = _logits(_with_state(composite, state), batch)
    rounding = float(expected.abs().max()) * torch.finfo(again.dtype).eps ** 0.5
    if not torch.allclose(_logits(again, batch), expected, rtol=0.0, atol=rounding):
        raise CheckpointError(f"{name or folder} was read back with the same tensors and gives other logits")


def _with_state(
    composite: MusicgenForConditionalGeneration, state: Mapping[str, torch.Tensor]
) -> MusicgenForConditionalGeneration:
    with torch.device("meta"):
        twin = MusicgenForConditionalGeneration(composite.config.__class__.from_dict(composite.config.to_dict()))
    tied = {alias: state[name] for alias, name in twin.tied_keys.items() if alias in twin.state_dict()}
    twin.load_state_dict({**{name: value.cpu() for name, value in state.items()}, **tied}, assign=True)
    twin.generation_config = composite.generation_config
    return twin.eval()


def _require_close(merged: torch.Tensor, adapted: torch.Tensor) -> None:
    # The order of the sums differs, so they agree to the precision of float32 through some dozens of layers.
    if not torch.allclose(merged, adapted, rtol=1e-3, atol=1e-3 * float(adapted.abs().max())):
        worst = float((merged - adapted).abs().max())
        raise CheckpointError(f"the merged weights give other logits than the adapter does, by up to {worst:.3g}")


@torch.no_grad()
def _logits(model: MusicgenForConditionalGeneration, batch: Batch) -> torch.Tensor:
    decoder = model.decoder
    labels = batch.labels(decoder.delays, decoder.config.pad_token_id)
    text = model.project_text(batch.text_states, batch.text_mask)
    logits = decoder(labels=labels, encoder_hidden_states=text, encoder_attention_mask=batch.text_mask).logits
    assert isinstance(logits, torch.Tensor)
    return logits
