"""The end of a run: the composite as a folder in the hub's layout, read back and compared before it is called done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from musicgen_train.data.batch import Batch
from musicgen_train.files import atomic_folder
from musicgen_train.hub.weights import CheckpointError, is_weight_file, list_some
from musicgen_train.models.musicgen import MusicgenForConditionalGeneration
from musicgen_train.processing.musicgen_processor import MusicgenProcessor
from musicgen_train.training.logs.origin import describe_amounts, is_hub_id
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
    """Write a composite, and make sure that what was written is what was trained.

    Args:
        composite: encoders, decoder and projection, on any device; an adapter in it is merged into the weights.
        processor: goes with it.
        folder: where to; made if need be.
        batch: on which both are compared.
        trained: decoder and projection in place of the composite's own, under its names (`decoder.*`,
            `enc_to_dec_proj.*`), e.g. of the best checkpoint. Of a composite with an adapter, that adapter alone: the
            composite has its values from then on.
        card: the model card.

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
        # By way of train mode: in eval mode peft keeps DoRA's norms of weights that may have changed since.
        composite.train().eval()
        _require_close(_logits(plain, batch), _logits(composite, batch))
    # What was there before stays until what is written was read back and is right.
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
        composite: what was written.
        state: its tensors.
        folder: where to.
        batch: to compute the logits of.
        name: what the folder is to be called, for errors, where that is another.

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
    # A model of its own, so that the trained one stays as it is: the same weights have to mean the same.
    # Not to the last bit: how products are summed up depends on where in memory weights lie, and mapped files lie
    # elsewhere.
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
    # Sums in another order: they agree to float32's digits, through some dozens of layers.
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


def model_card(provenance: Mapping[str, Any], config: str, metrics: Mapping[str, float], steps: int) -> str:
    """The README.md of an exported model.

    Args:
        provenance: see `provenance.provenance`.
        config: the run's resolved config, as YAML.
        metrics: the last measured numbers.
        steps: optimizer steps made.
    """
    base = provenance["init_from"]
    lineage = f"base_model: {base}\n" if is_hub_id(base) else ""
    amounts = describe_amounts(provenance["latents"])
    numbers = "\n".join(f"| {name} | {value:.4f} |" for name, value in sorted(metrics.items()))
    return f"""---
library_name: musicgen_train
pipeline_tag: text-to-audio
tags: [musicgen, music, audio]
{lineage}---

# A MusicGen model, trained with musicgen_train

Started from {"random weights" if base == "scratch" else f"`{base}`"}, trained for {steps} steps on latents of
{amounts}. Text and audio encoder are frozen and those of `{provenance["encoders"]}`.

## Use

```python
from musicgen_train import MusicgenForConditionalGeneration, MusicgenProcessor

processor = MusicgenProcessor.from_pretrained("FOLDER")
model = MusicgenForConditionalGeneration.from_pretrained("FOLDER")
inputs = processor(text=["a slow piano piece"], padding=True, return_tensors="pt")
audio = model.generate(**inputs, max_new_tokens=503)  # (1, channels, samples)
```

The same lines work with `transformers` (`AutoProcessor`).

## Numbers

| metric | last value |
| --- | --- |
{numbers}

Cross-entropies (`ce`) are in nats per code; q1 is the coarsest codebook.

## Provenance

```json
{json.dumps(provenance, indent=2, sort_keys=True)}
```

## Config

```yaml
{config.strip()}
```
"""
