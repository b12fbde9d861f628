"""The feature extractor turns audio of any kind into the padded batch that EnCodec takes.

Axis letters: B batch, C audio channels, L samples.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from musicgen_train.files import atomic_folder, read_json, write_json
from musicgen_train.hub.folder import PretrainedFolder
from musicgen_train.processing.model_inputs import BatchFeature

FEATURE_EXTRACTOR_NAME = "preprocessor_config.json"
PROCESSOR_NAME = "processor_config.json"

_PADDING_STRATEGIES = ("longest", "max_length", "do_not_pad")
# A file names its class in a key that is no argument of the constructor.
_TYPE_KEY = "feature_extractor_type"

Waveform = npt.NDArray[np.float32]


class EncodecFeatureExtractor:
    """Checks and pads clips of audio.

    Args:
        feature_size: channels of the audio, 1 or 2.
        sampling_rate: in Hz, the one the codec was trained on.
        padding_value: the value of padded samples.
        chunk_length_s: seconds of the chunks the codec works in. With it and `overlap`, padding and truncation go to
            a length that divides into chunks.
        overlap: share of a chunk that overlaps with the next one.
        padding_side: "right" or "left", the side to pad on. MusicGen pads on the left.
        return_attention_mask: has no effect, as in transformers: the mask is returned with padding and not without.
            It is kept because the hub's files have it.
        extra: further keys of a file, kept and written back.

    Raises:
        ValueError: a value is not allowed.
    """

    model_input_names = ("input_values", "padding_mask")

    def __init__(
        self,
        feature_size: int = 1,
        sampling_rate: int = 24_000,
        padding_value: float = 0.0,
        chunk_length_s: float | None = None,
        overlap: float | None = None,
        padding_side: str = "right",
        return_attention_mask: bool = True,
        **extra: Any,
    ) -> None:
        if feature_size not in (1, 2):
            raise ValueError(f"feature_size is {feature_size!r}; allowed are 1 (mono) and 2 (stereo)")
        if sampling_rate <= 0:
            raise ValueError(f"sampling_rate is {sampling_rate!r}; expected a number of Hz above 0")
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side is {padding_side!r}; allowed are 'left' and 'right'")
        if overlap is not None and not 0 <= overlap < 1:
            raise ValueError(f"overlap is {overlap!r}; expected a share of a chunk, 0 or more and less than 1")
        self.feature_size = feature_size
        self.sampling_rate = sampling_rate
        self.padding_value = padding_value
        self.chunk_length_s = chunk_length_s
        self.overlap = overlap
        self.padding_side = padding_side
        self.return_attention_mask = return_attention_mask
        self.extra = extra

    @property
    def chunk_length(self) -> int | None:
        """Number of samples in a chunk; None where the codec does not work in chunks."""
        return None if self.chunk_length_s is None else int(self.chunk_length_s * self.sampling_rate)

    @property
    def chunk_stride(self) -> int | None:
        """Number of samples from the start of one chunk to the start of the next; None without chunks."""
        if self.chunk_length is None or self.overlap is None:
            return None
        return max(1, int((1.0 - self.overlap) * self.chunk_length))

    def __call__(
        self,
        raw_audio: Any,
        padding: bool | str | None = None,
        truncation: bool | None = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        sampling_rate: int | None = None,
    ) -> BatchFeature:
        """Make a batch of one clip or several.

        Args:
            raw_audio: one clip: floating-point samples as a numpy array or torch tensor of shape `(samples,)`, or
                `(2, samples)` for stereo, or a list of floats. Several: a list of clips, each an array, tensor or list.
            padding: True or "longest" (the default, without `truncation` too) pads to the longest clip, "max_length"
                to `max_length`, False or "do_not_pad" not at all.
            truncation: cut longer clips to `max_length`. Not together with `padding`.
            max_length: in samples.
            return_tensors: "pt", "np" or None.
            sampling_rate: that of `raw_audio` in Hz, to be checked against the codec's. Give it: audio at another rate
                is otherwise taken for slower or faster music without a warning.

        Returns:
            `input_values`, float32 `(B, C, L)`, and with padding `padding_mask`, int32 `(B, L)`, 1 at samples of the
            clips. With `return_tensors=None` `input_values` is a list of arrays `(C, L)`.

        Raises:
            ValueError: the sampling rate is not the codec's; audio is empty, of another shape, or holds integers;
                options contradict each other; or clips of different lengths were to become one tensor.
        """
        if sampling_rate is not None and sampling_rate != self.sampling_rate:
            raise ValueError(
                f"the audio's sampling_rate is {sampling_rate} Hz, the codec's is {self.sampling_rate} Hz. Resample it "
                f"first, e.g. with torchaudio.functional.resample(audio, {sampling_rate}, {self.sampling_rate})"
            )
        if return_tensors not in ("pt", "np", None):
            raise ValueError(f"return_tensors is {return_tensors!r}; allowed are 'pt' (torch), 'np' (numpy) and None")
        if padding and truncation:
            raise ValueError("padding and truncation are both set; set one of them, the other to False")
        clips = self._clips(raw_audio)
        strategy = _strategy(padding)
        # transformers returns masks (all ones) with "do_not_pad", and none with False.
        with_mask = padding is not False
        if max_length is None and self.chunk_stride is not None and (truncation or with_mask):
            max_length = self._length_in_chunks([clip.shape[-1] for clip in clips], shortest=bool(truncation))
            strategy = "max_length" if not truncation else strategy
        if max_length is None and (truncation or strategy == "max_length"):
            raise ValueError(f"max_length is missing: {'truncation' if truncation else 'padding'} needs it")

        if truncation:
            clips = [clip[:, :max_length] for clip in clips]
        masks = [np.ones(clip.shape[-1], dtype=np.int32) for clip in clips]
        if strategy != "do_not_pad":
            longest = max(clip.shape[-1] for clip in clips)
            target = longest if strategy == "longest" or max_length is None else max_length
            masks = [self._pad(mask, target, 0) for mask in masks]
            clips = [self._pad(clip, target, self.padding_value) for clip in clips]

        batch = BatchFeature({"input_values": _as_requested(clips, return_tensors)})
        if with_mask:
            batch["padding_mask"] = _as_requested(masks, return_tensors)
        return batch

    def _clips(self, raw_audio: Any) -> list[Waveform]:
        """Return the clips as arrays `(C, L)`."""
        if isinstance(raw_audio, list | tuple):
            if len(raw_audio) == 0:
                raise ValueError("raw_audio is an empty list; give one clip or more")
            # A list of numbers is one clip, unlike a list of anything that has a length.
            several = isinstance(raw_audio[0], list | tuple) or np.ndim(raw_audio[0]) > 0
        else:
            several = False
        return [self._clip(clip) for clip in (raw_audio if several else [raw_audio])]

    def _clip(self, clip: Any) -> Waveform:
        if isinstance(clip, torch.Tensor):
            clip = clip.detach().to("cpu", torch.float32 if clip.is_floating_point() else None).numpy()
        if isinstance(clip, np.ndarray) and not np.issubdtype(clip.dtype, np.floating):
            raise ValueError(
                f"audio is {clip.dtype}; expected floating-point samples between -1 and 1, e.g. int16 divided by 32768"
            )
        array = np.asarray(clip, dtype=np.float32)
        if self.feature_size == 1 and array.ndim == 1:
            array = array[None]
        elif self.feature_size == 1 or array.ndim != 2 or array.shape[0] != 2:
            expected = "(samples,)" if self.feature_size == 1 else "(2, samples)"
            hint = " Transpose it." if self.feature_size == 2 and array.ndim == 2 and array.shape[1] == 2 else ""
            raise ValueError(
                f"a clip has the shape {array.shape}; expected {expected}, since this feature extractor is for "
                f"{'mono' if self.feature_size == 1 else 'stereo'} audio (feature_size {self.feature_size}).{hint} "
                "Several clips are given as a list"
            )
        if array.shape[-1] == 0:
            raise ValueError("a clip is empty: it has no samples")
        return array

    def _length_in_chunks(self, lengths: Sequence[int], shortest: bool) -> int:
        """Return the length in samples of as many chunks as cover the longest clip, or as the shortest clip fills."""
        assert self.chunk_length is not None
        assert self.chunk_stride is not None
        chunks = min(lengths) // self.chunk_stride if shortest else -(-max(lengths) // self.chunk_stride)
        return (chunks - 1) * self.chunk_stride + self.chunk_length

    def _pad(self, array: npt.NDArray[Any], length: int, value: float) -> npt.NDArray[Any]:
        missing = max(0, length - array.shape[-1])
        sides = (missing, 0) if self.padding_side == "left" else (0, missing)
        return np.pad(array, [(0, 0)] * (array.ndim - 1) + [sides], constant_values=value)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        subfolder: str = "",
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        **overrides: Any,
    ) -> Self:
        """Read the feature extractor of a local folder or hub id.

        Its settings are a part of `processor_config.json` where a recent transformers saved a processor, and
        `preprocessor_config.json` otherwise. The first wins, as it does there.

        Args:
            name_or_path, subfolder, revision, token, cache_dir, local_files_only: as for `PretrainedFolder`.
            overrides: arguments of the constructor to change.

        Raises:
            FileNotFoundError: no such folder or repository, or neither file.
            ValueError: a file is damaged, or is that of another kind of feature extractor.
        """
        folder = PretrainedFolder(
            name_or_path,
            subfolder=subfolder,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        path = folder.find(PROCESSOR_NAME)
        values = None if path is None else read_json(path).get("feature_extractor")
        if path is None or values is None:
            path = folder.require(FEATURE_EXTRACTOR_NAME, "the file of the feature extractor's settings")
            values = read_json(path)
        stated = values.pop(_TYPE_KEY, cls.__name__)
        if stated != cls.__name__:
            raise ValueError(f"{path}: {_TYPE_KEY} is {stated!r}; expected {cls.__name__!r}")
        return cls(**{**values, **overrides})

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `preprocessor_config.json`, and update the copy of it in a `processor_config.json` that is there."""
        processor = Path(folder).expanduser() / PROCESSOR_NAME
        mirror = read_json(processor) if processor.is_file() else {}
        with atomic_folder(folder) as staging:
            write_json(staging / FEATURE_EXTRACTOR_NAME, self.to_dict())
            if "feature_extractor" in mirror:
                write_json(staging / PROCESSOR_NAME, {**mirror, "feature_extractor": self.to_dict()})

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `preprocessor_config.json`."""
        settings = {name: value for name, value in vars(self).items() if name != "extra"}
        return {**self.extra, **settings, _TYPE_KEY: type(self).__name__}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.to_dict().items())})"


def _strategy(padding: bool | str | None) -> str:
    if padding is None or padding is True:
        return "longest"
    if padding is False:
        return "do_not_pad"
    if padding not in _PADDING_STRATEGIES:
        raise ValueError(
            f"padding is {padding!r}; allowed are True, False, {', '.join(map(repr, _PADDING_STRATEGIES))}"
        )
    return padding


def _as_requested(rows: list[npt.NDArray[Any]], return_tensors: str | None) -> Any:
    if return_tensors is None:
        return rows
    lengths = sorted({row.shape[-1] for row in rows})
    if len(lengths) > 1:
        raise ValueError(
            f"clips of {lengths[0]} to {lengths[-1]} samples cannot become one tensor; pass padding=True, or "
            "truncation=True with a max_length that none falls short of"
        )
    batch = np.stack(rows)
    return torch.from_numpy(batch) if return_tensors == "pt" else batch
