"""Tests the batch of model inputs against transformers' own, and nested lists turned into tensors."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from musicgen_train.processing.model_inputs import BatchFeature, to_requested_type


def contents() -> dict[str, Any]:
    return {
        "input_ids": torch.arange(6).reshape(2, 3),
        "input_values": torch.linspace(0, 1, 10).reshape(2, 5),
        "mask": torch.tensor([True, False]),
        "names": ["a", "b"],
    }


def test_by_key_and_by_attribute() -> None:
    batch = BatchFeature(contents())
    assert batch.input_ids is batch["input_ids"]
    assert set(batch) == set(contents())
    assert (lambda **values: sorted(values))(**batch) == sorted(contents())
    batch.extra = torch.ones(3)
    assert batch["extra"] is batch.extra
    batch["extra"] = 5
    assert batch.extra == 5
    del batch["extra"]
    assert "extra" not in batch
    assert not hasattr(batch, "extra")


def test_what_it_does_not_hold() -> None:
    batch = BatchFeature({"b": 1, "a": 2})
    with pytest.raises(AttributeError, match=r"BatchFeature has no 'c'; it holds \['a', 'b'\]"):
        _ = batch.c
    with pytest.raises(KeyError, match="c"):
        batch["c"]


def test_copies_and_pickles() -> None:
    batch = BatchFeature(contents())
    for twin in (copy.copy(batch), copy.deepcopy(batch), pickle.loads(pickle.dumps(batch)), BatchFeature(**batch)):
        assert isinstance(twin, BatchFeature)
        assert torch.equal(twin.input_values, batch.input_values)
        twin.names = None
        assert batch.names == ["a", "b"]
    assert copy.deepcopy(batch).input_ids is not batch.input_ids


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (("cpu",), {}),
        ((torch.float16,), {}),
        (("cpu", torch.bfloat16), {}),
        ((), {"dtype": torch.float64}),
        ((), {"device": "cpu", "dtype": torch.float16}),
        (("cpu",), {"non_blocking": True}),
    ],
)
def test_moves_and_casts_like_the_reference(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    ours, reference = BatchFeature(contents()), transformers.BatchFeature(contents())
    assert ours.to(*args, **kwargs) is ours
    reference.to(*args, **kwargs)
    assert list(ours) == list(reference)
    for name, value in reference.items():
        if isinstance(value, torch.Tensor):
            assert (ours[name].dtype, ours[name].device) == (value.dtype, value.device)
            assert torch.equal(ours[name], value)
        else:
            assert ours[name] == value


def test_a_move_reaches_every_tensor() -> None:
    batch = BatchFeature(contents()).to("meta")
    assert {name for name, value in batch.items() if getattr(value, "is_meta", False)} == set(contents()) - {"names"}


def test_what_it_cannot_move_to() -> None:
    batch = BatchFeature(contents())
    with pytest.raises(RuntimeError, match="floaty"):
        batch.to("floaty")
    with pytest.raises(TypeError, match=r"dtype is torch.int64; fractions can only become another floating-point"):
        batch.to(torch.int64)
    assert batch.input_values.dtype == torch.float32


@pytest.mark.parametrize(
    ("rows", "dtype", "shape"),
    [
        ([[3, 4, 1], [5, 1, 0]], torch.int64, (2, 3)),
        ([7, 8], torch.int64, (2,)),
        ([[0.25, 0.5, 0.75]], torch.float32, (1, 3)),
        ([np.zeros(5, np.float32), np.ones(5, np.float32)], torch.float32, (2, 5)),
        ([np.zeros((2, 5)), np.ones((2, 5))], torch.float32, (2, 2, 5)),
        (np.arange(3, dtype=np.int32), torch.int32, (3,)),
        ([[True, False]], torch.bool, (1, 2)),
        ([torch.zeros(3, dtype=torch.int64)], torch.int64, (1, 3)),
        # No tokens at all are still token ids.
        ([[], []], torch.int64, (2, 0)),
    ],
)
def test_rows_as_tensors(rows: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = to_requested_type(rows, "pt")
    assert (tensor.dtype, tuple(tensor.shape)) == (dtype, shape)
    array = to_requested_type(rows, "np")
    assert isinstance(array, np.ndarray)
    assert np.array_equal(array, tensor.numpy())
    assert array.dtype == tensor.numpy().dtype
    assert np.allclose(array, np.asarray([np.asarray(row) for row in rows]))
    assert to_requested_type(rows, None) is rows


def test_the_result_is_a_copy() -> None:
    samples = np.arange(4, dtype=np.float32)
    samples.flags.writeable = False
    for kind in ("pt", "np"):
        to_requested_type(samples, kind)[0] = 9
    assert samples[0] == 0


def test_ragged_rows_and_other_types() -> None:
    with pytest.raises(ValueError, match=r"rows of different lengths cannot become one tensor; pass padding=True"):
        to_requested_type([[1, 2], [3]], "pt")
    with pytest.raises(
        ValueError, match=r"return_tensors is 'tf'; allowed are 'pt' \(torch\), 'np' \(numpy\) and None"
    ):
        to_requested_type([[1, 2]], "tf")
