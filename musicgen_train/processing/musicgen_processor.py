"""MusicGen's processor turns texts and audio prompts into model inputs, and generated audio into single clips."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch

from musicgen_train.files import atomic_folder, read_json, write_json
from musicgen_train.hub.folder import CONFIG_NAME, PretrainedFolder
from musicgen_train.processing.feature_extractor import FEATURE_EXTRACTOR_NAME, PROCESSOR_NAME, EncodecFeatureExtractor
from musicgen_train.processing.model_inputs import BatchFeature
from musicgen_train.processing.t5_tokenizer import TOKENIZER_CONFIG_NAME, T5Tokenizer

_SHARED_OPTIONS = ("max_length", "padding", "return_tensors", "truncation")
_TEXT_OPTIONS = ("add_special_tokens", "pad_to_multiple_of", "padding_side", "return_attention_mask", *_SHARED_OPTIONS)
_AUDIO_OPTIONS = ("sampling_rate", *_SHARED_OPTIONS)


class MusicgenProcessor:
    """Offers a T5 tokenizer and an EnCodec feature extractor behind one call.

    Args:
        feature_extractor: for audio prompts.
        tokenizer: for texts.

    Raises:
        TypeError: one of them is something else, e.g. because they were swapped.
    """

    def __init__(self, feature_extractor: EncodecFeatureExtractor, tokenizer: T5Tokenizer) -> None:
        for name, value, expected in (
            ("feature_extractor", feature_extractor, EncodecFeatureExtractor),
            ("tokenizer", tokenizer, T5Tokenizer),
        ):
            if not isinstance(value, expected):
                raise TypeError(f"MusicgenProcessor: {name} is {type(value).__name__}; expected {expected.__name__}")
        self.feature_extractor = feature_extractor
        self.tokenizer = tokenizer

    @property
    def model_input_names(self) -> list[str]:
        """The names of all entries that a call may return."""
        return [*self.tokenizer.model_input_names, *self.feature_extractor.model_input_names]

    def __call__(
        self,
        audio: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        text_kwargs: Mapping[str, Any] | None = None,
        audio_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> BatchFeature:
        """Make model inputs for texts, audio prompts, or both.

        Args:
            audio: one clip or a list of clips, as `EncodecFeatureExtractor` takes them.
            text: one text or a list of texts.
            text_kwargs: options for the text alone.
            audio_kwargs: options for the audio alone.
            options: for whatever is given: `padding`, `truncation`, `max_length`, `return_tensors`; for audio,
                `sampling_rate` in Hz, which must be the model's; for text, `add_special_tokens`,
                `pad_to_multiple_of`, `padding_side`, `return_attention_mask`. None means the default. Without
                `padding`, audio is padded and text is not.

        Returns:
            With `text`, `input_ids` and `attention_mask`, as `T5Tokenizer` returns them. With `audio`, `input_values`
            and `padding_mask`, as `EncodecFeatureExtractor` returns them, padded on the feature extractor's side (left
            in the published models, so that generated music continues where the prompt ends).

        Raises:
            ValueError: neither `audio` nor `text` is given; an option is given twice; and whatever the tokenizer or
                the feature extractor refuses, such as another sampling rate.
            TypeError: an unknown option.
        """
        text_options, audio_options = dict(text_kwargs or {}), dict(audio_kwargs or {})
        _refuse_unknown("text_kwargs", text_options, _TEXT_OPTIONS)
        _refuse_unknown("audio_kwargs", audio_options, _AUDIO_OPTIONS)
        _refuse_unknown("a call", options, (*_TEXT_OPTIONS, "sampling_rate"))
        for name, value in options.items():
            for kind, own, allowed in (
                ("text_kwargs", text_options, _TEXT_OPTIONS),
                ("audio_kwargs", audio_options, _AUDIO_OPTIONS),
            ):
                if name in allowed:
                    if name in own:
                        raise ValueError(f"{name} is given twice, by itself and in {kind}")
                    own[name] = value
        if audio is None and text is None:
            raise ValueError("give audio, text or both; neither was given")

        inputs = BatchFeature()
        if text is not None:
            inputs.update(self.tokenizer(text, **_given(text_options)))
        if audio is not None:
            inputs.update(self.feature_extractor(audio, **_given(audio_options)))
        return inputs

    def batch_decode(
        self, sequences: Any = None, padding_mask: Any = None, *, audio: Any = None, **options: Any
    ) -> list[Any]:
        """Turn generated audio into single clips without the padding of their prompts, or token ids into texts.

        Args:
            sequences: audio `(batch, channels, samples)`, or token ids in rows, e.g. `(batch, length)`.
            padding_mask: with audio, the `padding_mask` of this processor's call, `(batch, prompt samples)`, 0 at
                padding. Samples that the model added after the prompt are never padding.
            audio: audio under this name, in place of `sequences`.
            options: with token ids, those of `T5Tokenizer.batch_decode`.

        Returns:
            For audio, a numpy array `(channels, samples)` per row, in the dtype given (float32 for bfloat16). For
            token ids, a string per row.

        Raises:
            ValueError: both or none of `sequences` and `audio` are given, the mask does not fit, or a mask is given
                with token ids or options with audio.
        """
        if (sequences is None) == (audio is None):
            given = "neither" if audio is None else "both"
            raise ValueError(f"give sequences (audio or token ids) or audio; {given} was given")
        if audio is None and _dimensions(sequences) == 3:
            audio = sequences
        if audio is None:
            if padding_mask is not None:
                raise ValueError(
                    "padding_mask belongs to audio (batch, channels, samples), but token ids were given; to leave out "
                    "padding tokens, pass skip_special_tokens=True"
                )
            return self.tokenizer.batch_decode(sequences, **options)
        if options:
            raise ValueError(f"{', '.join(sorted(options))}: for token ids only, but audio was given")
        return _without_padding(_as_array(audio), None if padding_mask is None else _as_array(padding_mask))

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """Turn token ids into text: `T5Tokenizer.decode`."""
        return self.tokenizer.decode(*args, **kwargs)

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
    ) -> Self:
        """Load the processor that this class or any version of transformers saved in a folder or hub repository.

        Args:
            name_or_path, subfolder, revision, token, cache_dir, local_files_only: as for `PretrainedFolder`.

        Raises:
            FileNotFoundError: no such folder or repository, or files of the tokenizer or feature extractor are missing.
            ValueError: a file is damaged, or belongs to another kind of tokenizer or feature extractor.
        """
        options: dict[str, Any] = {
            "subfolder": subfolder,
            "revision": revision,
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
        }
        return cls(
            EncodecFeatureExtractor.from_pretrained(name_or_path, **options),
            T5Tokenizer.from_pretrained(name_or_path, **options),
        )

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the processor into `folder`, whole or not at all, so that this class and transformers load it back.

        Other files in `folder`, such as a model's, stay.

        Raises:
            NotADirectoryError: `folder` is a file.
        """
        with atomic_folder(folder) as staging:
            self.tokenizer.save_pretrained(staging)
            self.feature_extractor.save_pretrained(staging)
            # Both files, saying the same: old versions of transformers read the one, and new ones prefer the other,
            # where a stale one of an earlier save would win.
            stated = {"processor_class": type(self).__name__}
            extractor = {**read_json(staging / FEATURE_EXTRACTOR_NAME), **stated}
            write_json(staging / FEATURE_EXTRACTOR_NAME, extractor)
            write_json(staging / PROCESSOR_NAME, {"feature_extractor": extractor, **stated})

    def __repr__(self) -> str:
        return f"{type(self).__name__}(feature_extractor={self.feature_extractor!r}, tokenizer={self.tokenizer!r})"


class AutoProcessor:
    """Picks the class that a folder's processor was saved from. Not to be instantiated."""

    def __init__(self) -> None:
        raise TypeError("AutoProcessor only picks a class; use AutoProcessor.from_pretrained(folder or hub id)")

    @staticmethod
    def from_pretrained(
        name_or_path: str | os.PathLike[str],
        *,
        subfolder: str = "",
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
    ) -> MusicgenProcessor | EncodecFeatureExtractor | T5Tokenizer:
        """Load the processor of a MusicGen folder or hub repository, or a sub-model's feature extractor or tokenizer.

        Args:
            name_or_path, subfolder, revision, token, cache_dir, local_files_only: as for `PretrainedFolder`.

        Raises:
            FileNotFoundError: no such folder or repository, or files are missing.
            ValueError: the folder's processor is of another model, or nothing in it says which model it is of.
        """
        options: dict[str, Any] = {
            "subfolder": subfolder,
            "revision": revision,
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
        }
        folder = PretrainedFolder(name_or_path, **options)
        for filename, key in (
            (PROCESSOR_NAME, "processor_class"),
            (FEATURE_EXTRACTOR_NAME, "processor_class"),
            (TOKENIZER_CONFIG_NAME, "processor_class"),
            (CONFIG_NAME, "model_type"),
        ):
            path = folder.find(filename)
            stated = read_json(path).get(key) if path else None
            if stated is not None:
                if stated not in _BY_NAME:
                    raise ValueError(
                        f"{path} says {key} {stated!r}, which is not supported; supported are {', '.join(_BY_NAME)}"
                    )
                return _BY_NAME[stated].from_pretrained(name_or_path, **options)
        raise ValueError(
            f"{folder} does not say whose processor it is: there is no processor_class in {PROCESSOR_NAME}, "
            f"{FEATURE_EXTRACTOR_NAME} or {TOKENIZER_CONFIG_NAME}, and no model_type in {CONFIG_NAME}. "
            f"{folder.describe()}"
        )


# The class to load, by the processor_class or the model_type that a folder states.
_BY_NAME: dict[str, type[MusicgenProcessor] | type[EncodecFeatureExtractor] | type[T5Tokenizer]] = {
    "MusicgenProcessor": MusicgenProcessor,
    "musicgen": MusicgenProcessor,
    "encodec": EncodecFeatureExtractor,
    "t5": T5Tokenizer,
}


def _refuse_unknown(where: str, options: Mapping[str, Any], allowed: Sequence[str]) -> None:
    unknown = [name for name in options if name not in allowed]
    if unknown:
        raise TypeError(
            f"MusicgenProcessor: {where} takes no {', '.join(unknown)}; it takes {', '.join(sorted(allowed))}"
        )


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _dimensions(values: Any) -> int:
    """Count the dimensions of an array, or of nested lists that may hold arrays."""
    depth = 0
    while isinstance(values, list | tuple) and values:
        values = values[0]
        depth += 1
    return depth + getattr(values, "ndim", 0)


def _as_array(values: Any) -> np.ndarray[Any, Any]:
    if isinstance(values, list | tuple) and values and isinstance(values[0], torch.Tensor):
        values = torch.stack(tuple(values))
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.asarray(values)


def _without_padding(
    audio: np.ndarray[Any, Any], padding_mask: np.ndarray[Any, Any] | None
) -> list[np.ndarray[Any, Any]]:
    if audio.ndim != 3:
        raise ValueError(f"audio is {list(audio.shape)}; expected [batch, channels, samples]")
    if padding_mask is None:
        return list(audio)
    batch, _, samples = audio.shape
    if padding_mask.ndim != 2 or len(padding_mask) != batch or padding_mask.shape[1] > samples:
        raise ValueError(
            f"padding_mask is {list(padding_mask.shape)}; expected [batch, samples] with the {batch} rows of the audio "
            f"and no more than its {samples} samples"
        )
    keep = np.ones((batch, samples), dtype=bool)
    keep[:, : padding_mask.shape[1]] = padding_mask != 0
    return [clip[:, kept] for clip, kept in zip(audio, keep, strict=True)]
