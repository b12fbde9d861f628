"""Tiny models in both layouts. The way to audiocraft's layout is written a second time here, plainly, as the oracle."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

# Untyped, since its models take and give what its annotations do not say.
oracle: Any = importlib.import_module("transformers")

FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures" / "audiocraft"
State = dict[str, torch.Tensor]


@functools.cache
def build_reference(stereo: bool = False) -> Any:
    """A tiny random composite of transformers, built once: width 24, 3 heads, 2 layers, 16 codes; 100 frames/s."""
    torch.manual_seed(7)
    text = oracle.T5Config(
        vocab_size=31, d_model=20, d_kv=5, d_ff=13, num_layers=2, num_heads=3, is_encoder_decoder=False
    )
    codec = oracle.EncodecConfig(
        target_bandwidths=[1.6],
        sampling_rate=800,
        upsampling_ratios=[4, 2],
        hidden_size=11,
        codebook_dim=11,
        num_filters=3,
        codebook_size=16,
        num_lstm_layers=2,
        use_causal_conv=False,
        use_conv_shortcut=False,
        kernel_size=5,
        last_kernel_size=7,
        residual_kernel_size=3,
        compress=3,
    )
    decoder = oracle.MusicgenDecoderConfig(
        vocab_size=16,
        hidden_size=24,
        num_hidden_layers=2,
        ffn_dim=72,
        num_attention_heads=3,
        num_codebooks=8 if stereo else 4,
        audio_channels=2 if stereo else 1,
        pad_token_id=16,
        bos_token_id=16,
        decoder_start_token_id=16,
        dropout=0.0,
    )
    config = oracle.MusicgenConfig(text_encoder=text, audio_encoder=codec, decoder=decoder)
    model = oracle.MusicgenForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() == 1:
                value.normal_(std=0.3).add_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        for name, value in model.audio_encoder.named_buffers():
            if name.endswith("embed"):
                value.normal_()
    return model


def lm_state_by_hand(model: Any) -> State:
    """The decoder and projection of a composite the way audiocraft stores them."""
    hub = {
        name.removeprefix("decoder."): value
        for name, value in model.state_dict().items()
        if name.startswith("decoder.")
    }
    renames = {
        "model.decoder.embed_tokens": "emb",
        "model.decoder.layer_norm": "out_norm",
        "model.decoder": "transformer",
        "lm_heads": "linears",
        "self_attn_layer_norm": "norm1",
        "encoder_attn_layer_norm": "norm_cross",
        "final_layer_norm": "norm2",
        "encoder_attn": "cross_attention",
        "fc1": "linear1",
        "fc2": "linear2",
    }
    state: State = {}
    for name, value in hub.items():
        if ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            value = torch.cat([value, hub[name.replace("q_proj", "k_proj")], hub[name.replace("q_proj", "v_proj")]])
            name = name.replace("q_proj.weight", "in_proj_weight")
        for old, new in renames.items():
            name = name.replace(old, new)
        state[name] = value.clone()
    if model.enc_to_dec_proj is not None:
        for part in ("weight", "bias"):
            key = f"condition_provider.conditioners.description.output_proj.{part}"
            state[key] = model.enc_to_dec_proj.state_dict()[part].clone()
    return state


def codec_state_by_hand(model: Any) -> State:
    """An EnCodec the way audiocraft stores it."""
    transposed = {
        name.rsplit(".", 1)[0]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ConvTranspose1d) and not name.endswith(".parametrizations")
    }
    state: State = {}
    for name, value in model.state_dict().items():
        kind = "convtr" if any(name.startswith(f"{layer}.") for layer in transposed) else "conv"
        name = name.replace("parametrizations.weight.original0", "weight_g")
        name = name.replace("parametrizations.weight.original1", "weight_v")
        name = re.sub(r"\bconv\.", f"{kind}.{kind}.", name)
        name = re.sub(r"\bnorm\.", f"{kind}.norm.", name)
        if name.startswith("quantizer"):
            name = name.replace("quantizer.layers", "quantizer.vq.layers").replace(".codebook.", "._codebook.")
        else:
            name = name.replace(".layers.", ".model.")
        state[name] = value.clone()
    return state


def settings_by_hand(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parts of "xp.cfg" that matter, for language model and codec, with references as real ones have."""
    decoder, codec = model.config.decoder, model.config.audio_encoder
    stereo = decoder.audio_channels == 2
    lm = {
        "lm_model": "transformer_lm",
        "sample_rate": codec.sampling_rate,
        "channels": decoder.audio_channels,
        "cluster": "${oc.env:NOT_SET_ANYWHERE}",
        "dataset": {"segment_duration": 30, "batch_size": 192},
        "transformer_lm": {
            "dim": decoder.hidden_size,
            "num_heads": decoder.num_attention_heads,
            "num_layers": decoder.num_hidden_layers,
            "hidden_scale": 3,
            "n_q": decoder.num_codebooks,
            "card": decoder.vocab_size,
            "dropout": 0.0,
            "activation": "gelu",
            "norm_first": True,
            "bias_ff": False,
            "bias_attn": False,
            "bias_proj": False,
            "past_context": None,
            "causal": True,
            "layer_scale": None,
            "positional_embedding": "sin",
            "norm": "layer_norm",
            "attention_dropout": None,
        },
        "codebooks_pattern": {
            "modeling": "delay",
            "delay": {
                "delays": [0, 0, 1, 1, 2, 2, 3, 3] if stereo else [0, 1, 2, 3],
                "flatten_first": 0,
                "empty_initial": 0,
            },
        },
        "fuser": {"cross_attention_pos_emb": False, "sum": [], "prepend": [], "cross": ["description"]},
        "conditioners": {
            "args": {"merge_text_conditions_p": 0.25, "drop_desc_p": 0.5},
            "description": {"model": "t5", "t5": {"name": "t5-base", "finetune": False, "normalize_text": False}},
        },
        "interleave_stereo_codebooks": {"use": stereo, "per_timestep": False},
    }
    compression = {
        "compression_model": "encodec",
        "sample_rate": codec.sampling_rate,
        "channels": 1,
        "encodec": {
            "autoencoder": "seanet",
            "quantizer": "rvq",
            "sample_rate": "${sample_rate}",
            "channels": "${channels}",
            "causal": False,
            "renormalize": False,
        },
        "seanet": {
            "causal": "${encodec.causal}",
            "activation": "ELU",
            "activation_params": {"alpha": 1.0},
            "norm": "weight_norm",
            "dilation_base": 2,
            "pad_mode": "reflect",
            "disable_norm_outer_blocks": 0,
            "decoder": {"trim_right_ratio": 1.0, "final_activation": None, "final_activation_params": None},
            "encoder": {},
        },
        "rvq": {"n_q": 4, "bins": codec.codebook_size},
    }
    return lm, compression


def write_package(path: Path, state: Mapping[str, torch.Tensor], settings: Mapping[str, Any] | None) -> None:
    """A file as audiocraft exports it."""
    package: dict[str, Any] = {"best_state": dict(state), "version": "1.3.0", "exported": True}
    if settings is not None:
        package["xp.cfg"] = OmegaConf.to_yaml(OmegaConf.create(dict(settings)))
    torch.save(package, path)
