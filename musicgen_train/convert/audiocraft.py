"""Translates names, layouts and settings of audiocraft's checkpoints to the hub's and back; knows no files.

Both sides store the same numbers. They differ in names (one table here serves both directions), in how they store the
attention's q, k and v (one matrix in audiocraft), and in the names of weight normalisation. Every conversion is exact,
and `*_from_hub` undoes `*_to_hub` bit by bit.

Beside its tensors an audiocraft file holds the settings it was trained with ("xp.cfg", see `Settings`). A config is
made from the tensors as far as they tell it, and from the settings for the rest.

Axes: K codebooks, V codes, D width, C channels of audio.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from musicgen_train.models.config import EncodecConfig, MusicgenDecoderConfig, T5Config

State = dict[str, torch.Tensor]

DESCRIPTION = "condition_provider.conditioners.description."
PROJECTION = "enc_to_dec_proj."

# Width, layers and heads of the published models. The tensors of a file tell all but the heads.
SIZES = {"small": (1024, 24, 16), "medium": (1536, 48, 24), "large": (2048, 48, 32)}

# The text encoders audiocraft can build by name: width, layers and whether the feed-forward is gated.
TEXT_ENCODERS = {
    "t5-small": (512, 6, False),
    "t5-base": (768, 12, False),
    "t5-large": (1024, 24, False),
    "google/flan-t5-small": (512, 8, True),
    "google/flan-t5-base": (768, 12, True),
    "google/flan-t5-large": (1024, 24, True),
}


class KeyTable:
    """Translates between audiocraft's names and the hub's, in both directions.

    Args:
        rows: pairs of templates, audiocraft's and the hub's. `{layer}` and the other fields of `_FIELDS` stand for the
            same text on both sides.
    """

    _FIELDS: Mapping[str, str] = {
        "side": "encoder|decoder",
        "layer": r"\d+",
        "block": r"\d+",
        "codebook": r"\d+",
        "affine": "weight|bias",
        "conv": "weight|bias|weight_g|weight_v",
        "lstm": r"(?:weight|bias)_[ih]h_l\d+",
        "vectors": "inited|cluster_size|embed|embed_avg",
    }

    def __init__(self, rows: Iterable[tuple[str, str]]) -> None:
        rows = list(rows)
        self._to_hub = [(self._pattern(audiocraft), hub) for audiocraft, hub in rows]
        self._from_hub = [(self._pattern(hub), audiocraft) for audiocraft, hub in rows]

    def to_hub(self, name: str) -> str | None:
        """Return the hub's name for audiocraft's; None for a name that fits no row."""
        return self._translate(name, self._to_hub)

    def from_hub(self, name: str) -> str | None:
        """Return audiocraft's name for the hub's; None for a name that fits no row."""
        return self._translate(name, self._from_hub)

    @classmethod
    def _pattern(cls, template: str) -> re.Pattern[str]:
        return re.compile(
            re.sub(r"\\{(\w+)\\}", lambda field: f"(?P<{field[1]}>{cls._FIELDS[field[1]]})", re.escape(template))
        )

    @staticmethod
    def _translate(name: str, rows: list[tuple[re.Pattern[str], str]]) -> str | None:
        for pattern, template in rows:
            match = pattern.fullmatch(name)
            if match is not None:
                return template.format(**match.groupdict())
        return None


# "qkv_proj" on the hub's side stands for q_proj, k_proj and v_proj, whose rows audiocraft stacks in one matrix.
_LAYER, _HUB_LAYER = "transformer.layers.{layer}.", "model.decoder.layers.{layer}."
LM_KEYS = KeyTable(
    [
        ("emb.{codebook}.weight", "model.decoder.embed_tokens.{codebook}.weight"),
        (_LAYER + "self_attn.in_proj_weight", _HUB_LAYER + "self_attn.qkv_proj.weight"),
        (_LAYER + "self_attn.out_proj.weight", _HUB_LAYER + "self_attn.out_proj.weight"),
        (_LAYER + "norm1.{affine}", _HUB_LAYER + "self_attn_layer_norm.{affine}"),
        (_LAYER + "cross_attention.in_proj_weight", _HUB_LAYER + "encoder_attn.qkv_proj.weight"),
        (_LAYER + "cross_attention.out_proj.weight", _HUB_LAYER + "encoder_attn.out_proj.weight"),
        (_LAYER + "norm_cross.{affine}", _HUB_LAYER + "encoder_attn_layer_norm.{affine}"),
        (_LAYER + "linear1.weight", _HUB_LAYER + "fc1.weight"),
        (_LAYER + "linear2.weight", _HUB_LAYER + "fc2.weight"),
        (_LAYER + "norm2.{affine}", _HUB_LAYER + "final_layer_norm.{affine}"),
        ("out_norm.{affine}", "model.decoder.layer_norm.{affine}"),
        ("linears.{codebook}.weight", "lm_heads.{codebook}.weight"),
        (DESCRIPTION + "output_proj.{affine}", PROJECTION + "{affine}"),
    ]
)

CODEC_KEYS = KeyTable(
    [
        ("{side}.model.{layer}.conv.conv.{conv}", "{side}.layers.{layer}.conv.{conv}"),
        ("{side}.model.{layer}.conv.norm.{affine}", "{side}.layers.{layer}.norm.{affine}"),
        ("{side}.model.{layer}.block.{block}.conv.conv.{conv}", "{side}.layers.{layer}.block.{block}.conv.{conv}"),
        ("{side}.model.{layer}.block.{block}.conv.norm.{affine}", "{side}.layers.{layer}.block.{block}.norm.{affine}"),
        ("{side}.model.{layer}.shortcut.conv.conv.{conv}", "{side}.layers.{layer}.shortcut.conv.{conv}"),
        ("{side}.model.{layer}.shortcut.conv.norm.{affine}", "{side}.layers.{layer}.shortcut.norm.{affine}"),
        ("{side}.model.{layer}.lstm.{lstm}", "{side}.layers.{layer}.lstm.{lstm}"),
        ("quantizer.vq.layers.{codebook}._codebook.{vectors}", "quantizer.layers.{codebook}.codebook.{vectors}"),
    ]
)
# The decoder's convolutions that raise the rate. The hub does not tell them apart by name.
UPSAMPLING_KEYS = KeyTable(
    [
        ("decoder.model.{layer}.convtr.convtr.{conv}", "decoder.layers.{layer}.conv.{conv}"),
        ("decoder.model.{layer}.convtr.norm.{affine}", "decoder.layers.{layer}.norm.{affine}"),
    ]
)
# torch's older and newer names of the two parts of a normalised weight. Older hub files have the older names.
_WEIGHT_NORM = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}


def lm_to_hub(state: Mapping[str, torch.Tensor]) -> tuple[State, State | None]:
    """Rename an audiocraft language model's tensors to the hub's names.

    Args:
        state: `LMModel.state_dict()`.

    Returns:
        The state dict of a `MusicgenForCausalLM`, and that of the projection of text states (`weight` (D, text width)
        and `bias` (D,)), or None if the model has no projection. Tensors are views of those given.

    Raises:
        ValueError: there are tensors that a MusicGen of the hub has no place for; all are listed.
    """
    problems = lm_problems(state)
    if problems:
        raise ValueError(refusal("the language model", problems))
    decoder: State = {}
    for name, value in plain_attention_names(state).items():
        hub_name = LM_KEYS.to_hub(name)
        assert hub_name is not None
        if ".qkv_proj." in hub_name:
            for letter, rows in zip("qkv", value.chunk(3), strict=True):
                decoder[hub_name.replace(".qkv_proj.", f".{letter}_proj.")] = rows
        else:
            decoder[hub_name] = value
    projection = {name: decoder.pop(name) for name in list(decoder) if name.startswith(PROJECTION)}
    return decoder, {name.removeprefix(PROJECTION): value for name, value in projection.items()} or None


def lm_from_hub(decoder: Mapping[str, torch.Tensor], projection: Mapping[str, torch.Tensor] | None) -> State:
    """Undo `lm_to_hub`.

    Raises:
        ValueError: a name is not that of a MusicGen decoder's tensor, or one of q, k and v is missing.
    """
    hub_state = {**decoder, **{PROJECTION + name: value for name, value in (projection or {}).items()}}
    state: State = {}
    unknown = []
    for name, value in hub_state.items():
        attention = re.fullmatch(r"(.*)\.([qkv])_proj\.weight", name)
        if attention is not None and attention[2] != "q":
            # k and v are handled together with q; without q they are unknown.
            if f"{attention[1]}.q_proj.weight" not in hub_state:
                unknown.append(name)
            continue
        if attention is not None:
            parts = [f"{attention[1]}.{letter}_proj.weight" for letter in "qkv"]
            missing = [part for part in parts if part not in hub_state]
            if missing:
                raise ValueError(f"the decoder's state has {name} but not {', '.join(missing)}")
            name, value = f"{attention[1]}.qkv_proj.weight", torch.cat([hub_state[part] for part in parts])
        audiocraft_name = LM_KEYS.from_hub(name)
        if audiocraft_name is None:
            unknown.append(name)
        else:
            state[audiocraft_name] = value
    if unknown:
        raise ValueError(
            refusal("the decoder's state", [f"{name} is no tensor of a MusicGen decoder" for name in unknown])
        )
    return state


def codec_to_hub(state: Mapping[str, torch.Tensor]) -> State:
    """Rename an audiocraft EnCodec's tensors to the names of the hub's `EncodecModel`.

    Raises:
        ValueError: there are tensors that the hub's EnCodec has no place for; all are listed.
    """
    problems = codec_problems(state)
    if problems:
        raise ValueError(refusal("the codec", problems))
    return {_modern(_codec_name_to_hub(name) or name): value for name, value in state.items()}


def codec_from_hub(state: Mapping[str, torch.Tensor]) -> State:
    """Undo `codec_to_hub`; the `weight_g` and `weight_v` of older hub files are understood, too.

    Raises:
        ValueError: a name is not that of an EnCodec's tensor.
    """
    names = {name: _older(name) for name in state}
    direct = {_layer_of(name) for name in names.values() if re.match(r"decoder\.layers\.\d+\.conv\.", name)}
    # The first and last of the decoder's convolutions keep the rate; those between them raise it.
    upsampling = direct - {min(direct, default=None), max(direct, default=None)}
    renamed: State = {}
    unknown = []
    for name, value in state.items():
        older = names[name]
        raises_rate = older.startswith("decoder.") and _layer_of(older) in upsampling
        audiocraft_name = (UPSAMPLING_KEYS if raises_rate else CODEC_KEYS).from_hub(older)
        if audiocraft_name is None:
            unknown.append(name)
        else:
            renamed[audiocraft_name] = value
    if unknown:
        raise ValueError(refusal("the codec's state", [f"{name} is no tensor of an EnCodec" for name in unknown]))
    return renamed


def refusal(what: str, problems: Iterable[str]) -> str:
    """Return one message with all the problems that prevent a conversion."""
    return f"{what} cannot be converted: " + "; ".join(problems)


def plain_attention_names(state: Mapping[str, torch.Tensor]) -> State:
    """Rename attention to one form: models without memory-efficient attention have torch's own one level deeper."""
    return {name.replace(".mha.", "."): value for name, value in state.items()}


def _codec_name_to_hub(name: str) -> str | None:
    return CODEC_KEYS.to_hub(name) or UPSAMPLING_KEYS.to_hub(name)


def _modern(name: str) -> str:
    stem, _, last = name.rpartition(".")
    return f"{stem}.{_WEIGHT_NORM.get(last, last)}"


def _older(name: str) -> str:
    for older, newer in _WEIGHT_NORM.items():
        if name.endswith(f".{newer}"):
            return name.removesuffix(newer) + older
    return name


def _layer_of(name: str) -> int:
    match = re.match(r"\w+\.(?:layers|model)\.(\d+)\.", name)
    return int(match[1]) if match is not None else -1


# --- Settings ---------------------------------------------------------------------------------------------------------


class Settings:
    """Reads audiocraft's "xp.cfg" by dotted names, following `${...}` references.

    Args:
        content: the YAML text of an exported file, the OmegaConf object of an older one, or a dict.

    Raises:
        ValueError: the text is not YAML of names and values.
    """

    def __init__(self, content: str | DictConfig | Mapping[str, Any]) -> None:
        try:
            config: Any = OmegaConf.create(content)  # type: ignore[arg-type]
        except Exception as error:
            # YAML errors share no base class with OmegaConf's.
            raise ValueError(f"xp.cfg cannot be read as YAML: {str(error).splitlines()[0]}") from error
        if not isinstance(config, DictConfig):
            raise ValueError(f"xp.cfg holds a {type(config).__name__}, expected names and values")
        self._config = config

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of a dotted name; `default` if it is missing or null.

        Raises:
            ValueError: the value refers to something that is not there.
        """
        try:
            value = OmegaConf.select(self._config, name)
            if OmegaConf.is_config(value):
                value = OmegaConf.to_container(value, resolve=True)
        except OmegaConfBaseException as error:
            raise ValueError(f"xp.cfg: {name} cannot be read: {str(error).splitlines()[0]}") from error
        return default if value is None else value

    def names(self, section: str) -> list[str]:
        """Return the names in a section without reading their values, which may refer to what is not there."""
        value = OmegaConf.select(self._config, section)
        return [str(name) for name in value] if isinstance(value, DictConfig) else []


# A MusicGen of the hub always has these settings. A file that is read must agree where it states one; a file that is
# written states all of them.
_LM_MUST_BE: Mapping[str, Any] = {
    "lm_model": "transformer_lm",
    "transformer_lm.norm_first": True,
    "transformer_lm.norm": "layer_norm",
    "transformer_lm.bias_ff": False,
    "transformer_lm.bias_attn": False,
    "transformer_lm.bias_proj": False,
    "transformer_lm.past_context": None,
    "transformer_lm.causal": True,
    "transformer_lm.layer_scale": None,
    "transformer_lm.positional_embedding": "sin",
    "transformer_lm.qk_layer_norm": False,
    "transformer_lm.qk_layer_norm_cross": False,
    "transformer_lm.kv_repeat": 1,
    "codebooks_pattern.modeling": "delay",
    "codebooks_pattern.delay.flatten_first": 0,
    "codebooks_pattern.delay.empty_initial": 0,
    "fuser.cross_attention_pos_emb": False,
    "fuser.sum": [],
    "fuser.prepend": [],
    "fuser.cross": ["description"],
    "fuser.input_interpolate": [],
    "conditioners.description.model": "t5",
    "conditioners.description.t5.finetune": False,
    "conditioners.description.t5.normalize_text": False,
    "interleave_stereo_codebooks.per_timestep": False,
}
# These are checked, but not written, since not every version of audiocraft knows them.
_LM_MUST_ALSO_BE: Mapping[str, Any] = {"transformer_lm.max_period": 10_000, "transformer_lm.positional_scale": 1}
# These are written so that audiocraft builds the model; they do not change what it computes in inference.
_LM_ALSO_WRITTEN: Mapping[str, Any] = {
    "solver": "musicgen",
    "device": "cpu",
    "dtype": "float32",
    "transformer_lm.emb_lr": None,
    "transformer_lm.custom": False,
    "transformer_lm.memory_efficient": True,
    "transformer_lm.attention_as_float32": False,
    "transformer_lm.xpos": False,
    "transformer_lm.checkpointing": "none",
    "transformer_lm.weight_init": "gaussian",
    "transformer_lm.depthwise_init": "current",
    "transformer_lm.zero_bias_init": True,
    "transformer_lm.cross_attention": False,
    "transformer_lm.two_step_cfg": False,
    "fuser.cross_attention_pos_emb_scale": 1,
    "conditioners.description.t5.word_dropout": 0.3,
    "classifier_free_guidance.training_dropout": 0.3,
    "classifier_free_guidance.inference_coef": 3.0,
    "attribute_dropout": {},
    "tokens.padding_with_special_token": False,
}
_CODEC_MUST_BE: Mapping[str, Any] = {
    "compression_model": "encodec",
    "encodec.autoencoder": "seanet",
    "encodec.quantizer": "rvq",
    "seanet.activation": "ELU",
    "seanet.activation_params": {"alpha": 1.0},
    "seanet.norm_params": {},
    "seanet.disable_norm_outer_blocks": 0,
    "seanet.decoder.final_activation": None,
    "seanet.decoder.final_activation_params": None,
    "seanet.encoder": {},
}
_CODEC_ALSO_WRITTEN: Mapping[str, Any] = {
    "solver": "compression",
    "device": "cpu",
    "dtype": "float32",
    "rvq.q_dropout": False,
    "rvq.decay": 0.99,
    "rvq.kmeans_init": True,
    "rvq.kmeans_iters": 50,
    "rvq.threshold_ema_dead_code": 2,
    "rvq.orthogonal_reg_weight": 0.0,
    "rvq.orthogonal_reg_active_codes_only": False,
}


def _departures(settings: Settings, must_be: Mapping[str, Any]) -> list[str]:
    stated = {name: settings.get(name) for name in must_be}
    return [
        f"{name} is {stated[name]!r}, a model of the hub has {wanted!r}"
        for name, wanted in must_be.items()
        if stated[name] is not None and stated[name] != wanted
    ]


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = name.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = value
    return tree


# --- The language model's config --------------------------------------------------------------------------------------


def lm_problems(state: Mapping[str, torch.Tensor], settings: Settings | None = None) -> list[str]:
    """List everything about an audiocraft language model that the hub's MusicGen cannot represent."""
    problems = _unplaced_lm_tensors(state)
    if settings is None:
        return problems
    problems += _departures(settings, {**_LM_MUST_BE, **_LM_MUST_ALSO_BE})
    for name in settings.names("conditioners"):
        if name not in ("description", "args"):
            problems.append(f"it is conditioned on {name!r} besides the description{_MELODY_HINT.get(name, '')}")
    count = _count(state, "emb.")
    allowed = [_delays(count, 1)] + [_delays(count, 2)] * (count % 2 == 0)
    delays = settings.get("codebooks_pattern.delay.delays", allowed[0])
    if delays not in allowed:
        problems.append(
            f"codebooks_pattern.delay.delays is {delays}, a model of the hub with {count} codebooks has "
            + " (mono) or ".join(map(str, allowed))
            + (" (stereo)" if len(allowed) == 2 else "")
        )
    elif settings.get("interleave_stereo_codebooks.use", delays != allowed[0]) != (delays != allowed[0]):
        problems.append(
            f"interleave_stereo_codebooks.use is {settings.get('interleave_stereo_codebooks.use')}, which does not go "
            f"with the delays {delays}"
        )
    return problems


_MELODY_HINT = {"self_wav": " (a melody model; use a plain MusicGen)"}


def _unplaced_lm_tensors(state: Mapping[str, torch.Tensor]) -> list[str]:
    kinds: dict[str, list[str]] = {}
    for name in plain_attention_names(state):
        if LM_KEYS.to_hub(name) is not None:
            continue
        conditioner = re.match(r"condition_provider\.conditioners\.(\w+)\.(\w+)", name)
        if conditioner is not None and conditioner[1] != "description":
            hint = _MELODY_HINT.get(conditioner[1], "")
            kind = f"of the conditioner {conditioner[1]!r}{hint}"
        elif conditioner is not None and conditioner[2] == "t5":
            kind = "of a fine-tuned text encoder"
        elif name.endswith("bias"):
            kind = "biases, of which a MusicGen of the hub has none"
        else:
            kind = "that no part of a MusicGen stands for"
        kinds.setdefault(kind, []).append(name)
    return [
        f"it holds {len(names)} tensor{'s' * (len(names) > 1)} {kind} ({names[0]}{', ...' * (len(names) > 1)})"
        for kind, names in kinds.items()
    ]


def decoder_config_from(
    state: Mapping[str, torch.Tensor], settings: Settings | None = None, size: str | None = None
) -> MusicgenDecoderConfig:
    """Make the hub's config of an audiocraft language model.

    Widths and the numbers of layers, codebooks and codes come from the tensors; heads, stereo and dropout from the
    settings.

    Args:
        state: `LMModel.state_dict()`.
        settings: the file's settings, if it has any.
        size: `small`, `medium` or `large`, with `stereo-` before it for two channels; needed if there are no settings.

    Raises:
        ValueError: the hub's MusicGen cannot represent the model (all reasons are listed), tensors are missing, or
            neither settings nor size tell the number of heads.
    """
    problems = lm_problems(state, settings)
    if problems:
        raise ValueError(refusal("the language model", problems))
    try:
        rows, width = state["emb.0.weight"].shape
        ffn_dim = state["transformer.layers.0.linear1.weight"].shape[0]
    except KeyError as error:
        raise ValueError(
            f"the language model's state has no {error}; it is no state of an audiocraft LMModel"
        ) from error
    layers, codebooks = _count(state, "transformer.layers."), _count(state, "emb.")
    if settings is not None and settings.get("transformer_lm.num_heads") is not None:
        heads = settings.get("transformer_lm.num_heads")
        stereo = settings.get("codebooks_pattern.delay.delays", _delays(codebooks, 1)) != _delays(codebooks, 1)
    else:
        heads, stereo = _heads_of_size(size, width, layers)
    settings = settings if settings is not None else Settings({})
    dropout = settings.get("transformer_lm.dropout", 0.0)
    return MusicgenDecoderConfig(
        vocab_size=rows - 1,
        hidden_size=width,
        num_hidden_layers=layers,
        ffn_dim=ffn_dim,
        num_attention_heads=heads,
        num_codebooks=codebooks,
        audio_channels=2 if stereo else 1,
        activation_function=settings.get("transformer_lm.activation", "gelu"),
        # Audiocraft has one dropout rate for all three places, unless attention is given its own.
        dropout=dropout,
        activation_dropout=dropout,
        attention_dropout=settings.get("transformer_lm.attention_dropout", dropout),
        pad_token_id=rows - 1,
        bos_token_id=rows - 1,
    )


def _heads_of_size(size: str | None, width: int, layers: int) -> tuple[int, bool]:
    allowed = ", ".join(SIZES)
    if size is None:
        raise ValueError(
            "the file has no xp.cfg, and the number of attention heads cannot be told from the tensors; "
            f"give the model's size ({allowed}, with 'stereo-' before it for a stereo model)"
        )
    plain = size.removeprefix("stereo-")
    if plain not in SIZES:
        raise ValueError(f"size is {size!r}; allowed are {allowed}, each also with 'stereo-' before it")
    if (width, layers) != SIZES[plain][:2]:
        raise ValueError(
            f"the file holds a model of width {width} and {layers} layers, but size {size!r} has width "
            f"{SIZES[plain][0]} and {SIZES[plain][1]} layers"
        )
    return SIZES[plain][2], size != plain


def lm_settings_from(
    config: MusicgenDecoderConfig, *, text_encoder: str, sampling_rate: int, segment_duration: float = 30.0
) -> dict[str, Any]:
    """Make the "xp.cfg" from which audiocraft builds the same language model.

    Args:
        config: the decoder's config.
        text_encoder: the name by which audiocraft finds the text encoder, such as `t5-base`.
        sampling_rate: that of the codec, in Hz.
        segment_duration: the most seconds that audiocraft generates in one go.

    Returns:
        Settings by section. `activation_dropout` has no place in them: audiocraft uses `dropout` there too.

    Raises:
        ValueError: audiocraft cannot represent the config.
    """
    problems = []
    if config.activation_function not in ("gelu", "relu"):
        problems.append(f"activation_function is {config.activation_function!r}, audiocraft has 'gelu' and 'relu'")
    # A whole number is written as an int, as in audiocraft's own settings.
    scale: float = config.ffn_dim / config.hidden_size
    scale = int(scale) if scale.is_integer() else scale
    if int(scale * config.hidden_size) != config.ffn_dim:
        problems.append(f"ffn_dim {config.ffn_dim} is no multiple of hidden_size {config.hidden_size}")
    if problems:
        raise ValueError(refusal("the decoder", problems))
    stereo = config.audio_channels == 2
    # null says that attention has the common dropout rate, as in audiocraft's own settings.
    same_dropout = config.attention_dropout == config.dropout
    return _nested(
        {
            **_LM_ALSO_WRITTEN,
            **_LM_MUST_BE,
            "sample_rate": sampling_rate,
            "channels": config.audio_channels,
            "dataset.segment_duration": segment_duration,
            "interleave_stereo_codebooks.use": stereo,
            "transformer_lm.dim": config.hidden_size,
            "transformer_lm.num_heads": config.num_attention_heads,
            "transformer_lm.num_layers": config.num_hidden_layers,
            "transformer_lm.hidden_scale": scale,
            "transformer_lm.n_q": config.num_codebooks,
            "transformer_lm.card": config.vocab_size,
            "transformer_lm.dropout": config.dropout,
            "transformer_lm.attention_dropout": None if same_dropout else config.attention_dropout,
            "transformer_lm.activation": config.activation_function,
            "codebooks_pattern.delay.delays": _delays(config.num_codebooks, config.audio_channels),
            "conditioners.description.t5.name": text_encoder,
        }
    )


def text_encoder_name(config: T5Config) -> str:
    """Return the name by which audiocraft builds the T5 of a composite: the one in its config, or that of its shape.

    Raises:
        ValueError: audiocraft knows no such T5.
    """
    remembered = str(config.extra.get("_name_or_path", "")).removeprefix("google-t5/")
    if remembered in TEXT_ENCODERS:
        return remembered
    shape = (config.d_model, config.num_layers, config.is_gated_act)
    for name, known in TEXT_ENCODERS.items():
        if known == shape:
            return name
    raise ValueError(
        f"audiocraft's files do not hold the text encoder, only its name, one of {', '.join(TEXT_ENCODERS)}; a T5 of "
        f"width {config.d_model} and {config.num_layers} layers is none of them. Give the name it is to be known by"
    )


def _delays(codebooks: int, channels: int) -> list[int]:
    return [index // channels for index in range(codebooks)]


def _count(state: Mapping[str, torch.Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


# --- The codec's config -----------------------------------------------------------------------------------------------


def codec_problems(state: Mapping[str, torch.Tensor], settings: Settings | None = None) -> list[str]:
    """List everything about an audiocraft EnCodec that the hub's EnCodec cannot represent."""
    unknown = [name for name in state if _codec_name_to_hub(name) is None]
    problems = (
        [f"it holds {len(unknown)} tensors that no part of an EnCodec stands for ({unknown[0]})"] if unknown else []
    )
    if not any(".lstm." in name for name in state):
        problems.append("it has no LSTM, which every EnCodec of the hub has")
    if settings is None:
        return problems
    problems += _departures(settings, _CODEC_MUST_BE)
    norm = settings.get("seanet.norm", "weight_norm")
    if norm not in ("weight_norm", "time_group_norm"):
        problems.append(f"seanet.norm is {norm!r}, the hub's EnCodec has 'weight_norm' and 'time_group_norm'")
    overridden = set(settings.names("seanet.decoder")) - _DECODER_SETTINGS
    if overridden:
        problems.append(f"seanet.decoder sets {', '.join(sorted(overridden))} for one half of the codec only")
    return problems


_DECODER_SETTINGS = {"trim_right_ratio", "final_activation", "final_activation_params"}


def codec_config_from(state: Mapping[str, torch.Tensor], settings: Settings | None = None) -> EncodecConfig:
    """Make the hub's config of an audiocraft EnCodec.

    The whole shape comes from the tensors; sampling rate, causality, padding and such from the settings, and without
    them from facebook/encodec_32khz, MusicGen's codec.

    Args:
        state: `EncodecModel.state_dict()` of audiocraft.
        settings: the file's settings, if it has any.

    Raises:
        ValueError: the hub's EnCodec cannot represent the model (all reasons are listed), or tensors are missing.
    """
    problems = codec_problems(state, settings)
    if problems:
        raise ValueError(refusal("the codec", problems))
    stated = (settings if settings is not None else Settings({})).get
    try:
        values = _codec_shape(codec_to_hub(state))
    except (KeyError, ValueError) as error:
        raise ValueError(f"the codec's state lacks tensors of an audiocraft EncodecModel ({error})") from error
    sampling_rate = stated("encodec.sample_rate", stated("sample_rate", 32_000))
    codebooks = values.pop("codebooks")
    return EncodecConfig(
        **values,
        sampling_rate=sampling_rate,
        target_bandwidths=[_bandwidth(codebooks, values["codebook_size"], sampling_rate, values["upsampling_ratios"])],
        use_causal_conv=stated("seanet.causal", stated("encodec.causal", False)),
        normalize=stated("encodec.renormalize", False),
        pad_mode=stated("seanet.pad_mode", "reflect"),
        dilation_growth_rate=stated("seanet.dilation_base", 2),
        trim_right_ratio=stated("seanet.decoder.trim_right_ratio", stated("seanet.trim_right_ratio", 1.0)),
    )


def _codec_shape(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the part of an EnCodec's config that its tensors (hub names) tell, and the number of `codebooks`."""
    kernels = {
        re.sub(r"\.(weight|parametrizations\.weight\.original1)$", "", name): tuple(value.shape)
        for name, value in state.items()
        if re.search(r"\.conv\.(weight|parametrizations\.weight\.original1)$", name)
    }
    decoder = sorted((_layer_of(name), name) for name in kernels if re.fullmatch(r"decoder\.layers\.\d+\.conv", name))
    encoder = sorted((_layer_of(name), name) for name in kernels if re.fullmatch(r"encoder\.layers\.\d+\.conv", name))
    # Transposed convolutions are (in, out, kernel), and a kernel is twice as long as the ratio of its layer.
    ratios = [kernels[name][2] // 2 for _, name in decoder[1:-1]]
    filters, channels, kernel = kernels[encoder[0][1]]
    hidden, _, last_kernel = kernels[encoder[-1][1]]
    blocks = [name for name in kernels if re.fullmatch(r"encoder\.layers\.\d+\.block\.1\.conv", name)]
    compressed, full, residual_kernel = kernels[blocks[0]] if blocks else (1, 2, 3)
    layers_of_lstm = {name.rsplit("_l", 1)[1] for name in state if re.match(r"encoder\.layers\.\d+\.lstm\.", name)}
    return {
        "audio_channels": channels,
        "num_filters": filters,
        "kernel_size": kernel,
        "hidden_size": hidden,
        "codebook_dim": state["quantizer.layers.0.codebook.embed"].shape[1],
        "last_kernel_size": last_kernel,
        "upsampling_ratios": ratios,
        "num_residual_layers": len(blocks) // len(ratios),
        "residual_kernel_size": residual_kernel,
        "compress": full // compressed,
        "use_conv_shortcut": any(".shortcut." in name for name in kernels),
        "num_lstm_layers": len(layers_of_lstm),
        "norm_type": "weight_norm" if any("parametrizations" in name for name in state) else "time_group_norm",
        "codebook_size": state["quantizer.layers.0.codebook.embed"].shape[0],
        "codebooks": _count(state, "quantizer.layers."),
    }


def _bandwidth(codebooks: int, codebook_size: int, sampling_rate: int, ratios: list[int]) -> float:
    """Return the bit rate in kbit/s that is enough for exactly this many codebooks."""
    frame_rate, bits = math.ceil(sampling_rate / math.prod(ratios)), math.ceil(math.log2(codebook_size))
    bandwidth = codebooks * frame_rate * bits / 1000
    # The config divides again and rounds down, so the float must not lie below the true quotient.
    return bandwidth if 1000 * bandwidth >= codebooks * frame_rate * bits else math.nextafter(bandwidth, math.inf)


def codec_settings_from(config: EncodecConfig) -> dict[str, Any]:
    """Make the "xp.cfg" from which audiocraft builds the same EnCodec.

    Raises:
        ValueError: audiocraft cannot represent the config; all reasons are listed.
    """
    problems = []
    if config.chunk_length_s is not None:
        problems.append(f"it codes in chunks of {config.chunk_length_s} s, which audiocraft does not")
    if config.normalize and config.use_causal_conv:
        problems.append("it is causal and normalises loudness, of which audiocraft has only either")
    if config.norm_type == "time_group_norm" and config.use_causal_conv:
        problems.append("it is causal and has group norm, of which audiocraft has only either")
    if config.trim_right_ratio != 1.0 and not config.use_causal_conv:
        problems.append(f"trim_right_ratio is {config.trim_right_ratio}, which audiocraft allows causal codecs only")
    if problems:
        raise ValueError(refusal("the codec", problems))
    return _nested(
        {
            **_CODEC_ALSO_WRITTEN,
            **_CODEC_MUST_BE,
            "sample_rate": config.sampling_rate,
            "channels": config.audio_channels,
            "encodec.sample_rate": config.sampling_rate,
            "encodec.channels": config.audio_channels,
            "encodec.causal": config.use_causal_conv,
            "encodec.renormalize": config.normalize,
            "seanet.dimension": config.hidden_size,
            "seanet.channels": config.audio_channels,
            "seanet.causal": config.use_causal_conv,
            "seanet.n_filters": config.num_filters,
            "seanet.n_residual_layers": config.num_residual_layers,
            "seanet.ratios": config.upsampling_ratios,
            "seanet.norm": config.norm_type,
            "seanet.kernel_size": config.kernel_size,
            "seanet.residual_kernel_size": config.residual_kernel_size,
            "seanet.last_kernel_size": config.last_kernel_size,
            "seanet.dilation_base": config.dilation_growth_rate,
            "seanet.pad_mode": config.pad_mode,
            "seanet.true_skip": not config.use_conv_shortcut,
            "seanet.compress": config.compress,
            "seanet.lstm": config.num_lstm_layers,
            "seanet.decoder.trim_right_ratio": config.trim_right_ratio,
            "rvq.n_q": config.num_quantizers,
            "rvq.bins": config.codebook_size,
        }
    )
