"""The report's folder: written beside its place, put there when all is done, and never over anything else."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from musicgen_train.files import put_in_place, read_json

RESULTS_NAME = "results.json"
REPORT_NAME = "report.html"
PROGRAM = "musicgen_train.evaluation"


def check_report_folder(output: Path, *, overwrite: bool) -> None:
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
        FileExistsError, NotADirectoryError: as `check_report_folder`, before and after the block.
    """
    check_report_folder(output, overwrite=overwrite)
    # Where a link leads to, since a folder is renamed only within its file system.
    place = Path(os.path.realpath(output))
    place.parent.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(3)
    staging, earlier = (place.with_name(f"{place.name}.{what}-{token}") for what in ("partial", "earlier"))
    staging.mkdir()
    try:
        yield staging
        check_report_folder(output, overwrite=overwrite)
        put_in_place(staging, place, earlier)
    except BaseException:
        # It is gone where it has its place, and what failed came after that.
        if staging.exists() and any(staging.iterdir()):
            print(f"what was made so far is in {staging}", file=sys.stderr)
        elif staging.exists():
            staging.rmdir()
        raise
    # The earlier report is removed once the new one is in its place.
    shutil.rmtree(earlier, ignore_errors=True)


def _is_report(folder: Path) -> bool:
    path = folder / RESULTS_NAME
    if not path.is_file():
        return False
    try:
        return read_json(path).get("program") == PROGRAM
    except ValueError:
        return False
