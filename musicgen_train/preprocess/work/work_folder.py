"""The work folder: what is encoded, kept beside the output, so that a run may be killed, continued, shared and grown.

    .NAME.work/                 beside the output NAME
      <settings>/               a hash of what decides the content of clips; another is never mixed in
        about.json              those settings and encoders in words, the input, and how tracks are divided into splits
        shards/<shard>/         see `shards.py`
        parts/00000-of-00002    what rank 0 of 2 found and made; there once it is done
        published.json          which datasets were made of this
        staging/00000/          what rank 0 is writing; waste, if nobody runs
        locks/                  held while a rank works; the system releases them when a process dies

Everything appears by one rename. No file is written by two processes, except where both write the same.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musicgen_train.files import json_text, read_json, write_atomically
from musicgen_train.latents.format import MANIFEST_NAME
from musicgen_train.preprocess.encoding.encoders import Encoders
from musicgen_train.preprocess.settings import PreprocessSettings
from musicgen_train.preprocess.work.ranks import Rank

ABOUT_NAME = "about.json"
PUBLISHED_NAME = "published.json"
_WORK_FORMAT = 1
_DIGEST_CHARACTERS = 16
# What decides the dataset beside what decides the clips.
_DATASET_SETTINGS = ("input", "input_format", "hub", "split")


def work_root(output: Path) -> Path:
    """The folder beside the output, on the same file system, with the work of all settings."""
    output = Path(os.path.realpath(output))
    return output.parent / f".{output.name}.work"


def made_here(output: Path) -> bool:
    """Whether the dataset in `output` was made of what its work folder holds."""
    digest = manifest_digest(output)
    found = (read_published(about.parent) for about in work_root(output).glob(f"*/{ABOUT_NAME}"))
    return digest is not None and any(digest in published.manifests for published in found)


def manifest_digest(folder: Path) -> str | None:
    """SHA-256 of a dataset's manifest, which no two runs write alike; None where there is none."""
    try:
        return hashlib.sha256((folder / MANIFEST_NAME).read_bytes()).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return None


@dataclass(kw_only=True)
class Published:
    """What was made of a work folder."""

    content: str = ""
    """`Results.content` of the last."""
    manifests: tuple[str, ...] = ()
    """`manifest_digest` of all."""


def read_published(folder: Path) -> Published:
    """What was made of the work in a folder; nothing where nothing was, or where the note of it is damaged."""
    try:
        values = read_json(folder / PUBLISHED_NAME)
        return Published(content=str(values["content"]), manifests=tuple(values["manifests"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return Published()


class WorkFolder:
    """The work of one output with one set of settings, as a rank sees it.

    Args:
        output: the dataset to make.
        settings: of the run.
        encoders: of the run.
        rank: this process.

    Raises:
        ValueError: there is work with other settings, or of another input, and not `overwrite`.
        OSError: it cannot be written.
    """

    def __init__(self, output: Path, settings: PreprocessSettings, encoders: Encoders, rank: Rank) -> None:
        self.root = work_root(output)
        self.rank = rank
        about = _about(settings, encoders)
        self.folder = self.root / _digest(about)
        self._output = output
        if not settings.overwrite:
            self._refuse_others(about)
        self.shards = self.folder / "shards"
        self._parts = self.folder / "parts"
        self._locks = self.folder / "locks"
        self.staging = self.folder / "staging" / f"{rank.number:05d}"
        try:
            for folder in (self.shards, self._parts, self._locks, self.staging):
                folder.mkdir(parents=True, exist_ok=True)
            self._write_json(self.folder / ABOUT_NAME, about)
        except OSError as error:
            raise type(error)(
                f"the work folder {self.root} cannot be written ({error.strerror}); give an output where it can"
            ) from error

    @contextlib.contextmanager
    def own(self) -> Iterator[None]:
        """Work as this rank, alone; what an earlier process of this rank left unfinished goes away.

        Raises:
            ValueError: another process works as this rank.
        """
        with self._lock(f"rank-{self.rank.number:05d}", wait=False) as held:
            if not held:
                raise ValueError(
                    f"another process works on {self._output} as {self.rank}; wait for it, or give each process a rank "
                    "of its own (rank=..., world_size=...)"
                )
            shutil.rmtree(self.staging, ignore_errors=True)
            self.staging.mkdir(exist_ok=True)
            # Until this process is done its part is not, whatever an earlier run found.
            self.part().unlink(missing_ok=True)
            yield

    @contextlib.contextmanager
    def finishing(self) -> Iterator[None]:
        """Assemble as the only one, as far as the file system knows locks; waits for another that does."""
        with self._lock("finish", wait=True):
            yield

    def part(self, rank: int | None = None) -> Path:
        """Where a rank's result is; by default this one's."""
        number = self.rank.number if rank is None else rank
        return self._parts / f"{number:05d}-of-{self.rank.world_size:05d}"

    def parts(self) -> list[Path]:
        """The results of all ranks, whether they are there or not."""
        return [self.part(rank) for rank in range(self.rank.world_size)]

    def published(self) -> Published:
        """What was made of this work."""
        return read_published(self.folder)

    def note_published(self, content: str, manifest: str) -> None:
        """Note what is about to be made of this work."""
        before = self.published().manifests
        kept = {"content": content, "manifests": [*(each for each in before if each != manifest), manifest]}
        self._write_json(self.folder / PUBLISHED_NAME, kept)

    def clean(self) -> None:
        """Remove what is of no use once a dataset is published: work with other settings, and what was replaced."""
        for path in [*self.root.iterdir(), *(self.folder / "staging").iterdir()]:
            of_other_settings = path.parent == self.root and path != self.folder
            of_no_rank = path.parent != self.root and int(path.name) >= self.rank.world_size
            if of_other_settings or of_no_rank:
                shutil.rmtree(path, ignore_errors=True)

    def remove(self) -> None:
        """Remove all work of this output."""
        shutil.rmtree(self.root, ignore_errors=True)

    def _write_json(self, path: Path, content: dict[str, Any]) -> None:
        unfinished = self.staging / f"{path.name}.{secrets.token_hex(4)}"
        write_atomically(path, json_text(content), partial=unfinished)

    def _refuse_others(self, about: dict[str, Any]) -> None:
        for file in sorted(self.root.glob(f"*/{ABOUT_NAME}")):
            before = read_json(file)
            if before == about:
                continue
            changes = "; ".join(_changes(before, about)) or "it was written by another version"
            raise ValueError(
                f"{self.root} holds work for {self._output} that was made otherwise, and is never mixed: {changes}. "
                "Give another output, go back to what it was, or add overwrite=true to make it again (what still fits "
                "is kept)"
            )

    @contextlib.contextmanager
    def _lock(self, name: str, *, wait: bool) -> Iterator[bool]:
        """Hold a lock that the system releases when this process ends, however it does; says whether it is held.

        Where the file system knows no locks it counts as held: they keep processes from doing work twice, and what is
        done twice is the same and appears by one rename.
        """
        try:
            import fcntl
        except ImportError:  # Windows
            yield True
            return
        with (self._locks / name).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                    raise
            yield True


def _about(settings: PreprocessSettings, encoders: Encoders) -> dict[str, Any]:
    values = settings.to_dict()
    dataset = {name: values[name] for name in _DATASET_SETTINGS}
    if Path(settings.input).expanduser().exists():
        dataset["input"] = os.path.realpath(Path(settings.input).expanduser())
    return {
        "work_format": _WORK_FORMAT,
        "clips": settings.decisive(),
        "encoders": {
            "text encoder": encoders.text_record.fingerprint,
            "audio encoder": encoders.audio_record.fingerprint,
            "audio_channels": encoders.audio.channels,
        },
        "dataset": dataset,
    }


def _digest(about: dict[str, Any]) -> str:
    decisive = {name: value for name, value in about.items() if name != "dataset"}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:_DIGEST_CHARACTERS]


def _changes(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    old, new = _flat(before), _flat(now)
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            if name in ("text encoder", "audio encoder"):
                yield f"the {name} is another (config or weights)"
            else:
                yield f"{name} was {old.get(name)} and is {new.get(name)}"


def _flat(about: dict[str, Any]) -> dict[str, Any]:
    """Settings by their dotted names."""
    flat: dict[str, Any] = {}
    for section in ("clips", "encoders", "dataset"):
        for name, value in dict(about.get(section) or {}).items():
            flat |= (
                {f"{name}.{inner}": each for inner, each in value.items()} if isinstance(value, dict) else {name: value}
            )
    return flat
