"""The preprocessing stage from its settings to the finished folder."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
import shutil
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import datasets

from musicgen_train.files import put_in_place
from musicgen_train.latents.format import REJECTED_NAME
from musicgen_train.latents.manifest import Manifest
from musicgen_train.preprocess.dataset.assembly import Assembled, assemble
from musicgen_train.preprocess.dry_run import Estimate, as_bytes, estimate, report
from musicgen_train.preprocess.encoding.encode import Encoding
from musicgen_train.preprocess.encoding.encoders import Encoders, load_encoders
from musicgen_train.preprocess.encoding.processes import number_of_processes, prepare_processes
from musicgen_train.preprocess.progress import Progress, as_time
from musicgen_train.preprocess.settings import PreprocessSettings
from musicgen_train.preprocess.sources.folders import first, open_source
from musicgen_train.preprocess.sources.tracks import Source
from musicgen_train.preprocess.work.ranks import Rank, find_rank
from musicgen_train.preprocess.work.results import Results, listing_of
from musicgen_train.preprocess.work.shards import DamagedShardError, flush_tree_to_disk
from musicgen_train.preprocess.work.work_folder import WorkFolder, made_here, manifest_digest
from musicgen_train.provenance.machine import versions
from musicgen_train.provenance.record import command, now, write_record

_REASONS_SHOWN = 3
_RANKS_SHOWN = 8
# Always there, also where nothing was counted.
_COUNTED = (
    "files", "tracks", "clips", "rejected", "too_short", "silent", "missing_caption", "short_tails", "captions_cut",
)  # fmt: skip


def preprocess(settings: PreprocessSettings) -> Manifest | None:
    """Make a latent dataset, go on making it, add what is new in its input, or do one rank's share of any of that.

    What is encoded goes into a work folder beside the output (see `work.WorkFolder`). The rank that is done last
    assembles the dataset there and moves it to the output in one rename. The input is only read.

    Returns:
        The dataset's manifest; None where other ranks are not done yet.

    Raises:
        FileNotFoundError: the input or an encoder does not exist, or the input is gone in the middle of the run.
        FileExistsError: the output holds something that was not made of this work folder.
        CheckpointError: an encoder's folder is damaged.
        RejectedTrackError: a file cannot be used, and `settings.stop_on_rejected`.
        ValueError: a setting, the input or an encoder cannot be used, no file could be, the work folder has work with
            other settings or damaged work (which is removed), another process is this rank, or the input lacks tracks
            that the dataset has.
        OSError: the output or its work folder cannot be written.
    """
    rank = find_rank(settings.rank, settings.world_size)
    output = Path(settings.output).expanduser()
    check_output(output, overwrite=settings.overwrite)
    workers = number_of_processes(settings, rank)
    if workers:
        prepare_processes()  # if the command line has not: meanwhile the source is listed and encoders are read
    source = open_source(settings)
    count = _count(source, settings)
    encoders = load_encoders(settings, rank.local)
    work = WorkFolder(output, settings, encoders, rank)
    print(_opening(settings, source, count, encoders, workers, rank), flush=True)

    progress = Progress(None if count is None else -(-count // rank.world_size), settings.progress_seconds)
    with work.own(), _disk_is_full(work):
        encoding = Encoding(settings, encoders, rank, shards=work.shards, staging=work.staging, progress=progress)
        for damaged in encoding.encoded_before.damaged:
            print(f"{damaged}; its tracks are encoded again", file=sys.stderr, flush=True)
            shutil.rmtree(damaged.shard, ignore_errors=True)
        encoding.run(first(source, settings.limit), source, workers)
        progress.close()
        if progress.reused:
            new = progress.tracks - progress.reused
            print(f"{progress.reused} tracks were encoded by earlier runs, {new} by this one", flush=True)
        listing = encoding.listing.hex()
        encoding.results.write_part(work.part(), work.staging, listing)
        manifest = _finish(work, listing, settings, encoders, output, progress)
    if manifest is not None and not settings.keep_work:
        work.remove()
    return manifest


def look(settings: PreprocessSettings) -> Estimate:
    """Say what `preprocess` would do, and write nothing. Raises as `preprocess`."""
    rank = Rank()
    check_output(Path(settings.output).expanduser(), overwrite=settings.overwrite)
    source = open_source(settings)
    encoders = load_encoders(settings)
    workers = number_of_processes(settings, rank)
    print(_opening(settings, source, _count(source, settings), encoders, workers, rank), flush=True)
    tracks = (candidate.read() for candidate in first(source, settings.limit))
    found = estimate(tracks, settings, encoders, workers)
    print(report(found, settings), flush=True)
    if not found.counts["tracks"]:
        raise ValueError(_nothing_usable(found.counts, found.rejected, settings))
    return found


def check_output(output: Path, *, overwrite: bool) -> None:
    """Refuse an output that is in use: nothing may be there, an empty folder, or the dataset of its work folder.

    With `overwrite` any latent dataset may be there.

    Raises:
        FileExistsError: something else is there.
        NotADirectoryError: it is a file.
    """
    if not output.exists():
        return
    if not output.is_dir():
        raise NotADirectoryError(f"output {output} is a file; give a folder that does not exist yet")
    if not any(output.iterdir()):
        return
    try:
        Manifest.load(output)
    except (FileNotFoundError, ValueError) as error:
        raise FileExistsError(
            f"output {output} exists and holds something that is no latent dataset; give a folder that does not exist"
        ) from error
    if not overwrite and not made_here(output):
        raise FileExistsError(
            f"output {output} is a latent dataset already, and there is no work folder to add to it from; give another "
            "folder, or overwrite=true to replace it"
        )


def _finish(
    work: WorkFolder,
    listing: str,
    settings: PreprocessSettings,
    encoders: Encoders,
    output: Path,
    progress: Progress,
) -> Manifest | None:
    """Assemble and publish the dataset, if all ranks are done and it is not there yet."""
    if not _all_are_done(work, listing):
        return None
    with work.finishing():
        if not _all_are_done(work, listing):
            return None
        results = Results.of_parts(work.parts())
        content = results.content(settings.split)
        before = manifest_digest(output)
        published = work.published()
        if before is not None and published.content == content and published.manifests[-1] == before:
            manifest = Manifest.load(output)
            print(f"{output} has all of it already; nothing was written", flush=True)
            return manifest
        if before is not None and not settings.overwrite:
            _refuse_loss(results, output, Manifest.load(output), settings)
        with _assembly_folder(work) as folder:
            try:
                assembled = assemble(results, work.shards, folder / "dataset", folder / "tables", settings.split)
            except DamagedShardError as error:
                shutil.rmtree(error.shard, ignore_errors=True)
                raise ValueError(f"{error}. It was removed: run the same command again to encode its tracks") from error
            if not assembled.counts["clips"]:
                message = _nothing_usable(assembled.counts, _rejected(results), settings)
                if before is None:
                    work.remove()
                raise ValueError(message)
            manifest = _manifest(settings, encoders, assembled)
            manifest.save(folder / "dataset")
            write_record(folder / "dataset")
            flush_tree_to_disk(folder / "dataset")
            digest = manifest_digest(folder / "dataset")
            assert digest is not None
            # Before the dataset itself, so that whoever finds it knows where it is from.
            work.note_published(content, digest)
            put_in_place(folder / "dataset", Path(os.path.realpath(output)), folder / "replaced")
        work.clean()
    print(summary(manifest, output, progress), flush=True)
    if settings.keep_work:
        print(
            f"kept {work.root} ({as_bytes(_size_of(work.root))}): with it the same command adds what is new in the "
            "input. It may be deleted",
            flush=True,
        )
    return manifest


def _all_are_done(work: WorkFolder, listing: str) -> bool:
    found = {rank: listing_of(part) for rank, part in enumerate(work.parts())}
    if absent := [rank for rank, digest in found.items() if digest is None]:
        print(f"{work.rank} is done; the dataset is assembled by the last, {_ranks(absent)} not done yet", flush=True)
        return False
    if others := [rank for rank, digest in found.items() if digest != listing]:
        print(
            f"{work.rank} is done; {_ranks(others)} done with another list of files. If none of them runs any more, "
            "the input changed meanwhile: run the same command again",
            flush=True,
        )
        return False
    return True


def _ranks(numbers: list[int]) -> str:
    named = ", ".join(map(str, numbers[:_RANKS_SHOWN]))
    more = f" and {len(numbers) - _RANKS_SHOWN} more" if len(numbers) > _RANKS_SHOWN else ""
    return f"rank {named} is" if len(numbers) == 1 else f"ranks {named}{more} are"


def _refuse_loss(results: Results, output: Path, manifest: Manifest, settings: PreprocessSettings) -> None:
    """Refuse to replace a dataset by one that lacks some of its tracks, as when half of a library is not mounted."""
    lost, example = 0, ""
    for split in manifest.splits:
        before = ""
        for batch in datasets.load_from_disk(str(output / split)).data.table.column("track").chunks:
            for track in batch.to_pylist():
                if track != before and track not in results:
                    lost, example = lost + 1, example or track
                before = track
    if lost:
        raise ValueError(
            f"input {settings.input} no longer has {lost} tracks of the dataset {output}, {example} for one. The "
            "dataset was left as it is, and what is new is encoded and kept: bring them back, or add overwrite=true to "
            "leave them out"
        )


def _rejected(results: Results) -> list[dict[str, str]]:
    found = ({"file": each.id, "reason": each.problem} for each in results if each.problem is not None)
    return list(itertools.islice(found, _REASONS_SHOWN))


def summary(manifest: Manifest, output: Path, progress: Progress) -> str:
    """What was made, for people."""
    counts = manifest.counts
    splits = ", ".join(
        f"{name} {split.clips} clips of {split.tracks} tracks ({split.hours:.3f} h)"
        for name, split in manifest.splits.items()
    )
    elapsed = progress.elapsed
    lines = [
        f"wrote {output} ({as_bytes(_size_of(output))}): {splits}",
        f"{counts['files']} files: {counts['tracks']} used, {counts['rejected']} rejected, {counts['too_short']} too "
        f"short; {counts['missing_caption']} without caption, {counts['silent']} silent clips, {manifest.captions} "
        "distinct captions",
        f"{progress.audio_seconds / 3600:.3f} h of audio in {as_time(elapsed)}: "
        f"{progress.audio_seconds / 3600 / elapsed:.4f} h/s ({progress.audio_seconds / elapsed:.0f} x real time)",
    ]
    if counts["rejected"]:
        lines.append(f"why files were rejected: {output / REJECTED_NAME}")
    if "train" not in manifest.splits or "validation" not in manifest.splits:
        there = " and ".join(manifest.splits)
        lines.append(f"note: the dataset has only {there}; split.validation and split.from_source decide")
    return "\n".join(lines)


def _opening(
    settings: PreprocessSettings, source: Source, count: int | None, encoders: Encoders, workers: int, rank: Rank
) -> str:
    audio = encoders.audio
    return (
        f"{'' if rank.world_size == 1 else f'{rank}: '}"
        f"{settings.input} ({source.kind}, {'number unknown' if count is None else f'{count} candidates'}) -> "
        f"{'stereo' if audio.channels == 2 else 'mono'} at {audio.sampling_rate} Hz, {audio.num_codebooks} codebooks, "
        f"clips of {settings.clip_seconds:g} s every {settings.hop:g} s; encoders on {audio.device}, {workers} "
        "processes decode"
    )


def _count(source: Source, settings: PreprocessSettings) -> int | None:
    count = source.count()
    if count == 0:
        raise ValueError(f"input {settings.input} holds no audio ({source.kind}): there is not one candidate")
    return count if count is None or settings.limit is None else min(count, settings.limit)


def _nothing_usable(counts: Counter[str], rejected: list[dict[str, str]], settings: PreprocessSettings) -> str:
    reasons = "; ".join(f"{line['file']}: {line['reason']}" for line in rejected[:_REASONS_SHOWN])
    return (
        f"none of {counts['files']} files in {settings.input} could be used: {counts['rejected']} rejected"
        f"{f' ({reasons})' if reasons else ''}, {counts['too_short']} shorter than {settings.shortest:g} s "
        "(min_clip_seconds)"
    )


def _manifest(settings: PreprocessSettings, encoders: Encoders, assembled: Assembled) -> Manifest:
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


@contextlib.contextmanager
def _assembly_folder(work: WorkFolder) -> Iterator[Path]:
    """A folder on the file system of the output; gone afterwards, unless the process is killed."""
    folder = work.staging / f"assembly-{secrets.token_hex(4)}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _disk_is_full(work: WorkFolder) -> Iterator[None]:
    """Say of a full disk what is kept and what to do."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OSError(
            f"no space for temporary tables ({error}): name a folder with some in the variable SQLITE_TMPDIR, and run "
            "the same command again"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise type(error)(
            f"no space left on the disk of {work.root}. What is encoded so far is kept: make space, and run the same "
            "command again"
        ) from error


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
