"""The report's folder: written beside its place, put there when all is done, and never over anything else."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from musicgen_train.hub.folder import read_json

RESULTS_NAME = "results.json"
REPORT_NAME = "report.html"
PROGRAM = "musicgen_train.evaluation"


def check_output(output: Path, *, overwrite: bool) -> None:
    """Refuse a place that holds anything, unless that is an earlier report which may be replaced.

    Raises:
        NotADirectoryError: it is a file.
        FileExistsError: it holds something.
    """
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"output={output} is a file; give a folder that is new or empty")
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not _is_report(output):
        raise FileExistsError(f"output={output} already holds something else; give a folder that is new or empty")
    if not overwrite:
        raise FileExistsError(
            f"output={output} already holds a report; give another folder, or overwrite=true to replace it"
        )


@contextlib.contextmanager
def report_folder(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder to write into that becomes `output` if the block ends without an error.

    After an error it stays where it is if anything was made in it, and stderr says where that is.

    Raises:
        FileExistsError, NotADirectoryError: as `check_output`, before and after the block.
    """
    check_output(output, overwrite=overwrite)
    output.parent.mkdir(parents=True, exist_ok=True)
    staging = output.with_name(f"{output.name}.partial-{secrets.token_hex(3)}")
    staging.mkdir()
    try:
        yield staging
        check_output(output, overwrite=overwrite)
        _put_in_place(staging, output)
    except BaseException:
        if any(staging.iterdir()):
            print(f"what was made so far is in {staging}", file=sys.stderr)
        else:
            staging.rmdir()
        raise


def _is_report(folder: Path) -> bool:
    path = folder / RESULTS_NAME
    if not path.is_file():
        return False
    try:
        return read_json(path).get("program") == PROGRAM
    except ValueError:
        return False


def _put_in_place(staging: Path, output: Path) -> None:
    """One rename; an earlier report goes away after the new one is in its place."""
    if not output.exists():
        staging.rename(output)
        return
    earlier = output.with_name(f"{output.name}.earlier-{secrets.token_hex(3)}")
    output.rename(earlier)
    try:
        staging.rename(output)
    except OSError:
        earlier.rename(output)
        raise
    shutil.rmtree(earlier)
