"""Configs against transformers' own, on files of the hub as every age of transformers wrote them."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from musicgen_train.models.config import (
    CONFIG_CLASSES,
    AutoConfig,
    EncodecConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    PretrainedConfig,
    T5Config,
)

PARTS = ("text_encoder", "audio_encoder", "decoder")
CLASS_NAMES = ("T5Config", "EncodecConfig", "MusicgenDecoderConfig")

# What transformers 4.31 wrote into every part of a composite: all that its PretrainedConfig had, defaults included.
KEYS_OF_4_31: dict[str, Any] = {
    "_name_or_path": "",
    "add_cross_attention": False,
    "architectures": None,
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "bos_token_id": None,
    "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None,
    "decoder_start_token_id": None,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0,
    "eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "finetuning_task": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "is_decoder": False,
    "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "length_penalty": 1.0,
    "max_length": 20,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_scores": False,
    "pad_token_id": None,
    "prefix": None,
    "problem_type": None,
    "pruned_heads": {},
    "remove_invalid_values": False,
    "repetition_penalty": 1.0,
    "return_dict": True,
    "return_dict_in_generate": False,
    "sep_token_id": None,
    "suppress_tokens": None,
    "task_specific_params": None,
    "temperature": 1.0,
    "tf_legacy_loss": False,
    "tie_encoder_decoder": False,
    "tie_word_embeddings": True,
    "tokenizer_class": None,
    "top_k": 50,
    "top_p": 1.0,
    "torch_dtype": None,
    "torchscript": False,
    "transformers_version": "4.31.0.dev0",
    "typical_p": 1.0,
    "use_bfloat16": False,
}

# google-t5/t5-base, from the days of transformers 2: several of today's keys are absent.
T5_BASE: dict[str, Any] = {
    "architectures": ["T5ForConditionalGeneration"],
    "d_ff": 3072,
    "d_kv": 64,
    "d_model": 768,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "n_positions": 512,
    "num_heads": 12,
    "num_layers": 12,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_num_buckets": 32,
    "task_specific_params": {
        "summarization": {"early_stopping": True, "length_penalty": 2.0, "num_beams": 4, "prefix": "summarize: "}
    },
    "vocab_size": 32128,
}

FLAN_T5_BASE: dict[str, Any] = {
    **{key: value for key, value in T5_BASE.items() if key != "task_specific_params"},
    "d_ff": 2048,
    "feed_forward_proj": "gated-gelu",
    "num_decoder_layers": 12,
    "relative_attention_max_distance": 128,
    "tie_word_embeddings": False,
    "transformers_version": "4.23.1",
    "use_cache": True,
}

ENCODEC_24KHZ: dict[str, Any] = {
    "architectures": ["EncodecModel"],
    "audio_channels": 1,
    "chunk_length_s": None,
    "codebook_dim": 128,
    "codebook_size": 1024,
    "compress": 2,
    "dilation_growth_rate": 2,
    "hidden_size": 128,
    "kernel_size": 7,
    "last_kernel_size": 7,
    "model_type": "encodec",
    "norm_type": "weight_norm",
    "normalize": False,
    "num_filters": 32,
    "num_lstm_layers": 2,
    "num_residual_layers": 1,
    "overlap": None,
    "pad_mode": "reflect",
    "residual_kernel_size": 3,
    "sampling_rate": 24000,
    "target_bandwidths": [1.5, 3.0, 6.0, 12.0, 24.0],
    "torch_dtype": "float32",
    "transformers_version": "4.31.0.dev0",
    "trim_right_ratio": 1.0,
    "upsampling_ratios": [8, 5, 4, 2],
    "use_causal_conv": True,
}

ENCODEC_32KHZ: dict[str, Any] = {
    **ENCODEC_24KHZ,
    "codebook_size": 2048,
    "num_filters": 64,
    "sampling_rate": 32000,
    "target_bandwidths": [2.2],
    "upsampling_ratios": [8, 5, 4, 4],
    "use_causal_conv": False,
    "use_conv_shortcut": False,
}

ENCODEC_48KHZ: dict[str, Any] = {
    **ENCODEC_24KHZ,
    "audio_channels": 2,
    "chunk_length_s": 1.0,
    "norm_type": "time_group_norm",
    "normalize": True,
    "overlap": 0.01,
    "sampling_rate": 48000,
    "target_bandwidths": [3.0, 6.0, 12.0, 24.0],
    "use_causal_conv": False,
}

DECODER_SMALL: dict[str, Any] = {
    "activation_dropout": 0.0,
    "activation_function": "gelu",
    "attention_dropout": 0.0,
    "bos_token_id": 2048,
    "classifier_dropout": 0.0,
    "dropout": 0.1,
    "ffn_dim": 4096,
    "hidden_size": 1024,
    "initializer_factor": 0.02,
    "layerdrop": 0.0,
    "max_position_embeddings": 2048,
    "model_type": "musicgen_decoder",
    "num_attention_heads": 16,
    "num_codebooks": 4,
    "num_hidden_layers": 24,
    "pad_token_id": 2048,
    "scale_embedding": False,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 2048,
}

MUSICGEN_SMALL_4_31: dict[str, Any] = {
    "_name_or_path": "/fsx/someone/musicgen-small",
    "architectures": ["MusicgenForConditionalGeneration"],
    "audio_encoder": {**KEYS_OF_4_31, **ENCODEC_32KHZ, "_name_or_path": "facebook/encodec_32khz"},
    "decoder": {**KEYS_OF_4_31, **DECODER_SMALL},
    "is_encoder_decoder": True,
    "model_type": "musicgen",
    "text_encoder": {
        **KEYS_OF_4_31,
        **T5_BASE,
        "_name_or_path": "t5-base",
        "dense_act_fn": "relu",
        "feed_forward_proj": "relu",
        "is_gated_act": False,
        "num_decoder_layers": 12,
        "relative_attention_max_distance": 128,
        "use_cache": True,
    },
    "torch_dtype": "float32",
    "transformers_version": None,
}

# By 4.4x parts held only what differs from PretrainedConfig, and flags of the attention's choice.
MUSICGEN_STEREO_4_46: dict[str, Any] = {
    "_attn_implementation_autoset": True,
    "architectures": ["MusicgenForConditionalGeneration"],
    "audio_encoder": {**ENCODEC_32KHZ, "_attn_implementation_autoset": True, "_name_or_path": "facebook/encodec_32khz"},
    "decoder": {
        **DECODER_SMALL,
        "_attn_implementation_autoset": True,
        "audio_channels": 2,
        "ffn_dim": 6144,
        "hidden_size": 1536,
        "num_attention_heads": 24,
        "num_codebooks": 8,
        "num_hidden_layers": 48,
        "torch_dtype": "float16",
    },
    "initializer_factor": 0.02,
    "is_encoder_decoder": True,
    "model_type": "musicgen",
    "text_encoder": {**T5_BASE, "classifier_dropout": 0.0, "dense_act_fn": "relu", "is_gated_act": False},
    "torch_dtype": "float16",
    "transformers_version": "4.46.1",
}

FILES: dict[str, dict[str, Any]] = {
    "t5-base": T5_BASE,
    "flan-t5-base": FLAN_T5_BASE,
    "encodec_24khz": ENCODEC_24KHZ,
    "encodec_32khz": ENCODEC_32KHZ,
    "encodec_48khz": ENCODEC_48KHZ,
    "decoder of musicgen-small": DECODER_SMALL,
    "musicgen-small of 4.31": MUSICGEN_SMALL_4_31,
    "musicgen-stereo-medium of 4.46": MUSICGEN_STEREO_4_46,
}


def write_config(folder: Path, values: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def assert_same_values(ours: PretrainedConfig, reference: Any) -> None:
    """Every field of ours is the reference's; in a composite, those of the parts."""
    if isinstance(ours, MusicgenConfig):
        for part in PARTS:
            assert_same_values(getattr(ours, part), getattr(reference, part))
        assert ours.initializer_factor == reference.initializer_factor
        assert reference.is_encoder_decoder is ours.is_encoder_decoder is True
        return
    for name in ours.field_names():
        if name == "decoder_start_token_id":
            # Ours; the reference has none, or null, where the file does not give it.
            assert getattr(reference, name, None) in (None, ours.decoder_start_token_id)
            assert ours.decoder_start_token_id == ours.bos_token_id
        else:
            assert plain(getattr(reference, name)) == getattr(ours, name), name


@pytest.mark.parametrize("name", [*CLASS_NAMES, "MusicgenConfig"])
def test_defaults_are_the_references(name: str) -> None:
    reference, ours = getattr(transformers, name)(), CONFIG_CLASSES[getattr(transformers, name).model_type]()
    assert type(ours).__name__ == name
    assert_same_values(ours, reference)
    for derived in ("hop_length", "frame_rate", "codebook_nbits", "num_quantizers", "hidden_size", "sampling_rate"):
        if name != "MusicgenConfig" and hasattr(reference, derived):
            assert getattr(ours, derived) == getattr(reference, derived)


@pytest.mark.parametrize("values", FILES.values(), ids=FILES)
def test_files_of_every_age(values: dict[str, Any], tmp_path: Path) -> None:
    folder = write_config(tmp_path, values)
    reference, ours = transformers.AutoConfig.from_pretrained(folder), AutoConfig.from_pretrained(folder)
    assert_same_values(ours, reference)

    # What we write holds all that was there, with its values, and means the same to the reference.
    ours.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    for written, original in [(saved, values), *((saved[part], values[part]) for part in PARTS if part in values)]:
        for key, value in original.items():
            if isinstance(value, dict) and "model_type" in value:
                continue
            filled_in = key == "decoder_start_token_id" and original["model_type"] == "musicgen_decoder"
            assert written[key] == (original["bos_token_id"] if filled_in else value), key
    reread = transformers.AutoConfig.from_pretrained(tmp_path / "saved")
    assert type(reread) is type(reference)
    assert comparable(reread) == comparable(reference)
    assert AutoConfig.from_pretrained(tmp_path / "saved") == ours


def comparable(reference: Any) -> dict[str, Any]:
    """All of a reference config but where it was read, and the decoder's start id, which only we write."""
    values: dict[str, Any] = reference.to_dict()
    values.pop("_name_or_path")
    decoder = values if reference.model_type == "musicgen_decoder" else values.get("decoder", {})
    decoder.pop("decoder_start_token_id", None)
    return values


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("T5Config", {"d_model": 34, "num_layers": 3, "feed_forward_proj": "gated-silu", "dropout_rate": 0.25}),
        ("EncodecConfig", {"target_bandwidths": [16.0, 48.0], "upsampling_ratios": [5, 3], "normalize": True}),
        ("MusicgenDecoderConfig", {"hidden_size": 48, "num_attention_heads": 3, "layerdrop": 0.125}),
    ],
)
def test_files_of_the_present_reference(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    reference = getattr(transformers, name)(**changes)
    reference.dtype = torch.bfloat16
    reference.save_pretrained(tmp_path)
    ours = AutoConfig.from_pretrained(tmp_path)
    assert_same_values(ours, reference)
    assert ours.dtype == "bfloat16"
    assert ours.transformers_version == transformers.__version__
    ours.save_pretrained(tmp_path / "ours")
    reread = transformers.AutoConfig.from_pretrained(tmp_path / "ours")
    assert comparable(reread) == comparable(reference)
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] == reference.model_type
    # A dict of the reference's config, with all it holds, is taken by the strict constructor too.
    assert_same_values(type(ours)(**reference.to_dict()), reference)


def test_composite_of_the_present_reference(tmp_path: Path) -> None:
    reference = transformers.MusicgenConfig(
        text_encoder={"model_type": "t5", "d_model": 40, "num_layers": 3},
        audio_encoder={"model_type": "encodec", "num_filters": 6, "codebook_size": 50},
        decoder={"hidden_size": 44, "num_attention_heads": 11, "num_hidden_layers": 5},
        initializer_factor=0.03,
    )
    reference.save_pretrained(tmp_path)
    ours = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(ours, MusicgenConfig)
    assert_same_values(ours, reference)
    assert (ours.text_encoder.d_model, ours.audio_encoder.num_filters, ours.decoder.hidden_size) == (40, 6, 44)
    assert_same_values(MusicgenConfig(**reference.to_dict()), reference)
    for part, config_class in zip(PARTS, (T5Config, EncodecConfig, MusicgenDecoderConfig), strict=True):
        assert config_class.from_pretrained(tmp_path) == getattr(ours, part)


def test_the_reference_reads_the_start_id_that_it_lacks_by_itself(tmp_path: Path) -> None:
    # Its composite's forward(labels=) raises on a config without it; ours always writes it.
    assert not hasattr(transformers.MusicgenConfig().decoder, "decoder_start_token_id")
    MusicgenConfig().save_pretrained(tmp_path)
    reread = transformers.AutoConfig.from_pretrained(tmp_path)
    assert reread.decoder.decoder_start_token_id == 2048
    reread.save_pretrained(tmp_path / "again")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "again").decoder.decoder_start_token_id == 2048


@pytest.mark.parametrize(
    ("values", "frame_rate", "num_quantizers", "chunk_length", "chunk_stride"),
    [(ENCODEC_24KHZ, 75, 32, None, None), (ENCODEC_32KHZ, 50, 4, None, None), (ENCODEC_48KHZ, 150, 16, 48000, 47520)],
)
def test_derived_sizes_of_published_codecs(
    values: dict[str, Any], frame_rate: int, num_quantizers: int, chunk_length: int | None, chunk_stride: int | None
) -> None:
    config, reference = EncodecConfig.from_dict(values), transformers.EncodecConfig(**values)
    derived = (config.frame_rate, config.num_quantizers, config.chunk_length, config.chunk_stride)
    assert derived == (frame_rate, num_quantizers, chunk_length, chunk_stride)
    assert derived == (
        reference.frame_rate,
        reference.num_quantizers,
        reference.chunk_length,
        reference.chunk_stride,
    )
    assert (config.hop_length, config.codebook_nbits) == (reference.hop_length, reference.codebook_nbits)


@pytest.mark.parametrize("projection", ["relu", "gelu", "gated-gelu", "gated-silu", "gated-relu"])
def test_feed_forward_of_t5(projection: str) -> None:
    ours, reference = T5Config(feed_forward_proj=projection), transformers.T5Config(feed_forward_proj=projection)
    assert (ours.dense_act_fn, ours.is_gated_act) == (reference.dense_act_fn, reference.is_gated_act)
    ours.update(feed_forward_proj="gated-gelu")
    assert (ours.to_dict()["dense_act_fn"], ours.to_dict()["is_gated_act"]) == ("gelu_new", True)


def test_t5_takes_the_names_other_models_use() -> None:
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 5, "head_dim": 7}
    config = T5Config(**sizes)
    assert_same_values(config, transformers.T5Config(**sizes))  # type: ignore[arg-type]
    assert (config.d_model, config.num_layers, config.num_heads, config.d_kv) == (24, 3, 5, 7)
    for number, name in enumerate(sizes, start=31):
        setattr(config, name, number)
        assert getattr(config, name) == number
        assert name not in config.to_dict()
    config.update(hidden_size=35)
    assert (config.d_model, config.num_layers, config.num_heads, config.d_kv) == (35, 32, 33, 34)


def test_extra_keys_are_kept_read_and_assigned() -> None:
    config = T5Config.from_dict({**T5_BASE, "num_decoder_layers": 11, "a_key_of_2031": {"nested": [1, 2]}})
    assert (config.num_decoder_layers, config.n_positions) == (11, 512)
    assert config.a_key_of_2031 == {"nested": [1, 2]}
    config.a_key_of_2031["nested"].append(3)
    config.num_decoder_layers = 13
    config.update(a_key_of_2031="changed")
    assert {"num_decoder_layers": 13, "a_key_of_2031": "changed"}.items() <= config.to_dict().items()
    assert T5_BASE["task_specific_params"] is not config.task_specific_params


def test_to_dict_is_a_deep_copy() -> None:
    config = MusicgenConfig.from_dict(MUSICGEN_SMALL_4_31)
    config.to_dict()["audio_encoder"]["upsampling_ratios"].append(9)
    config.to_dict()["text_encoder"]["task_specific_params"].clear()
    assert config.audio_encoder.upsampling_ratios == [8, 5, 4, 4]
    assert "summarization" in config.text_encoder.task_specific_params
    assert MUSICGEN_SMALL_4_31["audio_encoder"]["upsampling_ratios"] == [8, 5, 4, 4]


@pytest.mark.parametrize("values", FILES.values(), ids=FILES)
def test_copies_and_pickles_are_equal_and_apart(values: dict[str, Any]) -> None:
    config = CONFIG_CLASSES[values["model_type"]].from_dict(values)
    for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config)), copy.copy(config)):
        assert twin == config
        assert repr(twin) == repr(config)
    twin = copy.deepcopy(config)
    twin.update(initializer_factor=0.5) if "initializer_factor" in config else twin.update(num_filters=9)
    twin.extra["architectures"] = ["Another"]
    assert twin != config
    assert config.extra.get("architectures") != ["Another"]


def test_a_file_cannot_define_protocols_or_methods(tmp_path: Path) -> None:
    hostile = {**ENCODEC_32KHZ, "__deepcopy__": "x", "__setstate__": 1, "to_dict": "x", "extra": {"y": 2}}
    config = EncodecConfig.from_pretrained(write_config(tmp_path, hostile))
    assert copy.deepcopy(config) == config
    assert pickle.loads(pickle.dumps(config)).extra["extra"] == {"y": 2}
    assert {"__deepcopy__": "x", "to_dict": "x", "extra": {"y": 2}}.items() <= config.to_dict().items()


def test_a_config_is_a_mapping() -> None:
    config = MusicgenConfig.from_dict(MUSICGEN_STEREO_4_46).decoder

    def names_and_values(**values: Any) -> dict[str, Any]:
        return values

    assert names_and_values(**config) == dict(config) == config.to_dict()
    assert set(config) == set(config.keys()) == set(config.to_dict())
    assert config["num_codebooks"] == 8
    assert "classifier_dropout" in config
    assert "no_such_key" not in config
    # The seed's own use: a config's values as arguments of another.
    assert MusicgenDecoderConfig(**config) == config
    whole = MusicgenConfig.from_dict(MUSICGEN_SMALL_4_31)
    assert MusicgenConfig(**whole) == whole


def test_torch_dtypes_are_written_by_name(tmp_path: Path) -> None:
    MusicgenDecoderConfig(dtype=torch.float16, torch_dtype=torch.float16).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert (saved["dtype"], saved["torch_dtype"]) == ("float16", "float16")
    assert transformers.AutoConfig.from_pretrained(tmp_path).dtype == torch.float16


def test_composite_from_parts_shares_them() -> None:
    text, audio, decoder = T5Config(d_model=24), EncodecConfig(num_filters=6), MusicgenDecoderConfig(ffn_dim=10)
    config = MusicgenConfig.from_sub_models_config(text, audio, decoder, initializer_factor=0.5)
    assert config.text_encoder is text
    assert config.audio_encoder is audio
    assert config.decoder is decoder
    assert (config.initializer_factor, config.sampling_rate, config.hidden_size) == (0.5, 24000, 1024)


def test_composite_from_dicts_and_defaults() -> None:
    config = MusicgenConfig(text_encoder={"d_model": 24, "num_heads": 3}, decoder={**DECODER_SMALL, "ffn_dim": 10})
    assert (config.text_encoder.d_model, config.text_encoder.num_heads, config.text_encoder.d_ff) == (24, 3, 2048)
    assert config.audio_encoder == EncodecConfig()
    assert config.decoder.ffn_dim == 10
    assert MusicgenConfig(text_encoder=None) == MusicgenConfig.from_dict({"decoder": None}) == MusicgenConfig()
    assert MusicgenConfig().text_encoder is not MusicgenConfig().text_encoder


def test_update_of_a_part_changes_only_what_it_names(tmp_path: Path) -> None:
    config = MusicgenConfig(decoder={"num_hidden_layers": 3})
    decoder = config.decoder
    config.update(decoder={"dropout": 0.5}, text_encoder=T5Config(d_model=24))
    assert config.decoder is decoder
    assert (decoder.dropout, decoder.num_hidden_layers, config.text_encoder.d_model) == (0.5, 3, 24)
    config.save_pretrained(tmp_path)
    reread = MusicgenConfig.from_pretrained(tmp_path, decoder={"ffn_dim": 12}, initializer_factor=0.75)
    assert (reread.decoder.ffn_dim, reread.decoder.num_hidden_layers, reread.initializer_factor) == (12, 3, 0.75)


def test_a_refused_update_changes_nothing() -> None:
    config = MusicgenConfig()
    before = config.to_dict()
    with pytest.raises(ValueError, match=r"EncodecConfig.num_filters is -1"):
        config.update(initializer_factor=0.5, decoder={"dropout": 0.5}, audio_encoder={"num_filters": -1})
    assert config.to_dict() == before
    with pytest.raises(ValueError, match=r"MusicgenConfig.initializer_factor is -0.5"):
        config.update(decoder={"dropout": 0.5}, initializer_factor=-0.5)
    assert config.to_dict() == before


def test_fields_that_depend_on_each_other_may_be_assigned_one_by_one(tmp_path: Path) -> None:
    config = MusicgenDecoderConfig()
    config.vocab_size = 64
    with pytest.raises(ValueError, match=r"pad_token_id is 2048; allowed: vocab_size \(64\)"):
        config.save_pretrained(tmp_path)
    config.pad_token_id = config.bos_token_id = config.decoder_start_token_id = 64
    config.save_pretrained(tmp_path)
    assert MusicgenDecoderConfig.from_pretrained(tmp_path).vocab_size == 64


def test_a_part_is_checked_with_its_composite(tmp_path: Path) -> None:
    config = MusicgenConfig()
    config.decoder.num_codebooks = 0
    with pytest.raises(ValueError, match=r"MusicgenDecoderConfig.num_codebooks is 0; allowed: a number above 0"):
        config.save_pretrained(tmp_path)


def test_assigning_a_misspelt_name_is_refused() -> None:
    config = MusicgenDecoderConfig()
    with pytest.raises(AttributeError, match="has no 'droput'; did you mean 'dropout'"):
        config.droput = 0.5
    with pytest.raises(AttributeError, match="hop_length"):
        EncodecConfig().hop_length = 5  # type: ignore[misc]
    with pytest.raises(AttributeError, match="MusicgenDecoderConfig has no 'd_model'"):
        _ = config.d_model


BAD_VALUES: list[tuple[type[PretrainedConfig], dict[str, Any], str]] = [
    (T5Config, {"d_model": "768"}, r"T5Config.d_model is '768', a str; expected int"),
    (T5Config, {"num_layers": 6.0}, r"num_layers is 6.0, a float; expected int"),
    (T5Config, {"num_layers": True}, r"num_layers is True, a bool; expected int"),
    (T5Config, {"dropout_rate": "0.1"}, r"dropout_rate is '0.1', a str; expected float"),
    (T5Config, {"vocab_size": 0}, r"vocab_size is 0; allowed: a number above 0"),
    (T5Config, {"d_kv": -1}, r"d_kv is -1; allowed: a number above 0"),
    (T5Config, {"dropout_rate": 1.5}, r"dropout_rate is 1.5; allowed: a number from 0 to 1"),
    (T5Config, {"layer_norm_epsilon": 0}, r"layer_norm_epsilon is 0; allowed: a number above 0"),
    (T5Config, {"feed_forward_proj": "gated-swiglu"}, r"feed_forward_proj is 'gated-swiglu'; allowed: gelu, .*gated-"),
    (T5Config, {"relative_attention_num_buckets": 2}, r"relative_attention_num_buckets is 2; allowed: 4 or more"),
    (T5Config, {"relative_attention_max_distance": 8}, r"max_distance is 8; allowed: more than a quarter"),
    (EncodecConfig, {"sampling_rate": 0}, r"sampling_rate is 0; allowed: a number above 0"),
    (EncodecConfig, {"kernel_size": 0}, r"kernel_size is 0; allowed: a number above 0"),
    (EncodecConfig, {"num_lstm_layers": -1}, r"num_lstm_layers is -1; allowed: a whole number from 0"),
    (EncodecConfig, {"audio_channels": 3}, r"audio_channels is 3; allowed: 1 \(mono\) or 2 \(stereo\)"),
    (EncodecConfig, {"norm_type": "layer_norm"}, r"norm_type is 'layer_norm'; allowed: 'weight_norm', 'time_group"),
    (EncodecConfig, {"pad_mode": "zeros"}, r"pad_mode is 'zeros'; allowed: 'reflect', 'constant'"),
    (EncodecConfig, {"normalize": "no"}, r"normalize is 'no', a str; expected bool"),
    (EncodecConfig, {"trim_right_ratio": 2}, r"trim_right_ratio is 2; allowed: a number from 0 to 1"),
    (EncodecConfig, {"chunk_length_s": 0}, r"chunk_length_s is 0; allowed: None or above 0 s"),
    (EncodecConfig, {"overlap": 1.0}, r"overlap is 1.0; allowed: None or a share of a chunk from 0, below 1"),
    (EncodecConfig, {"upsampling_ratios": []}, r"upsampling_ratios is \[\]; allowed: one whole number above 0 or more"),
    (EncodecConfig, {"upsampling_ratios": [4, 0]}, r"upsampling_ratios is \[4, 0\]; allowed: one whole number above 0"),
    (EncodecConfig, {"upsampling_ratios": [2.5]}, r"upsampling_ratios is \[2.5\], a list; expected list\[int\]"),
    (EncodecConfig, {"upsampling_ratios": "8542"}, r"upsampling_ratios is '8542', a str; expected list\[int\]"),
    (EncodecConfig, {"codebook_size": 1}, r"codebook_size is 1; allowed: 2 or more"),
    (EncodecConfig, {"codebook_dim": 64}, r"codebook_dim is 64; allowed: None or hidden_size \(128\)"),
    (EncodecConfig, {"codebook_dim": 6.5}, r"codebook_dim is 6.5, a float; expected int \| None"),
    (EncodecConfig, {"target_bandwidths": []}, r"target_bandwidths is \[\]; allowed: one bit rate in kbit/s or more"),
    (EncodecConfig, {"target_bandwidths": [6.0, 3.0]}, r"target_bandwidths is \[6.0, 3.0\]; allowed: .*rising"),
    (EncodecConfig, {"target_bandwidths": [0.1]}, r"target_bandwidths is \[0.1\]; allowed: a last bit rate that pays"),
    (MusicgenDecoderConfig, {"ffn_dim": 0}, r"ffn_dim is 0; allowed: a number above 0"),
    (MusicgenDecoderConfig, {"layerdrop": -0.1}, r"layerdrop is -0.1; allowed: a number from 0 to 1"),
    (MusicgenDecoderConfig, {"audio_channels": 0}, r"audio_channels is 0; allowed: 1 \(mono\) or 2 \(stereo\)"),
    (MusicgenDecoderConfig, {"num_codebooks": 3, "audio_channels": 2}, r"num_codebooks is 3; allowed: an even number"),
    (MusicgenDecoderConfig, {"num_attention_heads": 7}, r"hidden_size is 1024; allowed: a multiple of .* \(7\)"),
    (MusicgenDecoderConfig, {"hidden_size": 2, "num_attention_heads": 2}, r"hidden_size is 2; allowed: 4 or more"),
    (MusicgenDecoderConfig, {"activation_function": "mish"}, r"activation_function is 'mish'; allowed: gelu, gelu_new"),
    (MusicgenDecoderConfig, {"cross_attention_hidden_size": 768}, r"allowed: None or hidden_size \(1024\)"),
    (MusicgenDecoderConfig, {"tie_word_embeddings": True}, r"tie_word_embeddings is True; allowed: False"),
    (MusicgenDecoderConfig, {"pad_token_id": 0}, r"pad_token_id is 0; allowed: vocab_size \(2048\)"),
    (MusicgenDecoderConfig, {"bos_token_id": 1}, r"id is 1; allowed: vocab_size \(2048\)"),
    (MusicgenDecoderConfig, {"decoder_start_token_id": 7}, r"decoder_start_token_id is 7; allowed: vocab_size"),
    (MusicgenConfig, {"initializer_factor": 0.0}, r"MusicgenConfig.initializer_factor is 0.0; allowed: a number above"),
    (MusicgenConfig, {"decoder": {"audio_channels": 5}}, r"MusicgenDecoderConfig.audio_channels is 5"),
    (MusicgenConfig, {"decoder": "small"}, r"decoder is a builtins.str; expected a MusicgenDecoderConfig or a dict"),
    (MusicgenConfig, {"decoder": T5Config()}, r"model_type is 't5'; expected 'musicgen_decoder'"),
    (MusicgenConfig, {"text_encoder": {"model_type": "bert"}}, r"model_type is 'bert'; expected 't5'"),
]


@pytest.mark.parametrize(("config_class", "values", "message"), BAD_VALUES)
def test_values_that_are_not_allowed(
    config_class: type[PretrainedConfig], values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        config_class(**values)
    with pytest.raises(ValueError, match=message):
        config_class().update(**values)
    if not any(isinstance(value, PretrainedConfig) for value in values.values()):
        write_config(tmp_path, values)
        with pytest.raises(ValueError, match=f"config.json: .*{message}"):
            config_class.from_pretrained(tmp_path)


def test_a_config_object_of_the_reference_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"transformers\..*T5Config; expected a T5Config or a dict .* its to_dict\(\)"):
        MusicgenConfig(text_encoder=transformers.T5Config())


@pytest.mark.parametrize(
    ("config_class", "name", "nearest"),
    [
        (T5Config, "dropout", "dropout_rate"),
        (EncodecConfig, "sample_rate", "sampling_rate"),
        (MusicgenDecoderConfig, "n_codebooks", "num_codebooks"),
        (MusicgenConfig, "text_encoder_config", "text_encoder"),
    ],
)
def test_misspelt_names(config_class: type[PretrainedConfig], name: str, nearest: str, tmp_path: Path) -> None:
    message = f"{config_class.__name__} has no '{name}'; did you mean '{nearest}'. It has: .*{nearest}"
    with pytest.raises(ValueError, match=message):
        config_class(**{name: 1})
    config_class().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        config_class.from_pretrained(tmp_path, **{name: 1})  # type: ignore[arg-type]
    assert config_class.from_dict({name: 1}).extra == {name: 1}


def test_misspelt_names_within_a_part() -> None:
    with pytest.raises(ValueError, match="MusicgenDecoderConfig has no 'hiden_size'; did you mean 'hidden_size'"):
        MusicgenConfig(decoder={"hiden_size": 8})
    with pytest.raises(ValueError, match=r"EncodecConfig has no 'zzz', 'yyy'. It has: target_bandwidths"):
        EncodecConfig(zzz=1, yyy=2)


@pytest.mark.parametrize("model_type", ["musicgen_melody", "musicgen_melody_decoder"])
def test_melody_is_refused_with_a_pointer(model_type: str, tmp_path: Path) -> None:
    write_config(tmp_path, {**MUSICGEN_SMALL_4_31, "model_type": model_type})
    message = f"config.json: model_type is '{model_type}'; expected .*not supported here: use a plain MusicGen"
    with pytest.raises(ValueError, match=message):
        AutoConfig.from_pretrained(tmp_path)
    for config_class in CONFIG_CLASSES.values():
        with pytest.raises(ValueError, match=message):
            config_class.from_pretrained(tmp_path)


def test_folders_of_other_models(tmp_path: Path) -> None:
    write_config(tmp_path, {"model_type": "bert"})
    with pytest.raises(ValueError, match="'bert'; expected 'musicgen' or 'musicgen_decoder' or 't5' or 'encodec'"):
        AutoConfig.from_pretrained(tmp_path)
    write_config(tmp_path, T5_BASE)
    with pytest.raises(ValueError, match=r"config.json: model_type is 't5'; expected 'encodec'"):
        EncodecConfig.from_pretrained(tmp_path)
    write_config(tmp_path, {"model_type": "musicgen", "text_encoder": "t5-base"})
    with pytest.raises(ValueError, match=r"config.json: the composite's config has no 'text_encoder'"):
        T5Config.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"config.json: text_encoder is a builtins.str"):
        MusicgenConfig.from_pretrained(tmp_path)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no config.json \(the file that T5Config .* folder is empty"):
        T5Config.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "t5"')
    with pytest.raises(ValueError, match=r"config.json is not valid JSON"):
        AutoConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config.json holds a list, expected a JSON object"):
        AutoConfig.from_pretrained(tmp_path)


def test_subfolder_and_overrides(tmp_path: Path) -> None:
    T5Config(d_model=24).save_pretrained(tmp_path / "inner")
    config = AutoConfig.from_pretrained(tmp_path, subfolder="inner", dropout_rate=0.0, use_cache=False)
    assert (config.d_model, config.dropout_rate, config.use_cache) == (24, 0.0, False)
