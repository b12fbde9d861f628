"""Checks torch, GPUs, threads, the C code and shared memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import torch

from musicgen_train.devices import available_cores
from musicgen_train.doctor.findings import Finding, note, ok, wrong
from musicgen_train.models.kernels.compiler import reason_without_any
from musicgen_train.provenance.machine import driver_version

_GIB = 2**30
_SHARED_MEMORY = "/dev/shm"
_LEAST_SHARED_MEMORY = _GIB


def look_at_torch() -> Iterator[Finding]:
    """Try torch, and torchaudio beside it: builds for different CUDA versions do not load together."""
    built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU alone"
    value = (torch.ones(4, 4) @ torch.ones(4, 4)).sum().item()
    if value != 64:
        yield wrong("torch", f"{torch.__version__}: a product of matrices is {value}, not 64", "install torch again")
    else:
        yield ok("torch", f"{torch.__version__}, built for {built_for}")
    remedy = "pip install 'torch>=2.11,<2.15' 'torchaudio==2.11.0', both from the default package index"
    try:
        import torchaudio

        resampled = torchaudio.functional.resample(torch.zeros(1, 441), 44100, 32000)
    except Exception as error:  # ImportError, OSError of the loader, RuntimeError of a missing operator
        reason = " ".join(str(error).split())
        yield wrong("torchaudio", f"does not work beside torch {torch.__version__}: {reason}", remedy)
    else:
        assert resampled.shape == (1, 320)
        yield ok("torchaudio", f"{torchaudio.__version__}, resamples beside this torch")


def look_at_compute() -> Iterator[Finding]:
    """Check each GPU, threads against cores, the C code, and shared memory for reading processes."""
    if torch.cuda.is_available():
        yield ok("driver", driver_version() or "version unknown (no nvidia-smi)")
        for index in range(torch.cuda.device_count()):
            yield _gpu(index)
    elif shutil.which("nvidia-smi") is not None:
        yield wrong(
            "GPU",
            f"there is an NVIDIA driver ({driver_version() or 'which does not answer'}), and torch "
            f"{torch.__version__} sees no GPU",
            "check nvidia-smi and CUDA_VISIBLE_DEVICES; update the driver, or install a torch built for its CUDA",
        )
    elif torch.backends.mps.is_available():
        yield ok("GPU", "Apple's, through MPS (not tested by us)")
    else:
        yield note("GPU", "none: everything runs on the CPU, which suits small models and tries")
    yield from _threads()
    yield _c_code()
    yield from _shared_memory()


def _gpu(index: int) -> Finding:
    properties = torch.cuda.get_device_properties(index)
    topic = f"GPU {index}"
    try:
        free, total = torch.cuda.mem_get_info(index)
        ones = torch.ones(16, 16, device=f"cuda:{index}")
        computed = float((ones @ ones).sum())
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        return wrong(
            topic,
            f"{properties.name} (compute capability {properties.major}.{properties.minor}) cannot be used: {reason}",
            "see who uses it with nvidia-smi; this torch has kernels for " + ", ".join(torch.cuda.get_arch_list()),
        )
    bf16 = "bfloat16 in hardware" if properties.major >= 8 else "no bfloat16: runs in float32"
    shown = (
        f"{properties.name}, {total / _GIB:.1f} GiB ({free / _GIB:.1f} free), compute capability "
        f"{properties.major}.{properties.minor}, {bf16}"
    )
    return ok(topic, shown) if computed == 4096 else wrong(topic, f"{shown}; a product of matrices is {computed}")


def _threads() -> Iterator[Finding]:
    cores, threads = available_cores(), torch.get_num_threads()
    asked = os.environ.get("OMP_NUM_THREADS")
    shown = f"{threads} of torch on {cores} cores" + ("" if asked is None else f" (OMP_NUM_THREADS={asked})")
    if threads > cores:
        yield note("threads", f"{shown}: more than cores, they wait for each other", f"export OMP_NUM_THREADS={cores}")
    else:
        yield ok("threads", shown)


def _c_code() -> Finding:
    reason = reason_without_any()
    if reason is None:
        return ok("C code", "compiled: generation and the codec use it on the CPU")
    return note(
        "C code",
        f"not in use ({reason}): on the CPU, generating music takes 2 to 5 times as long",
        "install a C compiler, e.g. apt-get install gcc",
    )


def _shared_memory() -> Iterator[Finding]:
    if not os.path.isdir(_SHARED_MEMORY):
        return
    free = shutil.disk_usage(_SHARED_MEMORY).free
    if free < _LEAST_SHARED_MEMORY:
        yield note(
            "shared memory",
            f"{free / _GIB:.2f} GiB free in {_SHARED_MEMORY}: reading processes may die of a bus error",
            "start the container with --shm-size=8g, or train with data.workers=0",
        )
    else:
        yield ok("shared memory", f"{free / _GIB:.1f} GiB free")
