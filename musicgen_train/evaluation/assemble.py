"""Putting the composite to be evaluated together, and refusing encoders that a dataset was not made with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from musicgen_train.hub.folder import CONFIG_NAME
from musicgen_train.hub.weights import CheckpointError
from musicgen_train.latents.fingerprint import fingerprint
from musicgen_train.latents.manifest import Manifest
from musicgen_train.models.encodec import EncodecModel
from musicgen_train.models.musicgen import MusicgenForConditionalGeneration
from musicgen_train.models.pretrained import check_state_dict
from musicgen_train.models.t5 import T5EncoderModel
from musicgen_train.training.run_folder import CHECKPOINTS_FOLDER, COMPOSITE_FOLDER, find_checkpoint, is_run

METRICS_NAME = "metrics.csv"

_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where a model comes from."""

    composite: str | None
    """A folder or hub id in the hub's layout: the encoders, and the decoder where there is no checkpoint. None: the
    encoders are those that the checkpoint names."""
    checkpoint: Path | None = None
    """A training checkpoint, whose decoder and projection are used."""
    run: Path | None = None
    """The folder of the training run, if it is one's."""

    @property
    def metrics(self) -> Path | None:
        """The training curves, if there are any."""
        path = None if self.run is None else self.run / METRICS_NAME
        return path if path is not None and path.is_file() else None


@dataclass(kw_only=True)
class EvaluatedModel:
    """A composite in eval mode, and what it is made of."""

    model: MusicgenForConditionalGeneration
    source: ModelSource
    text_source: str
    """Folder or hub id of the text encoder and its tokenizer."""
    text_encoder: str
    """Fingerprint."""
    audio_encoder: str
    """Fingerprint."""


def find_model(model: str) -> ModelSource:
    """What `model=` names: a run's folder, a checkpoint, or a composite's folder or hub id.

    A run is its composite, or its last checkpoint where it has not ended.

    Raises:
        FileNotFoundError: a folder that holds no model, or a run without anything yet.
        ValueError: a file that is no checkpoint.
    """
    path = Path(model).expanduser()
    if path.is_file():
        if path.suffix != ".ckpt":
            raise ValueError(
                f"model={model} is a file, but no .ckpt; give a run's folder, a checkpoint or a hub folder"
            )
        return _of_checkpoint(path)
    if (path / COMPOSITE_FOLDER / CONFIG_NAME).is_file():
        return ModelSource(composite=str(path / COMPOSITE_FOLDER), run=path)
    if is_run(path) and not (path / CONFIG_NAME).is_file():
        return _of_checkpoint(find_checkpoint(path))
    if path.is_dir() and not (path / CONFIG_NAME).is_file():
        raise FileNotFoundError(
            f"model={model} is neither a run's folder nor a model's: it holds no {COMPOSITE_FOLDER}/ and no "
            f"{CONFIG_NAME}"
        )
    # The composite within a run may be named itself.
    within_run = path.name == COMPOSITE_FOLDER and is_run(path.parent)
    return ModelSource(composite=model, run=path.parent if within_run else None)


def load_model(
    source: ModelSource, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> EvaluatedModel:
    """Read the composite, put a checkpoint's weights into it, and take the encoders' fingerprints.

    Raises:
        FileNotFoundError: files are missing.
        CheckpointError: weights are damaged or do not fit each other.
    """
    # In float32 first: fingerprints are of the values in the files, which a cast would change.
    if source.checkpoint is None:
        assert source.composite is not None
        text_source = source.composite
        model = MusicgenForConditionalGeneration.from_pretrained(source.composite)
    else:
        model, text_source = _with_checkpoint(source.checkpoint, source.composite)
    text_encoder, audio_encoder = fingerprint(model.text_encoder), fingerprint(model.audio_encoder)
    model.to(device=device, dtype=dtype)
    return EvaluatedModel(
        model=model.eval(),
        source=source,
        text_source=text_source,
        text_encoder=text_encoder,
        audio_encoder=audio_encoder,
    )


def check_encoders(evaluated: EvaluatedModel, manifest: Manifest, dataset: str) -> None:
    """Refuse a model whose encoders, or whose codes, are not those of a dataset.

    Raises:
        ValueError: says what differs and what to do.
    """
    config = evaluated.model.config
    again = f"Evaluate a model that fits the dataset, or preprocess again with encoders={evaluated.text_source}"
    numbers = (
        ("codebooks", config.decoder.num_codebooks, manifest.num_codebooks),
        ("entries per codebook", config.decoder.vocab_size, manifest.codebook_size),
        ("audio channels", config.decoder.audio_channels, manifest.audio_channels),
        ("numbers per text state", config.text_encoder.hidden_size, manifest.text_width),
    )
    for what, ours, theirs in numbers:
        if ours != theirs:
            raise ValueError(f"the dataset {dataset} has {theirs} {what}, the model has {ours}. {again}")
    different = [
        f"its {kind} encoder was {record.fingerprint[:_SHOWN]} (from {record.name}), the model's is {ours[:_SHOWN]}"
        for kind, ours, record in (
            ("text", evaluated.text_encoder, manifest.text_encoder),
            ("audio", evaluated.audio_encoder, manifest.audio_encoder),
        )
        if ours != record.fingerprint
    ]
    if different:
        raise ValueError(
            f"the dataset {dataset} was made with other encoders than the model has: {'; '.join(different)}. Its "
            f"states and codes mean nothing to this model. {again}"
        )


def _of_checkpoint(path: Path) -> ModelSource:
    run = path.parent.parent if path.parent.name == CHECKPOINTS_FOLDER else None
    composite = None if run is None else run / COMPOSITE_FOLDER
    has_composite = composite is not None and (composite / CONFIG_NAME).is_file()
    return ModelSource(composite=str(composite) if has_composite else None, checkpoint=path, run=run)


def _with_checkpoint(checkpoint: Path, composite: str | None) -> tuple[MusicgenForConditionalGeneration, str]:
    """The composite of a checkpoint's decoder and projection, and where its text encoder came from."""
    # Imported here: it brings Lightning, which nothing else here needs.
    from musicgen_train.training.start import read_checkpoint

    trained = read_checkpoint(checkpoint)
    # The run's own copy of the encoders, since what it was started from may be gone by now.
    text_source, audio_source = composite, composite
    if text_source is None or audio_source is None:
        if trained.encoders is None:
            raise CheckpointError(
                f"{checkpoint} does not say which encoders belong to it; leave it in its run's folder"
            )
        text_source, audio_source = trained.encoders.text, trained.encoders.audio
    model = MusicgenForConditionalGeneration(
        text_encoder=T5EncoderModel.from_pretrained(text_source),
        audio_encoder=EncodecModel.from_pretrained(audio_source),
        decoder=trained.decoder,
    )
    projection = {} if model.enc_to_dec_proj is None else model.enc_to_dec_proj.state_dict()
    found = trained.projection or {}
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    check_state_dict(projection, shapes, f"the text projection of {checkpoint} does not fit its text encoder")
    if model.enc_to_dec_proj is not None:
        model.enc_to_dec_proj.load_state_dict(found)
    return model, text_source
