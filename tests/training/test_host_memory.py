"""What a process frees stays with it, measured by the pages that the system hands out anew."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PAGES_OF_TEN_TENSORS = """
import resource
from musicgen_train.training.host_memory import keep_freed_memory
kept = {keep}
import torch

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(2**22) for _ in range(10)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for _ in range(10):
    pages()  # until small pieces lie where they stay
print(kept, pages())
"""


def run(keep: str, **environment: str) -> tuple[bool, int]:
    command = [sys.executable, "-c", PAGES_OF_TEN_TENSORS.format(keep=keep)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    kept, pages = done.stdout.split()
    return kept == "True", int(pages)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_what_was_freed_is_used_again() -> None:
    # Without, most processes take all 40,960 pages anew each time.
    kept, pages = run("keep_freed_memory()")
    assert kept
    assert pages < 2048


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_the_user_has_set_stays(name: str) -> None:
    value = "131072" if name.startswith("MALLOC") else "glibc.malloc.trim_threshold=131072"
    assert not run("keep_freed_memory()", **{name: value})[0]
