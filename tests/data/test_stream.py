"""The order in which clips are trained on."""

from __future__ import annotations

import itertools
import tracemalloc
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_train.data.mix import MixOrder
from musicgen_train.data.stream import Draw, MicroBatchSampler, StepStream, Stretch


def lengths(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(5, 90, count)


def stream_of(count: int, global_batch: int, seed: int = 0) -> StepStream:
    return StepStream([lengths(count)], global_batch, seed)


@dataclass
class Passes:
    """Brute force: crosses off every clip of every pass, and sees that a pass ends before the next begins."""

    sizes: list[int]

    def __post_init__(self) -> None:
        self.drawn = [0] * len(self.sizes)
        self._open: list[dict[int, set[int]]] = [{} for _ in self.sizes]
        self._begun = [0] * len(self.sizes)

    def take(self, draws: list[Draw]) -> None:
        """The clips of one step, which have no order among them."""
        for dataset, row, epoch in draws:
            rows = self._open[dataset].setdefault(epoch, set())
            assert row not in rows, f"clip {row} twice in pass {epoch}"
            assert 0 <= row < self.sizes[dataset]
            assert epoch >= self._begun[dataset], f"clip {row} of pass {epoch} after it ended"
            rows.add(row)
            self.drawn[dataset] += 1
        for dataset, (size, passes) in enumerate(zip(self.sizes, self._open, strict=True)):
            while len(passes) > 1:
                rows = passes.pop(self._begun[dataset])
                assert len(rows) == size, f"a pass began before pass {self._begun[dataset]} ended"
                self._begun[dataset] += 1


@given(count=st.integers(1, 60), batch=st.integers(1, 9), seed=st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_every_pass_takes_every_clip_once(count: int, batch: int, seed: int) -> None:
    stream = stream_of(count, batch, seed)
    passes = Passes([count])
    steps = -(-2 * count // batch)
    for step in range(steps):
        draws = stream.step(step)
        assert len(draws) == batch
        passes.take(draws)
    assert passes.drawn[0] == steps * batch >= 2 * count


def test_passes_and_seeds_differ() -> None:
    rows = [[draw.row for step in range(10) for draw in stream_of(20, 2, seed).step(step)] for seed in (0, 1)]
    assert rows[0] != rows[1]
    stream = stream_of(20, 2)
    assert [d.row for s in range(10) for d in stream.step(s)] != [d.row for s in range(10, 20) for d in stream.step(s)]


def test_a_step_is_the_same_however_one_comes_to_it() -> None:
    straight = [stream_of(50, 3, seed=4).step(step) for step in range(140)]
    assert stream_of(50, 3, seed=4).step(133) == straight[133]
    stream = stream_of(50, 3, seed=4)
    assert [stream.step(step) for step in (90, 2)] == [straight[90], straight[2]]


def test_clips_of_a_step_are_of_about_one_length() -> None:
    frames = lengths(4000)
    stream = StepStream([frames], 16, seed=0)
    assert stream.padding_share(16, 128) < 0.03
    random_rows = np.random.default_rng(0).permutation(4000)[:1600].reshape(100, 16)
    padded = frames[random_rows].max(axis=1).sum() * 16
    assert 1 - frames[random_rows].sum() / padded > 0.4


def test_which_clips_are_together_is_random() -> None:
    # Of the 7 companions of a clip in a pass of 16 steps, by chance 7/127 are with it again in the next pass, and some
    # more since clips of one length are likelier to meet. Sorting whole passes would bring the same ones every time.
    stream = StepStream([np.arange(128)], 8, seed=0)
    of_pass = [
        {
            frozenset(pair)
            for step in range(first, first + 16)
            for pair in itertools.combinations(rows_of(stream, step), 2)
        }
        for first in (0, 16, 32)
    ]
    again = [len(one & other) / len(one) for one, other in itertools.combinations(of_pass, 2)]
    assert max(again) < 0.35


def rows_of(stream: StepStream, step: int) -> list[int]:
    return [draw.row for draw in stream.step(step)]


def test_the_share_of_padding_by_hand() -> None:
    # Every step is a whole pass: lengths 2, 4, 6, 10 in micro-batches (2, 4) and (6, 10) of 8 and 20 places.
    stream = StepStream([np.array([6, 2, 10, 4])], 4, seed=0)
    assert stream.lengths(0).tolist() == [2, 4, 6, 10]
    assert stream.padding_share(2, steps=1) == pytest.approx(1 - 22 / 28)
    assert stream.padding_share(1, steps=1) == 0


def test_steps_come_in_random_order_not_by_length() -> None:
    stream = stream_of(4000, 10)
    means = [stream.lengths(step).mean() for step in range(64)]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.5


@pytest.mark.parametrize(("micro", "world"), [(12, 1), (3, 1), (2, 2), (1, 4), (4, 3)])
def test_ranks_and_micro_batches_share_out_the_same_steps(micro: int, world: int) -> None:
    stream = stream_of(50, 12, seed=1)
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
    stream = stream_of(50, 6, seed=1)
    whole = MicroBatchSampler(stream, micro_batch=2, total_steps=8)
    rest = MicroBatchSampler(stream, micro_batch=2, total_steps=8, steps_done=5)
    assert [part.draws for part in rest] == [part.draws for part in whole][15:]
    assert len(rest) == len(whole) == 24  # the length is that of the run, of which a part is done


@dataclass(frozen=True)
class Life:
    """What a run did between two interruptions."""

    world: int
    micro: int
    accumulate: int
    steps: int

    @property
    def global_batch(self) -> int:
        return self.world * self.micro * self.accumulate


LIVES = st.builds(Life, st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 90))


@given(
    sizes=st.lists(st.integers(1, 70), min_size=1, max_size=3),
    weights=st.lists(st.sampled_from([0.1, 0.3, 0.7, 1, 2.5]), min_size=3, max_size=3),
    lives=st.lists(LIVES, min_size=1, max_size=4),
    seed=st.integers(0, 3),
)
@settings(max_examples=120, deadline=None)
def test_no_clip_is_repeated_or_left_out_however_a_run_goes_on(
    sizes: list[int], weights: list[float], lives: list[Life], seed: int
) -> None:
    """Devices, micro-batches, accumulation and the global batch all change at any step, over and over."""
    frames = [lengths(size, number) for number, size in enumerate(sizes)]
    mix = MixOrder(weights[: len(sizes)])
    passes = Passes(sizes)
    history: tuple[Stretch, ...] = ()
    step = draws_made = 0
    for life in lives:
        stream = StepStream(frames, life.global_batch, seed, mix=mix, history=history)
        ranks = [
            MicroBatchSampler(
                stream,
                micro_batch=life.micro,
                rank=rank,
                world_size=life.world,
                total_steps=step + life.steps,
                steps_done=step,
            )
            for rank in range(life.world)
        ]
        taken = [draw for parts in zip(*ranks, strict=True) for part in parts for draw in part.draws]
        for first in range(0, len(taken), life.global_batch):
            passes.take(taken[first : first + life.global_batch])
        step += life.steps
        draws_made += life.steps * life.global_batch
        history = stream.done(step)
    assert passes.drawn == mix.counts(draws_made).tolist()


def test_going_on_with_another_global_batch_takes_what_was_left_first() -> None:
    # 64 steps of 2 are planned at once; after 50 of them, 28 clips of the first 128 have not been drawn.
    first = stream_of(1000, 2)
    drawn = {draw for step in range(50) for draw in first.step(step)}
    planned = {draw for step in range(64) for draw in first.step(step)}
    following = StepStream([lengths(1000)], 7, 0, history=first.done(50))
    assert following.first_step == 50
    assert {draw for step in range(50, 54) for draw in following.step(step)} - drawn
    # They are planned together with what comes after them, in one window.
    window = {draw for step in range(50, 114) for draw in following.step(step)}
    assert planned - drawn <= window
    assert not window & drawn


def test_the_history_is_short() -> None:
    stream = stream_of(30, 4)
    assert stream.done(0) == ()
    assert stream.done(9) == (Stretch(9, 4),)
    again = StepStream([lengths(30)], 6, 0, history=[Stretch(9, 4)])
    assert again.done(9) == (Stretch(9, 4),)
    assert again.done(12) == (Stretch(9, 4), Stretch(3, 6))


def test_batches_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"data\.global_batch_size=10 is no multiple of data\.micro_batch_size=2 times 3"
    ):
        MicroBatchSampler(stream_of(50, 10, seed=1), micro_batch=2, world_size=3, total_steps=1)


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(ValueError, match="there are no clips to train on"):
        StepStream([np.array([], dtype=np.int64)], 1, seed=0)


def test_each_step_has_the_shares_of_the_mix() -> None:
    # Prior clips are all shorter: sorted by length alone, steps would be of one dataset each.
    frames = [np.full(40, 1500), lengths(700)]
    stream = StepStream(frames, 20, seed=0, mix=MixOrder([0.7, 0.3]))
    for step in range(200):
        assert Counter(draw.dataset for draw in stream.step(step)) == {0: 14, 1: 6}


def test_the_datasets_of_a_mix_are_in_orders_of_their_own() -> None:
    stream = StepStream([lengths(40), lengths(40)], 2, seed=0, mix=MixOrder([1, 1]))
    rows = [[draw.row for step in range(40) for draw in stream.step(step) if draw.dataset == d] for d in (0, 1)]
    assert sorted(rows[0]) == sorted(rows[1]) == list(range(40))
    assert rows[0] != rows[1]


def test_a_million_rows_are_never_lists() -> None:
    frames = np.random.default_rng(0).integers(5, 1500, 1_000_000, dtype=np.int64)
    tracemalloc.start()
    stream = StepStream([frames], 192, seed=0)
    for step in (0, 1, 100_000):
        assert len(stream.step(step)) == 192
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Orders of two passes as int64 are 16 MB; a list of as many numbers would be 40.
    assert peak < 40e6
