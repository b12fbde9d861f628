"""The order in which clips are trained on."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_train.data.stream import MicroBatchSampler, StepStream


def lengths(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(5, 90, count)


@given(count=st.integers(1, 60), batch=st.integers(1, 9), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_every_pass_takes_every_clip_once(count: int, batch: int, seed: int) -> None:
    stream = StepStream(lengths(count), batch, seed)
    # Whole windows that together hold at least two passes.
    steps = -(-2 * count // (batch * stream.window_steps)) * stream.window_steps
    draws = [draw for step in range(steps) for draw in stream.step(step)]
    assert sorted(draw.position for draw in draws) == list(range(steps * batch))
    by_position = [draw.row for draw in sorted(draws, key=lambda draw: draw.position)]
    for first in range(0, len(by_position) - count + 1, count):
        assert sorted(by_position[first : first + count]) == list(range(count))


def test_passes_and_seeds_differ() -> None:
    rows = [[draw.row for step in range(10) for draw in StepStream(lengths(20), 2, seed).step(step)] for seed in (0, 1)]
    assert rows[0] != rows[1]
    stream = StepStream(lengths(20), 2, 0)
    assert [d.row for s in range(10) for d in stream.step(s)] != [d.row for s in range(10, 20) for d in stream.step(s)]


def test_a_step_is_the_same_however_one_comes_to_it() -> None:
    stream = StepStream(lengths(50), 3, seed=4)
    straight = [stream.step(step) for step in range(40)]
    assert StepStream(lengths(50), 3, seed=4).step(33) == straight[33]
    assert stream.step(2) == straight[2]


def test_clips_of_a_step_are_of_about_one_length() -> None:
    frames = lengths(4000)
    stream = StepStream(frames, 16, seed=0)
    sorted_share = stream.padding_share(16, 100)
    assert sorted_share < 0.03
    random_rows = np.random.default_rng(0).permutation(4000)[:1600].reshape(100, 16)
    padded = frames[random_rows].max(axis=1).sum() * 16
    assert 1 - frames[random_rows].sum() / padded > 0.4


def test_the_share_of_padding_by_hand() -> None:
    # One window of one step: lengths 2, 4, 6, 10 in micro-batches (2, 4) and (6, 10) of 8 and 20 places.
    stream = StepStream(np.array([6, 2, 10, 4]), 4, seed=0)
    assert stream.lengths(0).tolist() == [2, 4, 6, 10]
    assert stream.padding_share(2, steps=1) == pytest.approx(1 - 22 / 28)
    assert stream.padding_share(1, steps=1) == 0


def test_steps_come_in_random_order_not_by_length() -> None:
    stream = StepStream(lengths(4000), 10, seed=0)
    means = [stream.lengths(step).mean() for step in range(stream.window_steps)]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.5


@pytest.mark.parametrize(("micro", "world"), [(12, 1), (3, 1), (2, 2), (1, 4), (4, 3)])
def test_ranks_and_micro_batches_share_out_the_same_steps(micro: int, world: int) -> None:
    stream = StepStream(lengths(50), 12, seed=1)
    per_rank = [
        list(MicroBatchSampler(stream, micro_batch=micro, rank=rank, world_size=world, total_steps=5))
        for rank in range(world)
    ]
    accumulate = 12 // (micro * world)
    assert all(len(parts) == 5 * accumulate for parts in per_rank)
    for step in range(5):
        parts = [parts[step * accumulate : (step + 1) * accumulate] for parts in per_rank]
        draws = [draw for part in itertools.chain(*parts) for draw in part.draws]
        assert sorted(draws) == sorted(stream.step(step))
        for part in itertools.chain(*parts):
            assert len(part.draws) == micro
            assert part.step_frames.tolist() == stream.lengths(step).tolist()
    assert [part.index for part in per_rank[0]] == list(range(5 * accumulate))


def test_a_resumed_sampler_goes_on_where_it_stood() -> None:
    stream = StepStream(lengths(50), 6, seed=1)
    whole = MicroBatchSampler(stream, micro_batch=2, total_steps=8)
    rest = MicroBatchSampler(stream, micro_batch=2, total_steps=8, steps_done=5)
    assert [part.draws for part in rest] == [part.draws for part in whole][15:]
    assert len(rest) == len(whole) == 24  # the length is that of the run, of which a part is done


def test_batches_that_do_not_add_up_are_refused() -> None:
    stream = StepStream(lengths(50), 10, seed=1)
    with pytest.raises(
        ValueError, match=r"data\.global_batch_size=10 is no multiple of data\.micro_batch_size=2 times 3"
    ):
        MicroBatchSampler(stream, micro_batch=2, world_size=3, total_steps=1)


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(ValueError, match="there are no clips to train on"):
        StepStream(np.array([], dtype=np.int64), 1, seed=0)
