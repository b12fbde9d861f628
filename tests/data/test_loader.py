"""Workers of a loader and signals: whole processes, since signals and exits are theirs."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

BEGIN = """
import os, signal, sys
from musicgen_train.data.loader import LastingLoader

class Numbers:
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return index

def loader():
    return LastingLoader(Numbers(), batch_size=None, num_workers=2)
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script to its end, which has to come by itself."""
    code = BEGIN + textwrap.dedent(script)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_no_signal_ends_a_worker_however_early(number: str) -> None:
    # The earliest there is: before the worker has run a line of its own.
    done = run(f"""
        os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.{number}))
        print([int(item) for item in loader()])
    """)
    assert (done.stdout, done.returncode) == ("[0, 1, 2, 3, 4, 5]\n", 0), done.stderr


def test_a_signal_while_workers_start_is_delivered_after_it() -> None:
    done = run("""
        received = []
        signal.signal(signal.SIGTERM, lambda *_: received.append("SIGTERM"))
        os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGTERM))
        print([int(item) for item in loader()], set(received))
    """)
    assert (done.stdout, done.returncode) == ("[0, 1, 2, 3, 4, 5] {'SIGTERM'}\n", 0), done.stderr


def test_workers_do_not_keep_a_failed_process_from_ending() -> None:
    # The traceback that Python keeps of the error holds the loader's iterator, as an error in a validation does.
    done = run("""
        def fail():
            items = iter(loader())
            print(int(next(items)))
            raise ValueError("something else went wrong")

        fail()
    """)
    assert (done.stdout, done.returncode) == ("0\n", 1)
    assert done.stderr.endswith("ValueError: something else went wrong\n")
