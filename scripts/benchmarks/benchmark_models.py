"""Writes the models that the benchmarks run, with random weights, and the inputs of their cases.

The workers of both libraries import it, so this package is imported only in the function that writes, which the parent
calls.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from benchmark_cases import INPUTS_FILE, Encode, EncodeText, Forward, Generate, GenerateSixtyFour
from benchmark_plan import PLAN_FILE, SMALL_T5, Plan, small_codec
from safetensors.torch import save_file
from torch import nn


def write_models(plan: Plan, root: Path) -> None:
    """Write a folder per model, with random weights and the inputs of the cases that use it."""
    from musicgen_train import (
        EncodecConfig,
        EncodecModel,
        MusicgenDecoderConfig,
        MusicgenForCausalLM,
        MusicgenForConditionalGeneration,
        T5Config,
        T5EncoderModel,
    )
    from musicgen_train.models.delay_pattern import training_labels

    torch.manual_seed(0)
    size = plan.size
    (root / PLAN_FILE).write_text(json.dumps(dataclasses.asdict(plan)))
    codes = size.decoder["vocab_size"]
    decoder = MusicgenForCausalLM(MusicgenDecoderConfig(**size.decoder))
    spread_weights(decoder)
    composite = MusicgenForConditionalGeneration(
        text_encoder=T5EncoderModel(T5Config(**SMALL_T5)),
        audio_encoder=EncodecModel(EncodecConfig(**small_codec(codes))),
        decoder=decoder,
    )
    assert composite.enc_to_dec_proj is not None
    spread_weights(composite.enc_to_dec_proj)
    text_encoder = T5EncoderModel(T5Config(**size.text_encoder))
    codec = EncodecModel(EncodecConfig(**size.codec)).eval()
    audio = synthetic_audio(codec.config.sampling_rate, size.audio_seconds)
    fit_codebooks(codec, audio)

    width, codebooks = size.decoder["hidden_size"], size.decoder["num_codebooks"]
    labels = training_labels(torch.randint(codes, (plan.batch, codebooks, plan.frames)), decoder.delays, codes)
    save(
        decoder,
        root / Forward.folder,
        input_ids=labels.transpose(1, 2).flatten(0, 1),  # (B * K, T)
        labels=labels,
        text_states=torch.randn(plan.batch, size.text_length, width),
        text_mask=right_padded(plan.batch, size.text_length),
    )
    rows = GenerateSixtyFour.rows
    save(
        composite,
        root / Generate.folder,
        input_ids=torch.randint(2, SMALL_T5["vocab_size"], (rows, size.text_length)),
        attention_mask=right_padded(rows, size.text_length),
    )
    frames = -(-audio.shape[-1] // codec.config.hop_length)
    save(
        codec,
        root / Encode.folder,
        audio=audio,
        codes=torch.randint(codec.config.codebook_size, (1, 1, codec.config.num_quantizers, frames)),
    )
    save(
        text_encoder,
        root / EncodeText.folder,
        input_ids=torch.randint(2, size.text_encoder["vocab_size"], (size.texts, size.tokens)),
        attention_mask=right_padded(size.texts, size.tokens),
    )


def save(model: Any, folder: Path, **inputs: torch.Tensor) -> None:
    """Write a model and the inputs of its cases."""
    model.save_pretrained(folder)
    save_file({name: value.contiguous() for name, value in inputs.items()}, folder / INPUTS_FILE)


@torch.no_grad()
def spread_weights(model: nn.Module) -> None:
    """Draw weights that give logits of about 1 and norms that are not the identity, so that an error anywhere shows."""
    for name, parameter in model.named_parameters():
        if "embed_tokens" in name:
            parameter.normal_()  # as large as the position embeddings
        elif parameter.dim() > 1:
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
        else:
            parameter.add_(torch.randn_like(parameter), alpha=0.2 if "norm" in name else 0.02)


@torch.no_grad()
def fit_codebooks(codec: Any, audio: torch.Tensor) -> None:
    """Give the codebooks the mean and spread of the latents; otherwise one code might be nearest to everything."""
    latents_BTD = codec.encoder(audio.transpose(1, 2))
    deviation, mean = torch.std_mean(latents_BTD, dim=(0, 1))
    for index, layer in enumerate(codec.quantizer.layers):
        layer.codebook.embed.normal_().mul_(deviation * 0.5**index).add_(mean if index == 0 else 0.0)


def synthetic_audio(rate: int, seconds: float) -> torch.Tensor:
    """A gliding tone with harmonics in changing noise, float32 `(1, 1, samples)`."""
    times = torch.arange(int(rate * seconds)) / rate
    phase = 2 * torch.pi * (110 * times + 40 * times.sin())
    tones = sum((harmonic * phase).sin() / harmonic for harmonic in range(1, 6))
    noise = torch.randn(len(times)) * (0.5 + 0.5 * (5 * times).sin())
    return (0.2 * tones + 0.1 * noise)[None, None]


def right_padded(rows: int, length: int) -> torch.Tensor:
    """The mask of rows that get shorter, down to half the length."""
    lengths = torch.linspace(length, (length + 1) // 2, rows).long()
    return (torch.arange(length) < lengths[:, None]).long()
