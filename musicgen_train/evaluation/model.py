"""The composite that is evaluated: put together, and refused for a dataset that other encoders made.

Axes: K codebooks, T frames, C channels, S samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from musicgen_train.hub.weights import CheckpointError
from musicgen_train.latents.manifest import Manifest
from musicgen_train.models.fingerprint import fingerprint
from musicgen_train.models.musicgen import MusicgenForConditionalGeneration
from musicgen_train.training.weights.merged import with_encoders
from musicgen_train.training.weights.model_source import ModelSource
from musicgen_train.training.weights.starting import EncoderSources, composite_of, read_checkpoint

_SHOWN = 12


@dataclass(kw_only=True)
class EvaluatedModel:
    """A composite in eval mode, and what it is made of."""

    model: MusicgenForConditionalGeneration
    source: ModelSource
    text_source: str
    """Folder or hub id of the text encoder and its tokenizer."""
    text_encoder: str
    """The text encoder's fingerprint."""
    audio_encoder: str
    """The codec's fingerprint."""

    @property
    def sampling_rate(self) -> int:
        """The codec's, in Hz."""
        return self.model.config.audio_encoder.sampling_rate

    @property
    def hop_length(self) -> int:
        """Samples of a frame of codes."""
        return self.model.config.audio_encoder.hop_length

    @property
    def frame_rate(self) -> float:
        """Frames of codes per second."""
        return self.sampling_rate / self.hop_length

    @property
    def channels(self) -> int:
        """Channels of the audio: 1 or 2."""
        return self.model.config.decoder.audio_channels

    @torch.no_grad()
    def decode(self, codes_KT: torch.Tensor) -> torch.Tensor:
        """The audio `(C, S)` of codes, float32 on the CPU."""
        return self.model.decode_audio(codes_KT[None].to(self.model.device))[0].float().cpu()

    @torch.no_grad()
    def through_codec(self, audio_CS: torch.Tensor) -> torch.Tensor:
        """A recording encoded and decoded, of the same length; float32 on the CPU.

        No model with this codec can sound better.
        """
        codes_BKT, _ = self.model.encode_audio(audio_CS[None].to(self.model.device, self.model.dtype))
        return self.decode(codes_BKT[0])[:, : audio_CS.shape[1]]


def load_model(
    source: ModelSource, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> EvaluatedModel:
    """Read the composite, put a checkpoint's weights into it, and take the encoders' fingerprints.

    Raises:
        FileNotFoundError: files are missing.
        CheckpointError: weights are damaged or do not fit each other.
    """
    # In float32 first: fingerprints are of the values in the files, which a cast would change.
    model, text_source = _composite(source)
    text_encoder, audio_encoder = fingerprint(model.text_encoder), fingerprint(model.audio_encoder)
    model.cast(torch.device(device), dtype)
    return EvaluatedModel(
        model=model.eval(),
        source=source,
        text_source=text_source,
        text_encoder=text_encoder,
        audio_encoder=audio_encoder,
    )


def _composite(source: ModelSource) -> tuple[MusicgenForConditionalGeneration, str]:
    """The composite, and the folder or hub id that its text encoder comes from."""
    if source.checkpoint is None and source.adapter is None:
        assert source.folder is not None
        return MusicgenForConditionalGeneration.from_pretrained(source.folder), source.folder
    if source.adapter is not None:
        model, encoders = with_encoders(source.adapter)
        return model, encoders.text
    assert source.checkpoint is not None
    trained = read_checkpoint(source.checkpoint)
    # The run's own copy of the encoders, since what it was started from may be gone by now.
    own = None if source.folder is None else EncoderSources(source.folder, source.folder)
    found = own or trained.encoders
    if found is None:
        raise CheckpointError(
            f"{source.checkpoint} does not say which encoders belong to it; leave it in its run's folder"
        )
    return composite_of(trained, found, str(source.checkpoint)), found.text


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
