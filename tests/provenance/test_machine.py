"""Which device a stage gets."""

from __future__ import annotations

import pytest
import torch

from musicgen_train.devices import pick_device


@pytest.fixture
def has(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine without GPUs, for a test to put some in."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    return monkeypatch


def test_auto_is_the_best_there_is(has: pytest.MonkeyPatch) -> None:
    assert pick_device("auto") == torch.device("cpu")
    has.setattr(torch, "zeros", lambda *args, **options: None)  # they answer
    has.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("mps")
    has.setattr(torch.cuda, "device_count", lambda: 2)
    assert [pick_device("auto", rank) for rank in range(3)] == [torch.device("cuda", index) for index in (0, 1, 0)]


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_what_is_not_there_is_told(has: pytest.MonkeyPatch, name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^device is '{name}', which torch does not find on this machine; there is cpu$"
    ):
        pick_device(name)


def test_a_number_too_high_is_told(has: pytest.MonkeyPatch) -> None:
    has.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"device is 'cuda:9', .* there is cuda:0 to cuda:1, cpu$"):
        pick_device("cuda:9")


@pytest.mark.parametrize("name", ["tpu9", "meta", "", "cuda:-1"])
def test_what_is_no_device_is_told(name: str) -> None:
    with pytest.raises(ValueError, match=f"^device is '{name}'; allowed are auto, cpu, cuda, cuda:N, mps$"):
        pick_device(name)


def test_a_device_that_does_not_answer_is_told(has: pytest.MonkeyPatch) -> None:
    def busy(*args: object, **options: object) -> torch.Tensor:
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nCUDA kernel errors might ...")

    has.setattr(torch.cuda, "device_count", lambda: 1)
    has.setattr(torch, "zeros", busy)
    for name, device in (("cuda", "cuda"), ("auto", "cuda:0")):
        with pytest.raises(
            ValueError, match=rf"the device {device} cannot be used: CUDA error: .* unavailable\. device=cpu computes"
        ):
            pick_device(name)


def test_the_cpu_is_always_there() -> None:
    assert pick_device("cpu") == torch.device("cpu")
