"""The demo's corpus: captioned music whose properties are known, as a track in memory or a folder on disk.

A folder has, for every track, `track-00000.flac` (or `.wav`; 32 kHz, 16 bit) and `track-00000.json` beside it:

- `description`: one caption that names everything; `captions`: a list of further phrasings; `tags`: a list of keywords;
- the properties of the music, to measure control by text: `bpm`, `key` ("Bb"), `mode` ("major" or "minor"),
  `meter` ("4/4"), `style`, `energy`, `brightness`, `instruments` (a list), `drums` (true or false), `chords`
  ("I-V-vi-IV");
- `seconds`, `seed` and `index`, from which the track can be made again.

`corpus.json` has the settings of the folder.
"""

from __future__ import annotations

import concurrent.futures
import io
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from musicgen_train.demo.composition import Piece, compose
from musicgen_train.demo.descriptions import describe_piece, tags
from musicgen_train.demo.draws import Draws
from musicgen_train.demo.mixing import mix_down
from musicgen_train.demo.synthesis import SAMPLE_RATE
from musicgen_train.files import json_text, read_json, write_atomically

SETTINGS_NAME = "corpus.json"
FORMATS = ("flac", "wav")

# Increased whenever the same seed gives other music or captions, so that a folder never mixes both.
_GENERATOR = 2
_NUMERALS = ("I", "II", "III", "IV", "V", "VI", "VII")
_MINOR_CHORDS = {"major": (2, 3, 6), "minor": (1, 4)}
_PARTIAL = ".partial"


@dataclass(frozen=True)
class CorpusTrack:
    """A track of the corpus.

    Args:
        audio: float32 `(channels, samples)` at 32 kHz; multiples of 2**-15, which 16 bits represent exactly.
        description: the caption that names every property.
        captions: further captions.
        tags: keywords.
        metadata: the properties, as in the `.json` of a folder.
        piece: the notes.
    """

    audio: npt.NDArray[np.float32]
    description: str
    captions: list[str]
    tags: list[str]
    metadata: dict[str, Any]
    piece: Piece

    def as_json(self) -> dict[str, Any]:
        """The content of the track's `.json`."""
        return {"description": self.description, "captions": self.captions, "tags": self.tags, **self.metadata}


def make_track(seed: int, index: int, seconds: float = 20.0, *, stereo: bool = False, **wishes: Any) -> CorpusTrack:
    """Make one track.

    The same arguments give the same notes and captions everywhere. Sound is computed in 64 bits and rounded to 16, so
    machines whose sines differ in the last of 64 bits agree in all but perhaps one sample of thousands of tracks.

    Args:
        seed: seed of the corpus.
        index: index of the track in the corpus.
        seconds: length of the track.
        stereo: two channels instead of one; the music is the same.
        wishes: properties to use instead of drawing them, as `composition.compose` takes them: `style`, `bpm`, `key`,
            `mode`, `energy`, `brightness`, `drums`.

    Raises:
        ValueError: there is no such style, key, ...
    """
    piece = compose(seed, index, seconds, **wishes)
    sound = mix_down(piece, 2 if stereo else 1)
    audio = (np.round(sound * 2**15) / 2**15).astype(np.float32)
    description, *captions = describe_piece(piece, Draws("captions", seed, index))
    return CorpusTrack(audio, description, captions, tags(piece), _metadata(piece, seed, index), piece)


def captions_of(seed: int, index: int, seconds: float = 20.0) -> list[str]:
    """All captions of a track, the description first, without making its sound."""
    return describe_piece(compose(seed, index, seconds), Draws("captions", seed, index))


def _metadata(piece: Piece, seed: int, index: int) -> dict[str, Any]:
    return {
        "bpm": piece.bpm,
        "key": piece.key,
        "mode": piece.mode,
        "meter": piece.meter,
        "style": piece.style_name,
        "energy": piece.energy,
        "brightness": piece.brightness,
        "instruments": piece.instruments,
        "drums": piece.has_drums,
        "chords": "-".join(_numeral(degree, piece.mode) for degree in piece.progression),
        "seconds": piece.seconds,
        "seed": seed,
        "index": index,
    }


def _numeral(degree: int, mode: str) -> str:
    numeral = _NUMERALS[degree - 1]
    return numeral.lower() if degree in _MINOR_CHORDS[mode] else numeral


def write_corpus(
    folder: str | os.PathLike[str],
    tracks: int = 64,
    seconds: float = 20.0,
    seed: int = 0,
    *,
    stereo: bool = False,
    audio_format: str = "flac",
    workers: int = 1,
    report: Callable[[int, int], None] | None = None,
) -> int:
    """Write a corpus; tracks that are already there are kept, so an interrupted call resumes and a corpus can grow.

    Files appear complete or not at all.

    Args:
        folder: made if need be.
        tracks, seconds, seed, stereo: as for `make_track`.
        audio_format: `flac` or `wav`.
        workers: number of processes; the files do not depend on it.
        report: called after every track with the number of tracks there are now, and the number of all tracks.

    Returns:
        The number of tracks that were made.

    Raises:
        ValueError: a setting is not allowed, or the folder holds something else, another corpus, or more tracks.
        NotADirectoryError: the folder is a file.
    """
    if tracks < 1 or workers < 1 or not 0 < seconds <= 3600:
        raise ValueError(
            f"tracks is {tracks}, workers is {workers} and seconds is {seconds}; expected 1 or more of the first two, "
            "and above 0 and up to 3600 of the third"
        )
    if audio_format not in FORMATS:
        raise ValueError(f"audio_format is {audio_format!r}; allowed are {', '.join(FORMATS)}")
    target = Path(folder).expanduser()
    settings = {
        "generator": _GENERATOR,
        "seed": seed,
        "seconds": float(seconds),
        "channels": 2 if stereo else 1,
        "sampling_rate": SAMPLE_RATE,
        "format": audio_format,
    }
    _claim(target, settings, tracks)
    jobs = [
        _Job(target / f"{stem_of(index)}.{audio_format}", seed, index, float(seconds), stereo)
        for index in range(tracks)
        if not _is_there(target / f"{stem_of(index)}.{audio_format}")
    ]
    for done, _ in enumerate(_work_through(jobs, workers), start=tracks - len(jobs) + 1):
        if report is not None:
            report(done, tracks)
    return len(jobs)


def stem_of(index: int) -> str:
    """The name of a track's files without the extension."""
    return f"track-{index:05d}"


@dataclass(frozen=True)
class _Job:
    path: Path
    seed: int
    index: int
    seconds: float
    stereo: bool

    def run(self) -> None:
        import soundfile

        track = make_track(self.seed, self.index, self.seconds, stereo=self.stereo)
        # As integers, since the library's rounding could differ by one.
        samples = (track.audio.T * 2**15).astype(np.int16)
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, SAMPLE_RATE, format=self.path.suffix[1:].upper(), subtype="PCM_16")
        # The text first, so that audio always has its caption.
        text = json.dumps(track.as_json(), indent=2, ensure_ascii=False) + "\n"
        _write(self.path.with_suffix(".json"), text)
        _write(self.path, buffer.getvalue())


def _run(job: _Job) -> None:
    job.run()


def _work_through(jobs: list[_Job], workers: int) -> Iterator[None]:
    if workers == 1 or len(jobs) < 2:
        yield from map(_run, jobs)
        return
    # Forking a process with threads, which torch starts, may hang.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
        yield from pool.map(_run, jobs)


def _write(path: Path, content: str | bytes) -> None:
    write_atomically(path, content, partial=path.with_name(path.name + _PARTIAL))


def _is_there(audio: Path) -> bool:
    return audio.is_file() and audio.with_suffix(".json").is_file()


def _claim(folder: Path, settings: dict[str, Any], tracks: int) -> None:
    """Check that the folder has a corpus with these settings, or write the settings into an empty folder."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; give a folder for the corpus")
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(path.name for path in folder.iterdir() if not path.name.endswith(_PARTIAL))
    if SETTINGS_NAME not in names:
        if names:
            raise ValueError(
                f"{folder} already holds something else ({', '.join(names[:5])}{', ...' * (len(names) > 5)}); give a "
                "new or empty folder for the corpus"
            )
        _write(folder / SETTINGS_NAME, json_text(settings))
        return
    found = read_json(folder / SETTINGS_NAME)
    different = [
        f"{name} {found.get(name)!r} (asked for: {settings.get(name)!r})"
        for name in sorted({*found, *settings})
        if found.get(name) != settings.get(name)
    ]
    if different:
        raise ValueError(f"{folder} holds a corpus made with {', '.join(different)}; give another folder")
    allowed = {f"{stem_of(index)}{ending}" for index in range(tracks) for ending in (f".{settings['format']}", ".json")}
    more = [name for name in names if name not in allowed and name != SETTINGS_NAME]
    if more:
        raise ValueError(
            f"{folder} holds more than the {tracks} tracks asked for: {', '.join(more[:3])}"
            f"{', ...' * (len(more) > 3)}. Ask for as many as it has, or give another folder"
        )
