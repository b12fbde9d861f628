"""Builds a shard from decoded tracks: clips become codes, captions become states."""

from __future__ import annotations

import time
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from musicgen_train.latents.format import pack_codes, pack_states
from musicgen_train.preprocess.encoding.clips import ClipCutter, CutTrack, is_silent
from musicgen_train.preprocess.encoding.encoders import FrozenEncoders, clip_rows
from musicgen_train.preprocess.settings import CaptionSettings
from musicgen_train.preprocess.sources.captions import caption_variants, metadata_json
from musicgen_train.preprocess.work.results import Result
from musicgen_train.preprocess.work.shards import write_shard

# A shard that has taken so long is written with the tracks it has.
_MOST_SHARD_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class ShardRecipe:
    """What it takes to make shards of tracks."""

    encoders: FrozenEncoders
    cutter: ClipCutter
    captions: CaptionSettings
    states_dtype: str
    """The dtype that text states are stored in."""
    batch_samples: int
    """Samples per channel that a batch of the codec has at most."""
    most_tracks: int
    """Tracks that a shard has at most."""


class ShardBuilder:
    """Collects decoded tracks and encodes their clips in batches, until the shard is full and written.

    Args:
        recipe: how to make shards.
        codec: the executor in which the codec runs.
    """

    def __init__(self, recipe: ShardRecipe, codec: Executor) -> None:
        self.tracks: list[dict[str, Any]] = []
        """A row per track, see `shards.TRACK_FEATURES`."""
        self._recipe = recipe
        self._codec = codec
        self._begun = time.monotonic()
        self._orders: list[str] = []
        self._clips: list[dict[str, Any]] = []
        # The distinct captions in the order of their first use.
        self._captions: dict[str, None] = {}
        # Clips of the full length that wait for a batch: their rows and their audio.
        self._waiting: list[tuple[dict[str, Any], np.ndarray[Any, Any]]] = []
        # The batch that is being encoded: the rows of its clips, and their codes to come.
        self._encoding: tuple[list[dict[str, Any]], Future[torch.Tensor]] | None = None

    def add(self, cut: CutTrack) -> None:
        """Add a track, and encode its clips as soon as they fill a batch."""
        track, cutter = cut.track, self._recipe.cutter
        texts = caption_variants(track.description, track.id, self._recipe.captions) if cut.clips else []
        self._captions.update(dict.fromkeys(texts))
        self._orders.append(track.order)
        self.tracks.append(
            {
                "id": track.id,
                "key": track.key,
                "stamp": track.stamp,
                "problem": cut.problem,
                "first_clip": len(self._clips),
                "clips": len(cut.clips),
                "short_tail": cut.tail_dropped,
                "captions": texts,
                "metadata": metadata_json(track.description.metadata),
                "stated_split": track.split,
                "group": track.group or track.id,
            }
        )
        for clip_CS, start in zip(cut.clips, cut.starts, strict=True):
            length, rate = clip_CS.shape[-1], cutter.sampling_rate
            row = {"start_seconds": start / rate, "seconds": length / rate, "silent": is_silent(clip_CS)}
            self._clips.append(row)
            if self._rows(length) == 1:
                self._encode([(row, clip_CS)], 1)
            else:
                self._waiting.append((row, clip_CS))
                if len(self._waiting) == self._rows(length):
                    self._encode_waiting()

    def is_full(self) -> bool:
        """Return True if the shard has all its tracks, or has taken so long that a kill would cost too much work."""
        too_long = time.monotonic() - self._begun > _MOST_SHARD_SECONDS
        return too_long or len(self.tracks) == self._recipe.most_tracks

    def encode_all(self) -> None:
        """Encode the clips that still wait for a batch, and wait until all codes are there."""
        if self._waiting:
            self._encode_waiting()
        self._take_codes()

    def write(self, folder: Path, staging: Path) -> list[Result]:
        """Encode the captions and write the shard.

        Args:
            folder: the folder with all shards.
            staging: see `write_shard`.

        Returns:
            What became of each track.
        """
        encoded = self._recipe.encoders.text.encode(list(self._captions))
        captions = [
            {
                "text": text,
                "states": pack_states(caption.states_LD, self._recipe.states_dtype),
                "length": len(caption.states_LD),
                "cut": caption.cut,
            }
            for text, caption in zip(self._captions, encoded, strict=True)
        ]
        shard = write_shard(folder, staging, self.tracks, self._clips, captions)
        return [
            Result(order=order, id=row["id"], key=row["key"], problem=row["problem"], shard=shard.name, row=number)
            for number, (order, row) in enumerate(zip(self._orders, self.tracks, strict=True))
        ]

    def _rows(self, length: int) -> int:
        return clip_rows(length, self._recipe.cutter.length, self._recipe.batch_samples)

    def _encode_waiting(self) -> None:
        self._encode(self._waiting, self._rows(self._recipe.cutter.length))
        self._waiting = []

    def _encode(self, batch: list[tuple[dict[str, Any], np.ndarray[Any, Any]]], rows: int) -> None:
        # Only clips of equal length share a batch: padding would change the codes at a clip's end.
        self._take_codes()  # of the batch before, so that no more than two are in memory
        clips = [clip_CS for _, clip_CS in batch]
        codes = self._codec.submit(self._recipe.encoders.audio.encode, clips, rows)
        self._encoding = [row for row, _ in batch], codes

    def _take_codes(self) -> None:
        """Wait for the batch that is being encoded, and put its codes into the rows of its clips."""
        if self._encoding is None:
            return
        (rows, codes), self._encoding = self._encoding, None
        for row, codes_KT in zip(rows, codes.result(), strict=True):
            row["codes"] = pack_codes(codes_KT)
            row["frames"] = codes_KT.shape[-1]
