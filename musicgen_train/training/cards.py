"""Model cards: the README.md of an exported model or adapter, with the base model and its license in the metadata."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yaml import YAMLError  # type: ignore[import-untyped]

from musicgen_train.files import read_json
from musicgen_train.hub.folder import PretrainedFolder
from musicgen_train.training.logs.origin import describe_amounts, is_hub_id
from musicgen_train.training.run_folder import PROVENANCE_NAME
from musicgen_train.training.weights.adapters import AdapterRecord
from musicgen_train.training.weights.model_source import ModelSource, find_model
from musicgen_train.training.weights.starting import SCRATCH

CARD_NAME = "README.md"

_LICENSE_KEYS = ("license", "license_name", "license_link")


def describe_base(init_from: str) -> dict[str, Any]:
    """The metadata that the card of a trained model takes over from the model it started from.

    Args:
        init_from: see `load_start`; what it names is there.

    Returns:
        `base_model`: the hub id, else the base model that the card of `init_from` names, else the name of its folder.
        `license`, `license_name` and `license_link` as its card has them. Nothing of random weights.
    """
    if init_from == SCRATCH:
        return {}
    source = find_model(init_from, "init_from")
    found: dict[str, Any] = {}
    # A card that cannot be read is no reason to refuse a run: what it says is then not known.
    with contextlib.suppress(OSError, ValueError, YAMLError):
        found = _metadata_of(source)
    folder = source.run or Path(init_from).expanduser()
    base_model = init_from if is_hub_id(init_from) else found.get("base_model") or folder.resolve().name
    return {"base_model": base_model, **{key: found[key] for key in _LICENSE_KEYS if found.get(key)}}


def model_card(provenance: Mapping[str, Any], config: str, metrics: Mapping[str, float], steps: int) -> str:
    """The README.md of an exported model.

    Args:
        provenance: see `origin.provenance`.
        config: the run's resolved config, as YAML.
        metrics: the last measured numbers.
        steps: optimizer steps made.
    """
    base, start = provenance.get("base", {}), provenance["init_from"]
    amounts = describe_amounts(provenance["latents"])
    numbers = "\n".join(f"| {name} | {value:.4f} |" for name, value in sorted(metrics.items()))
    metadata = _front_matter(
        library_name="musicgen_train", pipeline_tag="text-to-audio", tags=["musicgen", "music", "audio"], **base
    )
    return f"""{metadata}
# A MusicGen model, trained with musicgen_train

Started from {"random weights" if start == SCRATCH else f"`{start}`"}, trained for {steps} steps on latents of
{amounts}. Text and audio encoder are frozen and those of `{provenance["encoders"]}`.
{_about_license(base)}
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


def adapter_card(record: AdapterRecord, base: Mapping[str, Any], merged_card: str) -> str:
    """The README.md of an adapter.

    Args:
        record: the adapter's record.
        base: see `describe_base`.
        merged_card: the card of the model that the adapter is merged into, whose numbers and provenance it shares.
    """
    kind = "DoRA" if record.dora else "LoRA"
    made_stereo = ", made stereo" if record.audio_channels == 2 else ""
    _, _, numbers = merged_card.partition("## Numbers")
    metadata = _front_matter(library_name="peft", tags=["musicgen", "music", "audio", "lora"], **base)
    return f"""{metadata}
# A {kind} adapter for MusicGen, trained with musicgen_train

Of rank {record.rank}, for `{record.base}`{made_stereo}, whose decoder and projection have the fingerprint
`{record.base_fingerprint}`. On another model it means nothing.
{_about_license(base)}
## Use

```python
from musicgen_train.training.weights.merged import load_adapted

model = load_adapted("FOLDER")  # merged into the weights of its base; base="..." says where that is now
```

Or, on transformers' model of the same base, `peft.PeftModel.from_pretrained(model, "FOLDER")`.

## Numbers{numbers}"""


def _metadata_of(source: ModelSource) -> dict[str, Any]:
    """The metadata of a model's card; where a run has not written one yet, what the run knows of its own base."""
    # Imported here because it is slow to import.
    from huggingface_hub import metadata_load

    folder = source.adapter or source.folder
    if folder is None:
        return {} if source.run is None else dict(read_json(source.run / PROVENANCE_NAME).get("base", {}))
    card = PretrainedFolder(folder).find(CARD_NAME)
    return {} if card is None else metadata_load(card) or {}


def _front_matter(**metadata: Any) -> str:
    from huggingface_hub import ModelCardData

    return f"---\n{ModelCardData(**metadata).to_yaml()}\n---\n"


def _about_license(base: Mapping[str, Any]) -> str:
    if not base:
        return ""
    if "license" in base:
        return f"\nIts license is that of its base, as the base's card gives it: {base['license']}.\n"
    return f"\nIts license is not known, because `{base['base_model']}` names none in its card.\n"
