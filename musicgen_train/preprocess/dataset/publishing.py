"""Assembles the dataset when all ranks are done, and puts it in the output's place in one rename."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import datasets

from musicgen_train.files import put_in_place
from musicgen_train.latents.manifest import Manifest
from musicgen_train.preprocess.dataset.assembly import Assembled, assemble
from musicgen_train.preprocess.settings import SplitSettings
from musicgen_train.preprocess.work.results import Results, listing_of
from musicgen_train.preprocess.work.shards import DamagedShardError, flush_tree_to_disk
from musicgen_train.preprocess.work.work_folder import WorkFolder, made_here, manifest_digest
from musicgen_train.provenance.record import write_record

_REASONS_SHOWN = 3
_RANKS_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Publication:
    """The dataset in the output."""

    manifest: Manifest
    is_new: bool
    """False if the output had all of it already and nothing was written."""


class NothingUsableError(ValueError):
    """Not one file of the input could be used.

    Args:
        input_name: the input as the user gave it.
        counts: the manifest's counts.
        rejected: some of the lines of `rejected.jsonl`.
        shortest: the least length of a clip in seconds.
    """

    def __init__(
        self, input_name: str, counts: Mapping[str, int], rejected: list[dict[str, str]], shortest: float
    ) -> None:
        reasons = "; ".join(f"{line['file']}: {line['reason']}" for line in rejected[:_REASONS_SHOWN])
        super().__init__(
            f"none of {counts['files']} files in {input_name} could be used: {counts['rejected']} rejected"
            f"{f' ({reasons})' if reasons else ''}, {counts['too_short']} shorter than {shortest:g} s "
            "(min_clip_seconds)"
        )


def require_free_output(output: Path, *, overwrite: bool) -> None:
    """Raise unless the output is free: it does not exist, is an empty folder, or was assembled from its work folder.

    With `overwrite` it may be any latent dataset.

    Raises:
        FileExistsError: something else is there.
        NotADirectoryError: the output is a file.
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


class Publisher:
    """Makes the dataset of an output from its work folder.

    Args:
        work: the work folder.
        output: the folder of the dataset.
        make_manifest: makes the manifest of what was assembled.
        split: how tracks are divided into splits.
        overwrite: replace a dataset even by one that lacks some of its tracks.
        input_name: the input as the user gave it, for messages.
        shortest: the least length of a clip in seconds, for messages.
    """

    def __init__(
        self,
        work: WorkFolder,
        output: Path,
        make_manifest: Callable[[Assembled], Manifest],
        *,
        split: SplitSettings,
        overwrite: bool,
        input_name: str,
        shortest: float,
    ) -> None:
        self._work = work
        self._output = output
        self._make_manifest = make_manifest
        self._split = split
        self._overwrite = overwrite
        self._input_name = input_name
        self._shortest = shortest

    def publish(self, listing: str) -> Publication | None:
        """Publish the dataset if all ranks are done; only one process does so at a time.

        Args:
            listing: `ListingDigest` of the candidates that this rank listed.

        Returns:
            The dataset; None if other ranks are not done yet, which is printed.

        Raises:
            NothingUsableError: there is not one clip.
            ValueError: a shard is damaged (it is removed), or the dataset would lose tracks.
            OSError: the dataset cannot be written.
        """
        if not _all_are_done(self._work, listing):
            return None
        with self._work.finishing():
            # Another process may have begun anew while this one waited.
            if not _all_are_done(self._work, listing):
                return None
            results = Results.of_parts(self._work.parts())
            content = results.content(self._split)
            before = manifest_digest(self._output)
            published = self._work.published()
            if before is not None and published.content == content and published.manifests[-1] == before:
                return Publication(manifest=Manifest.load(self._output), is_new=False)
            if before is not None and not self._overwrite:
                self._refuse_loss(results)
            with _assembly_folder(self._work) as folder:
                manifest = self._assemble(results, folder)
                digest = manifest_digest(folder / "dataset")
                assert digest is not None
                # Recorded before the dataset appears, so that whoever finds it there knows where it is from.
                self._work.note_published(content, digest)
                put_in_place(folder / "dataset", Path(os.path.realpath(self._output)), folder / "replaced")
            self._work.clean()
        return Publication(manifest=manifest, is_new=True)

    def _assemble(self, results: Results, folder: Path) -> Manifest:
        """Write the whole dataset to `folder / "dataset"`, and flush it to the disk."""
        dataset = folder / "dataset"
        try:
            assembled = assemble(results, self._work.shards, dataset, folder / "tables", self._split)
        except DamagedShardError as error:
            shutil.rmtree(error.shard, ignore_errors=True)
            raise ValueError(f"{error}. It was removed: run the same command again to encode its tracks") from error
        if not assembled.counts["clips"]:
            problem = NothingUsableError(self._input_name, assembled.counts, _rejected(results), self._shortest)
            if manifest_digest(self._output) is None:
                self._work.remove()
            raise problem
        manifest = self._make_manifest(assembled)
        manifest.save(dataset)
        write_record(dataset)
        flush_tree_to_disk(dataset)
        return manifest

    def _refuse_loss(self, results: Results) -> None:
        """Refuse to replace a dataset by one that lacks some of its tracks: half of a library may not be mounted."""
        lost, example = 0, ""
        for split in Manifest.load(self._output).splits:
            before = ""
            for batch in datasets.load_from_disk(str(self._output / split)).data.table.column("track").chunks:
                for track in batch.to_pylist():
                    if track != before and track not in results:
                        lost, example = lost + 1, example or track
                    before = track
        if lost:
            raise ValueError(
                f"input {self._input_name} no longer has {lost} tracks of the dataset {self._output}, {example} for "
                "one. The dataset was left as it is, and what is new is encoded and kept: bring them back, or add "
                "overwrite=true to leave them out"
            )


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


def _rejected(results: Results) -> list[dict[str, str]]:
    found = ({"file": each.id, "reason": each.problem} for each in results if each.problem is not None)
    return list(itertools.islice(found, _REASONS_SHOWN))


@contextlib.contextmanager
def _assembly_folder(work: WorkFolder) -> Iterator[Path]:
    """Make a folder on the output's file system. It is removed at the end, unless the process is killed."""
    folder = work.staging / f"assembly-{secrets.token_hex(4)}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
