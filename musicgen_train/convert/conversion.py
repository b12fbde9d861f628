"""Converts whole checkpoints: audiocraft's files to a hub folder and back, and a mono model's folder to a stereo one's.

Every function writes into a staging folder, reads back what it wrote, and compares it with what it was given. Only
then does the result appear under its name.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import pickle
import shutil
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from musicgen_train.convert.audiocraft import (
    SIZES,
    Settings,
    State,
    codec_config_from,
    codec_from_hub,
    codec_problems,
    codec_settings_from,
    codec_to_hub,
    decoder_config_from,
    lm_from_hub,
    lm_problems,
    lm_settings_from,
    lm_to_hub,
    plain_attention_names,
    refusal,
    text_encoder_name,
)
from musicgen_train.files import atomic_folder, read_json, write_json
from musicgen_train.hub.folder import CONFIG_NAME, GENERATION_CONFIG_NAME, PretrainedFolder
from musicgen_train.hub.weights import (
    SAFETENSORS_INDEX_NAME,
    SAFETENSORS_NAME,
    WeightFiles,
    is_weight_file,
    open_weights,
    save_weights,
)
from musicgen_train.models.causal_lm import MusicgenForCausalLM
from musicgen_train.models.codec.encodec import EncodecModel
from musicgen_train.models.config import (
    AutoConfig,
    EncodecConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    PretrainedConfig,
)
from musicgen_train.models.generation_config import GenerationConfig
from musicgen_train.models.pretrained import PretrainedModel, check_state_dict
from musicgen_train.models.t5 import T5EncoderModel
from musicgen_train.training.weights.stereo import expand_to_stereo, mono_name

LM_FILE = "state_dict.bin"
CODEC_FILE = "compression_state_dict.bin"
FEATURE_EXTRACTOR_FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"
TOKENIZER_FILES = (
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_HUB_FILES = (CONFIG_NAME, GENERATION_CONFIG_NAME, SAFETENSORS_NAME, SAFETENSORS_INDEX_NAME, FEATURE_EXTRACTOR_FILE)

# A pickled OmegaConf config consists of these: containers of plain values, which run no code when they are read.
_OMEGACONF_TYPES = {
    "omegaconf.dictconfig": ("DictConfig",),
    "omegaconf.listconfig": ("ListConfig",),
    "omegaconf.base": ("ContainerMetadata", "Metadata"),
    "omegaconf.nodes": ("AnyNode", "StringNode", "IntegerNode", "FloatNode", "BooleanNode"),
    "typing": ("Any",),
    "collections": ("defaultdict",),
    "builtins": ("dict", "list", "tuple", "int", "float", "bool", "str"),
}


class ConversionError(RuntimeError):
    """Raised if what was written does not read back as it was given."""


@dataclass(frozen=True)
class Conversion:
    """Tells what a conversion wrote."""

    folder: Path
    files: tuple[str, ...]
    decoder: MusicgenDecoderConfig
    parameters: int
    """Number of parameters in the decoder and the projection before it."""
    size: int
    """Bytes of all files."""
    compared: str
    """What was read back and found equal."""


def find_audiocraft_files(source: str | os.PathLike[str]) -> tuple[Path, Path | None]:
    """Find the files of an audiocraft model: the language model's, and the codec's if it lies beside it.

    Args:
        source: the language model's file, a folder or hub id that has it, or the size of a published model (`small`,
            `medium`, `large`, `stereo-small`, ...), which is fetched from the hub.

    Raises:
        FileNotFoundError: there is no language model.
    """
    path = Path(source).expanduser()
    if path.is_file():
        beside = path.with_name(CODEC_FILE)
        return path, beside if beside.is_file() else None
    name = str(source)
    if name.removeprefix("stereo-") in SIZES and not path.is_dir():
        name = f"facebook/musicgen-{name}"
    folder = PretrainedFolder(name)
    return folder.require(LM_FILE, "audiocraft's language model"), folder.find(CODEC_FILE)


def audiocraft_to_hub(
    lm_file: str | os.PathLike[str],
    codec: str | os.PathLike[str],
    text_encoder: str | os.PathLike[str] | None,
    output: str | os.PathLike[str],
    *,
    size: str | None = None,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
) -> Conversion:
    """Write a complete composite folder of the hub from the files of an audiocraft model.

    Args:
        lm_file: audiocraft's `state_dict.bin`.
        codec: audiocraft's `compression_state_dict.bin`, or a folder or hub id with an EnCodec in the hub's layout.
        text_encoder: a folder or hub id with the T5 (audiocraft's files do not hold it) and its tokenizer; a composite
            has both. None for the one the file names, from the hub.
        output: the folder to write.
        size: a published size, for a file without settings; see `decoder_config_from`.
        dtype: the dtype of decoder and projection. Codec and text encoder keep that of their files.
        overwrite: replace files of the same names in `output`.

    Raises:
        FileExistsError: `output` has such files, and `overwrite` is not set.
        FileNotFoundError: a file is not there.
        CheckpointError: tensors are missing or have shapes that do not fit the rest; all are listed.
        ValueError: a file is damaged or holds more than tensors and settings, or the hub's MusicGen cannot represent
            the model (all reasons are listed).
        ConversionError: what was written does not read back as it was given.
    """
    output = _require_free(output, _HUB_FILES, overwrite)
    lm_state, lm_settings = _read_package(Path(lm_file), "language model")
    audio_config, audio_state = _read_codec(codec, lm_problems(lm_state, lm_settings))
    decoder_config = decoder_config_from(lm_state, lm_settings, size)
    decoder_state, projection = lm_to_hub(lm_state)
    _require_fit(MusicgenForCausalLM, decoder_config, decoder_state, f"{lm_file}")
    text_source = text_encoder if text_encoder is not None else _named_text_encoder(lm_settings)
    text_model = T5EncoderModel.from_pretrained(text_source, dtype="auto")
    text_width = text_model.config.d_model
    problems = _mismatches(decoder_config, audio_config)
    problems += _projection_problems(projection, text_width, decoder_config.hidden_size, str(text_source))
    if problems:
        raise ValueError(refusal(f"{lm_file}", problems))
    if text_width == decoder_config.hidden_size:
        projection = None

    parts = {
        "text_encoder.": _state_of(text_model),
        "audio_encoder.": audio_state,
        "decoder.": {name: value.to(dtype) for name, value in decoder_state.items()},
        "enc_to_dec_proj.": {name: value.to(dtype) for name, value in (projection or {}).items()},
    }
    config = MusicgenConfig.from_sub_models_config(text_model.config, audio_config, decoder_config)
    with atomic_folder(output, obsolete=is_weight_file) as staging:
        save_weights({prefix + name: value for prefix, part in parts.items() for name, value in part.items()}, staging)
        write_json(staging / CONFIG_NAME, {**config.to_dict(), "architectures": ["MusicgenForConditionalGeneration"]})
        write_json(staging / GENERATION_CONFIG_NAME, _generation_config(config, lm_settings).to_dict())
        write_json(staging / FEATURE_EXTRACTOR_FILE, _feature_extractor(config))
        _copy_files(PretrainedFolder(text_source), TOKENIZER_FILES, staging)
        written = _read_parts(staging, parts)
        for prefix in ("text_encoder.", "audio_encoder."):
            _require_equal(written[prefix], parts[prefix], prefix)
        given = plain_attention_names(lm_state)
        if projection is None:
            given = {name: value for name, value in given.items() if "output_proj" not in name}
        converted_back = lm_from_hub(written["decoder."], written["enc_to_dec_proj."] or None)
        _require_equal(converted_back, given, "the language model", dtype)
        return _report(
            output,
            staging,
            decoder_config,
            [parts["decoder."], parts["enc_to_dec_proj."]],
            f"{len(given)} tensors of the language model, converted back, and {len(audio_state)} of the codec and "
            f"{len(parts['text_encoder.'])} of the text encoder",
        )


def hub_to_audiocraft(
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    text_encoder: str | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Write `state_dict.bin` and `compression_state_dict.bin`, from which audiocraft builds the same model.

    The text encoder is not part of audiocraft's files: audiocraft fetches it by its name. A fine-tuned one is lost.

    Args:
        folder: a composite folder of the hub's layout, or a hub id.
        output: the folder to write.
        text_encoder: the name by which audiocraft is to build the text encoder; None to find it out.
        overwrite: replace files of the same names in `output`.

    Raises:
        FileExistsError, FileNotFoundError, ConversionError: as for `audiocraft_to_hub`.
        CheckpointError: the folder's files are damaged or do not fit its config.
        ValueError: `folder` holds no composite MusicGen, or audiocraft cannot represent it.
    """
    output = _require_free(output, (LM_FILE, CODEC_FILE), overwrite)
    source = PretrainedFolder(folder)
    config = MusicgenConfig.from_pretrained(source)
    width = config.decoder.hidden_size
    lm_settings = lm_settings_from(
        config.decoder,
        text_encoder=text_encoder or text_encoder_name(config.text_encoder),
        sampling_rate=config.audio_encoder.sampling_rate,
        segment_duration=_seconds(GenerationConfig.from_folder(source, config.decoder), config),
    )
    codec_settings = codec_settings_from(config.audio_encoder)
    decoder_state = _state_of(MusicgenForCausalLM.from_pretrained(source.name, dtype="auto"))
    audio_state = _state_of(EncodecModel.from_pretrained(source.name, dtype="auto"))
    projection = _tensors(open_weights(source), "enc_to_dec_proj.")
    if not projection:
        # Audiocraft always projects.
        projection = _identity(width, decoder_state["lm_heads.0.weight"].dtype)
    with atomic_folder(output) as staging:
        _write_package(staging / LM_FILE, lm_from_hub(decoder_state, projection), lm_settings)
        _write_package(staging / CODEC_FILE, codec_from_hub(audio_state), codec_settings)
        lm_state, settings = _read_package(staging / LM_FILE, "language model")
        written_decoder, written_projection = lm_to_hub(lm_state)
        _require_equal(written_decoder, decoder_state, "the decoder")
        _require_equal(written_projection or {}, projection, "the projection")
        _require_same_config(decoder_config_from(lm_state, settings), config.decoder, _DECODER_ONLY_HUB)
        codec_state, settings = _read_package(staging / CODEC_FILE, "codec")
        _require_equal(codec_to_hub(codec_state), audio_state, "the codec")
        _require_same_config(codec_config_from(codec_state, settings), config.audio_encoder, _CODEC_ONLY_HUB)
        return _report(
            output,
            staging,
            config.decoder,
            [decoder_state, projection],
            f"{len(lm_state)} tensors of the language model and {len(codec_state)} of the codec, converted back, and "
            "both configs",
        )


def expand_folder_to_stereo(
    folder: str | os.PathLike[str], output: str | os.PathLike[str], *, overwrite: bool = False
) -> Conversion:
    """Write a stereo model that starts as the mono one of a hub folder; see `expand_to_stereo`.

    Args:
        folder: a composite or a decoder alone, in the hub's layout, or a hub id.
        output: the folder to write, another than `folder`.
        overwrite: replace files of the same names in `output`.

    Raises:
        FileExistsError, FileNotFoundError, ConversionError: as for `audiocraft_to_hub`.
        CheckpointError: the folder's files are damaged or do not fit its config.
        ValueError: `folder` holds no mono MusicGen, or `output` is `folder`.
    """
    source = PretrainedFolder(folder)
    if source.path is not None and Path(output).expanduser().resolve() == source.path.resolve():
        raise ValueError(f"the output {output} is the folder of the mono model; give another one")
    output = _require_free(output, _HUB_FILES, overwrite)
    config = AutoConfig.from_pretrained(source.name)
    if not isinstance(config, MusicgenConfig | MusicgenDecoderConfig):
        raise ValueError(f"{source} holds a {config.model_type!r} model; expected 'musicgen' or 'musicgen_decoder'")
    composite = isinstance(config, MusicgenConfig)
    mono = config.decoder if isinstance(config, MusicgenConfig) else config
    prefix = "decoder." if composite else ""

    decoder_state, others = {}, {}
    for name, value in _tensors(open_weights(source)).items():
        key = MusicgenForCausalLM.model_key(name.removeprefix(prefix)) if name.startswith(prefix) else None
        if key is not None:
            decoder_state[key] = value
        elif not name.startswith(prefix):
            others[name] = value
    _require_fit(MusicgenForCausalLM, mono, decoder_state, str(source))
    stereo, expanded = expand_to_stereo(mono, decoder_state)
    if isinstance(config, MusicgenConfig):
        config.decoder = stereo
    else:
        config = stereo
    with atomic_folder(output, obsolete=is_weight_file) as staging:
        save_weights({**others, **{prefix + name: value for name, value in expanded.items()}}, staging)
        write_json(staging / CONFIG_NAME, config.to_dict())
        _copy_files(source, (*TOKENIZER_FILES, GENERATION_CONFIG_NAME), staging)
        _copy_feature_extractor(source, staging, audio_channels=2)
        written = _read_parts(staging, [prefix])[prefix]
        of_mono = {name: decoder_state[mono_name(name)] for name in written}
        _require_equal(written, of_mono, "the decoder")
        return _report(
            output, staging, stereo, [expanded], f"{len(written)} tensors of the decoder, each with the mono model's"
        )


# --- Audiocraft's files -----------------------------------------------------------------------------------------------


def _read_package(path: Path, what: str) -> tuple[State, Settings | None]:
    """Return state and settings of an exported file, or of a training checkpoint's best state, one level deeper."""
    package = _load(path)
    state = package.get("best_state") if isinstance(package, Mapping) else None
    if isinstance(state, Mapping) and isinstance(state.get("model"), Mapping):
        state = state["model"]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        found = f"with {sorted(map(str, package))}" if isinstance(package, Mapping) else type(package).__name__
        raise ValueError(f"{path} is no {what} of audiocraft: it holds {found}, expected 'best_state' with tensors")
    content = package.get("xp.cfg")
    return dict(state), None if content is None else Settings(content)


def _load(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    damaged = f"{path} is no file of torch.save, or it is damaged or cut short ({path.stat().st_size:,} bytes)"
    # The directory of a zip is at its end, so this notices a file that was cut short.
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{damaged}: copy or download it again")
    try:
        # With weights_only a pickle cannot run code.
        with torch.serialization.safe_globals(_omegaconf_types()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        known = {f"{module}.{name}" for module, names in _OMEGACONF_TYPES.items() for name in names}
        unknown = sorted(set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - known)
        raise ValueError(
            f"{path} holds Python objects other than tensors and settings ({', '.join(unknown[:4])}), which could run "
            "code and are never loaded. If it is a training checkpoint, export it with audiocraft.utils.export"
        ) from error
    except RuntimeError as error:
        raise ValueError(f"{damaged}: {str(error).splitlines()[0]}") from error


def _omegaconf_types() -> list[Any]:
    return [
        getattr(importlib.import_module(module), name) for module, names in _OMEGACONF_TYPES.items() for name in names
    ]


def _write_package(path: Path, state: State, settings: Mapping[str, Any]) -> None:
    # Views are copied, since torch.save writes the whole storage of a view.
    owned = {
        name: value if value.untyped_storage().nbytes() == value.nbytes else value.clone()
        for name, value in ((name, value.detach().cpu().contiguous()) for name, value in state.items())
    }
    package = {
        "best_state": owned,
        "xp.cfg": OmegaConf.to_yaml(OmegaConf.create(dict(settings))),
        "version": f"musicgen_train {importlib.metadata.version('musicgen-train')}",
        "exported": True,
    }
    torch.save(package, path)


def _read_codec(codec: str | os.PathLike[str], problems_of_lm: list[str]) -> tuple[EncodecConfig, State]:
    """Return the codec in the hub's layout. Raises ValueError with its problems and those of the language model."""
    path = Path(codec).expanduser()
    if not path.is_file():
        if problems_of_lm:
            raise ValueError(refusal("the language model", problems_of_lm))
        return _read_hub_codec(str(codec))
    package = _load(path)
    if isinstance(package, Mapping) and "pretrained" in package:
        if problems_of_lm:
            raise ValueError(refusal("the language model", problems_of_lm))
        name = str(package["pretrained"])
        if name.startswith("dac_"):
            raise ValueError(f"{path} stands for the codec {name!r}; a MusicGen of the hub has an EnCodec")
        return _read_hub_codec(name)
    state, settings = _read_package(path, "codec")
    problems = [f"(language model) {problem}" for problem in problems_of_lm]
    problems += [f"(codec) {problem}" for problem in codec_problems(state, settings)]
    if problems:
        raise ValueError(refusal("the model", problems))
    config, hub_state = codec_config_from(state, settings), codec_to_hub(state)
    _require_fit(EncodecModel, config, hub_state, str(path))
    _require_equal(codec_from_hub(hub_state), state, "the codec")
    return config, hub_state


def _read_hub_codec(name: str) -> tuple[EncodecConfig, State]:
    model = EncodecModel.from_pretrained(name, dtype="auto")
    return model.config, _state_of(model)


def _named_text_encoder(settings: Settings | None) -> str:
    name = settings.get("conditioners.description.t5.name") if settings is not None else None
    if name is None:
        raise ValueError("the file does not name its text encoder; give a folder or hub id with a T5")
    return f"google-t5/{name}" if str(name).startswith("t5-") else str(name)


# --- What a hub folder holds besides weights --------------------------------------------------------------------------


def _generation_config(config: MusicgenConfig, settings: Settings | None) -> GenerationConfig:
    seconds = settings.get("dataset.segment_duration", 30) if settings is not None else 30
    frames = int(seconds * config.audio_encoder.frame_rate)
    generation = GenerationConfig.for_decoder(config.decoder)
    generation.update(max_length=frames + config.decoder.channel_codebooks, max_window_frames=frames)
    return generation


def _seconds(generation: GenerationConfig, config: MusicgenConfig) -> float:
    seconds = generation.max_window_frames / config.audio_encoder.frame_rate
    return int(seconds) if seconds.is_integer() else seconds


def _feature_extractor(config: MusicgenConfig) -> dict[str, Any]:
    return {
        "feature_extractor_type": "EncodecFeatureExtractor",
        "processor_class": "MusicgenProcessor",
        "feature_size": config.decoder.audio_channels,
        "sampling_rate": config.audio_encoder.sampling_rate,
        "chunk_length_s": config.audio_encoder.chunk_length_s,
        "overlap": config.audio_encoder.overlap,
        # Generation continues where prompts end, so padding goes before them.
        "padding_side": "left",
        "padding_value": 0.0,
        "return_attention_mask": True,
    }


def _copy_files(source: PretrainedFolder, names: Iterable[str], target: Path) -> None:
    for name in names:
        path = source.find(name)
        if path is not None:
            shutil.copyfile(path, target / name)


def _copy_feature_extractor(source: PretrainedFolder, target: Path, audio_channels: int) -> None:
    for name in (FEATURE_EXTRACTOR_FILE, PROCESSOR_FILE):
        path = source.find(name)
        if path is None:
            continue
        content = read_json(path)
        # Newer processors keep the feature extractor's settings in a part of their own file.
        part = content.get("feature_extractor", content)
        if "feature_size" in part:
            part["feature_size"] = audio_channels
        write_json(target / name, content)


# --- Checks -----------------------------------------------------------------------------------------------------------

# Audiocraft has no place for these, since they do not change what a trained model computes.
_DECODER_ONLY_HUB = frozenset(
    {
        "max_position_embeddings",
        "layerdrop",
        "use_cache",
        "initializer_factor",
        "scale_embedding",
        "eos_token_id",
        "activation_dropout",
    }
)
_CODEC_ONLY_HUB = frozenset({"target_bandwidths", "overlap"})


def _require_free(output: str | os.PathLike[str], names: Iterable[str], overwrite: bool) -> Path:
    output = Path(output).expanduser()
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"{output} is a file; give a folder to write into")
    present = [name for name in names if (output / name).exists()]
    if present and not overwrite:
        raise FileExistsError(f"{output} has {', '.join(present)} already; allow to overwrite, or give another folder")
    return output


def _require_fit(
    model_class: type[PretrainedModel[Any]], config: PretrainedConfig, state: Mapping[str, torch.Tensor], source: str
) -> None:
    with torch.device("meta"):
        expected = model_class(config).state_dict()
    check_state_dict(
        expected,
        {name: tuple(value.shape) for name, value in state.items()},
        f"{source} does not fit {model_class.__name__}",
    )


def _mismatches(decoder: MusicgenDecoderConfig, codec: EncodecConfig) -> list[str]:
    problems = []
    if codec.codebook_size != decoder.vocab_size:
        problems.append(f"the codec has {codec.codebook_size} codes a codebook, the decoder {decoder.vocab_size}")
    if codec.num_quantizers != decoder.channel_codebooks:
        problems.append(
            f"the codec has {codec.num_quantizers} codebooks, the decoder {decoder.channel_codebooks} a channel"
        )
    return problems


def _projection_problems(projection: State | None, text_width: int, width: int, text_source: str) -> list[str]:
    if projection is None:
        return [] if text_width == width else ["it has no projection of text states (output_proj)"]
    taken = projection["weight"].shape[1]
    if taken != text_width:
        return [f"its projection takes text states of width {taken}, the text encoder {text_source} has {text_width}"]
    identity = _identity(width, projection["weight"].dtype)
    if text_width == width and any(not torch.equal(projection[name], identity[name]) for name in identity):
        return [f"text encoder and decoder are both {width} wide, and a model of the hub then has no projection"]
    return []


def _identity(width: int, dtype: torch.dtype) -> State:
    return {"weight": torch.eye(width, dtype=dtype), "bias": torch.zeros(width, dtype=dtype)}


def _state_of(model: PretrainedModel[Any]) -> State:
    return {name: value for name, value in model.state_dict().items() if name not in model.tied_keys}


def _read_parts(folder: Path, prefixes: Iterable[str]) -> dict[str, State]:
    weights = open_weights(PretrainedFolder(folder))
    return {prefix: _tensors(weights, prefix) for prefix in prefixes}


def _tensors(weights: WeightFiles, prefix: str = "") -> State:
    names = weights.keys()
    return {name.removeprefix(prefix): weights.tensor(name) for name in names if name.startswith(prefix)}


def _require_equal(
    written: Mapping[str, torch.Tensor],
    given: Mapping[str, torch.Tensor],
    what: str,
    dtype: torch.dtype | None = None,
) -> None:
    """Raise ConversionError unless names and values are equal; `dtype` is the one `given` was to be written in."""
    differing = sorted(written.keys() ^ given.keys())
    for name in sorted(written.keys() & given.keys()):
        if not _same(written[name], given[name].to(dtype or given[name].dtype)):
            differing.append(name)
    if differing:
        raise ConversionError(
            f"{what} does not read back as it was given: {len(differing)} tensors differ ({', '.join(differing[:4])}). "
            "Nothing was written; check the disk, and report it if it happens again"
        )


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(first, second)


def _require_same_config(written: PretrainedConfig, given: PretrainedConfig, but: frozenset[str]) -> None:
    differing = [
        f"{name} {getattr(given, name)!r} -> {getattr(written, name)!r}"
        for name in given.field_names()
        if name not in but and getattr(written, name) != getattr(given, name)
    ]
    if differing:
        raise ConversionError(f"{type(given).__name__} does not survive the conversion: {', '.join(differing)}")


def _report(
    output: Path, staging: Path, decoder: MusicgenDecoderConfig, states: Iterable[State], compared: str
) -> Conversion:
    files = sorted(path for path in staging.iterdir() if path.is_file())
    return Conversion(
        folder=output,
        files=tuple(path.name for path in files),
        decoder=decoder,
        parameters=sum(value.numel() for state in states for value in state.values()),
        size=sum(path.stat().st_size for path in files),
        compared=compared,
    )
