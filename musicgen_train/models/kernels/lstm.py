"""An LSTM layer in C, for float32 and a few rows: a step then takes little longer than reading its weights once.

torch's takes up to twice the time (`docs/benchmarks.md`). The C side is `lstm.c`.

Axis letters: T steps, B batch, U units, which are as wide as the input, G the four gates side by side, 4 * U.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from musicgen_train.models.kernels.door import choose
from musicgen_train.models.kernels.structures import POINTER, LSTMLayer

_SOURCE = "lstm.c"
# The C code reads eight numbers at a time.
_LANES = 8
# With more rows than this a step is bound by arithmetic, at which torch is as fast.
_MOST_ROWS = 4


def choose_lstm(input_TBU: torch.Tensor, parameters: Sequence[torch.Tensor]) -> ctypes.CDLL | None:
    """Returns the library for `lstm_layer` if it supports these parameters and this input and is faster, else None."""
    _, batch, units = input_TBU.shape
    fits = (
        batch <= _MOST_ROWS
        and units % _LANES == 0
        and all(each.is_contiguous() and each.shape in ((4 * units, units), (4 * units,)) for each in parameters)
    )
    return choose(_SOURCE, (input_TBU, *parameters), fits)


def lstm_layer(
    library: ctypes.CDLL,
    input_TBU: torch.Tensor,
    to_gates_GU: torch.Tensor,
    recurrent_GU: torch.Tensor,
    bias_G: torch.Tensor,
) -> torch.Tensor:
    """Runs one LSTM layer from a zero state; `(T, B, U)` (Hochreiter & Schmidhuber 1997; gates in torch's order).

    Args:
        library: from `choose_lstm`.
        input_TBU: `(T, B, U)`.
        to_gates_GU, recurrent_GU: weights of the input and of the previous output.
        bias_G: the sum of both biases.
    """
    steps, batch, units = input_TBU.shape
    threads = torch.get_num_threads()
    products = input_TBU.new_empty(threads, batch, 4 * units)
    # Not `linear`, which uses other kernels, and rounds differently, for tensors made in inference mode.
    gates = torch.addmm(bias_G, input_TBU.flatten(0, 1), to_gates_GU.T)
    output = input_TBU.new_empty(steps, batch, units)
    cells = input_TBU.new_zeros(batch, units)
    arguments = LSTMLayer(
        steps=steps,
        batch=batch,
        units=units,
        threads=threads,
        gates=gates.data_ptr(),
        weights=recurrent_GU.data_ptr(),
        cells=cells.data_ptr(),
        output=output.data_ptr(),
    )
    library.lstm_steps(ctypes.byref(arguments), POINTER(products.data_ptr()))
    return output
