"""Autocast on devices that have it and on one that has none."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from musicgen_train import T5Config, T5EncoderModel
from musicgen_train.models.autocast import autocast_dtype, without_autocast

CPU, META = torch.device("cpu"), torch.device("meta")


def test_the_type_that_is_asked_for() -> None:
    assert autocast_dtype(CPU) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert autocast_dtype(CPU) == torch.bfloat16
        assert autocast_dtype(META) is None
        with without_autocast(CPU):
            assert autocast_dtype(CPU) is None
        with without_autocast(META):
            assert autocast_dtype(CPU) == torch.bfloat16


def test_switched_off_products_keep_their_type() -> None:
    states, weight = torch.randn(2, 3), torch.randn(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert F.linear(states, weight).dtype == torch.bfloat16
        with without_autocast(CPU):
            assert F.linear(states, weight).dtype == torch.float32


def test_a_text_encoder_runs_without_values() -> None:
    with META:
        model = T5EncoderModel(T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
        ids = torch.zeros(2, 3, dtype=torch.long)
    assert model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.shape == (2, 3, 8)
