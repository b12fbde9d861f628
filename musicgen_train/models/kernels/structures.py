"""The structures that Python passes to the C files, with the same fields in the same order.

`compiler.py` lets the C compiler check the size and offset of each field; a file whose structures differ does not
compile.
"""

from __future__ import annotations

import ctypes

import torch

POINTER = ctypes.c_void_p

TYPES = {torch.float32: 0, torch.bfloat16: 1}
"""Mirrors `enum type` of `vectors.h`."""


class Convolution(ctypes.Structure):
    """Mirrors `Convolution` of `convolution.c`."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "steps", "runs", "inputs", "outputs", "threads")),
        ("input", POINTER),
        *((name, ctypes.c_int64) for name in ("input_batch", "input_step", "input_run")),
        *(("weights", POINTER), ("bias", POINTER)),
        *(("residual", POINTER), ("residual_batch", ctypes.c_int64)),
        *(("output", POINTER), ("output_batch", ctypes.c_int64)),
        *(("activated", POINTER), ("activated_batch", ctypes.c_int64)),
    ]


class StepLayer(ctypes.Structure):
    """Mirrors `Layer` of `decode_step.c`: the weights of a layer, and its keys and values."""

    _fields_ = [
        (name, POINTER)
        for name in (
            *("self_norm_weight", "self_norm_bias", "query", "key", "value", "self_out"),
            *("cross_norm_weight", "cross_norm_bias", "cross_query", "cross_out"),
            *("final_norm_weight", "final_norm_bias", "fc1", "fc2"),
            # The last two are null where there is no text.
            *("keys", "values", "text_keys", "text_values"),
        )
    ]


class StepArguments(ctypes.Structure):
    """Mirrors `Step` of `decode_step.c`: the whole decoder and the memory of a step."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in (
                *("rows", "width", "heads", "inner_width", "num_layers", "num_codebooks", "vocab_size"),
                *("capacity", "text_rows", "text_length", "threads", "activation", "type"),
            )
        ),
        ("norm_epsilon", ctypes.c_float),
        *(
            (name, POINTER)
            for name in (
                *("embeddings", "layers", "final_norm_weight", "final_norm_bias", "heads_weights", "positions"),
                *("text_seen", "scratch", "logits"),
            )
        ),
    ]


class LSTMLayer(ctypes.Structure):
    """Mirrors `Layer` of `lstm.c`."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("steps", "batch", "units", "threads")),
        *((name, POINTER) for name in ("gates", "weights", "cells", "output")),
    ]


STRUCTURES: dict[str, dict[str, type[ctypes.Structure]]] = {
    "convolution.c": {"Convolution": Convolution},
    "decode_step.c": {"Layer": StepLayer, "Step": StepArguments},
    "lstm.c": {"Layer": LSTMLayer},
}
"""Maps C files to their structures, by the names in C."""
