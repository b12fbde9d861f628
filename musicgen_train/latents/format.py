"""Defines the layout of a latent dataset's folder, and its columns.

    LATENTS/
      manifest.json      what made it and what is in it (`manifest.py`)
      rejected.jsonl     one line `{"file", "reason"}` per input file that could not be used
      dataset_dict.json  plain `datasets.load_from_disk(LATENTS)` gives the splits
      train/ validation/ (test/)     one row per clip
      captions/          a dataset of its own: one row per distinct caption, its text states once

Codes and states are raw little-endian numbers in binary columns: nested Arrow lists take twenty times as long to read.

Axes: K codebooks, T frames, L text length, D text width.
"""

from __future__ import annotations

import datasets
import numpy as np
import torch

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
REJECTED_NAME = "rejected.jsonl"
CAPTIONS_FOLDER = "captions"

CLIP_FEATURES = datasets.Features(
    {
        "codes": datasets.Value("binary"),  # int16 (K, T), row by row; exact length, aligned, never padded
        "frames": datasets.Value("int32"),  # T
        "captions": datasets.List(datasets.Value("int32")),  # rows of captions/; none is the null condition
        "track": datasets.Value("string"),  # path of the source below the input folder, or its id
        "start_seconds": datasets.Value("float32"),  # where in the track the clip begins
        "silent": datasets.Value("bool"),  # nothing but digital silence
        "metadata": datasets.Value("string"),  # what the source said of the track, as JSON
    }
)
CAPTION_FEATURES = datasets.Features(
    {
        "text": datasets.Value("string"),
        "states": datasets.Value("binary"),  # (L, D) in the manifest's `states_dtype`; before enc_to_dec_proj, unpadded
        "length": datasets.Value("int32"),  # L, the end-of-text token included
    }
)

STATES_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def pack_codes(codes_KT: torch.Tensor) -> bytes:
    """Store codes as the bytes of int16 `(K, T)`.

    Raises:
        ValueError: a code does not fit int16, or the tensor does not have two axes.
    """
    if codes_KT.dim() != 2:
        raise ValueError(f"codes are {list(codes_KT.shape)}; expected (codebooks, frames)")
    if codes_KT.numel() and not 0 <= int(codes_KT.min()) <= int(codes_KT.max()) < 2**15:
        raise ValueError(f"codes range from {int(codes_KT.min())} to {int(codes_KT.max())}; int16 holds 0 to 32767")
    return codes_KT.to("cpu", torch.int16).contiguous().numpy().astype("<i2", copy=False).tobytes()


def unpack_codes(packed: bytes, num_codebooks: int) -> np.ndarray:
    """Invert `pack_codes`: int16 `(K, T)`, a view of `packed`."""
    return np.frombuffer(packed, dtype="<i2").reshape(num_codebooks, -1)


def pack_states(states_LD: torch.Tensor, dtype: str) -> bytes:
    """Store text states as raw bytes in one of `STATES_DTYPES`.

    Raises:
        ValueError: a value is not finite, or beyond the range of the dtype.
    """
    packed = states_LD.detach().to("cpu", STATES_DTYPES[dtype]).contiguous()
    if not packed.isfinite().all():
        largest = states_LD.abs().max().item()
        raise ValueError(f"text states reach {largest:g}, which {dtype} does not hold; use states_dtype=float32")
    return packed.view(torch.uint8).numpy().tobytes()


def unpack_states(packed: bytes, length: int, dtype: str) -> torch.Tensor:
    """Invert `pack_states`: `(L, D)`, in memory of its own."""
    # torch warns about memory that cannot be written to, as that of bytes.
    return torch.frombuffer(bytearray(packed), dtype=STATES_DTYPES[dtype]).view(length, -1)
