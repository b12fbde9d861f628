"""The frozen encoders at work: clips to codes, captions to states.

What a clip or a caption becomes must not depend, not even by rounding, on which others are encoded beside it: a run
that was killed, shared by many processes or grown later groups them otherwise, and gives the same dataset. Rows of a
batch do not touch each other, but libraries choose how to sum by a batch's shape. So the shape is always the same for
the same length: what is missing in a batch is filled up.

Axes: B batch, C channels, S samples, K codebooks, T frames, L text length, D text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from musicgen_train.devices import pick_device
from musicgen_train.hub.folder import CONFIG_NAME
from musicgen_train.latents.manifest import EncoderRecord
from musicgen_train.models.codec.encodec import EncodecModel
from musicgen_train.models.config import AutoConfig, EncodecConfig, MusicgenConfig
from musicgen_train.models.fingerprint import fingerprint
from musicgen_train.models.t5 import T5EncoderModel
from musicgen_train.preprocess.settings import PreprocessSettings
from musicgen_train.processing.t5_tokenizer import T5Tokenizer

# Most rows of a batch. What a batch lacks of them is computed in vain, so they are few.
_CLIP_ROWS = 8
_TEXT_ROWS = 16
# Lengths of padded captions are multiples of it, in tokens.
_TEXT_STEP = 16


@dataclass(kw_only=True)
class Encoders:
    """What turns clips and captions into the numbers of a dataset."""

    audio: AudioCoder
    text: TextCoder
    audio_record: EncoderRecord
    text_record: EncoderRecord


class AudioCoder:
    """Clips of equal length to codes.

    Stereo from a mono codec is coded side by side: `[1L, 1R, 2L, 2R, ...]`.

    Raises:
        ValueError: the codec cannot code so many channels, or its codes alone do not give the audio back.
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
        self._by_side = channels > config.audio_channels
        self.sampling_rate = config.sampling_rate
        self.hop_length = config.hop_length
        self.codebook_size = config.codebook_size
        per_side = codec.quantizer.num_codebooks(config.target_bandwidths[0])
        self.num_codebooks = per_side * (channels if self._by_side else 1)

    @property
    def device(self) -> torch.device:
        return self._codec.device

    @torch.inference_mode()
    def encode(self, clips: Sequence[np.ndarray[Any, Any]], rows: int) -> torch.Tensor:
        """Codes of clips of one length.

        Args:
            clips: float32 `(channels, samples)` each.
            rows: of the batch, at least as many as there are clips; the others are silence.

        Returns:
            int16 `(len(clips), num_codebooks, frames)` on the CPU, `frames = ceil(samples / hop_length)`.
        """
        assert 0 < len(clips) <= rows, f"{len(clips)} clips in a batch of {rows}"
        filled = [*clips, *[np.zeros_like(clips[0])] * (rows - len(clips))]
        return self._encode(filled)[: len(clips)]

    def _encode(self, clips: Sequence[np.ndarray[Any, Any]]) -> torch.Tensor:
        audio_BCS = torch.from_numpy(np.stack(clips)).to(self.device)
        if not self._by_side:
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
    """What a caption became."""

    states_LD: torch.Tensor
    """float32, on the CPU, as long as the caption."""
    cut: bool
    """Whether it was longer than `max_tokens`."""


class TextCoder:
    """Captions to T5 states, in float32: T5 overflows float16."""

    def __init__(self, model: T5EncoderModel, tokenizer: T5Tokenizer, *, max_tokens: int, batch_tokens: int) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._batch_tokens = batch_tokens
        self.width = model.config.hidden_size

    def token_ids(self, text: str) -> tuple[list[int], bool]:
        """The ids that a caption is encoded from, and whether `max_tokens` cut it; the end-of-text token stays."""
        ids: list[int] = self._tokenizer.encode(text)
        if len(ids) <= self._max_tokens:
            return ids, False
        return [*ids[: self._max_tokens - 1], ids[-1]], True

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> list[EncodedCaption]:
        """States of captions, in their order, whatever else is among them."""
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
        """States of a batch of exactly this shape; padding is masked and changes nothing."""
        input_ids_BL = torch.zeros(rows, length, dtype=torch.long)
        mask_BL = torch.zeros(rows, length, dtype=torch.long)
        # Rows without a caption see one token, since attention to nothing is NaN.
        mask_BL[:, 0] = 1
        for row, tokens in enumerate(ids):
            input_ids_BL[row, : len(tokens)] = torch.tensor(tokens)
            mask_BL[row, : len(tokens)] = 1
        device = self._model.device
        states: torch.Tensor = self._model(input_ids_BL.to(device), mask_BL.to(device)).last_hidden_state
        return states.cpu()


def clip_rows(length: int, full_length: int, batch_samples: int) -> int:
    """Rows of the batches that clips of a length are encoded in.

    Clips of the full length share batches. Ends of tracks are all of different lengths, and go alone.

    Args:
        length: of the clip, in samples.
        full_length: of clips that are not ends of tracks.
        batch_samples: that a batch may have.
    """
    return min(max(batch_samples // length, 1), _CLIP_ROWS) if length == full_length else 1


def load_encoders(settings: PreprocessSettings, local_rank: int = 0) -> Encoders:
    """Read both encoders and put them on the device.

    Args:
        settings: which.
        local_rank: number of this process on its machine, see `pick_device`.

    Raises:
        FileNotFoundError, CheckpointError, ValueError: as `from_pretrained`, or as `AudioCoder`.
    """
    device = pick_device(settings.device, local_rank)
    text_name = _part(settings.text_encoder or settings.encoders, "text_encoder")
    audio_name = _part(settings.audio_encoder or settings.encoders, "audio_encoder")
    codec = EncodecModel.from_pretrained(audio_name)
    model = T5EncoderModel.from_pretrained(text_name)
    tokenizer = T5Tokenizer.from_pretrained(text_name)
    channels = settings.audio_channels or _channels_of(audio_name)
    audio_record = EncoderRecord(name=audio_name, fingerprint=fingerprint(codec))
    text_record = EncoderRecord(name=text_name, fingerprint=fingerprint(model))
    return Encoders(
        audio=AudioCoder(codec.to(device).requires_grad_(False), channels),
        text=TextCoder(
            model.to(device).requires_grad_(False),
            tokenizer,
            max_tokens=settings.captions.max_tokens,
            batch_tokens=settings.text_batch_tokens,
        ),
        audio_record=audio_record,
        text_record=text_record,
    )


def _part(name: str | None, part: str) -> str:
    """Where an encoder is read from: the folder itself, or the folder of that name in one that has no config."""
    assert name is not None, "settings without encoders"
    folder = Path(name).expanduser()
    if not (folder / CONFIG_NAME).is_file() and (folder / part / CONFIG_NAME).is_file():
        return str(folder / part)
    return name


def _channels_of(name: str) -> int:
    """Channels that the decoder of a composite makes, or that a codec takes."""
    config = AutoConfig.from_pretrained(name)
    if isinstance(config, MusicgenConfig):
        return config.decoder.audio_channels
    assert isinstance(config, EncodecConfig), f"{name} is {config.model_type}"
    return config.audio_channels
