"""A base and its adapter as one plain model, in Python or as a folder of the hub's layout."""

from __future__ import annotations

from pathlib import Path

import torch

from musicgen_train.hub.folder import atomic_folder
from musicgen_train.hub.weights import CheckpointError, list_some
from musicgen_train.models.encodec import EncodecModel
from musicgen_train.models.musicgen import MusicgenForConditionalGeneration
from musicgen_train.models.t5 import T5EncoderModel
from musicgen_train.processing.feature_extractor import EncodecFeatureExtractor
from musicgen_train.processing.musicgen_processor import MusicgenProcessor
from musicgen_train.processing.t5_tokenizer import T5Tokenizer
from musicgen_train.training.adapter_files import read_adapter
from musicgen_train.training.start import Encoders, with_adapter


def load_adapted(adapter: str | Path, base: str | None = None) -> MusicgenForConditionalGeneration:
    """A model with an adapter merged into its weights.

    Args:
        adapter: the folder of one, such as RUN/adapter.
        base: hub folder or id, run or checkpoint that it was trained on; None for the one that it names.

    Returns:
        The composite, in eval mode.

    Raises:
        FileNotFoundError: one of the two is not there.
        ValueError: the base is another model than the adapter was trained on.
        CheckpointError: files are damaged.
    """
    return _load(Path(adapter).expanduser(), base)[0]


def merge_adapter(adapter: str | Path, output: str | Path, base: str | None = None) -> MusicgenForConditionalGeneration:
    """Write a model with an adapter merged into its weights, and its processor, as a folder of the hub's layout; read
    it back, and compare every tensor.

    Args:
        adapter, base: see `load_adapted`.
        output: the folder to write.

    Raises:
        as `load_adapted`.
    """
    model, encoders = _load(Path(adapter).expanduser(), base)
    processor = MusicgenProcessor(
        EncodecFeatureExtractor.from_pretrained(encoders.audio), T5Tokenizer.from_pretrained(encoders.text)
    )
    with atomic_folder(output) as staging:
        model.save_pretrained(staging)
        processor.save_pretrained(staging)
    found = MusicgenForConditionalGeneration.from_pretrained(output).state_dict()
    different = [name for name, value in model.state_dict().items() if not torch.equal(found[name], value)]
    if different:
        raise CheckpointError(f"{output} was read back with other tensors than were written: {list_some(different)}")
    return model


def _load(adapter: Path, base: str | None) -> tuple[MusicgenForConditionalGeneration, Encoders]:
    record, state = read_adapter(adapter)
    trained = with_adapter(record, state, str(adapter), base)
    encoders = trained.encoders
    if encoders is None:
        raise ValueError(
            f"the base {base or record.base} is a decoder without encoders; give a composite that has that decoder"
        )
    model = MusicgenForConditionalGeneration(
        text_encoder=T5EncoderModel.from_pretrained(encoders.text),
        audio_encoder=EncodecModel.from_pretrained(encoders.audio),
        decoder=trained.decoder,
    )
    if model.enc_to_dec_proj is not None and trained.projection is not None:
        model.enc_to_dec_proj.load_state_dict(trained.projection)
    return model.eval(), encoders
