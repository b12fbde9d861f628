"""Checks a model in the hub's layout, and whether it goes with certain latents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from musicgen_train.doctor.findings import Finding, note, ok, wrong
from musicgen_train.latents.manifest import Manifest
from musicgen_train.models.causal_lm import MusicgenForCausalLM
from musicgen_train.models.config import AutoConfig, MusicgenConfig, MusicgenDecoderConfig
from musicgen_train.models.fingerprint import fingerprint
from musicgen_train.models.musicgen import MusicgenForConditionalGeneration
from musicgen_train.processing.musicgen_processor import MusicgenProcessor

_TOPIC = "model"


def look_at_model(folder: Path, latents: Path | None) -> Iterator[Finding]:
    """Check config, name and shape of every tensor, and processor; with latents, also that they are of these encoders.

    Weights are memory-mapped; only those of the encoders are read, and only to compare them.
    """
    if not folder.is_dir():
        yield wrong(
            _TOPIC, f"{folder} is no folder", "give one; a model of the hub is looked at where it was downloaded to"
        )
        return
    config = AutoConfig.from_pretrained(folder)
    if isinstance(config, MusicgenDecoderConfig):
        parameters = MusicgenForCausalLM.from_pretrained(folder, dtype="auto").num_parameters()
        yield ok(_TOPIC, f"{folder}: a decoder alone of {parameters:,} parameters, all there")
        yield note(
            _TOPIC, "it has no encoders: it can be trained from, with encoders=FOLDER, and makes no sound by itself"
        )
        return
    if not isinstance(config, MusicgenConfig):
        yield wrong(_TOPIC, f"{folder} holds a {config.model_type}, no MusicGen model")
        return
    model = MusicgenForConditionalGeneration.from_pretrained(folder, dtype="auto")
    decoder = config.decoder
    yield ok(
        _TOPIC,
        f"{folder}: {model.num_parameters():,} parameters, all there; decoder {decoder.num_hidden_layers} layers of "
        f"{decoder.hidden_size}, {decoder.num_codebooks} codebooks, "
        f"{'stereo' if decoder.audio_channels == 2 else 'mono'}",
    )
    codec = config.audio_encoder
    if codec.codebook_size != decoder.vocab_size:
        yield wrong(_TOPIC, f"the codec has codes below {codec.codebook_size}, the decoder knows {decoder.vocab_size}")
    with torch.inference_mode():
        yield from _look_at_processor(folder, model)
    if latents is not None:
        yield from _look_at_encoders(model, latents)


def _look_at_processor(folder: Path, model: MusicgenForConditionalGeneration) -> Iterator[Finding]:
    processor = MusicgenProcessor.from_pretrained(folder)
    ids = processor(text=["a calm piano"], return_tensors="pt")["input_ids"]
    known = model.config.text_encoder.vocab_size
    if int(ids.max()) >= known:
        yield wrong(_TOPIC, f"its tokenizer gives id {int(ids.max())}, its text encoder knows {known}")
        return
    rate, codec_rate = processor.feature_extractor.sampling_rate, model.config.audio_encoder.sampling_rate
    if rate != codec_rate:
        yield wrong(_TOPIC, f"its feature extractor is for {rate} Hz, its codec for {codec_rate}")
        return
    yield ok(_TOPIC, f"its processor reads text, and audio of {rate} Hz")


def _look_at_encoders(model: MusicgenForConditionalGeneration, latents: Path) -> Iterator[Finding]:
    manifest = Manifest.load(latents)
    for kind, record, encoder in (
        ("text", manifest.text_encoder, model.text_encoder),
        ("audio", manifest.audio_encoder, model.audio_encoder),
    ):
        found = fingerprint(encoder.float())
        if found == record.fingerprint:
            yield ok(_TOPIC, f"its {kind} encoder is the one that {latents} was made with")
        else:
            yield wrong(
                _TOPIC,
                f"its {kind} encoder ({found[:12]}) is not the one that {latents} was made with "
                f"({record.fingerprint[:12]}, from {record.name})",
                f"preprocess again with this model, or take encoders={record.name}",
            )
