"""The preprocessing stage from its settings to the finished folder."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import secrets
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from musicgen_train.latents.format import REJECTED_NAME
from musicgen_train.latents.manifest import Manifest
from musicgen_train.preprocess.assemble import Assembled, assemble
from musicgen_train.preprocess.clips import available_cores
from musicgen_train.preprocess.dry_run import Estimate, as_bytes, estimate, report
from musicgen_train.preprocess.encode import encode_tracks
from musicgen_train.preprocess.encoders import Encoders, load_encoders
from musicgen_train.preprocess.progress import Progress, as_time
from musicgen_train.preprocess.settings import PreprocessSettings
from musicgen_train.preprocess.shards import read_report
from musicgen_train.preprocess.sources import first, open_source
from musicgen_train.preprocess.tracks import Source

_MOST_WORKERS = 8
_REASONS_SHOWN = 3
# Always there, also where nothing was counted.
_COUNTED = (
    "files", "tracks", "clips", "rejected", "too_short", "silent", "missing_caption", "short_tails", "captions_cut",
)  # fmt: skip
_VERSIONS_OF = ("musicgen-train", "torch", "torchaudio", "datasets", "soundfile", "sentencepiece", "numpy")


def run(config: DictConfig) -> Manifest | Estimate:
    """The entry of `scripts/preprocess.py`; returns what `preprocess` or `look` does."""
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ValueError(f"{missing[0]} is not given; add {missing[0]}=... to the command")
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    settings = PreprocessSettings.from_dict({str(name): value for name, value in values.items()})
    return look(settings) if settings.dry_run else preprocess(settings)


def preprocess(settings: PreprocessSettings) -> Manifest:
    """Make a latent dataset.

    It is built in a hidden folder beside the output and renamed when it is complete. The input is only read.

    Returns:
        The dataset's manifest.

    Raises:
        FileNotFoundError: the input or an encoder does not exist.
        FileExistsError: the output holds something already.
        CheckpointError: an encoder's folder is damaged.
        ValueError: a setting, the input or an encoder cannot be used, or no file could be.
        OSError: the output cannot be written.
    """
    output = Path(settings.output).expanduser()
    check_output(output, overwrite=settings.overwrite)
    source = open_source(settings)
    count = _count(source, settings)
    encoders = load_encoders(settings)
    workers = _workers(settings)
    print(_opening(settings, source, count, encoders, workers), flush=True)

    with _staging(output) as staging:
        progress = Progress(count, settings.progress_seconds)
        fingerprints = {"text": encoders.text_record.fingerprint, "audio": encoders.audio_record.fingerprint}
        shards = encode_tracks(
            first(source, settings.limit),
            staging / "shards",
            settings,
            encoders,
            content_digest=settings.content_digest(fingerprints),
            workers=workers,
            progress=progress,
        )
        progress.close()
        _refuse_nothing(shards, settings)
        assembled = assemble(shards, staging / "dataset", staging / "work", settings.split)
        manifest = _manifest(settings, encoders, assembled)
        manifest.save(staging / "dataset")
        _flush_to_disk(staging / "dataset")
        _publish(staging / "dataset", output, staging / "replaced")
    print(summary(manifest, output, progress), flush=True)
    return manifest


def look(settings: PreprocessSettings) -> Estimate:
    """Say what `preprocess` would do, and write nothing. Raises as `preprocess`."""
    check_output(Path(settings.output).expanduser(), overwrite=settings.overwrite)
    source = open_source(settings)
    encoders = load_encoders(settings)
    workers = _workers(settings)
    print(_opening(settings, source, _count(source, settings), encoders, workers), flush=True)
    found = estimate(first(source, settings.limit), settings, encoders, workers)
    print(report(found, settings), flush=True)
    if not found.counts["tracks"]:
        raise ValueError(_nothing_usable(found.counts, found.rejected, settings))
    return found


def check_output(output: Path, *, overwrite: bool) -> None:
    """Refuse an output that is in use: only an empty folder, or with `overwrite` a latent dataset, may be there.

    Raises:
        FileExistsError: something is there.
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
    if not overwrite:
        raise FileExistsError(
            f"output {output} is a latent dataset already; give another folder, or overwrite=true to replace it"
        )


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


def _opening(settings: PreprocessSettings, source: Source, count: int | None, encoders: Encoders, workers: int) -> str:
    audio = encoders.audio
    return (
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


def _workers(settings: PreprocessSettings) -> int:
    """Decoding takes a core per 100 or so times real time; this process needs one for itself."""
    if settings.workers is not None:
        return settings.workers
    return max(0, min(available_cores() - 1, _MOST_WORKERS))


def _refuse_nothing(shards: list[Path], settings: PreprocessSettings) -> None:
    counts: Counter[str] = Counter()
    rejected: list[dict[str, str]] = []
    for shard in shards:
        found = read_report(shard)
        counts += found.counts
        rejected += found.rejected[: _REASONS_SHOWN - len(rejected)]
    if not counts["clips"]:
        raise ValueError(_nothing_usable(counts, rejected, settings))


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
        command=" ".join(sys.argv),
        versions={"python": platform.python_version(), **{name: _version(name) for name in _VERSIONS_OF}},
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@contextlib.contextmanager
def _staging(output: Path) -> Iterator[Path]:
    """A hidden folder beside the output, on the same file system; gone afterwards, whatever happens."""
    output = Path(os.path.realpath(output))
    output.parent.mkdir(parents=True, exist_ok=True)
    staging = output.parent / f".{output.name}.partial-{secrets.token_hex(4)}"
    staging.mkdir()
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _publish(dataset: Path, output: Path, replaced: Path) -> None:
    output = Path(os.path.realpath(output))
    if output.exists():
        output.rename(replaced)
    try:
        dataset.rename(output)
    except OSError:
        if replaced.exists():
            replaced.rename(output)
        raise


def _flush_to_disk(folder: Path) -> None:
    # Without it a power cut after the rename could leave files of zeros under their final names.
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
