"""An LSTM in C, for float32 on a CPU and a few rows: a step then takes little longer than reading its weights once.

torch's takes up to twice the time (`docs/benchmarks.md`). The C side is `lstm.c`.

Axis letters: T steps, B batch, U units, which are as wide as the input.
"""

from __future__ import annotations

import ctypes
from typing import cast

import torch
from torch import nn

from musicgen_train.models.kernels.compiler import load_library
from musicgen_train.models.kernels.structures import POINTER, LSTMLayer

_SOURCE = "lstm.c"
# The C code reads eight numbers at a time.
_LANES = 8
# With more rows than this a step is bound by arithmetic, of which torch does as much in a second.
_MOST_ROWS = 4


def run_lstm(lstm: nn.LSTM, input_TBU: torch.Tensor) -> torch.Tensor:
    """The output of `lstm` from zeros, `(T, B, U)`, the fastest way there is.

    Args:
        lstm: one direction, without projections, any number of layers.
        input_TBU: `(T, B, U)`.
    """
    if not _can_run_natively(lstm, input_TBU):
        return cast(torch.Tensor, lstm(input_TBU)[0])
    library = load_library(_SOURCE)
    assert library is not None
    steps, batch, _ = input_TBU.shape
    threads = torch.get_num_threads()
    products = input_TBU.new_empty(threads, batch, 4 * lstm.hidden_size)
    for layer in range(lstm.num_layers):
        to_gates, recurrent, bias, second_bias = (
            cast(torch.Tensor, getattr(lstm, f"{name}_l{layer}"))
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        # Not `linear`, which goes other ways, and rounds otherwise, for tensors made in inference mode.
        gates = torch.addmm(bias + second_bias, input_TBU.flatten(0, 1), to_gates.T)
        output = input_TBU.new_empty(steps, batch, lstm.hidden_size)
        cells = input_TBU.new_zeros(batch, lstm.hidden_size)
        arguments = LSTMLayer(
            steps=steps,
            batch=batch,
            units=lstm.hidden_size,
            threads=threads,
            gates=gates.data_ptr(),
            weights=recurrent.data_ptr(),
            cells=cells.data_ptr(),
            output=output.data_ptr(),
        )
        library.lstm_steps(ctypes.byref(arguments), POINTER(products.data_ptr()))
        input_TBU = output
    return input_TBU


def _can_run_natively(lstm: nn.LSTM, input_TBU: torch.Tensor) -> bool:
    parameters = list(lstm.parameters())
    return (
        type(input_TBU) is torch.Tensor
        and all(value.device.type == "cpu" and value.dtype == torch.float32 for value in (input_TBU, *parameters))
        and not (torch.is_grad_enabled() and any(value.requires_grad for value in (input_TBU, *parameters)))
        and input_TBU.shape[1] <= _MOST_ROWS
        and lstm.hidden_size % _LANES == 0
        and all(parameter.is_contiguous() for parameter in parameters)
        and not (lstm._forward_hooks or lstm._forward_pre_hooks)
        and load_library(_SOURCE) is not None
    )
