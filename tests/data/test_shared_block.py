"""Blocks of memory between a worker and the process that trains: sent once, used again, never overwritten early."""

from __future__ import annotations

import itertools
import sys
import threading
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from musicgen_train.data import shared_block
from musicgen_train.data.shared_block import SharedBlock, take_block

ITEMS = 60


class Message:
    """A block that says what should be in it; it stays busy until it is read."""

    def __init__(self, block: SharedBlock, number: int, size: int) -> None:
        self.block, self.number, self.size = block, number, size

    @property
    def intact(self) -> bool:
        """Whether all of it is its number still."""
        return bool((self.block.bytes[: self.size] == self.number).all())


class Messages(Dataset[Message]):
    """Messages of two sizes; the second comes when the blocks of the first are there."""

    def __len__(self) -> int:
        return ITEMS

    def __getitem__(self, number: int) -> Message:
        size = 1000 if number < ITEMS // 2 else 5000
        block = take_block(size)
        block.bytes[:size] = number
        return Message(block, number, size)


def same(item: Message) -> Message:
    """A collate function that leaves all as it is."""
    return item


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_blocks_are_used_again_and_keep_what_is_in_them(start: str) -> None:
    loader = DataLoader(
        Messages(), batch_size=None, collate_fn=same, num_workers=1, prefetch_factor=3, multiprocessing_context=start
    )
    names = set()
    late: list[Message] = []
    for number, message in enumerate(loader):
        assert message.number == number
        names.add(message.block.name)
        # Read three messages late: the worker has gone on, and must not have written into them.
        late.append(message)
        if len(late) == 4:
            oldest = late.pop(0)
            assert oldest.intact
            oldest.block.busy = False
    assert all(message.intact for message in late)
    # Of either size as many as were in use at once, at most: three kept here, three ahead, one in the making.
    assert len(names) <= 2 * 7


def blocks_of_new_workers() -> list[weakref.ref[SharedBlock]]:
    """All that two workers send, from their start to their end; nothing here keeps them."""
    blocks = []
    for message in DataLoader(Messages(), batch_size=None, collate_fn=same, num_workers=2):
        message.block.busy = False
        blocks.append(weakref.ref(message.block))
    return blocks


def test_blocks_of_workers_that_have_ended_are_forgotten() -> None:
    ended = blocks_of_new_workers()
    assert all(block() is not None for block in ended)
    blocks_of_new_workers()
    assert all(block() is None for block in ended)


def test_a_block_that_is_free_and_large_enough_is_taken_again() -> None:
    # Larger than those of other tests in this process, if there are any.
    size = 1_000_000
    first, second = take_block(size), take_block(size)
    assert first is not second
    first.busy = False
    assert take_block(size) is first
    second.busy = False
    larger = take_block(10 * size)
    assert larger.bytes.shape[0] >= 10 * size
    assert larger.bytes.dtype == torch.uint8
    # The free one was too small and is gone; the other is in use, and stays.
    gone = weakref.ref(second)
    del second
    assert gone() is None
    first.busy = False
    assert take_block(size) is first


def test_threads_that_pin_batches_do_not_disturb_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    # One for each loader, of training and of validation. Blocks of workers that are gone are looked for meanwhile.
    monkeypatch.setattr(shared_block, "_received_from", dict.fromkeys(itertools.product([-1], range(20_000))))
    workers = [SimpleNamespace(pid=pid) for pid in (-1, 1, 2)]
    monkeypatch.setattr(shared_block.multiprocessing, "active_children", lambda: workers)
    errors: list[Exception] = []

    def receive(worker: int) -> None:
        try:
            for number in range(40):
                shared_block._received((worker, number), torch.empty(0))
                assert shared_block._received((worker, number), None).name == (worker, number)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=receive, args=(worker,)) for worker in (1, 2)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not errors
