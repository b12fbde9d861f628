"""Runs preprocessing in processes that kill themselves with SIGKILL just before a given change to the file system.

This file is started once as a process, since importing takes seconds. Each line on its standard input names runs, and
each run is forked off.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

# Audit events that Python raises before it changes the file system; `os.replace` raises os.rename.
CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "fcntl.flock"}


class KilledRuns:
    """The tests' side of the process that forks the runs."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, settings: dict[str, Any], kill_at: int | None = None) -> int:
        """Preprocess in a process of its own, which may be killed.

        Args:
            settings: the settings of the run.
            kill_at: the change before which the run is killed, counted from 0; None lets it end.

        Returns:
            The number of changes before the kill, which is `kill_at`, or of all changes if the run ended.
        """
        ((status, changes),) = self._ask([[settings, kill_at]])
        assert status in (0, signal.SIGKILL), f"the run ended with status {status}"
        return int(changes)

    def run_together(self, runs: list[dict[str, Any]]) -> None:
        """Preprocess in several processes at the same time."""
        statuses = [status for status, _ in self._ask([[settings, None] for settings in runs])]
        assert statuses == [0] * len(runs), f"the runs ended with {statuses}"

    def _ask(self, runs: list[list[Any]]) -> list[tuple[int, int]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(runs) + "\n")
        self._process.stdin.flush()
        answer: list[tuple[int, int]] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def _run(values: dict[str, Any], kill_at: int | None, told: int) -> None:
    """Preprocess in the forked process, and write the number of changes to the file descriptor `told`."""
    from musicgen_train.preprocess.run import preprocess
    from musicgen_train.preprocess.settings import PreprocessSettings

    settings = PreprocessSettings.from_dict(values)
    parent = str(Path(settings.output).parent)
    changes = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal changes
        in_parent = event == "fcntl.flock" or (event in CHANGES and str(arguments[0]).startswith(parent))
        writes = event == "open" and str(arguments[0]).startswith(parent) and arguments[1] and "r" not in arguments[1]
        if in_parent or writes:
            if changes == kill_at:
                os.write(told, str(changes).encode())
                os.kill(os.getpid(), signal.SIGKILL)
            changes += 1

    sys.addaudithook(watch)
    preprocess(settings)
    os.write(told, str(changes).encode())


def _serve() -> None:
    import torch

    import musicgen_train.preprocess.run  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        children = [_forked(settings, kill_at) for settings, kill_at in json.loads(line)]
        answers = []
        for child, told in children:
            _, status = os.waitpid(child, 0)
            with os.fdopen(told) as answer:
                answers.append((status, int(answer.read() or -1)))
        print(json.dumps(answers), flush=True)


def _forked(settings: dict[str, Any], kill_at: int | None) -> tuple[int, int]:
    """Fork a child that runs. Returns its id and the end of a pipe to which it writes the number of changes."""
    told, tells = os.pipe()
    child = os.fork()
    if child == 0:
        # Whatever the run prints would be taken for an answer.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = 1
        try:
            _run(settings, kill_at, tells)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(tells)
    return child, told


if __name__ == "__main__":
    _serve()
