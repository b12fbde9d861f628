"""Reads a latent dataset: a clip takes some tens of microseconds, wherever in the files it is.

Axes: K codebooks, T frames, L text length, D text width.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch

from musicgen_train.latents.format import (
    CAPTION_FEATURES,
    CAPTIONS_FOLDER,
    CLIP_FEATURES,
    unpack_codes,
    unpack_states,
)
from musicgen_train.latents.manifest import Manifest
from musicgen_train.latents.table import OtherColumnsError, open_table

_FINGERPRINTED_CLIPS = 32


@dataclass(frozen=True)
class Clip:
    """One row of a split."""

    codes_KT: np.ndarray
    """int16, aligned."""
    captions: list[int]
    """Rows of the captions table; an empty list is the null condition."""
    _table: pa.Table
    _row: int

    @property
    def track(self) -> str:
        """The file that the clip is from. It is read when it is asked for, since training does not need it."""
        return str(self._table["track"][self._row].as_py())

    @property
    def start_seconds(self) -> float:
        """Where in that file the clip begins."""
        return float(self._table["start_seconds"][self._row].as_py())


class LatentDataset:
    """A split of a latent dataset.

    It can be pickled, e.g. for a worker process, which opens the files again.

    Args:
        folder: a latent dataset, as preprocessing writes it.
        split: `train`, `validation` or `test`.

    Raises:
        FileNotFoundError: the folder is no latent dataset.
        ValueError: it has no such split, the split is empty, or the files are damaged.
    """

    def __init__(self, folder: str | os.PathLike[str], split: str) -> None:
        self.folder = Path(folder)
        self.split = split
        self.manifest = Manifest.load(folder)
        if split not in self.manifest.splits:
            raise ValueError(f"{folder} has no split {split!r}; it has {', '.join(sorted(self.manifest.splits))}")
        if not self.manifest.splits[split].clips:
            raise ValueError(f"{folder} has no clips in its split {split}; preprocess more audio, or longer")
        self._open()

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, row: int) -> Clip:
        """The clip in a row.

        Raises:
            IndexError: there is no such row.
            ValueError: the row is damaged: its size or a code does not fit the manifest.
        """
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        packed = self._clips["codes"][row].as_py()
        codebooks, frames = self.manifest.num_codebooks, int(self.frames[row])
        if len(packed) != 2 * codebooks * frames:
            raise self._damaged(f"row {row} holds {len(packed)} bytes for {codebooks} x {frames} codes")
        codes_KT = unpack_codes(packed, codebooks)
        # Without a sign, codes below 0 are above all others: one look finds both.
        if codes_KT.size and int(codes_KT.view("<u2").max()) >= self.manifest.codebook_size:
            raise self._damaged(f"row {row} has codes from {codes_KT.min()} to {codes_KT.max()}")
        return Clip(
            codes_KT=codes_KT,
            captions=self._clips["captions"][row].as_py(),
            _table=self._clips,
            _row=row,
        )

    def states(self, caption: int) -> torch.Tensor:
        """Text states of a caption, `(L, D)` in the manifest's dtype."""
        length = self._texts["length"][caption].as_py()
        states = unpack_states(self._texts["states"][caption].as_py(), length, self.manifest.states_dtype)
        if states.shape[1] != self.manifest.text_width:
            raise self._damaged(f"caption {caption} has states {list(states.shape)}")
        return states

    def caption(self, caption: int) -> str:
        """The text of a caption."""
        return str(self._texts["text"][caption].as_py())

    @property
    def seconds(self) -> float:
        """Seconds of audio in the split."""
        return float(self.frames.sum(dtype=np.int64)) / self.manifest.frame_rate

    def fingerprint(self) -> str:
        """A SHA-256 of the split's shape, its encoders, the length of every clip, and a sample of clips.

        It takes milliseconds, and tells apart datasets that differ in more than a few clips.
        """
        manifest = self.manifest
        digest = hashlib.sha256(
            repr(
                (
                    manifest.text_encoder.fingerprint,
                    manifest.audio_encoder.fingerprint,
                    manifest.num_codebooks,
                    manifest.captions,
                    len(self),
                )
            ).encode()
        )
        digest.update(self.frames.astype("<i4").tobytes())
        for row in np.linspace(0, len(self) - 1, min(_FINGERPRINTED_CLIPS, len(self))).astype(int).tolist():
            clip = self[row]
            digest.update(clip.codes_KT.tobytes())
            digest.update(repr((clip.captions, clip.track)).encode())
        return digest.hexdigest()

    def _open(self) -> None:
        self._clips = self._table(self.split, CLIP_FEATURES)
        self._texts = self._table(CAPTIONS_FOLDER, CAPTION_FEATURES)
        # Only lengths are kept in memory: which clips are drawn together depends on them.
        self.frames: np.ndarray = self._clips["frames"].to_numpy()
        for what, held, stated in (
            (self.split, len(self._clips), self.manifest.splits[self.split].clips),
            (CAPTIONS_FOLDER, len(self._texts), self.manifest.captions),
        ):
            if held != stated:
                raise self._damaged(f"{what}/ holds {held} rows, its manifest says {stated}")

    def _table(self, name: str, features: datasets.Features) -> pa.Table:
        try:
            return open_table(self.folder / name, features)
        except OtherColumnsError as error:
            raise self._damaged(f"{name}/ {error}") from error
        # pyarrow's errors for files that are missing, cut short or of another kind.
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(f"{name}/ cannot be read ({type(error).__name__}: {_first_line(error)})") from error

    def _damaged(self, how: str) -> ValueError:
        return ValueError(f"the latent dataset {self.folder} is damaged: {how}. Preprocess again")

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "split": self.split, "manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
