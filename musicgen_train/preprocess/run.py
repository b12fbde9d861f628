"""The preprocessing stage from its settings to the finished folder.

Settings are resolved here: what stands in the other files is given the values that it needs.
"""

from __future__ import annotations

import functools
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from musicgen_train.devices import pick_device
from musicgen_train.latents.manifest import Manifest
from musicgen_train.preprocess.dataset.assembly import Assembled
from musicgen_train.preprocess.dataset.publishing import NothingUsableError, Publisher, require_free_output
from musicgen_train.preprocess.dry_run import Estimate, estimate
from musicgen_train.preprocess.encoding.clips import ClipCutter
from musicgen_train.preprocess.encoding.encoders import FrozenEncoders, load_encoders
from musicgen_train.preprocess.encoding.pipeline import EncodingPipeline
from musicgen_train.preprocess.encoding.processes import number_of_processes, prepare_processes
from musicgen_train.preprocess.encoding.shard_builder import ShardRecipe
from musicgen_train.preprocess.progress import Progress
from musicgen_train.preprocess.settings import PreprocessSettings
from musicgen_train.preprocess.sources.input_formats import LimitedSource, open_source
from musicgen_train.preprocess.sources.tracks import Source
from musicgen_train.preprocess.work.ranks import Rank, find_rank
from musicgen_train.preprocess.work.results import EncodedTracks
from musicgen_train.preprocess.work.work_folder import WorkFolder, describe_work
from musicgen_train.provenance.machine import versions
from musicgen_train.provenance.record import command, now


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What a run and a dry run have in common."""

    rank: Rank
    output: Path
    source: Source
    candidates: int | None
    recipe: ShardRecipe
    workers: int


def preprocess(settings: PreprocessSettings) -> Manifest | None:
    """Make a latent dataset, resume making it, add what is new in its input, or do one rank's share of any of these.

    What is encoded goes into a work folder beside the output (see `work.WorkFolder`). The rank that is done last
    assembles the dataset there and moves it to the output in one rename. The input is only read.

    Returns:
        The dataset's manifest; None if other ranks are not done yet.

    Raises:
        FileNotFoundError: the input or an encoder does not exist, or the input goes away during the run.
        FileExistsError: the output holds something that was not made from this work folder.
        CheckpointError: an encoder's folder is damaged.
        RejectedTrackError: a file cannot be used, with `settings.stop_on_rejected`.
        ValueError: a setting, the input or an encoder cannot be used; no file could be used; the work folder has work
            with other settings, or damaged work (which is removed); another process is this rank; or the input lacks
            tracks that the dataset has.
        OSError: the output or its work folder cannot be written.
    """
    task = _prepare(settings)
    encoders, shortest = task.recipe.encoders, settings.shortest
    about = describe_work(
        settings,
        text_encoder=encoders.text_record.fingerprint,
        audio_encoder=encoders.audio_record.fingerprint,
        audio_channels=encoders.audio.channels,
    )
    work = WorkFolder(task.output, about, task.rank, overwrite=settings.overwrite)
    make_manifest = functools.partial(_manifest, settings, encoders)
    publisher = Publisher(
        work,
        task.output,
        make_manifest,
        split=settings.split,
        overwrite=settings.overwrite,
        input_name=settings.input,
        shortest=shortest,
    )
