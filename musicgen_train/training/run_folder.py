"""The folder of a training run: its names, whether a run may write into it, and the checkpoint it resumes from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from musicgen_train.files import PARTIAL, write_atomically
from musicgen_train.hub.folder import CONFIG_NAME
from musicgen_train.hub.weights import CheckpointError
from musicgen_train.provenance.record import PATCH_PREFIX
from musicgen_train.training.checkpoints.reading import DAMAGED, Damaged, damage, newest_intact, remove_partial

RUN_CONFIG_NAME = "config.yaml"
PROVENANCE_NAME = "provenance.json"
METRICS_NAME = "metrics.csv"
CHECKPOINTS_FOLDER = "checkpoints"
LAST_CHECKPOINT = "last.ckpt"
PREVIOUS_CHECKPOINT = "previous.ckpt"
COMPOSITE_FOLDER = "composite"
OUTDATED_NAME = "composite-is-outdated.txt"
ADAPTER_FOLDER = "adapter"
SAMPLES_FOLDER = "samples"
CHECKS_FOLDER = "checks"

_AUTO = "auto"

_OUTDATED = (
    "composite/ is what this run had come to at an earlier end. It was made longer, and has gone on from step {step}: "
    "its newest weights are in checkpoints/. The next end replaces composite/ and removes this file.\n"
)


@dataclass(frozen=True)
class Opened:
    """What was found in the folder of a run."""

    checkpoint: Path | None
    """The checkpoint to resume from; None starts a new run."""
    damaged: list[Damaged] = field(default_factory=list)
    """Checkpoints that were passed over because they are damaged."""


def is_run(folder: Path) -> bool:
    """Returns True if a training run was started in a folder."""
    return (folder / PROVENANCE_NAME).is_file() and (folder / RUN_CONFIG_NAME).is_file()


def exported(run: Path) -> Path | None:
    """The composite that a run ended with; None if it has not ended, or was resumed since."""
    composite = run / COMPOSITE_FOLDER
    ended = (composite / CONFIG_NAME).is_file() and not (run / OUTDATED_NAME).exists()
    return composite if ended else None


def newest_of(run: Path) -> Opened:
    """Find the newest intact checkpoint of a run.

    Raises:
        FileNotFoundError: the run has no checkpoint.
        CheckpointError: all its checkpoints are damaged.
    """
    opened = _newest(run)
    if opened.checkpoint is None:
        raise FileNotFoundError(
            f"the run {run} has no {CHECKPOINTS_FOLDER}/{LAST_CHECKPOINT}: it ended before its first"
        )
    return opened


def open_run(output: Path, resume: str | None) -> Opened:
    """Check that a run may use a folder, and find the checkpoint to resume from. Nothing is written.

    Args:
        output: the run's folder.
        resume: None for a new run; `auto` to resume the run in `output` if there is one; or the path of a checkpoint,
            or of a run, whose newest checkpoint is then taken.

    Raises:
        FileExistsError: `output` holds something that would be lost or mixed.
        FileNotFoundError: there is no such checkpoint.
        CheckpointError: the checkpoint is damaged, or all checkpoints of the run are.
    """
    if output.is_file():
        raise FileExistsError(f"output={output} is a file; give a folder")
    held = [name for name in _names(output) if not name.startswith(PARTIAL)]
    # A run writes these first; if it was killed right after, the folder holds nothing else.
    begun = is_run(output) or all(name == PROVENANCE_NAME or name.startswith(PATCH_PREFIX) for name in held)
    if held and not begun:
        shown = ", ".join(held[:5]) + (", ..." if len(held) > 5 else "")
        raise FileExistsError(f"output={output} holds something else ({shown}); choose another folder")
    if resume == _AUTO:
        return _newest(output)
    if resume is not None:
        return _given(Path(resume).expanduser())
    if is_run(output):
        raise FileExistsError(
            f"output={output} holds a run already; add resume=auto to go on with it, or choose another folder"
        )
    return Opened(None)


def make_ready(output: Path, opened: Opened, goes_on_from: int | None = None) -> list[str]:
    """Make a run's folder, and put damaged checkpoints aside. To be called in one process only.

    Args:
        output: the run's folder.
        opened: what was found in it.
        goes_on_from: the step after which training goes on; None if it does not. A composite that an earlier end of
            the run exported is then marked as outdated; it stays, because other runs may use its encoders.

    Returns:
        Lines that tell what was done, to be printed.

    Raises:
        OSError: the folder cannot be written.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / f"{PARTIAL}probe"
        probe.touch()
        remove_partial(output)
        lines = [f"removed {path}, which a killed run has left" for path in remove_partial(output / CHECKPOINTS_FOLDER)]
        for damaged in opened.damaged:
            if damaged.path.parent != output / CHECKPOINTS_FOLDER:  # another run's, which is left alone
                lines.append(f"warning: {damaged}; the run goes on from {opened.checkpoint}")
                continue
            aside = damaged.path.with_name(damaged.path.name + DAMAGED)
            damaged.path.replace(aside)
            lines.append(f"warning: {damaged}; it is now {aside.name}, and the run goes on from {opened.checkpoint}")
        if goes_on_from is not None and (output / COMPOSITE_FOLDER).exists():
            write_atomically(output / OUTDATED_NAME, _OUTDATED.format(step=goes_on_from))
            lines.append(f"{output / COMPOSITE_FOLDER} is of an earlier end of the run, and outdated until the next")
    except OSError as error:
        raise OSError(
            f"output={output} cannot be written ({error.strerror}); choose a folder where you may write"
        ) from error
    return lines


def _newest(run: Path) -> Opened:
    checkpoint, damaged = newest_intact(run / CHECKPOINTS_FOLDER, prefer=LAST_CHECKPOINT)
    if damaged and checkpoint is None:
        raise CheckpointError(
            f"the run {run} has no checkpoint that can be used: {'; '.join(str(one) for one in damaged)}. Put one back "
            "from a backup, or begin anew in another folder"
        )
    return Opened(checkpoint, damaged)


def _given(checkpoint: Path) -> Opened:
    if not checkpoint.exists():
        raise FileNotFoundError(f"resume={checkpoint}: there is no such checkpoint")
    if is_run(checkpoint):
        return newest_of(checkpoint)
    if checkpoint.is_dir():
        raise FileNotFoundError(
            f"resume={checkpoint} is a folder and no run; give auto, a checkpoint, or a run's folder"
        )
    reason = damage(checkpoint)
    if reason is not None:
        others, _ = newest_intact(checkpoint.parent, prefer=LAST_CHECKPOINT)
        remedy = f"the newest beside it that is intact is {others}" if others else "none beside it is intact"
        raise CheckpointError(f"resume={checkpoint} {reason}; {remedy}")
    return Opened(checkpoint)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
