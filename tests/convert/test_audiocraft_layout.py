"""Names, layouts and settings: against audiocraft's own key lists, weights and outputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_audiocraft import FIXTURES, build_reference, codec_state_by_hand, lm_state_by_hand, oracle, settings_by_hand

from musicgen_train.convert.audiocraft import (
    Settings,
    codec_config_from,
    codec_from_hub,
    codec_settings_from,
    codec_to_hub,
    decoder_config_from,
    lm_from_hub,
    lm_settings_from,
    lm_to_hub,
    text_encoder_name,
)
from musicgen_train.models.causal_lm import MusicgenForCausalLM
from musicgen_train.models.codec.encodec import EncodecModel
from musicgen_train.models.config import EncodecConfig, MusicgenDecoderConfig, T5Config

KEY_MAP = json.loads((Path(__file__).parents[1] / "assets" / "audiocraft_key_map.json").read_text())
LM_FIXTURES = ("lm_mono_A", "lm_stereo_A")
PROJECTION = "enc_to_dec_proj."


def lm_rows(name: str) -> list[tuple[str, list[int], list[tuple[str, list[int]]]]]:
    """Every (audiocraft name, shape, hub names and shapes) of a published model."""
    rows = []
    for audiocraft, shape, hub in KEY_MAP[name]["rows"]:
        for layer in range(KEY_MAP[name]["layers"]) if "{layer}" in audiocraft else [0]:
            numbered = [(key.replace("{layer}", str(layer)), hub_shape) for key, hub_shape in hub]
            rows.append((audiocraft.replace("{layer}", str(layer)), shape, numbered))
    return rows


def meta(shape: list[int]) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def shapes(state: dict[str, torch.Tensor]) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in state.items()}


def joined(decoder: dict[str, torch.Tensor], projection: dict[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
    """As in a composite's file."""
    return {
        **{f"decoder.{name}": value for name, value in decoder.items()},
        **{PROJECTION + name: value for name, value in (projection or {}).items()},
    }


def assert_identical(ours: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == reference.keys()
    for name, value in reference.items():
        assert ours[name].dtype == value.dtype, name
        assert torch.equal(ours[name], value), name


@pytest.mark.parametrize(("name", "keys"), [("musicgen-small", 300), ("musicgen-stereo-small", 308)])
def test_every_published_key_of_the_language_model(name: str, keys: int) -> None:
    rows = lm_rows(name)
    assert len(rows) == keys
    audiocraft = {key: meta(shape) for key, shape, _ in rows}
    hub = {key: shape for _, _, parts in rows for key, shape in parts}

    decoder, projection = lm_to_hub(audiocraft)

    assert shapes(joined(decoder, projection)) == hub
    assert shapes(lm_from_hub(decoder, projection)) == shapes(audiocraft)


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="the optional reference tensors are not here")
@pytest.mark.parametrize("name", ["musicgen-small", "musicgen-stereo-small"])
def test_the_compact_key_map_says_the_same_as_the_full_one(name: str) -> None:
    full = json.loads((FIXTURES / "key_map.json").read_text())[name]["keys"]
    expected = {row["audiocraft"]: [(part["key"], part["shape"]) for part in row["hf"]] for row in full}
    assert {key: parts for key, _, parts in lm_rows(name)} == expected


def test_every_published_key_of_the_codec() -> None:
    rows = KEY_MAP["encodec_32khz"]
    assert len(rows) == 116
    audiocraft = {key: meta(shape) for key, shape, _, _ in rows}

    hub = codec_to_hub(audiocraft)

    assert shapes(hub) == {key: shape for _, shape, key, _ in rows}
    assert shapes(codec_from_hub(hub)) == shapes(audiocraft)


def test_the_older_spelling_of_weight_norm_in_hub_files() -> None:
    rows = KEY_MAP["encodec_32khz"]
    older = {legacy or key: meta(shape) for _, shape, key, legacy in rows}
    assert sum(name.endswith("weight_g") for name in older) == 28
    assert shapes(codec_from_hub(older)) == {key: shape for key, shape, _, _ in rows}


@pytest.mark.parametrize("name", ["musicgen-small", "musicgen-stereo-small"])
def test_published_shapes_give_the_published_config(name: str) -> None:
    state = {key: meta(shape) for key, shape, _ in lm_rows(name)}
    size = name.removeprefix("musicgen-")
    config = decoder_config_from(state, size=size)
    # The class's defaults are musicgen-small's.
    stereo = {"num_codebooks": 8, "audio_channels": 2} if size.startswith("stereo") else {}
    assert config == MusicgenDecoderConfig(dropout=0.0, **stereo)


def test_published_shapes_give_the_published_codec_config() -> None:
    config = codec_config_from({key: meta(shape) for key, shape, _, _ in KEY_MAP["encodec_32khz"]})
    assert config == EncodecConfig(
        target_bandwidths=[2.2],
        sampling_rate=32_000,
        num_filters=64,
        upsampling_ratios=[8, 5, 4, 4],
        codebook_size=2048,
        use_causal_conv=False,
        use_conv_shortcut=False,
    )


@pytest.mark.parametrize("name", [*LM_FIXTURES, "lm_generate_A"])
def test_audiocraft_weights_survive_there_and_back(name: str, audiocraft_fixture: Callable[..., Any]) -> None:
    state, _, _ = audiocraft_fixture(name)
    decoder, projection = lm_to_hub(state)
    assert_identical(lm_from_hub(decoder, projection), state)
    again, projection_again = lm_to_hub(lm_from_hub(decoder, projection))
    assert_identical(joined(again, projection_again), joined(decoder, projection))


def test_codec_weights_survive_there_and_back(audiocraft_fixture: Callable[..., Any]) -> None:
    state, _, _ = audiocraft_fixture("encodec_A")
    assert_identical(codec_from_hub(codec_to_hub(state)), state)


@pytest.mark.parametrize("stereo", [False, True])
def test_language_model_against_renaming_by_hand(stereo: bool) -> None:
    model = build_reference(stereo)
    hub = {name: value for name, value in model.state_dict().items() if name.startswith(("decoder.", PROJECTION))}
    by_hand = lm_state_by_hand(model)

    decoder, projection = lm_to_hub(by_hand)

    assert_identical(joined(decoder, projection), hub)
    assert_identical(lm_from_hub(decoder, projection), by_hand)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_residual_layers": 3, "upsampling_ratios": [5, 3, 2]},
        {"use_conv_shortcut": True, "use_causal_conv": True, "audio_channels": 2},
        {"norm_type": "time_group_norm", "num_lstm_layers": 1, "use_causal_conv": False, "normalize": True},
    ],
    ids=["plain", "deep", "shortcut", "group_norm"],
)
def test_codec_against_renaming_by_hand(options: dict[str, Any]) -> None:
    values: dict[str, Any] = {
        "upsampling_ratios": [4, 2],
        "hidden_size": 11,
        "num_filters": 3,
        "codebook_size": 16,
        "compress": 3,
    }
    values |= {"target_bandwidths": [1.6], "sampling_rate": 800, "kernel_size": 5, **options}
    torch.manual_seed(3)
    model = oracle.EncodecModel(oracle.EncodecConfig(codebook_dim=11, **values))
    by_hand = codec_state_by_hand(model)

    hub = codec_to_hub(by_hand)

    assert_identical(hub, model.state_dict())
    assert_identical(codec_from_hub(hub), by_hand)
    config = EncodecConfig.from_dict(model.config.to_dict())
    config.update(chunk_length_s=None, overlap=None)
    derived = codec_config_from(by_hand, Settings(codec_settings_from(config)))
    fields = set(config.field_names()) - {"target_bandwidths", "pad_mode"}
    assert {name: getattr(derived, name) for name in fields} == {name: getattr(config, name) for name in fields}
    assert derived.num_quantizers == config.num_quantizers


def test_attention_of_models_without_memory_efficient_attention() -> None:
    state = lm_state_by_hand(build_reference())
    deeper = {
        name.replace("in_proj", "mha.in_proj").replace("attn.out_proj", "attn.mha.out_proj"): value
        for name, value in state.items()
    }
    assert any(".mha." in name for name in deeper)
    assert_identical(joined(*lm_to_hub(deeper)), joined(*lm_to_hub(state)))


def cross_attention_inputs(tensors: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    # audiocraft attends to all positions; those beyond a text are zero.
    states = tensors["cond.embeds"]
    return states, torch.ones(states.shape[:2], dtype=torch.long)


@pytest.mark.parametrize("name", LM_FIXTURES)
@pytest.mark.parametrize("ours", [False, True], ids=["transformers", "musicgen_train"])
def test_converted_weights_give_the_logits_of_audiocraft(
    name: str, ours: bool, audiocraft_fixture: Callable[..., Any]
) -> None:
    state, tensors, description = audiocraft_fixture(name)
    config = decoder_config_from(state, Settings(description["config"]))
    decoder_state, projection = lm_to_hub(state)
    assert projection is not None
    if ours:
        model: Any = MusicgenForCausalLM(config).eval()
    else:
        model = oracle.MusicgenForCausalLM(oracle.MusicgenDecoderConfig(**config.to_dict())).eval()
    model.load_state_dict(decoder_state, strict=True)
    codes_BKS = tensors["seq.codes"]
    B, K, S = codes_BKS.shape
    states, mask = cross_attention_inputs(tensors)

    with torch.no_grad():
        logits = model(
            input_ids=codes_BKS.reshape(B * K, S), encoder_hidden_states=states, encoder_attention_mask=mask
        ).logits

    torch.testing.assert_close(logits.reshape(B, K, S, -1), tensors["seq.logits"], rtol=1e-5, atol=1e-5)
    projected = torch.nn.functional.linear(tensors["cond.embeds_pre_proj"], **projection)
    zeroed = projected * tensors["cond.mask"][..., None]
    torch.testing.assert_close(zeroed, tensors["cond.embeds"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("pad_mode", "wav"), [("constant", "wav_odd"), ("reflect", "wav")])
@pytest.mark.parametrize("ours", [False, True], ids=["transformers", "musicgen_train"])
def test_converted_codec_gives_the_codes_of_audiocraft(
    pad_mode: str, wav: str, ours: bool, audiocraft_fixture: Callable[..., Any]
) -> None:
    state, tensors, description = audiocraft_fixture("encodec_A")
    settings = {**description["config"], "compression_model": "encodec"}
    settings["seanet"] = {**settings["seanet"], "pad_mode": pad_mode}
    config = codec_config_from(state, Settings(settings))
    model: Any = EncodecModel(config) if ours else oracle.EncodecModel(oracle.EncodecConfig(**config.to_dict()))
    model.eval().load_state_dict(codec_to_hub(state), strict=True)
    with torch.no_grad():
        codes = model.encode(tensors[wav]).audio_codes[0]
    assert torch.equal(codes, tensors[f"{pad_mode}.{wav}.codes"])


@pytest.mark.parametrize("name", LM_FIXTURES)
def test_settings_of_the_language_model_are_audiocrafts_own(name: str, audiocraft_fixture: Callable[..., Any]) -> None:
    state, _, description = audiocraft_fixture(name)
    source = description["config"]
    config = decoder_config_from(state, Settings(source))
    written = lm_settings_from(config, text_encoder="t5-base", sampling_rate=32_000)
    for section in ("transformer_lm", "codebooks_pattern", "fuser", "classifier_free_guidance"):
        assert written[section] == source[section]
    assert written["conditioners"]["description"]["t5"]["name"] == "t5-base"
    stereo = name == "lm_stereo_A"
    assert (config.audio_channels, written["channels"]) == ((2, 2) if stereo else (1, 1))
    assert written["interleave_stereo_codebooks"] == {"use": stereo, "per_timestep": False}


def test_settings_of_the_codec_are_audiocrafts_own(audiocraft_fixture: Callable[..., Any]) -> None:
    state, _, description = audiocraft_fixture("encodec_A")
    config = codec_config_from(state, Settings(description["config"]))
    written = codec_settings_from(config)
    for section in ("encodec", "seanet", "rvq"):
        assert written[section] == description["config"][section]


def changed(settings: dict[str, Any], **changes: Any) -> Settings:
    """Settings with values under dotted names (two underscores for a dot) replaced."""
    copied = json.loads(json.dumps(settings))
    for name, value in changes.items():
        *parents, last = name.split("__")
        branch = copied
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = value
    return Settings(copied)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transformer_lm__bias_ff": True}, r"transformer_lm\.bias_ff is True, a model of the hub has False"),
        ({"transformer_lm__positional_embedding": "rope"}, r"positional_embedding is 'rope'"),
        ({"transformer_lm__norm_first": False}, r"norm_first is False"),
        ({"transformer_lm__past_context": 300}, r"past_context is 300"),
        ({"codebooks_pattern__modeling": "parallel"}, r"modeling is 'parallel', a model of the hub has 'delay'"),
        ({"codebooks_pattern__delay__delays": [0, 2, 4, 6]}, r"delays is \[0, 2, 4, 6\]"),
        ({"codebooks_pattern__delay__delays": [0, 0, 1, 1]}, r"interleave_stereo_codebooks\.use is False"),
        ({"conditioners__self_wav": {"model": "chroma_stem"}}, r"'self_wav' besides .* \(a melody model"),
        ({"conditioners__description__t5__finetune": True}, r"finetune is True"),
        ({"fuser__prepend": ["self_wav"]}, r"fuser\.prepend is \['self_wav'\]"),
        ({"lm_model": "transformer_lm_magnet"}, r"lm_model is 'transformer_lm_magnet'"),
    ],
)
def test_settings_that_the_hub_cannot_represent(changes: dict[str, Any], message: str) -> None:
    model = build_reference()
    settings = changed(settings_by_hand(model)[0], **changes)
    state = lm_state_by_hand(model)
    with pytest.raises(ValueError, match=message):
        decoder_config_from(state, settings)


def test_all_problems_are_told_at_once() -> None:
    model = build_reference()
    state = lm_state_by_hand(model)
    state["condition_provider.conditioners.self_wav.output_proj.weight"] = torch.zeros(24, 12)
    state["condition_provider.conditioners.description.t5.shared.weight"] = torch.zeros(3, 2)
    state["linears.0.bias"] = torch.zeros(16)
    state["transformer.layers.0.layer_scale_1.scale"] = torch.zeros(24)
    settings = changed(settings_by_hand(model)[0], transformer_lm__bias_proj=True, transformer_lm__layer_scale=0.1)
    with pytest.raises(ValueError, match="cannot be converted") as caught:
        decoder_config_from(state, settings)
    for part in ("'self_wav' (a melody", "fine-tuned text", "biases", "layer_scale_1", "bias_proj", "layer_scale is"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seanet__activation": "Snake"}, r"seanet\.activation is 'Snake'"),
        ({"seanet__norm": "none"}, r"seanet\.norm is 'none'"),
        ({"seanet__disable_norm_outer_blocks": 2}, r"disable_norm_outer_blocks is 2"),
        ({"seanet__decoder__n_filters": 64}, r"seanet\.decoder sets n_filters"),
        ({"seanet__decoder__final_activation": "Tanh"}, r"final_activation is 'Tanh'"),
        ({"encodec__quantizer": "no_quant"}, r"quantizer is 'no_quant'"),
    ],
)
def test_codecs_that_the_hub_cannot_represent(changes: dict[str, Any], message: str) -> None:
    model = build_reference()
    settings = changed(settings_by_hand(model)[1], **changes)
    state = codec_state_by_hand(model.audio_encoder)
    with pytest.raises(ValueError, match=message):
        codec_config_from(state, settings)


def test_a_state_of_something_else() -> None:
    with pytest.raises(ValueError, match=r"2 tensors that no part of a MusicGen stands for \(a\.weight, \.\.\.\)"):
        lm_to_hub({"a.weight": torch.zeros(1), "b.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"no part of an EnCodec stands for \(a\.weight\)"):
        codec_to_hub({"a.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"a\.weight is no tensor of a MusicGen decoder"):
        lm_from_hub({"a.weight": torch.zeros(1)}, None)
    with pytest.raises(ValueError, match=r"but not .*k_proj\.weight"):
        lm_from_hub({"model.decoder.layers.0.self_attn.q_proj.weight": torch.zeros(2, 2)}, None)
    with pytest.raises(ValueError, match=r"v_proj\.weight is no tensor"):
        lm_from_hub({"model.decoder.layers.0.self_attn.v_proj.weight": torch.zeros(2, 2)}, None)
    with pytest.raises(ValueError, match=r"a\.weight is no tensor of an EnCodec"):
        codec_from_hub({"a.weight": torch.zeros(1)})


def test_heads_without_settings() -> None:
    state = lm_state_by_hand(build_reference())
    with pytest.raises(ValueError, match=r"no xp\.cfg, and the number of attention heads"):
        decoder_config_from(state)
    with pytest.raises(ValueError, match="size is 'huge'; allowed are small, medium, large"):
        decoder_config_from(state, size="huge")
    with pytest.raises(ValueError, match="width 24 and 2 layers, but size 'small' has width 1024 and 24 layers"):
        decoder_config_from(state, size="small")


def test_settings_that_cannot_be_read() -> None:
    with pytest.raises(ValueError, match="cannot be read as YAML"):
        Settings("a: [1")
    with pytest.raises(ValueError, match="holds a ListConfig"):
        Settings("[1, 2]")
    with pytest.raises(ValueError, match=r"seanet\.causal cannot be read"):
        Settings("seanet: {causal: '${encodec.causal}'}").get("seanet.causal")


def test_the_dropout_that_published_configs_carry() -> None:
    # Published decoders state 0.1 for dropout and 0 for the other two, though they were trained without any.
    config = MusicgenDecoderConfig()
    assert (config.dropout, config.attention_dropout, config.activation_dropout) == (0.1, 0.0, 0.0)
    section = lm_settings_from(config, text_encoder="t5-base", sampling_rate=32_000)["transformer_lm"]
    assert (section["dropout"], section["attention_dropout"]) == (0.1, 0.0)


def test_references_that_lead_nowhere_are_no_matter_where_nothing_asks() -> None:
    model = build_reference()
    settings = changed(settings_by_hand(model)[0], conditioners__args={"cache_path": "${nowhere.at.all}"})
    assert decoder_config_from(lm_state_by_hand(model), settings).num_attention_heads == 3


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (T5Config(d_model=768, num_layers=12), "t5-base"),
        (T5Config(d_model=768, num_layers=12, feed_forward_proj="gated-gelu"), "google/flan-t5-base"),
        (T5Config(_name_or_path="google-t5/t5-large"), "t5-large"),
        (T5Config(_name_or_path="somewhere/else"), "t5-small"),
    ],
)
def test_the_name_of_the_text_encoder(config: T5Config, name: str) -> None:
    assert text_encoder_name(config) == name


def test_a_text_encoder_that_audiocraft_does_not_know() -> None:
    with pytest.raises(ValueError, match="a T5 of width 20 and 2 layers is none of them"):
        text_encoder_name(T5Config(d_model=20, num_layers=2))


def test_configs_that_audiocraft_cannot_represent() -> None:
    decoder = MusicgenDecoderConfig(activation_function="silu", hidden_size=56, num_attention_heads=4, ffn_dim=61)
    # audiocraft has int(61 / 56 * 56), which is 60.
    with pytest.raises(
        ValueError, match=r"activation_function is 'silu'.*; ffn_dim 61 is no multiple of hidden_size 56"
    ):
        lm_settings_from(decoder, text_encoder="t5-base", sampling_rate=32_000)
    codec = EncodecConfig(chunk_length_s=1.0, normalize=True, target_bandwidths=[3.0])
    with pytest.raises(ValueError, match=r"chunks of 1\.0 s.*causal and normalises"):
        codec_settings_from(codec)
    codec = EncodecConfig(norm_type="time_group_norm", use_causal_conv=True)
    with pytest.raises(ValueError, match="causal and has group norm"):
        codec_settings_from(codec)
    codec = EncodecConfig(trim_right_ratio=0.5, use_causal_conv=False)
    with pytest.raises(ValueError, match=r"trim_right_ratio is 0\.5, which audiocraft allows causal codecs only"):
        codec_settings_from(codec)


@pytest.mark.parametrize("codebooks", [1, 4, 7, 32])
@pytest.mark.parametrize(("sampling_rate", "size"), [(32_000, 2048), (24_000, 1024), (16_000, 400), (8_320, 2048)])
def test_the_bandwidth_pays_for_the_codebooks(codebooks: int, sampling_rate: int, size: int) -> None:
    state = {key: meta(shape) for key, shape, _, _ in KEY_MAP["encodec_32khz"] if not key.startswith("quantizer")}
    for index in range(codebooks):
        state[f"quantizer.vq.layers.{index}._codebook.embed"] = meta([size, 128])
    config = codec_config_from(state, Settings({"encodec": {"sample_rate": sampling_rate}}))
    assert config.num_quantizers == codebooks
