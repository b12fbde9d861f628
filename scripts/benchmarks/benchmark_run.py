"""Shared by the benchmark scripts: options, the facts about a run, worker processes and their memory, tables.

The workers of both libraries import it, so it imports neither this package nor transformers.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import datetime
import gc
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

# The command line


def positive(text: str) -> int:
    """Parse an option that is a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is given; allowed are whole numbers from 1")
    return int(text)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the option --device; see `settle_device`."""
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is")


def settle_device(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Replace `auto` by the device it stands for; exits if a GPU is asked for and there is none."""
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    elif options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here")


def require_folders(parser: argparse.ArgumentParser, *paths: Path | None) -> None:
    """Exit if the folder of a file to be written does not exist."""
    for path in filter(None, paths):
        if not path.absolute().parent.is_dir():  # checked before the measurement
            parser.error(f"there is no folder {path.parent} to write {path.name} into")


# Facts about a run


def environment(
    script: str,
    arguments: Sequence[str],
    versions: Mapping[str, str],
    *,
    threads: int | None = None,
    device: str = "cpu",
    **facts: str,
) -> dict[str, str]:
    """Facts about a run of a script: date, command, machine, versions, the script's own facts, commit."""
    machine = f"{cpu_name()}, {os.cpu_count()} cores"
    if threads is not None:
        machine += f", {threads} threads"
    if device == "cuda":
        machine += f"; {torch.cuda.get_device_name()}"
    if hasattr(os, "getloadavg"):
        # Above the number of threads, other programs ran too, and only ratios are meaningful.
        machine += f"; load {os.getloadavg()[0]:.1f} at the end"
    found = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["python", f"scripts/benchmarks/{script}", *arguments]),
        "machine": machine,
        "versions": ", ".join(
            f"{name} {number}" for name, number in {"Python": platform.python_version(), **versions}.items()
        ),
        **facts,
    }
    commit = git("rev-parse", "--short", "HEAD")
    if commit:
        found["commit"] = commit + (", with changes" if git("status", "--porcelain") else "")
    return found


def cpu_name() -> str:
    """The name of the processor."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].split(":", 1)[1].strip() if names else platform.processor() or platform.machine()


def git(*arguments: str) -> str:
    """The output of a git command in this repository; empty without git, a repository or a commit."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


# Processes


def quiet() -> dict[str, str]:
    """Environment variables for processes that must neither use the network nor draw progress bars."""
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }


def progress(what: str) -> None:
    """Print a line of progress on stderr."""
    print(what, file=sys.stderr, flush=True)


class PeakMemory:
    """Measures the largest growth of memory since a start: of the process, or on a GPU of its tensors.

    It reads Linux's /proc; on other systems the growth is None.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._start: int | None = None
        if device == "cuda":
            torch.cuda.init()  # otherwise there are no statistics to reset

    def restart(self) -> None:
        """Free unused memory and start counting."""
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self._start = torch.cuda.memory_allocated()
            return
        with contextlib.suppress(
            OSError, AttributeError
        ):  # without glibc, memory that was freed stays and may hide growth
            ctypes.CDLL(None).malloc_trim(0)
        try:
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak
            self._start = status_bytes(Path("/proc/self/status").read_text(), "VmRSS")
        except OSError:
            self._start = None

    def growth(self) -> int | None:
        """Return the largest growth in bytes."""
        if self._start is None:
            return None
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated() - self._start
        peak = status_bytes(Path("/proc/self/status").read_text(), "VmHWM")
        return None if peak is None else peak - self._start


def synchronize(device: str) -> None:
    """Wait for the GPU to finish."""
    if device == "cuda":
        torch.cuda.synchronize()


def status_bytes(status: str, field: str) -> int | None:
    """The value in bytes of a field of a /proc status file; None if it is missing."""
    lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return int(lines[field].removesuffix("kB")) * 1024 if field in lines else None


# Tables


def fact_lines(facts: Mapping[str, str]) -> list[str]:
    """A Markdown list of facts."""
    return [f"- {name}: {value}" for name, value in facts.items()]


def table_line(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def megabytes(size: float | None) -> str:
    """Format bytes as MB; a dash if they are unknown."""
    return "-" if size is None else f"{size / 1e6:,.0f} MB"


def three_digits(value: float) -> str:
    """Format with three significant digits, or all digits before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
