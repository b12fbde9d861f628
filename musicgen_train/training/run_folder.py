"""The folder of a training run: what is where, and whether a run may write into it."""

from __future__ import annotations

from pathlib import Path

CONFIG_NAME = "config.yaml"
PROVENANCE_NAME = "provenance.json"
CHECKPOINTS_FOLDER = "checkpoints"
LAST_CHECKPOINT = "last.ckpt"
BEST_CHECKPOINT = "best.ckpt"
COMPOSITE_FOLDER = "composite"
SAMPLES_FOLDER = "samples"
CHECKS_FOLDER = "checks"

AUTO = "auto"


def is_run(folder: Path) -> bool:
    """Whether a training run has begun in a folder."""
    return (folder / PROVENANCE_NAME).is_file() and (folder / CONFIG_NAME).is_file()


def find_checkpoint(run: Path) -> Path:
    """The last checkpoint of a run.

    Raises:
        FileNotFoundError: it has none.
    """
    checkpoint = run / CHECKPOINTS_FOLDER / LAST_CHECKPOINT
    if not checkpoint.is_file():
        raise FileNotFoundError(
            f"the run {run} has no {CHECKPOINTS_FOLDER}/{LAST_CHECKPOINT}: it ended before its first"
        )
    return checkpoint


def open_run(output: Path, resume: str | None) -> Path | None:
    """Make the folder of a run, or find the checkpoint to go on from.

    Args:
        output: the run's folder.
        resume: None for a new run; `auto` to go on with the one in `output` if there is one; or a checkpoint's path.

    Returns:
        The checkpoint to resume from, None for a new run.

    Raises:
        FileExistsError: `output` holds something that would be lost or mixed.
        FileNotFoundError: there is no such checkpoint.
    """
    if output.is_file():
        raise FileExistsError(f"output={output} is a file; give a folder")
    held = sorted(path.name for path in output.iterdir()) if output.is_dir() else []
    if held and not is_run(output):
        shown = ", ".join(held[:5]) + (", ..." if len(held) > 5 else "")
        raise FileExistsError(f"output={output} holds something else ({shown}); choose another folder")
    checkpoint: Path | None = None
    if resume == AUTO:
        last = output / CHECKPOINTS_FOLDER / LAST_CHECKPOINT
        checkpoint = last if last.is_file() else None
    elif resume is not None:
        checkpoint = Path(resume).expanduser()
        if not checkpoint.is_file():
            raise FileNotFoundError(f"resume={resume}: there is no such checkpoint")
    elif held:
        raise FileExistsError(
            f"output={output} holds a run already; add resume=auto to go on with it, or choose another folder"
        )
    output.mkdir(parents=True, exist_ok=True)
    return checkpoint
