"""What a run starts from: decoder and projection of a model or of another run, or random ones, and frozen encoders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from musicgen_train.hub.weights import CheckpointError
from musicgen_train.latents.manifest import Manifest
from musicgen_train.models.causal_lm import MusicgenForCausalLM
from musicgen_train.models.codec.encodec import EncodecModel
from musicgen_train.models.config import AutoConfig, MusicgenConfig, MusicgenDecoderConfig
from musicgen_train.models.fingerprint import fingerprint
from musicgen_train.models.generation_config import GenerationConfig
from musicgen_train.models.musicgen import MusicgenForConditionalGeneration
from musicgen_train.models.pretrained import check_state_dict
from musicgen_train.models.t5 import T5EncoderModel
from musicgen_train.processing.feature_extractor import EncodecFeatureExtractor
from musicgen_train.processing.musicgen_processor import MusicgenProcessor
from musicgen_train.processing.t5_tokenizer import T5Tokenizer
from musicgen_train.training.checkpoints.reading import CHECKPOINT_KEY, load_plain
from musicgen_train.training.weights.adapter_files import read_adapter
from musicgen_train.training.weights.adapters import (
    ADAPTER_KEY,
    AdapterRecord,
    base_fingerprint,
    inject,
    load_adapter_state,
    merged_state,
)
from musicgen_train.training.weights.initialization import initialize_like_audiocraft
from musicgen_train.training.weights.model_source import find_model
from musicgen_train.training.weights.stereo import expand_to_stereo

SCRATCH = "scratch"


@dataclass(kw_only=True)
class ModelSettings:
    """The decoder that is trained."""

    architecture: dict[str, Any]
    """Fields of `MusicgenDecoderConfig`. From scratch they make the model; otherwise they have to be those of the model
    that `init_from` names, except that a mono model may become stereo."""
    dropout: float
    """Dropout of every sub-layer, while training."""
    activation_checkpointing: bool
    """Compute layers again in the backward pass instead of keeping activations: less memory, a third more time."""
    compile: bool
    """Compile the layers (`torch.compile`): faster steps, after some minutes of compilation."""
    attend_to_padding: bool
    """See `MusicgenTraining`."""


@dataclass(frozen=True)
class EncoderSources:
    """Folders or hub ids that the frozen encoders come from, each holding a composite or an encoder alone."""

    text: str
    audio: str

    def __str__(self) -> str:
        return self.text if self.text == self.audio else f"{self.text} (text), {self.audio} (audio)"


@dataclass
class Start:
    """A composite whose decoder and projection are to be trained in place, and its processor."""

    composite: MusicgenForConditionalGeneration
    processor: MusicgenProcessor
    encoders: EncoderSources
    """Where the frozen encoders and the processor came from."""
    new_projection: bool = False
    """True if the text projection has random values, so that it has to be trained."""
    made_stereo: bool = False
    """True if a mono model was made stereo, so that its channels do not differ yet."""


@dataclass
class TrainedParts:
    """The parts of a composite that are trained, with their values."""

    decoder: MusicgenForCausalLM
    projection: Mapping[str, torch.Tensor] | None
    """The state dict of `enc_to_dec_proj`, if there is one."""
    encoders: EncoderSources | None
    """Where the encoders that belong to them are, if that is known."""


def load_start(
    init_from: str, encoders: str | None, settings: ModelSettings, manifest: Manifest, latents: str, seed: int
) -> Start:
    """Load what a run starts from, and check that it fits the latents.

    Args:
        init_from: a hub folder or id, one of our run folders, checkpoints or adapters, or `scratch`.
        encoders: a composite's folder or id to take the frozen encoders from; None takes those of `init_from`, or else
            those that the latents were made with.
        settings: the settings of the decoder.
        manifest: the manifest of the latents.
        latents: their folder, for errors.
        seed: the seed of random weights.

    Raises:
        FileNotFoundError, CheckpointError: something cannot be read.
        ValueError: architecture, latents and encoders do not belong together.
    """
    if init_from == SCRATCH:
        given = trained = _from_scratch(settings.architecture, manifest)
        what = "the model group"
    else:
        given = _trained_parts(init_from)
        trained, what = _as_asked(given, settings.architecture, init_from), init_from
    decoder = trained.decoder
    _check_codes(decoder.config, manifest, what, latents)
    decoder.config.update(dropout=settings.dropout)

    source = _encoders_of(encoders, trained, manifest)
    text_encoder = T5EncoderModel.from_pretrained(source.text)
    audio_encoder = EncodecModel.from_pretrained(source.audio)
    _check_encoders(text_encoder, audio_encoder, manifest, source, latents)
    composite = MusicgenForConditionalGeneration(
        text_encoder=text_encoder, audio_encoder=audio_encoder, decoder=decoder
    )
    projection = composite.enc_to_dec_proj
    new_projection = projection is not None
    if init_from == SCRATCH:
        initialize_like_audiocraft(decoder, projection, torch.Generator().manual_seed(seed))
    elif projection is not None and trained.projection is not None and _fits(projection, trained.projection):
        projection.load_state_dict(trained.projection)
        new_projection = False
    composite.freeze_text_encoder()
    composite.freeze_audio_encoder()
    if settings.activation_checkpointing:
        decoder.gradient_checkpointing_enable()
    if settings.compile:
        decoder.compile_layers()
    processor = MusicgenProcessor(
        EncodecFeatureExtractor.from_pretrained(source.audio), T5Tokenizer.from_pretrained(source.text)
    )
    made_stereo = given.decoder.config.audio_channels != decoder.config.audio_channels
    return Start(composite.eval(), processor, source, new_projection, made_stereo)


def _encoders_of(encoders: str | None, trained: TrainedParts, manifest: Manifest) -> EncoderSources:
    if encoders is not None:
        return EncoderSources(encoders, encoders)
    return trained.encoders or EncoderSources(manifest.text_encoder.name, manifest.audio_encoder.name)


def _from_scratch(architecture: dict[str, Any], manifest: Manifest) -> TrainedParts:
    if not architecture:
        raise ValueError("init_from=scratch needs the size of the model; add e.g. model=tiny or model=small")
    special = manifest.codebook_size
    codes = {"vocab_size": special, "pad_token_id": special, "bos_token_id": special}
    return TrainedParts(MusicgenForCausalLM(MusicgenDecoderConfig(**{**codes, **architecture})), None, None)


def _trained_parts(init_from: str) -> TrainedParts:
    source = find_model(init_from, "init_from")
    if source.checkpoint is not None:
        return read_checkpoint(source.checkpoint)
    if source.adapter is not None:
        return with_adapter(*read_adapter(source.adapter), str(source.adapter))
    assert source.folder is not None
    config = AutoConfig.from_pretrained(source.folder)
    if isinstance(config, MusicgenDecoderConfig):
        return TrainedParts(MusicgenForCausalLM.from_pretrained(source.folder), None, None)
    if not isinstance(config, MusicgenConfig):
        raise ValueError(f"{init_from} is of type {config.model_type}; init_from takes a musicgen or its decoder")
    model = MusicgenForConditionalGeneration.from_pretrained(source.folder)
    projection = None if model.enc_to_dec_proj is None else model.enc_to_dec_proj.state_dict()
    return TrainedParts(model.decoder, projection, EncoderSources(source.folder, source.folder))


def composite_of(trained: TrainedParts, encoders: EncoderSources, what: str) -> MusicgenForConditionalGeneration:
    """Join a trained decoder and projection with their encoders to a composite, in eval mode.

    Args:
        trained: the decoder and projection.
        encoders: where the encoders are.
        what: where the trained parts came from, for errors.

    Raises:
        FileNotFoundError: an encoder is not there.
        CheckpointError: an encoder is damaged, or the projection does not fit its width.
    """
    model = MusicgenForConditionalGeneration(
        text_encoder=T5EncoderModel.from_pretrained(encoders.text),
        audio_encoder=EncodecModel.from_pretrained(encoders.audio),
        decoder=trained.decoder,
    )
    expected = {} if model.enc_to_dec_proj is None else model.enc_to_dec_proj.state_dict()
    found = trained.projection or {}
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    check_state_dict(expected, shapes, f"the text projection of {what} does not fit its text encoder")
    if model.enc_to_dec_proj is not None:
        model.enc_to_dec_proj.load_state_dict(found)
    return model.eval()


def read_checkpoint(path: Path) -> TrainedParts:
    """Read decoder and projection from a checkpoint of a training run; nothing in it is executed.

    Raises:
        CheckpointError: it is damaged, or no checkpoint of a training run.
    """
    content = load_plain(path, map_location="cpu")
    if CHECKPOINT_KEY not in content:
        raise CheckpointError(f"{path} is no checkpoint of scripts/train.py")
    ours, state = content[CHECKPOINT_KEY], content["state_dict"]
    if ADAPTER_KEY in ours:
        record = AdapterRecord.from_dict(ours[ADAPTER_KEY], str(path))
        return replace(with_adapter(record, state, str(path)), encoders=EncoderSources(**ours["encoders"]))
    decoder = _decoder_with(MusicgenDecoderConfig.from_dict(ours["decoder_config"]), _below("decoder.", state))
    decoder.generation_config = GenerationConfig.from_dict(ours["generation_config"])
    return TrainedParts(decoder, _below("enc_to_dec_proj.", state) or None, EncoderSources(**ours["encoders"]))


def with_adapter(
    record: AdapterRecord, state: Mapping[str, torch.Tensor], what: str, base: str | None = None
) -> TrainedParts:
    """Read the base of an adapter, and merge the adapter into it.

    Args:
        record: the adapter's record.
        state: its tensors.
        what: where they came from, for errors.
        base: as `init_from` of `load_start`; None takes the model that the record names.

    Raises:
        ValueError: the base is another model than the adapter was trained on, or has changed since.
        CheckpointError: the tensors do not fit.
    """
    name = base or record.base
    given = _trained_parts(name)
    config, decoder_state = given.decoder.config, dict(given.decoder.state_dict())
    if record.audio_channels == 2 and config.audio_channels == 1:
        config, decoder_state = expand_to_stereo(config, decoder_state)
    parts = nn.ModuleDict({"decoder": _decoder_with(config, decoder_state)})
    if given.projection is not None:
        out_features, in_features = given.projection["weight"].shape
        parts["enc_to_dec_proj"] = nn.Linear(in_features, out_features)
        parts["enc_to_dec_proj"].load_state_dict(given.projection)
    record.check_base(base_fingerprint(parts, config), name)
    inject(parts, record)
    load_adapter_state(parts, state, what)
    merged = merged_state(parts)
    decoder = _decoder_with(config, _below("decoder.", merged))
    decoder.generation_config = given.decoder.generation_config
    return TrainedParts(decoder, _below("enc_to_dec_proj.", merged) or None, given.encoders)


def _decoder_with(config: MusicgenDecoderConfig, state: Mapping[str, torch.Tensor]) -> MusicgenForCausalLM:
    with torch.device("meta"):
        decoder = MusicgenForCausalLM(config)
    decoder.load_state_dict(state, assign=True)
    return decoder


def _below(prefix: str, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _as_asked(trained: TrainedParts, architecture: dict[str, Any], init_from: str) -> TrainedParts:
    """The model of `init_from`, made stereo if the model group asks for that and nothing else differs."""
    config = trained.decoder.config
    if architecture.get("audio_channels") == 2 and config.audio_channels == 1:
        config, state = expand_to_stereo(config, trained.decoder.state_dict())
        trained = TrainedParts(_decoder_with(config, state), trained.projection, trained.encoders)
    different = [
        f"{name} is {value}, its own {getattr(config, name)}"
        for name, value in architecture.items()
        if getattr(config, name) != value
    ]
    if different:
        raise ValueError(
            f"the model group asks for another decoder than init_from={init_from} has: {'; '.join(different)}. Leave "
            "model= out to take it as it is"
        )
    return trained


def _check_codes(config: MusicgenDecoderConfig, manifest: Manifest, what: str, latents: str) -> None:
    if manifest.num_codebooks != config.num_codebooks:
        if manifest.num_codebooks == 2 * config.num_codebooks:
            remedy = "add model=stereo to start a stereo model from it, or preprocess with audio_channels=1"
        else:
            remedy = "preprocess with the encoders of that model, or choose a model of that size"
        raise ValueError(
            f"the codes of {latents} have {manifest.num_codebooks} codebooks but {what} expects "
            f"{config.num_codebooks}; {remedy}"
        )
    if manifest.audio_channels != config.audio_channels:
        raise ValueError(
            f"the codes of {latents} are of {manifest.audio_channels} channel(s), {what} is a model for "
            f"{config.audio_channels}"
        )
    if manifest.codebook_size != config.vocab_size:
        raise ValueError(
            f"the codes of {latents} are below {manifest.codebook_size}, {what} knows {config.vocab_size}; preprocess "
            "with the encoders of that model"
        )


def _check_encoders(
    text_encoder: T5EncoderModel, audio_encoder: EncodecModel, manifest: Manifest, source: EncoderSources, latents: str
) -> None:
    different = [
        f"the {kind} encoder of {given} (fingerprint {found[:12]}) is not the one the latents were made with "
        f"({record.fingerprint[:12]}, from {record.name})"
        for kind, given, found, record in (
            ("text", source.text, fingerprint(text_encoder), manifest.text_encoder),
            ("audio", source.audio, fingerprint(audio_encoder), manifest.audio_encoder),
        )
        if found != record.fingerprint
    ]
    if different:
        raise ValueError(
            f"{latents}: {'; '.join(different)}. Preprocess again with the encoders of {source}, or train with those "
            f"of the latents: encoders={manifest.audio_encoder.name}"
        )


def _fits(projection: nn.Linear, state: Mapping[str, torch.Tensor]) -> bool:
    # A projection of another width belongs to another text encoder; a new one has to be trained then.
    return state["weight"].shape == projection.weight.shape
