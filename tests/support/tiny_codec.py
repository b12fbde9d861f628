"""Small codecs of every kind that EnCodec has, and the reference with the same weights."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from musicgen_train.models.codec.encodec import EncodecModel
from musicgen_train.models.config import EncodecConfig

HOP = 30
TINY: dict[str, Any] = {
    "sampling_rate": 1500,
    "upsampling_ratios": [5, 3, 2],
    "num_filters": 4,
    "hidden_size": 11,
    "codebook_size": 16,
    "target_bandwidths": [0.6],
    "num_lstm_layers": 2,
}
MUSICGEN: dict[str, Any] = {**TINY, "use_causal_conv": False, "use_conv_shortcut": False}
CONFIGS: dict[str, dict[str, Any]] = {
    "32khz": MUSICGEN,
    "32khz_constant": {**MUSICGEN, "pad_mode": "constant"},
    "32khz_replicate": {**MUSICGEN, "pad_mode": "replicate"},
    "32khz_shortcut_one_lstm": {**MUSICGEN, "use_conv_shortcut": True, "num_lstm_layers": 1},
    "24khz": {**TINY, "target_bandwidths": [0.2, 0.5, 1.1]},
    "24khz_trim": {**TINY, "trim_right_ratio": 0.6, "pad_mode": "constant"},
    "24khz_chunks": {**TINY, "chunk_length_s": 0.1, "overlap": 0.1, "normalize": True},
    "48khz": {
        **TINY,
        "audio_channels": 2,
        "norm_type": "time_group_norm",
        "normalize": True,
        "use_causal_conv": False,
        "chunk_length_s": 1.0,
        "overlap": 0.01,
    },
    "48khz_causal": {**TINY, "audio_channels": 2, "norm_type": "time_group_norm"},
    "deep": {
        **MUSICGEN,
        "num_residual_layers": 3,
        "dilation_growth_rate": 3,
        "residual_kernel_size": 5,
        "kernel_size": 6,
        "last_kernel_size": 4,
        "compress": 4,
        "codebook_dim": 11,
    },
    "deep_causal": {**TINY, "num_residual_layers": 2, "kernel_size": 4, "residual_kernel_size": 2},
}


def build(settings: dict[str, Any], seed: int = 1) -> EncodecModel:
    torch.manual_seed(seed)
    model = EncodecModel(EncodecConfig(**settings)).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            # Gains that are not the norms, and affine parts that are not 1 and 0.
            if name.endswith("original0") or ".norm." in name:
                value.mul_(0.5 + torch.rand_like(value)).add_(0.05 * torch.rand_like(value))
    return model


def build_reference(model: EncodecModel) -> Any:
    config = {name: getattr(model.config, name) for name in model.config.field_names()}
    reference = transformers.EncodecModel(transformers.EncodecConfig(**config)).eval()
    reference.load_state_dict(model.state_dict(), strict=True)
    return reference


def audio(*shape: int, seed: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator) * torch.rand(*shape[:-1], 1, generator=generator)
