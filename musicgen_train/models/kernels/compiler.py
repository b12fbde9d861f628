"""Compiles the C files of this package for this machine's processor on first use, and caches the libraries.

A library lies in the user's cache folder (`$XDG_CACHE_HOME`, else `~/.cache`). Its name is a hash of everything it was
made from, so another source, compiler or processor makes another library. Compiling takes half a second.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from musicgen_train.models.kernels.structures import STRUCTURES

SWITCH = "MUSICGEN_TRAIN_NATIVE"
"""Names the environment variable; its value `0` leaves everything to torch."""

# Longest part of a compiler's errors that is reported, in characters.
_MOST_SAID = 500

_FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fopenmp", "-fPIC", "-std=c11")


def load_library(source_name: str) -> ctypes.CDLL | None:
    """Loads the library of a C file of this folder; None if C is switched off or the file cannot be compiled."""
    loaded = _load(source_name)
    return None if isinstance(loaded, str) else loaded


def reason_without(source_name: str) -> str | None:
    """Says in one line why there is no library of that file; None if there is one."""
    loaded = _load(source_name)
    return loaded if isinstance(loaded, str) else None


def reason_without_any() -> str | None:
    """Says in one line why one of the C files has no library; None if all have one."""
    reasons = (reason_without(path.name) for path in sorted(Path(__file__).parent.glob("*.c")))
    return next((reason for reason in reasons if reason is not None), None)


def is_switched_off() -> bool:
    """Returns True if the environment variable switches C off."""
    return os.environ.get(SWITCH, "").strip() == "0"


@functools.cache
def _load(source_name: str) -> ctypes.CDLL | str:
    if is_switched_off():
        return f"{SWITCH}=0"
    compiler = _compiler()
    if compiler is None:
        return "no C compiler here ($CC, cc, gcc, clang)"
    try:
        return _library(Path(__file__).with_name(source_name), compiler)
    except (OSError, subprocess.SubprocessError) as error:
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
        errors = [line for line in said.splitlines() if "error" in line] or said.split()
        return f"{source_name} was not compiled by {compiler}: {' '.join(errors)[:_MOST_SAID]}"


def _compiler() -> str | None:
    candidates = (os.environ.get("CC"), "cc", "gcc", "clang")
    return next((found for name in candidates if name and (found := shutil.which(name))), None)


def _library(source: Path, compiler: str) -> ctypes.CDLL:
    headers = sorted(source.parent.glob("*.h"))
    texts = (*(file.read_text() for file in (source, *headers)), _layout_checks(source.name))
    made_from = [*texts, _version(compiler), *_FLAGS, _processor()]
    name = f"{source.stem}-{hashlib.sha256(chr(10).join(made_from).encode()).hexdigest()[:16]}.so"
    folder = _cache_folder()
    if folder is None:
        # The file is not needed any more once it is loaded.
        with tempfile.TemporaryDirectory() as work:
            return ctypes.CDLL(str(_compile(source, compiler, Path(work))))
    if not (folder / name).exists():
        with tempfile.TemporaryDirectory(dir=folder, prefix=".compiling-") as work:
            # Renamed when complete, since another process may be looking for it.
            _compile(source, compiler, Path(work)).replace(folder / name)
    return ctypes.CDLL(str(folder / name))


def _cache_folder() -> Path | None:
    """Returns the user's cache folder; None if there is none, or it cannot be written to."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "musicgen_train"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (OSError, RuntimeError):  # RuntimeError: a user without a home, as in some containers
        return None
    return folder if os.access(folder, os.W_OK) else None


def _compile(source: Path, compiler: str, work: Path) -> Path:
    checks, object_file, library = work / "checks.c", str(work / "object.o"), work / "library.so"
    checks.write_text(_layout_checks(source.name))
    _run([compiler, *_FLAGS, "-include", str(source), "-c", str(checks), "-o", object_file])
    # Linked without -fopenmp, to use torch's OpenMP runtime and threads, which are already in the process.
    _run([compiler, "-shared", object_file, "-o", str(library), "-lm"])
    return library


def _layout_checks(source_name: str) -> str:
    """Makes C code to append to the source, which does not compile if a structure differs from `structures.py`."""
    lines = ["#include <stddef.h>"]
    for name, structure in STRUCTURES[source_name].items():
        claims = {f"sizeof({name}) == {ctypes.sizeof(structure)}": f"the size of {name}"}
        for field, *_ in structure._fields_:
            ours = getattr(structure, field)
            claims[f"offsetof({name}, {field}) == {ours.offset}"] = f"the place of {name}.{field}"
            claims[f"sizeof((({name} *)0)->{field}) == {ours.size}"] = f"the size of {name}.{field}"
        lines += [f'_Static_assert({claim}, "{what} is another in structures.py");' for claim, what in claims.items()]
    return "\n".join(lines) + "\n"


def _version(compiler: str) -> str:
    return _run([compiler, "--version"])


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def _processor() -> str:
    """Describes the processor, on which -march=native depends: different machines may share a home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    told = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    return "\n".join([platform.machine(), platform.processor(), *told])
