"""What the benchmark scripts share: options, the circumstances of a run, worker processes and their memory, text.

Workers of either side import it, so it imports neither this package nor transformers.
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
    """The type of options that count something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is given; allowed are whole numbers from 1")
    return int(text)


def add_device(parser: argparse.ArgumentParser) -> None:
    """The option --device; see `settle_device`."""
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is")


def settle_device(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Put what `auto` means in its place, and refuse a GPU where there is none."""
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    elif options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here")


def require_folders(parser: argparse.ArgumentParser, *paths: Path | None) -> None:
    """Refuse files to be written where there is no folder."""
    for path in filter(None, paths):
        if not path.absolute().parent.is_dir():  # said now, not after the measurement
            parser.error(f"there is no folder {path.parent} to write {path.name} into")


# What a run took place with


def environment(
    script: str,
    arguments: Sequence[str],
    versions: Mapping[str, str],
    *,
    threads: int | None = None,
    device: str = "cpu",
    **facts: str,
) -> dict[str, str]:
    """Where, when and with what a run of a script took place, and what the script itself has to say of it."""
    machine = f"{cpu_name()}, {os.cpu_count()} cores"
    if threads is not None:
        machine += f", {threads} threads"
    if device == "cuda":
        machine += f"; {torch.cuda.get_device_name()}"
    if hasattr(os, "getloadavg"):
        # Above the number of threads it had company, and only ratios count.
        machine += f"; load {os.getloadavg()[0]:.1f} at the end"
    found = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["python", f"scripts/{script}", *arguments]),
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
    """The processor as the system calls it."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].split(":", 1)[1].strip() if names else platform.processor() or platform.machine()


def git(*arguments: str) -> str:
    """What git says of this repository; nothing where there is no git, no repository or no commit."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


# Processes


def quiet() -> dict[str, str]:
    """The environment of processes that should neither reach for the network nor draw progress bars."""
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }


def progress(what: str) -> None:
    """Tell what is going on, on stderr."""
    print(what, file=sys.stderr, flush=True)


class PeakMemory:
    """How much memory grew since a start, at the highest: the process's, or where the work is on a GPU, its tensors'.

    None where the system does not tell: this reads Linux's /proc.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._start: int | None = None
        if device == "cuda":
            torch.cuda.init()  # else there are no statistics to reset

    def restart(self) -> None:
        """Count from now on; first give back what is no longer used."""
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self._start = torch.cuda.memory_allocated()
            return
        with contextlib.suppress(OSError, AttributeError):  # not glibc: freed memory may stay and hide growth
            ctypes.CDLL(None).malloc_trim(0)
        try:
            Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is in use now
            self._start = status_bytes(Path("/proc/self/status").read_text(), "VmRSS")
        except OSError:
            self._start = None

    def growth(self) -> int | None:
        """Bytes."""
        if self._start is None:
            return None
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated() - self._start
        peak = status_bytes(Path("/proc/self/status").read_text(), "VmHWM")
        return None if peak is None else peak - self._start


def synchronize(device: str) -> None:
    """Wait for the GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def status_bytes(status: str, field: str) -> int | None:
    """A field of a /proc status file; None where it is not there."""
    lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return int(lines[field].removesuffix("kB")) * 1024 if field in lines else None


# Text


def fact_lines(facts: Mapping[str, str]) -> list[str]:
    """A Markdown list of circumstances."""
    return [f"- {name}: {value}" for name, value in facts.items()]


def table_line(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def megabytes(size: float | None) -> str:
    """Bytes as people read them; a dash where they are not known."""
    return "-" if size is None else f"{size / 1e6:,.0f} MB"


def three_digits(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
