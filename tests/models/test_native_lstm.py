"""The LSTM in C against torch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from musicgen_train.models.codec.encodec import run_lstm
from musicgen_train.models.kernels import compiler
from musicgen_train.models.kernels.lstm import choose_lstm

pytestmark = pytest.mark.skipif(compiler.reason_without("lstm.c") is not None, reason="no C compiler here")


def can_be_in_c(lstm: nn.LSTM, hidden: torch.Tensor) -> bool:
    return choose_lstm(hidden, list(lstm.parameters())) is not None


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 2, 3, 4])
@pytest.mark.parametrize(("units", "num_layers"), [(8, 1), (40, 2), (64, 3)])
@pytest.mark.parametrize("scale", [1.0, 40.0])  # the second one's gates are all but open or closed
def test_lstm(batch: int, units: int, num_layers: int, scale: float) -> None:
    lstm = nn.LSTM(units, units, num_layers)
    hidden = torch.randn(23, batch, units) * scale
    assert can_be_in_c(lstm, hidden)
    found = run_lstm(lstm, hidden)
    torch.testing.assert_close(found, lstm(hidden)[0], rtol=1e-5, atol=2e-6)


def test_lstm_is_torchs_where_it_must_be() -> None:
    lstm, hidden = nn.LSTM(16, 16), torch.randn(5, 2, 16)
    assert not can_be_in_c(lstm, hidden)  # gradients
    with torch.no_grad():
        assert can_be_in_c(lstm, hidden)
        assert not can_be_in_c(lstm, torch.randn(5, 32, 16))
        assert not can_be_in_c(nn.LSTM(12, 12), torch.randn(5, 2, 12))
        assert not can_be_in_c(nn.LSTM(16, 8), hidden)
        assert not can_be_in_c(nn.LSTM(16, 24), hidden)
        assert not can_be_in_c(lstm, torch.randn(5, 2, 8))
        assert not can_be_in_c(lstm.double(), hidden.double())
