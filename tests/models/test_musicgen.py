"""The composite against transformers: forward, folders in both directions, and putting parts together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from musicgen_train import (
    EncodecConfig,
    EncodecModel,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForCausalLM,
    MusicgenForConditionalGeneration,
    T5Config,
    T5EncoderModel,
)
from musicgen_train.hub.weights import CheckpointError
from musicgen_train.models.delay_pattern import training_labels

STEPS, TEXT_LENGTH = 11, 7
KINDS: dict[str, dict[str, Any]] = {
    "mono": {},
    "stereo": {"decoder": tiny.STEREO},
    "equal-widths": {"decoder": {"hidden_size": 20}},
    "gated-text": {"text": tiny.GATED_TEXT},
    "scaled": {"decoder": {"scale_embedding": True}},
}
Pair = tuple[Any, MusicgenForConditionalGeneration]


@pytest.fixture(params=KINDS, scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    reference = tiny.reference_composite(**KINDS[request.param])
    return reference, tiny.ours_from(reference, tmp_path_factory.mktemp("composite"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A composite's folder as transformers writes it."""
    path = tmp_path_factory.mktemp("composite")
    tiny.reference_composite().save_pretrained(path)
    return path


def inputs_for(model: MusicgenForConditionalGeneration) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(0, tiny.VOCAB, (2, model.decoder.num_codebooks, STEPS), generator=generator)
    codes[1, :, 8:] = -100
    ids = torch.randint(3, tiny.TEXT["vocab_size"], (2, TEXT_LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": training_labels(codes, model.decoder.delays, tiny.SPECIAL),
    }


def test_forward_equals_the_reference(pair: Pair) -> None:
    reference, ours = pair
    inputs = inputs_for(ours)
    expected = reference(**inputs, use_cache=False)
    got = ours(**inputs, output_hidden_states=True)
    assert_close(got.logits, expected.logits, rtol=1e-5, atol=1e-5)
    assert_close(got.loss, expected.loss, rtol=1e-5, atol=0)
    assert_close(got.encoder_last_hidden_state, expected.encoder_last_hidden_state, rtol=1e-5, atol=1e-5)
    assert len(got.decoder_hidden_states) == 1 + tiny.DECODER["num_hidden_layers"]
    assert len(got.encoder_hidden_states) == 1 + tiny.TEXT["num_layers"]


def test_gradients_of_the_trained_parts_equal_the_reference(pair: Pair) -> None:
    reference, ours = pair
    for model in pair:
        model.zero_grad()
        model(**inputs_for(ours), use_cache=False).loss.backward()
    expected = dict(reference.named_parameters())
    compared = 0
    for name, parameter in ours.named_parameters():
        if name.startswith(("decoder.", "enc_to_dec_proj.")):
            assert_close(parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-6)
            compared += 1
    assert compared >= 42


def test_the_composites_loss_is_the_decoders_on_projected_text(pair: Pair) -> None:
    ours = pair[1]
    inputs = inputs_for(ours)
    states = ours.text_encoder(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state
    alone = ours.decoder(
        labels=inputs["labels"],
        encoder_hidden_states=ours.project_text(states, inputs["attention_mask"]),
        encoder_attention_mask=inputs["attention_mask"],
    )
    whole = ours(**inputs)
    assert torch.equal(alone.loss, whole.loss)
    assert torch.equal(alone.codebook_losses, whole.codebook_losses)


def test_audio_as_the_decoders_input_equals_the_reference(tmp_path: Path) -> None:
    reference = tiny.reference_composite()
    ours = tiny.ours_from(reference, tmp_path)
    inputs = {name: value for name, value in inputs_for(ours).items() if name != "labels"}
    audio = torch.randn(2, 1, 83)
    padding = torch.ones(2, 83, dtype=torch.long)
    padding[1, :40] = 0
    expected = reference(**inputs, input_values=audio, padding_mask=padding, use_cache=False)
    assert_close(ours(**inputs, input_values=audio, padding_mask=padding).logits, expected.logits, rtol=1e-5, atol=1e-5)


def test_the_documented_logits_shape(pair: Pair) -> None:
    ours = pair[1]
    inputs = {name: value for name, value in inputs_for(ours).items() if name != "labels"}
    start = torch.full((2 * ours.decoder.num_codebooks, 1), ours.generation_config.pad_token_id)
    logits = ours(**inputs, decoder_input_ids=start).logits
    assert logits.shape == (2 * ours.decoder.num_codebooks, 1, tiny.VOCAB)


def test_states_computed_before_stand_in_for_text(pair: Pair) -> None:
    ours = pair[1]
    inputs = inputs_for(ours)
    encoded = ours.text_encoder(inputs["input_ids"], inputs["attention_mask"])
    expected = ours(**inputs)
    rest = {"attention_mask": inputs["attention_mask"], "labels": inputs["labels"]}
    for encoder_outputs in (encoded, (encoded.last_hidden_state,), encoded.to_tuple()):
        assert torch.equal(ours(encoder_outputs=encoder_outputs, **rest).loss, expected.loss)


def test_embeddings_stand_in_for_ids_on_both_sides(pair: Pair) -> None:
    ours = pair[1]
    inputs = inputs_for(ours)
    codes = torch.randint(0, tiny.VOCAB, (2, ours.decoder.num_codebooks, 5))
    tables = ours.decoder.get_input_embeddings()
    embedded = sum(table(codes[:, k]) for k, table in enumerate(tables))
    expected = ours(inputs["input_ids"], inputs["attention_mask"], decoder_input_ids=codes).logits
    text = ours.text_encoder.shared(inputs["input_ids"])
    got = ours(inputs_embeds=text, attention_mask=inputs["attention_mask"], decoder_inputs_embeds=embedded).logits
    assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("argument", ["head_mask", "decoder_head_mask", "cross_attn_head_mask"])
def test_each_head_mask_reaches_its_attention(pair: Pair, argument: str) -> None:
    ours = pair[1]
    inputs = inputs_for(ours)
    shape = (2, 3) if argument == "head_mask" else (3, 2)
    assert_close(ours(**inputs, **{argument: torch.ones(shape)}).logits, ours(**inputs).logits)
    masked = torch.ones(shape)
    masked[0, 1] = 0
    assert not torch.allclose(ours(**inputs, **{argument: masked}).logits, ours(**inputs).logits, atol=1e-3)


def test_attentions_of_all_three_kinds(pair: Pair) -> None:
    ours = pair[1]
    output = ours(**inputs_for(ours), output_attentions=True)
    assert [list(a.shape) for a in output.decoder_attentions] == [[2, 2, STEPS, STEPS]] * 3
    assert [list(a.shape) for a in output.cross_attentions] == [[2, 2, STEPS, TEXT_LENGTH]] * 3
    assert [list(a.shape) for a in output.encoder_attentions] == [[2, 3, TEXT_LENGTH, TEXT_LENGTH]] * 2
    for weights in (*output.decoder_attentions, *output.cross_attentions, *output.encoder_attentions):
        assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))


def test_nothing_to_decode_is_refused(pair: Pair) -> None:
    with pytest.raises(ValueError, match="nothing to decode: give decoder_input_ids"):
        pair[1](torch.ones(1, 3, dtype=torch.long))


def test_states_of_a_wrong_rank_are_refused(pair: Pair) -> None:
    with pytest.raises(ValueError, match=r"encoder_outputs must have text states \(batch, text length, hidden size\)"):
        pair[1].generate(encoder_outputs=(torch.zeros(3, 20),))


def test_transformers_loads_what_we_save(pair: Pair, tmp_path: Path) -> None:
    reference, ours = pair
    ours.save_pretrained(tmp_path)
    loaded, report = transformers.MusicgenForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    inputs = inputs_for(ours)
    assert_close(loaded(**inputs).loss, reference(**inputs).loss, rtol=1e-6, atol=0)
    request = {"input_ids": inputs["input_ids"], "do_sample": False, "max_new_tokens": 9}
    assert_close(loaded.generate(**request), ours.generate(**request), rtol=1e-4, atol=1e-5)
    assert loaded.generation_config.guidance_scale == 3.0


def test_a_round_trip_through_our_folder_changes_nothing(pair: Pair, tmp_path: Path) -> None:
    ours = pair[1]
    ours.save_pretrained(tmp_path)
    again = MusicgenForConditionalGeneration.from_pretrained(tmp_path)
    for name in ("text_encoder", "audio_encoder", "decoder"):
        read, kept = getattr(again.config, name), getattr(ours.config, name)
        # The file says in which dtype its tensors are.
        assert read.to_dict() == {**kept.to_dict(), "dtype": "float32"}
    assert again.generation_config == ours.generation_config
    for (name, value), (again_name, again_value) in zip(
        ours.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert name == again_name
        assert torch.equal(value, again_value), name


def test_the_decoder_of_a_composites_folder_is_the_composites(folder: Path) -> None:
    """Where transformers 5.23 reads nothing and goes on with random weights (trap 25)."""
    composite = MusicgenForConditionalGeneration.from_pretrained(folder)
    decoder = MusicgenForCausalLM.from_pretrained(folder)
    by_option_one = MusicgenForCausalLM.from_pretrained(folder, **MusicgenConfig.from_pretrained(folder).decoder)
    for name, value in composite.decoder.state_dict().items():
        assert torch.equal(decoder.state_dict()[name], value), name
        assert torch.equal(by_option_one.state_dict()[name], value), name
    assert decoder.generation_config == composite.generation_config


def test_the_encoders_of_a_composites_folder_are_the_composites(folder: Path) -> None:
    composite = MusicgenForConditionalGeneration.from_pretrained(folder)
    for part, model_class in ((composite.text_encoder, T5EncoderModel), (composite.audio_encoder, EncodecModel)):
        alone = model_class.from_pretrained(folder)
        assert alone.config == part.config
        assert all(torch.equal(alone.state_dict()[name], value) for name, value in part.state_dict().items())


def test_parts_from_folders_make_the_composite_they_came_from(folder: Path, tmp_path: Path) -> None:
    """Where transformers 5.23 raises from paths, and loses projection and generation config from objects (trap 26)."""
    whole = MusicgenForConditionalGeneration.from_pretrained(folder)
    whole.text_encoder.save_pretrained(tmp_path / "text")
    whole.audio_encoder.save_pretrained(tmp_path / "audio")
    again = MusicgenForConditionalGeneration.from_sub_models_pretrained(
        tmp_path / "text", tmp_path / "audio", folder, decoder_dropout=0.25
    )
    assert again.config.decoder.dropout == 0.25
    assert again.generation_config == whole.generation_config
    assert all(torch.equal(again.state_dict()[name], value) for name, value in whole.state_dict().items())
    assert not again.training


def test_parts_given_as_models_are_used_as_they_are(folder: Path) -> None:
    whole = MusicgenForConditionalGeneration.from_pretrained(folder)
    again = MusicgenForConditionalGeneration.from_sub_models_pretrained(
        text_encoder_model=whole.text_encoder, audio_encoder_model=whole.audio_encoder, decoder_model=whole.decoder
    )
    assert again.text_encoder is whole.text_encoder
    assert again.config.decoder is whole.decoder.config
    assert again.enc_to_dec_proj is not None
    assert again.enc_to_dec_proj.weight.shape == (24, 20)


def test_a_missing_part_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match="give audio_encoder_model or audio_encoder_pretrained_model_name_or_path"):
        MusicgenForConditionalGeneration.from_sub_models_pretrained(folder, None, folder)


def test_no_config_and_not_all_parts_is_refused() -> None:
    with pytest.raises(ValueError, match="give a config, or all three of text_encoder, audio_encoder and decoder"):
        MusicgenForConditionalGeneration(decoder=MusicgenForCausalLM(MusicgenDecoderConfig(**tiny.DECODER)))


def test_files_of_older_versions_load(folder: Path, tmp_path: Path) -> None:
    """weight_g / weight_v, the stored position table, and the second name of the text embedding."""
    state = {}
    for name, value in load_file(folder / "model.safetensors").items():
        old = name.replace(".parametrizations.weight.original0", ".weight_g")
        state[old.replace(".parametrizations.weight.original1", ".weight_v")] = value
    assert any(name.endswith("weight_g") for name in state)
    state["decoder.model.decoder.embed_positions.weights"] = torch.zeros(128, 24)
    state["text_encoder.encoder.embed_tokens.weight"] = state.pop("text_encoder.shared.weight")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(state, tmp_path / "pytorch_model.bin")
    old_model = MusicgenForConditionalGeneration.from_pretrained(tmp_path)
    new_model = MusicgenForConditionalGeneration.from_pretrained(folder)
    assert all(torch.equal(old_model.state_dict()[name], value) for name, value in new_model.state_dict().items())
    assert old_model.text_encoder.encoder.embed_tokens.weight is old_model.text_encoder.shared.weight
    # A folder without generation_config.json gets what MusicGen is sampled with.
    assert (old_model.generation_config.top_k, old_model.generation_config.do_sample) == (250, True)


def test_all_that_does_not_fit_is_listed_at_once(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["decoder.lm_heads.3.weight"]
    state["decoder.surplus"] = torch.zeros(2)
    state["enc_to_dec_proj.bias"] = torch.zeros(5)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file(state, tmp_path / "model.safetensors")
    message = (
        r"1 missing: decoder\.lm_heads\.3\.weight; 1 unexpected: decoder\.surplus; "
        r"1 of another shape: enc_to_dec_proj\.bias is \[5\], the model's is \[24\]"
    )
    with pytest.raises(CheckpointError, match=message):
        MusicgenForConditionalGeneration.from_pretrained(tmp_path)


def test_half_precision_keeps_what_must_be_exact(folder: Path) -> None:
    model = MusicgenForConditionalGeneration.from_pretrained(folder, dtype="float16")
    kept = {name for name, value in model.named_parameters() if value.dtype == torch.float32}
    assert kept == {f"text_encoder.encoder.block.{i}.layer.1.DenseReluDense.wo.weight" for i in range(2)}
    assert model.dtype == torch.float16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_makes_finite_audio(folder: Path, dtype: torch.dtype) -> None:
    model = MusicgenForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    ids = torch.randint(3, 200, (2, 5))
    audio = model.generate(ids, do_sample=True, max_new_tokens=20, guidance_scale=3.0)
    assert audio.dtype == dtype
    assert audio.isfinite().all()


def test_freezing_an_encoder_leaves_the_rest_trainable(folder: Path) -> None:
    model = MusicgenForConditionalGeneration.from_pretrained(folder)
    model.freeze_text_encoder()
    model.freeze_audio_encoder()
    trainable = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {"decoder", "enc_to_dec_proj"}


def test_the_documentations_config_makes_a_model() -> None:
    """The seed's snippet, at a size for tests: default parts of different families still make one model."""
    config = MusicgenConfig.from_sub_models_config(
        T5Config(**tiny.TEXT), EncodecConfig(num_filters=4, num_lstm_layers=1), MusicgenDecoderConfig(**tiny.DECODER)
    )
    model = MusicgenForConditionalGeneration(config)
    assert model.config.text_encoder is config.text_encoder
    assert model.config.audio_encoder.sampling_rate == 24_000


# musicgen-small, -medium, -large and their stereo versions: (width, layers, heads, feed-forward).
SIZES = {"small": (1024, 24, 16, 4096), "medium": (1536, 48, 24, 6144), "large": (2048, 48, 32, 8192)}


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_names_and_shapes_equal_the_reference_at_real_size(size: str, channels: int) -> None:
    width, layers, heads, inner = SIZES[size]
    decoder = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "ffn_dim": inner,
        "num_codebooks": 4 * channels,
        "audio_channels": channels,
    }
    text = {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12}
    codec = {
        "sampling_rate": 32_000,
        "target_bandwidths": [2.2],
        "codebook_size": 2048,
        "num_filters": 64,
        "upsampling_ratios": [8, 5, 4, 4],
        "use_causal_conv": False,
        "use_conv_shortcut": False,
    }
    with torch.device("meta"):
        reference: nn.Module = transformers.MusicgenForConditionalGeneration(
            transformers.MusicgenConfig(
                text_encoder=transformers.T5Config(**text).to_dict(),
                audio_encoder=transformers.EncodecConfig(**codec).to_dict(),
                decoder=transformers.MusicgenDecoderConfig(**decoder).to_dict(),
            )
        )
        ours = MusicgenForConditionalGeneration(
            MusicgenConfig(
                text_encoder=T5Config(**text),
                audio_encoder=EncodecConfig(**codec),
                decoder=MusicgenDecoderConfig(**decoder),
            )
        )
    expected = {name: (tuple(value.shape), value.dtype) for name, value in reference.state_dict().items()}
    got = {name: (tuple(value.shape), value.dtype) for name, value in ours.state_dict().items()}
    assert got == expected
