"""Padding clips into a batch, and the labels that come of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from musicgen_train.data.batch import Batch, Example, collate

K, WIDTH, SPECIAL = 4, 3, 64


def example(frames: int, text: int | None, first: int = 0) -> Example:
    codes = (first + np.arange(K * frames, dtype=np.int16)).reshape(K, frames)
    states = None if text is None else torch.full((text, WIDTH), 1.5, dtype=torch.float16)
    return Example(codes, states)


def test_clips_and_texts_are_padded_to_the_longest() -> None:
    batch = collate([example(5, 2), example(7, None, first=40)], WIDTH)
    assert batch.codes.shape == (2, K, 7)
    assert batch.codes.dtype == torch.int64
    assert batch.codes[0, :, :5].tolist() == np.arange(20).reshape(4, 5).tolist()
    assert (batch.codes[0, :, 5:] == -100).all()
    assert batch.codes[1].tolist() == (40 + np.arange(28)).reshape(4, 7).tolist()
    assert batch.frames.tolist() == [5, 7]
    assert batch.text_states.dtype == torch.float32
    assert batch.text_states.tolist() == [[[1.5] * 3, [1.5] * 3], [[0.0] * 3, [0.0] * 3]]
    assert batch.text_mask.tolist() == [[True, True], [False, False]]
    assert len(batch) == 2


def test_a_batch_without_any_text_has_one_masked_position() -> None:
    batch = collate([example(5, None), example(6, None)], WIDTH)
    assert batch.text_states.shape == (2, 1, WIDTH)
    assert not batch.text_states.any()
    assert not batch.text_mask.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_states_of_any_stored_type_become_float32(dtype: torch.dtype) -> None:
    texts = [torch.randn(length, WIDTH).to(dtype) for length in (2, 5)]
    codes = np.zeros((K, 3), dtype=np.int16)
    batch = collate([Example(codes, text) for text in texts], WIDTH)
    assert batch.text_states.dtype == torch.float32
    for row, text in enumerate(texts):
        assert torch.equal(batch.text_states[row, : len(text)], text.float())
        assert batch.text_mask[row].tolist() == [position < len(text) for position in range(5)]
    assert not batch.text_states[0, 2:].any()


def test_states_of_different_types_keep_their_values() -> None:
    # Of a mix, where 2**-20 is too small for float16 and 1 + 2**-10 too fine for bfloat16.
    small = torch.full((1, WIDTH), 2.0**-20, dtype=torch.bfloat16)
    fine = torch.full((1, WIDTH), 1 + 2.0**-10, dtype=torch.float16)
    codes = np.zeros((K, 1), dtype=np.int16)
    batch = collate([Example(codes, small), Example(codes, fine)], WIDTH)
    assert batch.text_states.tolist() == [[[2.0**-20] * WIDTH], [[1 + 2.0**-10] * WIDTH]]


def brute_force_labels(batch: Batch, delays: list[int]) -> list[list[list[int]]]:
    """Step s of codebook k is code s - delay; before it the special id; beyond the clip's own length nothing."""
    rows = []
    for codes, frames in zip(batch.codes.tolist(), batch.frames.tolist(), strict=True):
        steps = []
        for step in range(len(codes[0])):
            delayed = [codes[k][step - delay] if step >= delay else SPECIAL for k, delay in enumerate(delays)]
            steps.append(delayed if step < frames else [-100] * len(delays))
        rows.append(steps)
    return rows


def test_labels_are_delayed_and_end_with_each_clip() -> None:
    batch = collate([example(5, 2), example(7, 1), example(2, None)], WIDTH)
    for delays in ([0, 1, 2, 3], [0, 0, 1, 1]):
        assert batch.labels(delays, SPECIAL).tolist() == brute_force_labels(batch, delays)


def test_labels_of_a_clip_do_not_depend_on_its_company() -> None:
    alone = collate([example(5, 2)], WIDTH).labels([0, 1, 2, 3], SPECIAL)
    padded = collate([example(5, 2), example(11, 2)], WIDTH).labels([0, 1, 2, 3], SPECIAL)
    assert torch.equal(padded[:1, :5], alone)
    assert (padded[0, 5:] == -100).all()


def test_a_batch_moves_whole() -> None:
    batch = collate([example(5, 2)], WIDTH)
    batch.step_frames = torch.tensor([5, 6])
    batch.index = 3
    moved = batch.to("meta")
    names = ("codes", "text_states", "text_mask", "frames", "step_frames")
    assert all(getattr(moved, name).device.type == "meta" for name in names)
    assert moved.index == 3
    assert batch.codes.device.type == "cpu"


@pytest.mark.parametrize(("device", "beside"), [("cuda:0", True), ("cuda", True), ("mps", False), ("cpu", False)])
def test_only_copies_to_a_gpu_run_beside_the_computation(
    device: str, beside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[bool] = set()

    def to(tensor: torch.Tensor, device: str, non_blocking: bool) -> torch.Tensor:
        asked.add(non_blocking)
        return tensor

    batch = collate([example(5, 2)], WIDTH)
    monkeypatch.setattr(torch.Tensor, "to", to)
    batch.to(device)
    batch.to(torch.device(device))
    assert asked == {beside}


def test_a_batch_of_nothing_has_nothing_to_score() -> None:
    batch = collate([example(0, None)], WIDTH)
    assert batch.codes.shape == (1, K, 1)
    assert batch.frames.tolist() == [0]
    assert not batch.text_mask.any()
    assert (batch.labels([0, 1, 2, 3], SPECIAL) == -100).all()
