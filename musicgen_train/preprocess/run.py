"""The preprocessing stage, from its settings to the finished folder.

Settings are resolved here: the other files are given the values they need, and never all settings, except to record
them.
"""

from __future__ import annotations

import datetime
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from musicgen_train.devices import pick_device
from musicgen_train.latents.format import REJECTED_NAME
from musicgen_train.latents.manifest import Manifest
from musicgen_train.preprocess.dataset.assembly import Assembled
from musicgen_train.preprocess.dataset.publishing import NothingUsableError, Publication, Publisher, require_free_output
from musicgen_train.preprocess.dry_run import Estimate, estimate
from musicgen_train.preprocess.encoding.clips import ClipCutter
from musicgen_train.preprocess.encoding.encoders import FrozenEncoders, load_encoders
from musicgen_train.preprocess.encoding.pipeline import EncodingPipeline
from musicgen_train.preprocess.encoding.processes import number_of_processes, prepare_processes
from musicgen_train.preprocess.encoding.shard_builder import ShardRecipe
from musicgen_train.preprocess.settings import PreprocessSettings
from musicgen_train.preprocess.sources.input_formats import LimitedSource, open_source
from musicgen_train.preprocess.sources.tracks import Source
from musicgen_train.preprocess.work.ranks import Rank, find_rank
from musicgen_train.preprocess.work.results import EncodedTracks
from musicgen_train.preprocess.work.work_folder import WorkFolder, describe_work, explain_full_disk
from musicgen_train.progress import Progress
from musicgen_train.provenance.machine import versions
from musicgen_train.provenance.record import command, now

# The manifest always has these counts, also where nothing was counted.
_COUNTED = (
    "files", "tracks", "clips", "rejected", "too_short", "silent", "missing_caption", "short_tails", "captions_cut",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be encoded, and how."""

    source: Source
    candidates: int | None
    """How many candidates the source has, if that is known."""
    recipe: ShardRecipe


def preprocess(settings: PreprocessSettings) -> Manifest | None:
    """Make a latent dataset, resume making it, add what is new in its input, or do one rank's share of any of these.

    What is encoded goes into a work folder beside the output (see `work_folder.py`). The rank that is done last
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
    rank = find_rank(settings.rank, settings.world_size)
    output = Path(settings.output).expanduser()
    require_free_output(output, overwrite=settings.overwrite)
    workers = number_of_processes(settings.workers, rank)
    if workers:
        prepare_processes()  # unless `entry.py` has; they get ready while the encoders are read
    task = resolve(settings, rank)
    work = WorkFolder(output, _about(settings, task.recipe.encoders), rank, overwrite=settings.overwrite)
    publisher = Publisher(
        work,
        output,
        functools.partial(_manifest, settings, task.recipe.encoders),
        split=settings.split,
        overwrite=settings.overwrite,
        input_name=settings.input,
        shortest=settings.shortest,
    )
    print(_opening(settings, task, workers, rank), flush=True)
    with work.own(), explain_full_disk(work.root):
        encoded_before = EncodedTracks(work.shards, rank)
        share = None if task.candidates is None else -(-task.candidates // rank.world_size)
        with Progress("encoding", share, "tracks", log_seconds=settings.progress_seconds) as progress:
            pipeline = EncodingPipeline(
                task.recipe,
                work,
                encoded_before,
                progress,
                input_name=settings.input,
                stop_on_rejected=settings.stop_on_rejected,
            )
            pipeline.run(task.source, workers)
        counts, listing = pipeline.counts, pipeline.listing.hex()
        if counts.reused:
            print(f"{counts.reused} tracks were encoded by earlier runs, {counts.encoded} by this one", flush=True)
        pipeline.results.write_part(work.part(), work.staging, listing)
        published = publisher.publish(listing)
        if published is None:
            return None
        print(_closing(published, output, counts.audio_seconds, progress.elapsed), flush=True)
        if published.is_new and settings.keep_work:
            print(
                f"kept {work.root} ({_size(work.root)}): with it the same command adds what is new in the input. It "
                "may be deleted",
                flush=True,
            )
    if not settings.keep_work:
        work.remove()
    return published.manifest


def dry_run(settings: PreprocessSettings) -> Estimate:
    """Print what `preprocess` would make of the input, and write nothing. Raises the same errors."""
    require_free_output(Path(settings.output).expanduser(), overwrite=settings.overwrite)
    rank = Rank()
    workers = number_of_processes(settings.workers, rank)
    task = resolve(settings, rank)
    print(_opening(settings, task, workers, rank), flush=True)
    found = estimate((candidate.read() for candidate in task.source), task.recipe, workers)
    print(found.as_text(settings.shortest), flush=True)
    if not found.counts["tracks"]:
        raise NothingUsableError(settings.input, found.counts, found.rejected, settings.shortest)
    return found


def resolve(settings: PreprocessSettings, rank: Rank) -> Task:
    """Open the input and read the encoders as the settings say. Raises the same errors as `preprocess`."""
    source = open_source(settings.input, settings.input_format, settings.hub, settings.captions)
    if settings.limit is not None:
        source = LimitedSource(source, settings.limit)
    candidates = source.count()
    if candidates == 0:
        raise ValueError(f"input {settings.input} holds no audio ({source.kind}): there is not one candidate")
    encoders = load_encoders(
        text_encoder=settings.text_encoder_name,
        audio_encoder=settings.audio_encoder_name,
        audio_channels=settings.audio_channels,
        max_tokens=settings.captions.max_tokens,
        batch_tokens=settings.text_batch_tokens,
        device=pick_device(settings.device, rank.local),
    )
    rate = encoders.audio.sampling_rate
    recipe = ShardRecipe(
        encoders=encoders,
        cutter=ClipCutter.from_seconds(
            sampling_rate=rate,
            channels=encoders.audio.channels,
            length=settings.clip_seconds,
            hop=settings.hop,
            shortest=settings.shortest,
        ),
        captions=settings.captions,
        states_dtype=settings.states_dtype,
        batch_samples=round(settings.batch_seconds * rate),
        most_tracks=settings.shard_tracks,
    )
    return Task(source=source, candidates=candidates, recipe=recipe)


def _about(settings: PreprocessSettings, encoders: FrozenEncoders) -> dict[str, Any]:
    return describe_work(
        settings,
        text_encoder=encoders.text_record.fingerprint,
        audio_encoder=encoders.audio_record.fingerprint,
        audio_channels=encoders.audio.channels,
    )


def _manifest(settings: PreprocessSettings, encoders: FrozenEncoders, assembled: Assembled) -> Manifest:
    audio = encoders.audio
    return Manifest(
        text_encoder=encoders.text_record,
        audio_encoder=encoders.audio_record,
        sampling_rate=audio.sampling_rate,
        frame_rate=audio.sampling_rate / audio.hop_length,
        num_codebooks=audio.num_codebooks,
        codebook_size=audio.codebook_size,
        audio_channels=audio.channels,
        text_width=encoders.text.width,
        states_dtype=settings.states_dtype,
        splits=assembled.splits,
        captions=assembled.captions,
        counts={name: assembled.counts[name] for name in _COUNTED},
        settings=settings.to_dict(),
        command=command(),
        versions=versions(),
        created=now(),
    )


def _opening(settings: PreprocessSettings, task: Task, workers: int, rank: Rank) -> str:
    audio = task.recipe.encoders.audio
    return (
        f"{'' if rank.world_size == 1 else f'{rank}: '}{settings.input} ({task.source.kind}, "
        f"{'number unknown' if task.candidates is None else f'{task.candidates} candidates'}) -> "
        f"{'stereo' if audio.channels == 2 else 'mono'} at {audio.sampling_rate} Hz, {audio.num_codebooks} codebooks, "
        f"clips of {settings.clip_seconds:g} s every {settings.hop:g} s; encoders on {audio.device}, {workers} "
        "processes decode"
    )


def _closing(published: Publication, output: Path, audio_seconds: float, elapsed: float) -> str:
    if not published.is_new:
        return f"{output} has all of it already; nothing was written"
    manifest = published.manifest
    counts = manifest.counts
    splits = ", ".join(
        f"{name} {split.clips} clips of {split.tracks} tracks ({split.hours:.3f} h)"
        for name, split in manifest.splits.items()
    )
    lines = [
        f"wrote {output} ({_size(output)}): {splits}",
        f"{counts['files']} files: {counts['tracks']} used, {counts['rejected']} rejected, {counts['too_short']} too "
        f"short; {counts['missing_caption']} without caption, {counts['silent']} silent clips, {manifest.captions} "
        "distinct captions",
        f"{audio_seconds / 3600:.3f} h of audio in {datetime.timedelta(seconds=round(elapsed))}: "
        f"{audio_seconds / 3600 / elapsed:.4f} h/s ({audio_seconds / elapsed:.0f} x real time)",
    ]
    if counts["rejected"]:
        lines.append(f"why files were rejected: {output / REJECTED_NAME}")
    if "train" not in manifest.splits or "validation" not in manifest.splits:
        there = " and ".join(manifest.splits)
        lines.append(f"note: the dataset has only {there}; split.validation and split.from_source decide")
    return "\n".join(lines)


def _size(folder: Path) -> str:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return tqdm.format_sizeof(size, "B")
