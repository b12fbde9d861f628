"""The LSTM in C against torch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from musicgen_train.models.kernels import compiler
from musicgen_train.models.kernels import lstm as native_lstm

pytestmark = pytest.mark.skipif(compiler.reason_without("lstm.c") is not None, reason="no C compiler here")


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 2, 3, 4])
@pytest.mark.parametrize(("units", "num_layers"), [(8, 1), (40, 2), (64, 3)])
@pytest.mark.parametrize("scale", [1.0, 40.0])  # the second one's gates are all but open or closed
def test_lstm(batch: int, units: int, num_layers: int, scale: float) -> None:
    lstm = nn.LSTM(units, units, num_layers)
    hidden = torch.randn(23, batch, units) * scale
    assert native_lstm._can_run_natively(lstm, hidden)
    found = native_lstm.run_lstm(lstm, hidden)
    torch.testing.assert_close(found, lstm(hidden)[0], rtol=1e-5, atol=2e-6)


def test_lstm_is_torchs_where_it_must_be() -> None:
    lstm, hidden = nn.LSTM(16, 16), torch.randn(5, 2, 16)
    assert not native_lstm._can_run_natively(lstm, hidden)  # gradients
    with torch.no_grad():
        assert native_lstm._can_run_natively(lstm, hidden)
        assert not native_lstm._can_run_natively(lstm, torch.randn(5, 32, 16))
        assert not native_lstm._can_run_natively(nn.LSTM(12, 12), torch.randn(5, 2, 12))
        assert not native_lstm._can_run_natively(lstm.double(), hidden.double())
