"""Tiny seeded reference models, and ours with the same weights, for the parity tests.

All sizes differ from each other, so that a swapped axis cannot pass.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from musicgen_train import MusicgenForCausalLM, MusicgenForConditionalGeneration

VOCAB = 64  # the reference's codec wants a power of two
SPECIAL = VOCAB

DECODER: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "ffn_dim": 56,
    "max_position_embeddings": 128,
    "pad_token_id": SPECIAL,
    "bos_token_id": SPECIAL,
    "decoder_start_token_id": SPECIAL,
    "dropout": 0.0,
}
STEREO: dict[str, Any] = {"num_codebooks": 8, "audio_channels": 2}
TEXT: dict[str, Any] = {"vocab_size": 211, "d_model": 20, "d_kv": 6, "d_ff": 44, "num_layers": 2, "num_heads": 3}
GATED_TEXT: dict[str, Any] = {**TEXT, "feed_forward_proj": "gated-gelu"}
CODEC: dict[str, Any] = {
    "sampling_rate": 320,
    "target_bandwidths": [1.0],
    "codebook_size": VOCAB,
    "hidden_size": 16,
    "codebook_dim": 16,
    "num_filters": 4,
    "upsampling_ratios": [4, 2],
    "num_lstm_layers": 1,
    "use_causal_conv": False,
    "use_conv_shortcut": False,
}


def reference_decoder(seed: int = 0, **overrides: Any) -> transformers.MusicgenForCausalLM:
    """A transformers decoder whose every weight matters: norms off identity, logits of a few units."""
    torch.manual_seed(seed)
    config = transformers.MusicgenDecoderConfig(**{**DECODER, **overrides})
    return _spread(transformers.MusicgenForCausalLM(config)).eval()


def reference_composite(
    seed: int = 0, decoder: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **codec: Any
) -> transformers.MusicgenForConditionalGeneration:
    """A transformers composite; the arguments change the parts' configs."""
    torch.manual_seed(seed)
    config = transformers.MusicgenConfig(
        text_encoder=transformers.T5Config(**(text or TEXT)).to_dict(),
        audio_encoder=transformers.EncodecConfig(**{**CODEC, **codec}).to_dict(),
        decoder=transformers.MusicgenDecoderConfig(**{**DECODER, **(decoder or {})}).to_dict(),
    )
    model = transformers.MusicgenForConditionalGeneration(config)
    _spread(model.decoder)
    if hasattr(model, "enc_to_dec_proj"):
        _spread(model.enc_to_dec_proj)
    with torch.no_grad():
        for layer in model.audio_encoder.quantizer.layers:
            layer.codebook.embed.normal_()
    model.generation_config = transformers.GenerationConfig(
        do_sample=False,
        max_length=40,
        pad_token_id=SPECIAL,
        bos_token_id=SPECIAL,
        decoder_start_token_id=SPECIAL,
        guidance_scale=3.0,
    )
    return model.eval()


def ours_from(reference: Any, folder: Path) -> Any:
    """Our model, read from the folder that the reference saves."""
    reference.save_pretrained(folder)
    if isinstance(reference, transformers.MusicgenForCausalLM):
        return MusicgenForCausalLM.from_pretrained(folder)
    return MusicgenForConditionalGeneration.from_pretrained(folder)


def _spread(model: Any) -> Any:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif parameter.dim() > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
            else:
                parameter.normal_(std=0.3)
    return model
