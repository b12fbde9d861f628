"""Mono to stereo: against a loop by hand, and by what must hold for any weights."""

from __future__ import annotations

import pytest
import torch

from musicgen_train.models.causal_lm import MusicgenForCausalLM
from musicgen_train.models.config import MusicgenDecoderConfig
from musicgen_train.training.weights.stereo import expand_to_stereo, mono_name

B, K, S, L, D, V = 2, 3, 7, 5, 24, 13


@pytest.fixture
def mono() -> MusicgenForCausalLM:
    config = MusicgenDecoderConfig(
        vocab_size=V,
        hidden_size=D,
        num_hidden_layers=2,
        ffn_dim=40,
        num_attention_heads=3,
        num_codebooks=K,
        pad_token_id=V,
        bos_token_id=V,
        dropout=0.0,
    )
    model = MusicgenForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


def logits(model: MusicgenForCausalLM, ids_BKS: torch.Tensor) -> torch.Tensor:
    """(B, K, S, V) with the same random text states for every model."""
    states = torch.randn(B, L, D, generator=torch.Generator().manual_seed(5))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    with torch.no_grad():
        output = model(
            input_ids=ids_BKS.flatten(0, 1), encoder_hidden_states=states, encoder_attention_mask=mask
        ).logits
    return output.reshape(B, ids_BKS.shape[1], S, V)


def expanded_model(mono: MusicgenForCausalLM) -> MusicgenForCausalLM:
    config, state = expand_to_stereo(mono.config, mono.state_dict())
    model = MusicgenForCausalLM(config).eval()
    model.load_state_dict(state, strict=True)
    return model


def test_against_a_loop_by_hand(mono: MusicgenForCausalLM) -> None:
    source = mono.state_dict()
    config, state = expand_to_stereo(mono.config, source)

    expected = {key: value for key, value in source.items() if "embed_tokens" not in key and "lm_heads" not in key}
    for k in range(2 * K):
        expected[f"lm_heads.{k}.weight"] = source[f"lm_heads.{k // 2}.weight"]
        expected[f"model.decoder.embed_tokens.{k}.weight"] = source[f"model.decoder.embed_tokens.{k // 2}.weight"]
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(state[key], value), key
        assert torch.equal(source[mono_name(key)], value), key
    assert (config.num_codebooks, config.audio_channels) == (2 * K, 2)
    assert (mono.config.num_codebooks, mono.config.audio_channels) == (K, 1)
    # Training changes both channels apart, so no two tensors may be one.
    addresses = [value.data_ptr() for key, value in state.items() if "embed_tokens" in key or "lm_heads" in key]
    assert len(set(addresses)) == len(addresses)


def test_both_channels_get_the_same_logits_whatever_the_input(mono: MusicgenForCausalLM) -> None:
    stereo = expanded_model(mono)
    out = logits(stereo, torch.randint(0, V + 1, (B, 2 * K, S)))
    assert torch.equal(out[:, 0::2], out[:, 1::2])


def test_the_same_codes_on_both_channels_are_the_mono_models_with_doubled_embeddings(mono: MusicgenForCausalLM) -> None:
    codes = torch.randint(0, V + 1, (B, K, S))
    out = logits(expanded_model(mono), codes.repeat_interleave(2, dim=1))
    with torch.no_grad():
        for name, value in mono.named_parameters():
            if "embed_tokens" in name:
                value.mul_(2)
    torch.testing.assert_close(out[:, 0::2], logits(mono, codes), rtol=1e-5, atol=1e-5)


def test_a_stereo_decoder_is_not_expanded_again(mono: MusicgenForCausalLM) -> None:
    config, state = expand_to_stereo(mono.config, mono.state_dict())
    with pytest.raises(ValueError, match="audio_channels 2 already; only a mono one"):
        expand_to_stereo(config, state)


def test_a_state_without_all_heads(mono: MusicgenForCausalLM) -> None:
    state = {key: value for key, value in mono.state_dict().items() if key != "lm_heads.1.weight"}
    with pytest.raises(ValueError, match="expected one of each for 3 codebooks"):
        expand_to_stereo(mono.config, state)
