"""Our decoder and projection with the weights of an audiocraft fixture, for the tests of model and training."""

from __future__ import annotations

import torch
from torch import nn

from musicgen_train import MusicgenDecoderConfig, MusicgenForCausalLM
from musicgen_train.convert.audiocraft import lm_to_hub

Fixture = dict[str, torch.Tensor]


def model_of(fixture: Fixture, channels: int = 1) -> tuple[MusicgenForCausalLM, nn.Linear]:
    """Our decoder and projection with the fixture's weights."""
    state = {key.removeprefix("state."): value for key, value in fixture.items() if key.startswith("state.")}
    decoder_state, projection_state = lm_to_hub(state)
    special, width = state["emb.0.weight"].shape[0] - 1, state["emb.0.weight"].shape[1]
    config = MusicgenDecoderConfig(
        vocab_size=special,
        pad_token_id=special,
        bos_token_id=special,
        hidden_size=width,
        ffn_dim=4 * width,
        num_attention_heads=4,
        num_hidden_layers=1 + max(int(key.split(".")[2]) for key in state if key.startswith("transformer.layers.")),
        num_codebooks=sum(key.startswith("emb.") for key in state),
        audio_channels=channels,
        dropout=0.0,
    )
    model = MusicgenForCausalLM(config).eval()
    model.load_state_dict(decoder_state)
    assert projection_state is not None
    projection = nn.Linear(projection_state["weight"].shape[1], width)
    projection.load_state_dict(projection_state)
    return model, projection
