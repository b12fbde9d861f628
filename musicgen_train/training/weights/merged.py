"""Merging an adapter into its base: a plain model, in Python or as a folder in the hub's layout."""

from __future__ import annotations

from pathlib import Path

import torch

from musicgen_train.files import atomic_folder
from musicgen_train.hub.weights import CheckpointError, is_weight_file, list_some
from musicgen_train.models.musicgen import MusicgenForConditionalGeneration
from musicgen_train.processing.feature_extractor import EncodecFeatureExtractor
from musicgen_train.processing.musicgen_processor import MusicgenProcessor
from musicgen_train.processing.t5_tokenizer import T5Tokenizer
from musicgen_train.training.weights.adapter_files import read_adapter
from musicgen_train.training.weights.starting import EncoderSources, composite_of, with_adapter


def load_adapted(adapter: str | Path, base: str | None = None) -> MusicgenForConditionalGeneration:
    """Load a model with an adapter merged into its weights.

    Args:
        adapter: the adapter's folder, such as RUN/adapter.
        base: the hub folder or id, run or checkpoint that it was trained on; None takes the one that it names.

    Returns:
        The composite, in eval mode.

    Raises:
        FileNotFoundError: one of the two is not there.
        ValueError: the base is another model than the adapter was trained on.
        CheckpointError: files are damaged.
    """
    return with_encoders(Path(adapter).expanduser(), base)[0]


def merge_adapter(adapter: str | Path, output: str | Path, base: str | None = None) -> MusicgenForConditionalGeneration:
    """Write a model with an adapter merged into its weights, and its processor, as a folder in the hub's layout.

    The folder is read back, and every tensor compared.

    Args:
        adapter, base: see `load_adapted`.
        output: the folder to write.

    Raises:
        as `load_adapted`.
    """
    model, encoders = with_encoders(Path(adapter).expanduser(), base)
    processor = MusicgenProcessor(
        EncodecFeatureExtractor.from_pretrained(encoders.audio), T5Tokenizer.from_pretrained(encoders.text)
    )
    with atomic_folder(output, obsolete=is_weight_file) as staging:
        model.save_pretrained(staging)
        processor.save_pretrained(staging)
        found = MusicgenForConditionalGeneration.from_pretrained(staging).state_dict()
        different = [name for name, value in model.state_dict().items() if not torch.equal(found[name], value)]
        if different:
            raise CheckpointError(
                f"{output} would be read back with other tensors than were written, and is left as it was: "
                f"{list_some(different)}"
            )
    return model


def with_encoders(adapter: Path, base: str | None = None) -> tuple[MusicgenForConditionalGeneration, EncoderSources]:
    """Load the model of `load_adapted`, and say where its encoders came from."""
    record, state = read_adapter(adapter)
    trained = with_adapter(record, state, str(adapter), base)
    if trained.encoders is None:
        raise ValueError(
            f"the base {base or record.base} is a decoder without encoders; give a composite that has that decoder"
        )
    return composite_of(trained, trained.encoders, str(adapter)), trained.encoders
