"""The configs of the four models, and how a config reads and writes a hub folder's `config.json`.

A config has typed fields with the defaults of the hub's models. A `config.json` also holds keys that have no field;
they are kept in `extra`, can be read as attributes, and are written back on save.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import math
import os
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch

from musicgen_train.files import atomic_folder, read_json, write_json
from musicgen_train.hub.folder import CONFIG_NAME, PretrainedFolder
from musicgen_train.models.layers import ACTIVATIONS

_NORM_TYPES = ("weight_norm", "time_group_norm")
_PAD_MODES = ("reflect", "constant", "replicate", "circular")

# Keys of the hub's configs, old and new, that are no fields here. A constructor accepts these names and refuses others
# as typing errors; a file may hold anything.
_COMMON_KEYS = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash
    _experts_implementation _experts_implementation_internal _name_or_path _output_attentions _post_init_done
    add_cross_attention architectures attn_implementation bad_words_ids begin_suppress_tokens bos_token_id
    chunk_size_feed_forward classifier_dropout cross_attention_hidden_size decoder_start_token_id dense_act_fn
    diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id guidance_scale id2label
    is_decoder is_encoder_decoder is_gated_act label2id length_penalty max_length min_length model_type n_positions
    no_repeat_ngram_size num_beam_groups num_beams num_decoder_layers num_labels num_return_sequences output_attentions
    output_hidden_states output_past output_scores pad_token_id prefix problem_type pruned_heads remove_invalid_values
    repetition_penalty return_dict return_dict_in_generate scale_decoder_outputs sep_token_id suppress_tokens
    task_specific_params temperature tf_legacy_loss tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p
    torch_dtype torchscript transformers_version typical_p use_bfloat16 use_cache
    """.split()  # noqa: SIM905 - a list of strings would take a line for each name
)


@dataclass(init=False, repr=False, eq=False)
class PretrainedConfig:
    """Holds typed fields with defaults, plus the extra keys of the file they came from.

    Fields and extra keys are read and assigned as attributes; any other name is refused. A new config and every
    `update` are checked at once. Plain assignments are not, since fields may depend on each other: they are checked
    when the config is saved or a model is built from it.

    A config is also a read-only mapping of everything it would write, so `f(**config)` works.
    """

    model_type: ClassVar[str] = ""
    file_name: ClassVar[str] = CONFIG_NAME
    # The key under which a composite `config.json` holds a config of this class.
    composite_key: ClassVar[str | None] = None
    # Names that other models use for a field.
    aliases: ClassVar[Mapping[str, str]] = {}

    def __init__(self, **values: Any) -> None:
        self._require_model_type(values)
        self._refuse_unknown(values, allowed=_COMMON_KEYS)
        self._assign(values, strict=True)

    @classmethod
    def field_names(cls) -> list[str]:
        """Returns the names of the typed fields, in order of declaration."""
        return [field.name for field in dataclasses.fields(cls)]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **overrides: Any) -> Self:
        """Make a config from the content of a `config.json`; unknown keys go to `extra`.

        Args:
            values: the content of the file.
            overrides: as for `update`.

        Raises:
            ValueError: `model_type` is that of another model, a value is not allowed, or an override is unknown.
        """
        config = cls.__new__(cls)
        config._assign(copy.deepcopy(dict(values)), strict=False)
        if overrides:
            config.update(**overrides)
        return config

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str] | PretrainedFolder,
        *,
        subfolder: str = "",
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        **overrides: Any,
    ) -> Self:
        """Read the config of a local folder or hub id; from a composite's folder, the part of this class.

        Args:
            name_or_path: folder or hub id; a `PretrainedFolder` has its own values of the next five options.
            subfolder, revision, token, cache_dir, local_files_only: as for `PretrainedFolder`.
            overrides: as for `update`.

        Raises:
            FileNotFoundError: no such folder or repository, or it has no config file.
            ValueError: as `from_dict`.
        """
        folder = name_or_path
        if not isinstance(folder, PretrainedFolder):
            folder = PretrainedFolder(
                folder,
                subfolder=subfolder,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
            )
        path = folder.require(cls.file_name, f"the file that {cls.__name__} is read from")
        values: Mapping[str, Any] = read_json(path)
        try:
            if cls.composite_key is not None and values.get("model_type") == MusicgenConfig.model_type:
                values = _part_of(values, cls.composite_key)
            config = cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if overrides:
            config.update(**overrides)
        return config

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the config file into `folder`, which is created if missing.

        Raises:
            ValueError: a value that was assigned is not allowed.
        """
        self.check()
        with atomic_folder(folder) as staging:
            write_json(staging / self.file_name, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Returns a deep copy of everything the config file holds: fields, extra keys and `model_type`."""
        values = {**self.extra, **{name: getattr(self, name) for name in self.field_names()}}
        if self.model_type:
            values["model_type"] = self.model_type
        return {name: _as_json(value) for name, value in values.items()}

    def update(self, **changes: Any) -> None:
        """Change fields or extra keys; a dict for a nested config changes only the keys that it has.

        Raises:
            ValueError: an unknown name, or a value that is not allowed; then nothing is changed.
        """
        self._require_model_type(changes)
        self._refuse_unknown(changes, allowed=_COMMON_KEYS | self.extra.keys())
        trial = copy.deepcopy(self)
        trial._set(changes, strict=True)
        trial.check()
        self._set(changes, strict=True)
        self.check()

    def check(self) -> None:
        """Fill in defaults that depend on other fields, then raise ValueError for a value that is not allowed."""
        self.fill_in()
        types_of = typing.get_type_hints(type(self))
        for name in self.field_names():
            value = getattr(self, name)
            if not _is_of_type(value, types_of[name]):
                raise ValueError(
                    f"{type(self).__name__}.{name} is {value!r}, a {type(value).__name__}; "
                    f"expected {_type_name(types_of[name])}"
                )
        self.validate()

    def fill_in(self) -> None:
        """Set fields that are None and have a default that depends on others. Types are not checked yet."""

    def validate(self) -> None:
        """Raise ValueError for a value that is not allowed. Types have been checked before."""

    def _assign(self, values: Mapping[str, Any], strict: bool) -> None:
        self._require_model_type(values)
        self.extra: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            setattr(self, field.name, default)
        self._set(values, strict)
        self.check()

    def _set(self, values: Mapping[str, Any], strict: bool) -> None:
        fields = set(self.field_names())
        for key, value in values.items():
            name = self.aliases.get(key, key)
            if name in fields:
                setattr(self, name, self._converted(name, value, strict))
            elif name != "model_type" or not self.model_type:
                self.extra[name] = value

    def _converted(self, name: str, value: Any, strict: bool) -> Any:
        """Convert a value from a file (or, if `strict`, from a call) to that of a field; subclasses extend it."""
        # Lists may come as tuples or as another library's list type.
        if isinstance(getattr(self, name), list) and isinstance(value, Iterable) and not isinstance(value, str):
            return list(value)
        return value

    def _require_model_type(self, values: Mapping[str, Any]) -> None:
        stated = values.get("model_type")
        if self.model_type and stated is not None and stated != self.model_type:
            raise ValueError(_wrong_model_type(stated, [self.model_type]))

    def _refuse_unknown(self, values: Mapping[str, Any], allowed: frozenset[str]) -> None:
        names = self.field_names()
        unknown = [name for name in values if name not in names and name not in self.aliases and name not in allowed]
        if unknown:
            raise ValueError(self._unknown(unknown))

    def _unknown(self, unknown: list[str]) -> str:
        names = self.field_names()
        close = difflib.get_close_matches(unknown[0], names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        return f"{type(self).__name__} has no {', '.join(map(repr, unknown))}{hint} It has: {', '.join(names)}"

    def _require(self, holds: bool, name: str, allowed: str) -> None:
        if not holds:
            raise ValueError(f"{type(self).__name__}.{name} is {getattr(self, name)!r}; allowed: {allowed}")

    def _require_positive(self, *names: str) -> None:
        for name in names:
            self._require(getattr(self, name) > 0, name, "a number above 0")

    def _require_probability(self, *names: str) -> None:
        for name in names:
            self._require(0 <= getattr(self, name) <= 1, name, "a number from 0 to 1")

    def __getattr__(self, name: str) -> Any:
        # Called only for names that are no field or property. `self.extra` would recurse while an instance is being
        # unpickled and has no `extra` yet; a file must not define protocols such as `__deepcopy__`.
        extra = self.__dict__.get("extra", {})
        if name in extra and not name.startswith("__"):
            return extra[name]
        raise AttributeError(f"{type(self).__name__} has no {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        name = self.aliases.get(name, name)
        if name == "extra" or name in self.field_names() or isinstance(getattr(type(self), name, None), property):
            super().__setattr__(name, value)
        elif name in _COMMON_KEYS or name in self.extra:
            self.extra[name] = value
        else:
            raise AttributeError(self._unknown([name]))

    def keys(self) -> Iterator[str]:
        return iter(self.to_dict())

    def __iter__(self) -> Iterator[str]:
        return self.keys()

    def __contains__(self, name: object) -> bool:
        return name in self.to_dict()

    def __getitem__(self, name: str) -> Any:
        return self.to_dict()[name]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PretrainedConfig) and type(self) is type(other) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.field_names())
        return f"{type(self).__name__}({values})"


@dataclass(init=False, repr=False, eq=False)
class T5Config(PretrainedConfig):
    """Configures the T5 text encoder. Defaults are google-t5/t5-small's; MusicGen uses t5-base (`d_model=768`, 12
    layers)."""

    model_type: ClassVar[str] = "t5"
    composite_key: ClassVar[str | None] = "text_encoder"
    aliases: ClassVar[Mapping[str, str]] = {
        "hidden_size": "d_model",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "head_dim": "d_kv",
    }

    vocab_size: int = 32128
    """Rows of the embedding; more than the tokenizer has tokens, since they were padded for accelerators."""
    d_model: int = 512
    d_kv: int = 64
    """Width of one attention head; `num_heads * d_kv` need not equal `d_model`."""
    d_ff: int = 2048
    num_layers: int = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    initializer_factor: float = 1.0
    feed_forward_proj: str = "relu"
    """An activation, or `gated-` and an activation. `gated-gelu` (T5 v1.1, Flan) means the tanh approximation."""
    pad_token_id: int = 0
    eos_token_id: int = 1

    @property
    def hidden_size(self) -> int:
        return self.d_model

    @property
    def num_hidden_layers(self) -> int:
        return self.num_layers

    @property
    def num_attention_heads(self) -> int:
        return self.num_heads

    @property
    def head_dim(self) -> int:
        return self.d_kv

    @property
    def is_gated_act(self) -> bool:
        return self.feed_forward_proj.startswith("gated-")

    @property
    def dense_act_fn(self) -> str:
        return "gelu_new" if self.feed_forward_proj == "gated-gelu" else self.feed_forward_proj.removeprefix("gated-")

    def to_dict(self) -> dict[str, Any]:
        # The hub's files also hold these two, which are derived from `feed_forward_proj`: recompute them.
        return {**super().to_dict(), "dense_act_fn": self.dense_act_fn, "is_gated_act": self.is_gated_act}

    def validate(self) -> None:
        self._require_positive("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
        self._require_positive("relative_attention_num_buckets", "relative_attention_max_distance")
        # Each of the two directions needs at least one bucket for near and one for far distances.
        buckets, distance = self.relative_attention_num_buckets, self.relative_attention_max_distance
        self._require(buckets >= 4, "relative_attention_num_buckets", "4 or more")
        self._require(
            distance > buckets // 4,
            "relative_attention_max_distance",
            f"more than a quarter of relative_attention_num_buckets ({buckets})",
        )
        self._require_probability("dropout_rate")
        self._require_positive("layer_norm_epsilon", "initializer_factor")
        self._require(
            self.dense_act_fn in ACTIVATIONS,
            "feed_forward_proj",
            f"{', '.join(ACTIVATIONS)}, each also with 'gated-' before it",
        )


@dataclass(init=False, repr=False, eq=False)
class EncodecConfig(PretrainedConfig):
    """Configures the EnCodec neural codec. Defaults are facebook/encodec_24khz's; MusicGen uses encodec_32khz."""

    model_type: ClassVar[str] = "encodec"
    composite_key: ClassVar[str | None] = "audio_encoder"

    target_bandwidths: list[float] = dataclasses.field(default_factory=lambda: [1.5, 3.0, 6.0, 12.0, 24.0])
    """Bit rates in kbit/s, rising; each is a number of codebooks, and the last one uses them all."""
    sampling_rate: int = 24_000
    audio_channels: int = 1
    normalize: bool = False
    """Divide each chunk by its volume before coding, and return the volume beside the codes."""
    chunk_length_s: float | None = None
    """Code in chunks of this many seconds; None codes the whole signal as one chunk."""
    overlap: float | None = None
    """Share of a chunk that overlaps with the next one."""
    hidden_size: int = 128
    num_filters: int = 32
    num_residual_layers: int = 1
    upsampling_ratios: list[int] = dataclasses.field(default_factory=lambda: [8, 5, 4, 2])
    """The decoder's ratios, in its order; the encoder uses them in reverse order."""
    norm_type: str = "weight_norm"
    kernel_size: int = 7
    last_kernel_size: int = 7
    residual_kernel_size: int = 3
    dilation_growth_rate: int = 2
    use_causal_conv: bool = True
    pad_mode: str = "reflect"
    compress: int = 2
    num_lstm_layers: int = 2
    trim_right_ratio: float = 1.0
    codebook_size: int = 1024
    codebook_dim: int | None = None
    """Width of a code's vector; default `hidden_size`."""
    use_conv_shortcut: bool = True

    @property
    def chunk_length(self) -> int | None:
        """Returns the number of samples in a chunk."""
        return None if self.chunk_length_s is None else int(self.chunk_length_s * self.sampling_rate)

    @property
    def chunk_stride(self) -> int | None:
        """Returns the number of samples from the start of one chunk to that of the next."""
        if self.chunk_length is None or self.overlap is None:
            return None
        return max(1, int((1.0 - self.overlap) * self.chunk_length))

    @property
    def hop_length(self) -> int:
        """Returns the number of samples per frame of codes."""
        return math.prod(self.upsampling_ratios)

    @property
    def frame_rate(self) -> int:
        """Returns the number of frames of codes per second, rounded up."""
        return math.ceil(self.sampling_rate / self.hop_length)

    @property
    def codebook_nbits(self) -> int:
        """Returns the number of bits per code."""
        return math.ceil(math.log2(self.codebook_size))

    @property
    def num_quantizers(self) -> int:
        """Returns the number of codebooks in the residual quantizer: as many as fit into the highest bandwidth."""
        return int(1000 * self.target_bandwidths[-1] // (self.frame_rate * self.codebook_nbits))

    def fill_in(self) -> None:
        if self.codebook_dim is None:
            self.codebook_dim = self.hidden_size

    def validate(self) -> None:
        self._require_positive("sampling_rate", "hidden_size", "num_filters", "compress", "dilation_growth_rate")
        self._require_positive("kernel_size", "last_kernel_size", "residual_kernel_size")
        for name in ("num_residual_layers", "num_lstm_layers"):
            self._require(getattr(self, name) >= 0, name, "a whole number from 0")
        self._require(self.audio_channels in (1, 2), "audio_channels", "1 (mono) or 2 (stereo)")
        self._require(self.norm_type in _NORM_TYPES, "norm_type", ", ".join(map(repr, _NORM_TYPES)))
        self._require(self.pad_mode in _PAD_MODES, "pad_mode", ", ".join(map(repr, _PAD_MODES)))
        self._require_probability("trim_right_ratio")
        self._require(self.chunk_length_s is None or self.chunk_length_s > 0, "chunk_length_s", "None or above 0 s")
        self._require(
            self.overlap is None or 0 <= self.overlap < 1, "overlap", "None or a share of a chunk from 0, below 1"
        )
        self._require(
            bool(self.upsampling_ratios) and min(self.upsampling_ratios) > 0,
            "upsampling_ratios",
            "one whole number above 0 or more",
        )
        self._require(self.codebook_size >= 2, "codebook_size", "2 or more")
        self._require(
            self.codebook_dim == self.hidden_size,
            "codebook_dim",
            f"None or hidden_size ({self.hidden_size}): vectors of codes are summed into hidden states",
        )
        bandwidths = self.target_bandwidths
        self._require(
            bool(bandwidths) and bandwidths[0] > 0 and bandwidths == sorted(bandwidths),
            "target_bandwidths",
            "one bit rate in kbit/s or more, rising",
        )
        self._require(self.num_quantizers >= 1, "target_bandwidths", "a last bit rate that pays for one codebook")


@dataclass(init=False, repr=False, eq=False)
class MusicgenDecoderConfig(PretrainedConfig):
    """Configures the MusicGen decoder. Defaults are facebook/musicgen-small's architecture."""

    model_type: ClassVar[str] = "musicgen_decoder"
    composite_key: ClassVar[str | None] = "decoder"

    vocab_size: int = 2048
    """Codes per codebook. An input embedding has one row more, for the special id `vocab_size` (pad and bos)."""
    max_position_embeddings: int = 2048
    """The longest sequence. Positions are sinusoids, so no weight depends on it, and it may be raised freely."""
    num_hidden_layers: int = 24
    ffn_dim: int = 4096
    num_attention_heads: int = 16
    layerdrop: float = 0.0
    use_cache: bool = True
    activation_function: str = "gelu"
    hidden_size: int = 1024
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    initializer_factor: float = 0.02
    scale_embedding: bool = False
    """Multiply the embeddings by sqrt(hidden_size). The reference stores this and never applies it; so do we."""
    num_codebooks: int = 4
    audio_channels: int = 1
    """1, or 2 for stereo, whose codebooks are interleaved `[1L, 1R, 2L, 2R, ...]`."""
    pad_token_id: int = 2048
    bos_token_id: int = 2048
    eos_token_id: int | None = None
    decoder_start_token_id: int | None = None
    """The first input of every codebook; default `bos_token_id`."""
    cross_attention_hidden_size: int | None = None
    tie_word_embeddings: bool = False

    @property
    def channel_codebooks(self) -> int:
        """Returns the number of codebooks per audio channel, which is the number of different delays."""
        return self.num_codebooks // self.audio_channels

    def fill_in(self) -> None:
        if self.decoder_start_token_id is None:
            self.decoder_start_token_id = self.bos_token_id

    def validate(self) -> None:
        self._require_positive("vocab_size", "max_position_embeddings", "num_hidden_layers", "ffn_dim", "hidden_size")
        self._require_positive("num_attention_heads", "num_codebooks", "initializer_factor")
        self._require_probability("dropout", "attention_dropout", "activation_dropout", "layerdrop")
        self._require(self.audio_channels in (1, 2), "audio_channels", "1 (mono) or 2 (stereo)")
        self._require(
            self.num_codebooks % self.audio_channels == 0, "num_codebooks", "an even number when audio_channels is 2"
        )
        self._require(
            self.hidden_size % self.num_attention_heads == 0,
            "hidden_size",
            f"a multiple of num_attention_heads ({self.num_attention_heads})",
        )
        self._require(self.hidden_size >= 4, "hidden_size", "4 or more, since positions need two frequencies")
        self._require(self.activation_function in ACTIVATIONS, "activation_function", ", ".join(ACTIVATIONS))
        self._require(
            self.cross_attention_hidden_size in (None, self.hidden_size),
            "cross_attention_hidden_size",
            f"None or hidden_size ({self.hidden_size}): text states are projected before the decoder sees them",
        )
        self._require(not self.tie_word_embeddings, "tie_word_embeddings", "False: heads have one row less")
        for name in ("pad_token_id", "bos_token_id", "decoder_start_token_id"):
            self._require(getattr(self, name) == self.vocab_size, name, f"vocab_size ({self.vocab_size})")


@dataclass(init=False, repr=False, eq=False)
class MusicgenConfig(PretrainedConfig):
    """Configures the composite: text encoder, audio encoder and decoder, each given as a config or as a dict.

    A part that is not given has its class's defaults.
    """

    model_type: ClassVar[str] = "musicgen"

    text_encoder: T5Config = dataclasses.field(default_factory=T5Config)
    audio_encoder: EncodecConfig = dataclasses.field(default_factory=EncodecConfig)
    decoder: MusicgenDecoderConfig = dataclasses.field(default_factory=MusicgenDecoderConfig)
    initializer_factor: float = 0.02
    is_encoder_decoder: bool = True

    @classmethod
    def from_sub_models_config(
        cls,
        text_encoder_config: T5Config,
        audio_encoder_config: EncodecConfig,
        decoder_config: MusicgenDecoderConfig,
        **kwargs: Any,
    ) -> Self:
        """Make a composite config from the configs of its three parts, which are shared, not copied."""
        return cls(
            text_encoder=text_encoder_config, audio_encoder=audio_encoder_config, decoder=decoder_config, **kwargs
        )

    @property
    def sampling_rate(self) -> int:
        return self.audio_encoder.sampling_rate

    @property
    def hidden_size(self) -> int:
        return self.decoder.hidden_size

    def fill_in(self) -> None:
        self.is_encoder_decoder = True

    def validate(self) -> None:
        self._require_positive("initializer_factor")
        for part in (self.text_encoder, self.audio_encoder, self.decoder):
            part.check()

    def _converted(self, name: str, value: Any, strict: bool) -> Any:
        current = getattr(self, name)
        if not isinstance(current, PretrainedConfig) or isinstance(value, type(current)):
            return value
        if value is None:
            return type(current)()
        if isinstance(value, PretrainedConfig):
            raise ValueError(_wrong_model_type(value.model_type, [current.model_type]))
        if not isinstance(value, Mapping):
            kind = f"{type(value).__module__}.{type(value).__name__}"
            hint = "; give what its to_dict() returns" if hasattr(value, "to_dict") else ""
            raise ValueError(f"{name} is a {kind}; expected a {type(current).__name__} or a dict of one{hint}")
        if not strict:
            return type(current).from_dict(value)
        # On construction `current` is new and has its class's defaults.
        current.update(**value)
        return current


class AutoConfig:
    """Reads the config of any model this package has, by the file's `model_type`."""

    @staticmethod
    def from_pretrained(name_or_path: str | os.PathLike[str], **kwargs: Any) -> PretrainedConfig:
        """Read the config of a folder or hub id, as the class that belongs to its `model_type`.

        Args:
            kwargs: as for `PretrainedConfig.from_pretrained`.

        Raises:
            FileNotFoundError: no such folder or repository, or it has no config.json.
            ValueError: its `model_type` is that of a model this package does not have.
        """
        hub_options = {
            name: kwargs.pop(name)
            for name in ("subfolder", "revision", "token", "cache_dir", "local_files_only")
            if name in kwargs
        }
        folder = PretrainedFolder(name_or_path, **hub_options)
        path = folder.require(CONFIG_NAME, "the file that names the kind of model")
        model_type = read_json(path).get("model_type")
        if model_type not in CONFIG_CLASSES:
            raise ValueError(f"{path}: {_wrong_model_type(model_type, list(CONFIG_CLASSES))}")
        return CONFIG_CLASSES[model_type].from_pretrained(folder, **kwargs)


CONFIG_CLASSES: dict[str, type[PretrainedConfig]] = {
    config.model_type: config for config in (MusicgenConfig, MusicgenDecoderConfig, T5Config, EncodecConfig)
}


def _part_of(composite: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = composite.get(key)
    if not isinstance(part, Mapping):
        raise ValueError(f"the composite's config has no {key!r}, or it is no JSON object")
    return part


def _wrong_model_type(stated: object, allowed: list[str]) -> str:
    message = f"model_type is {stated!r}; expected {' or '.join(map(repr, allowed))}"
    if str(stated).startswith("musicgen_melody"):
        message += (
            ". MusicGen Melody takes its conditions in another way and is not supported here: use a plain MusicGen "
            "(facebook/musicgen-small, -medium, -large, -stereo-*), or transformers' MusicgenMelody classes"
        )
    return message


def _as_json(value: Any) -> Any:
    """Returns a deep copy of a value in JSON's types: configs become dicts, torch dtypes their names."""
    if isinstance(value, PretrainedConfig):
        return value.to_dict()
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return copy.deepcopy(value)


def _is_of_type(value: object, expected: Any) -> bool:
    """Returns True if a value matches an annotation: a class, a union of annotations, or a list of one."""
    if isinstance(expected, types.UnionType):
        return any(_is_of_type(value, option) for option in typing.get_args(expected))
    if typing.get_origin(expected) is list:
        (item_type,) = typing.get_args(expected)
        return isinstance(value, list) and all(_is_of_type(item, item_type) for item in value)
    if expected in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, int | float if expected is float else expected)


def _type_name(expected: Any) -> str:
    return expected.__name__ if isinstance(expected, type) and not typing.get_args(expected) else str(expected)
