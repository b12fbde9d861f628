"""The frozen encoders: the codec turns clips into codes, the text encoder turns captions into states.

The result for a clip or caption must not depend, not even by rounding, on what else is in its batch: a run that was
killed, shared by many processes or grown later batches them differently, and has to give the same dataset. The rows of
a batch are independent, but libraries choose the order of sums by the batch's shape. So all batches of one length have
the same shape, and a batch with too few rows is filled up.

Axes: B batch, C channels, S samples, K codebooks, T frames, L text length, D text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from musicgen_train.hub.folder import CONFIG_NAME
from musicgen_train.latents.manifest import EncoderRecord
from musicgen_train.models.codec.encodec import EncodecModel
from musicgen_train.models.config import AutoConfig, EncodecConfig, MusicgenConfig
from musicgen_train.models.fingerprint import fingerprint
from musicgen_train.models.t5 import T5EncoderModel
from musicgen_train.processing.t5_tokenizer import T5Tokenizer

# The most rows in a batch. They are few, since the rows that fill up a batch are computed for nothing.
_CLIP_ROWS = 8
_TEXT_ROWS = 16
# Captions are padded to a multiple of so many tokens.
_TEXT_STEP = 16


@dataclass(kw_only=True)
class FrozenEncoders:
    """Both encoders, and what the manifest records of them."""

    audio: AudioCoder
    text: TextCoder
    audio_record: EncoderRecord
    text_record: EncoderRecord


class AudioCoder:
    """Encodes clips of equal length to codes.

    A mono codec codes stereo one side at a time, and the codebooks are interleaved: `[1L, 1R, 2L, 2R, ...]`.

    Args:
        codec: the codec.
        channels: 1 for mono, 2 for stereo.

    Raises:
        ValueError: the codec cannot code so many channels, or its codes alone are not enough to decode the audio.
    """

    def __init__(self, codec: EncodecModel, channels: int) -> None:
        config = codec.config
        if config.normalize or config.chunk_length_s is not None:
            raise ValueError(
                "this EnCodec divides the volume out or codes in chunks (normalize, chunk_length_s), and a latent "
                "dataset holds codes alone; use facebook/encodec_32khz or another without both"
            )
        if config.audio_channels not in (1, channels):
            raise ValueError(
                f"the codec takes {config.audio_channels} channels of audio, audio_channels is {channels}; "
                f"give audio_channels={config.audio_channels}"
            )
        self._codec = codec
        self.channels = channels
        self._sides_apart = channels > config.audio_channels
        self.sampling_rate = config.sampling_rate
        self.hop_length = config.hop_length
        self.codebook_size = config.codebook_size
        per_side = codec.quantizer.num_codebooks(config.target_bandwidths[0])
        self.num_codebooks = per_side * (channels if self._sides_apart else 1)

    @property
    def device(self) -> torch.device:
        return self._codec.device

    @torch.inference_mode()
    def encode(self, clips: Sequence[np.ndarray[Any, Any]], rows: int) -> torch.Tensor:
        """Encode clips that all have the same length.

        Args:
            clips: float32 `(channels, samples)` each.
            rows: the batch size, at least the number of clips; the batch is filled up with silence.

        Returns:
            int16 `(len(clips), num_codebooks, frames)` on the CPU, `frames = ceil(samples / hop_length)`.
        """
        assert 0 < len(clips) <= rows, f"{len(clips)} clips in a batch of {rows}"
        filled = [*clips, *[np.zeros_like(clips[0])] * (rows - len(clips))]
        return self._encode(filled)[: len(clips)]

    def _encode(self, clips: Sequence[np.ndarray[Any, Any]]) -> torch.Tensor:
        audio_BCS = torch.from_numpy(np.stack(clips)).to(self.device)
        if not self._sides_apart:
            return self._codes(audio_BCS)
        sides = [self._codes(audio_BCS[:, side : side + 1]) for side in range(self.channels)]
        return torch.stack(sides, dim=2).flatten(1, 2)  # (B, K, side, T) -> (B, K * side, T)

    def _codes(self, audio_BCS: torch.Tensor) -> torch.Tensor:
        codes: torch.Tensor = self._codec.encode(audio_BCS).audio_codes[0]
        frames = -(-audio_BCS.shape[-1] // self.hop_length)
        assert codes.shape[-1] == frames, f"{codes.shape[-1]} frames of codes, expected {frames}"
        return codes.to("cpu", torch.int16)


@dataclass(frozen=True, kw_only=True)
class EncodedCaption:
    """The states of one caption."""

    states_LD: torch.Tensor
    """float32 `(tokens, width)` on the CPU, without padding."""
    cut: bool
    """True if the caption was longer than `max_tokens`."""


class TextCoder:
    """Encodes captions to T5 states in float32, since T5 overflows float16.

    Args:
        model: the text encoder.
        tokenizer: its tokenizer.
        max_tokens: longer captions are cut to so many tokens.
        batch_tokens: tokens in a batch at most, padding included.
    """

    def __init__(self, model: T5EncoderModel, tokenizer: T5Tokenizer, *, max_tokens: int, batch_tokens: int) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._batch_tokens = batch_tokens
        self.width = model.config.hidden_size

    def token_ids(self, text: str) -> tuple[list[int], bool]:
        """Return a caption's token ids and whether they were cut to `max_tokens`. The end-of-text token is kept."""
        ids: list[int] = self._tokenizer.encode(text)
        if len(ids) <= self._max_tokens:
            return ids, False
        return [*ids[: self._max_tokens - 1], ids[-1]], True

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> list[EncodedCaption]:
        """Encode captions, and return their states in the same order."""
        ids, cut = zip(*map(self.token_ids, texts), strict=True) if texts else ((), ())
        by_length: dict[int, list[int]] = {}
        for number, row in enumerate(ids):
            by_length.setdefault(-(-len(row) // _TEXT_STEP) * _TEXT_STEP, []).append(number)
        encoded: dict[int, EncodedCaption] = {}
        for length, numbers in sorted(by_length.items()):
            rows = min(max(self._batch_tokens // length, 1), _TEXT_ROWS)
            for start in range(0, len(numbers), rows):
                batch = numbers[start : start + rows]
                states_BLD = self._states([ids[number] for number in batch], rows, length)
                for row, number in enumerate(batch):
                    states_LD = states_BLD[row, : len(ids[number])].clone()
                    encoded[number] = EncodedCaption(states_LD=states_LD, cut=cut[number])
        return [encoded[number] for number in range(len(texts))]

    def _states(self, ids: Sequence[Sequence[int]], rows: int, length: int) -> torch.Tensor:
        """Encode a batch of the given shape. Padding is masked and changes nothing."""
        input_ids_BL = torch.zeros(rows, length, dtype=torch.long)
        mask_BL = torch.zeros(rows, length, dtype=torch.long)
        # Rows that fill up the batch attend to one token, since attention to no token gives NaN.
        mask_BL[:, 0] = 1
        for row, tokens in enumerate(ids):
            input_ids_BL[row, : len(tokens)] = torch.tensor(tokens)
            mask_BL[row, : len(tokens)] = 1
        device = self._model.device
        states: torch.Tensor = self._model(input_ids_BL.to(device), mask_BL.to(device)).last_hidden_state
        return states.cpu()


def clip_rows(length: int, full_length: int, batch_samples: int) -> int:
    """Return the batch size for clips of a given length.

    Clips of the full length share batches. The ends of tracks all have different lengths, and are encoded alone.

    Args:
        length: samples in the clip.
        full_length: samples in a clip that is not the end of a track.
        batch_samples: the most samples in a batch.
    """
    return min(max(batch_samples // length, 1), _CLIP_ROWS) if length == full_length else 1


def load_encoders(
    *,
    text_encoder: str,
    audio_encoder: str,
    audio_channels: int | None,
    max_tokens: int,
    batch_tokens: int,
    device: torch.device,
) -> FrozenEncoders:
    """Read both encoders and put them on the device.

    Args:
        text_encoder: the folder or hub id that holds the text encoder.
        audio_encoder: the folder or hub id that holds the codec.
        audio_channels: 1 or 2; None for what the decoder in `audio_encoder` makes, or what a codec by itself takes.
        max_tokens: see `TextCoder`.
        batch_tokens: see `TextCoder`.
        device: the device.

    Raises:
        FileNotFoundError, CheckpointError, ValueError: see `from_pretrained` and `AudioCoder`.
    """
    text_name = _part(text_encoder, "text_encoder")
    audio_name = _part(audio_encoder, "audio_encoder")
    codec = EncodecModel.from_pretrained(audio_name)
    model = T5EncoderModel.from_pretrained(text_name)
    tokenizer = T5Tokenizer.from_pretrained(text_name)
    channels = audio_channels or _channels_of(audio_name)
    audio_record = EncoderRecord(name=audio_name, fingerprint=fingerprint(codec))
    text_record = EncoderRecord(name=text_name, fingerprint=fingerprint(model))
    return FrozenEncoders(
        audio=AudioCoder(codec.to(device).requires_grad_(False), channels),
        text=TextCoder(
            model.to(device).requires_grad_(False), tokenizer, max_tokens=max_tokens, batch_tokens=batch_tokens
        ),
        audio_record=audio_record,
        text_record=text_record,
    )


def _part(name: str, part: str) -> str:
    """Return where to read an encoder: the folder itself, or in a folder without a config, its subfolder `part`."""
    folder = Path(name).expanduser()
    if not (folder / CONFIG_NAME).is_file() and (folder / part / CONFIG_NAME).is_file():
        return str(folder / part)
    return name


def _channels_of(name: str) -> int:
    """Return the channels that the decoder of a composite makes, or that a codec takes."""
    config = AutoConfig.from_pretrained(name)
    if isinstance(config, MusicgenConfig):
        return config.decoder.audio_channels
    assert isinstance(config, EncodecConfig), f"{name} is {config.model_type}"
    return config.audio_channels
