"""Where the stored models and latents came from.

All sizes differ from each other, so that a swapped axis cannot pass, and those that the C code wants in eights are.
"""

from __future__ import annotations

import json
import shutil
from typing import Any

import torch
from golden_inputs import COMPOSITE, LATENTS, STEREO_DECODER, STEREO_LATENTS
from sentencepiece_models import write_t5_tokenizer_folder
from tiny_latents import CODES, ClipSpec, composite_config, write_latents
from tiny_run import TRAIN, VALIDATION
from torch import nn

from musicgen_train import (
    EncodecFeatureExtractor,
    EncodecModel,
    MusicgenDecoderConfig,
    MusicgenForCausalLM,
    MusicgenForConditionalGeneration,
    MusicgenProcessor,
    T5Tokenizer,
)
from musicgen_train.latents.manifest import EncoderRecord
from musicgen_train.models.fingerprint import fingerprint

SEED = 20
DECODER: dict[str, Any] = {
    "vocab_size": CODES,
    "pad_token_id": CODES,
    "bos_token_id": CODES,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "ffn_dim": 24,
    "max_position_embeddings": 128,
    "dropout": 0.0,
}


def write_inputs() -> None:
    """Make all stored models and latents anew. Then every golden value is another one, too."""
    torch.manual_seed(SEED)
    for folder in (COMPOSITE, STEREO_DECODER, LATENTS, STEREO_LATENTS):
        shutil.rmtree(folder, ignore_errors=True)
    _write_composite()
    stereo = MusicgenForCausalLM(MusicgenDecoderConfig(**DECODER, num_codebooks=8, audio_channels=2))
    _spread(stereo).save_pretrained(STEREO_DECODER)
    encoders = MusicgenForConditionalGeneration.from_pretrained(COMPOSITE)
    # Not by the path they have here.
    records = {
        name: EncoderRecord(name="golden", fingerprint=fingerprint(getattr(encoders, name)))
        for name in ("text_encoder", "audio_encoder")
    }
    write_latents(LATENTS, COMPOSITE, TRAIN, VALIDATION, **records)
    clips = [ClipSpec(19 + 4 * number, (number % 2,)) for number in range(5)]
    write_latents(STEREO_LATENTS, COMPOSITE, clips, clips[:2], num_codebooks=8, audio_channels=2, **records)


def _write_composite() -> None:
    config = composite_config(**DECODER)
    model = MusicgenForConditionalGeneration(config)
    _spread(model.decoder)
    _fit_codebooks(model.audio_encoder)
    model.generation_config = model.generation_config.replace(max_length=30)
    model.save_pretrained(COMPOSITE)
    # Into a folder of its own: the processor writes what a composite has of it. nmt_nfkc is a table of 240 kB.
    write_t5_tokenizer_folder(COMPOSITE / "tokenizer", normalization="identity")
    extractor = EncodecFeatureExtractor(feature_size=1, sampling_rate=config.audio_encoder.sampling_rate)
    MusicgenProcessor(extractor, T5Tokenizer.from_pretrained(COMPOSITE / "tokenizer")).save_pretrained(COMPOSITE)
    shutil.rmtree(COMPOSITE / "tokenizer")
    # Half of it is indentation.
    fast = COMPOSITE / "tokenizer.json"
    fast.write_text(json.dumps(json.loads(fast.read_text()), separators=(",", ":")))


@torch.no_grad()
def _spread(model: nn.Module) -> Any:
    """Norms off identity and logits of a few units, so that every weight matters."""
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.add_(0.2 * torch.randn_like(parameter))
        elif parameter.dim() > 1:
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
        else:
            parameter.normal_(std=0.3)
    return model


@torch.no_grad()
def _fit_codebooks(codec: EncodecModel) -> None:
    """Codebooks of what the random encoder really puts out, without which all sound has the same codes."""
    rest_TD = codec.encoder(torch.randn(1, 4000, 1).cumsum(1).sin())[0]
    for layer in codec.quantizer.layers:
        table = layer.codebook.embed
        table.copy_(rest_TD[torch.randperm(len(rest_TD))[: len(table)]])
        rest_TD = rest_TD - table[torch.cdist(rest_TD, table).argmin(dim=1)]
