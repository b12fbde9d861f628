"""Generation against transformers and audiocraft, and where transformers is silently wrong, against its own pieces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from musicgen_train import (
    GenerationConfig,
    MusicgenDecoderConfig,
    MusicgenForCausalLM,
    MusicgenForConditionalGeneration,
)
from musicgen_train.models.generation.loop import window_frames
from musicgen_train.models.generation.sampling import pick, truncate

TEXT_LENGTH = 7
KINDS: dict[str, dict[str, Any]] = {
    "mono": {},
    "stereo": {"decoder": tiny.STEREO},
    "equal-widths": {"decoder": {"hidden_size": 20}},
    "gated-text": {"text": tiny.GATED_TEXT},
    # Sizes that the step in C takes.
    "eights": {"decoder": {"hidden_size": 48}},
}
Pair = tuple[Any, MusicgenForConditionalGeneration]


@pytest.fixture(params=KINDS, scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    reference = tiny.reference_composite(**KINDS[request.param])
    return reference, tiny.ours_from(reference, tmp_path_factory.mktemp("composite"))


@pytest.fixture(scope="module")
def mono(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    reference = tiny.reference_composite()
    return reference, tiny.ours_from(reference, tmp_path_factory.mktemp("composite"))


def text_inputs(rows: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    ids = torch.randint(3, tiny.TEXT["vocab_size"], (rows, TEXT_LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    mask[1:2, 4:] = 0
    ids[1:2, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def audio_prompt(model: MusicgenForConditionalGeneration, rows: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(13)
    return torch.randn(rows, model.config.decoder.audio_channels, 45, generator=generator)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("prompted", [False, True])
def test_greedy_audio_and_codes_equal_the_reference(pair: Pair, guidance_scale: float, prompted: bool) -> None:
    reference, ours = pair
    inputs = text_inputs()
    if prompted:
        inputs["input_values"] = audio_prompt(ours)
    request = {"do_sample": False, "guidance_scale": guidance_scale, "max_new_tokens": 17}
    expected = reference.generate(**inputs, **request)
    got = ours.generate(**inputs, **request, return_dict_in_generate=True)
    assert got.codes is not None
    prompt_frames = 6 if prompted else 0
    assert got.codes.shape == (3, ours.decoder.num_codebooks, prompt_frames + 17 + 1 - 4)
    assert_close(got.sequences, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(got.codes, reference_codes(reference, inputs, request))


def reference_codes(reference: Any, inputs: dict[str, torch.Tensor], request: dict[str, Any]) -> torch.Tensor:
    """The codes that the reference hands to its codec."""
    seen: list[torch.Tensor] = []
    decode = reference.audio_encoder.decode

    def listening(codes: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(codes[0])
        return decode(codes, *args, **kwargs)

    reference.audio_encoder.decode = listening
    try:
        reference.generate(**inputs, **request)
    finally:
        reference.audio_encoder.decode = decode
    return seen[0] if len(seen) == 1 else torch.stack(seen, dim=2).flatten(1, 2)


@pytest.mark.parametrize("max_new_tokens", [6, 11, 30])
def test_lengths_equal_the_reference(mono: Pair, max_new_tokens: int) -> None:
    reference, ours = mono
    request = {"do_sample": False, "guidance_scale": 3.0, "max_new_tokens": max_new_tokens}
    expected = reference.generate(**text_inputs(), **request)
    assert ours.generate(**text_inputs(), **request).shape == expected.shape


def test_max_length_counts_everything(mono: Pair) -> None:
    reference, ours = mono
    inputs = {**text_inputs(), "input_values": audio_prompt(ours)}
    expected = reference.generate(**inputs, do_sample=False, max_length=24)
    got = ours.generate(**inputs, do_sample=False, max_length=24, return_dict_in_generate=True)
    assert got.codes.shape[-1] == 24 - 4
    assert_close(got.sequences, expected, rtol=1e-4, atol=1e-5)


def test_the_folders_generation_config_is_the_default(mono: Pair) -> None:
    reference, ours = mono
    assert ours.generation_config.max_length == 40
    assert ours.generation_config.guidance_scale == 3.0
    # Said again here: transformers 5.23 takes a max_length that only the file says for one of new tokens.
    expected = reference.generate(**text_inputs(), max_length=40)
    assert_close(ours.generate(**text_inputs()), expected, rtol=1e-4, atol=1e-5)


def test_unconditional_equals_the_reference(pair: Pair) -> None:
    reference, ours = pair
    request = {"do_sample": False, "max_new_tokens": 12}
    expected = reference.generate(**reference.get_unconditional_inputs(num_samples=2), **request)
    got = ours.generate(**ours.get_unconditional_inputs(num_samples=2), **request)
    assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert ours.get_unconditional_inputs(2).keys() == ["encoder_outputs", "attention_mask", "guidance_scale"]


def test_sampling_draws_the_references_codes_from_the_same_seed(mono: Pair) -> None:
    reference, ours = mono
    request = {"do_sample": True, "guidance_scale": 3.0, "max_new_tokens": 25, "top_k": 9, "temperature": 1.3}
    torch.manual_seed(17)
    expected = reference_codes(reference, text_inputs(), request)
    torch.manual_seed(17)
    got = ours.generate(**text_inputs(), **request, return_dict_in_generate=True)
    assert torch.equal(got.codes, expected)


def test_stored_states_generate_what_their_text_does_under_guidance(pair: Pair) -> None:
    ours = pair[1]
    inputs = text_inputs()
    request = {"do_sample": False, "guidance_scale": 3.0, "max_new_tokens": 15}
    states = ours.text_encoder(**inputs).last_hidden_state
    expected = ours.generate(**inputs, **request)
    for encoder_outputs in ((states,), ours.text_encoder(**inputs)):
        got = ours.generate(encoder_outputs=encoder_outputs, attention_mask=inputs["attention_mask"], **request)
        assert torch.equal(got, expected)


def test_the_decoder_alone_makes_the_composites_codes(pair: Pair) -> None:
    reference, ours = pair
    inputs = text_inputs()
    request = {"do_sample": False, "guidance_scale": 3.0, "max_new_tokens": 15}
    states = ours.project_text(ours.text_encoder(**inputs).last_hidden_state, inputs["attention_mask"])
    got = ours.decoder.generate(
        encoder_hidden_states=states, encoder_attention_mask=inputs["attention_mask"], **request
    )
    assert torch.equal(got, reference_codes(reference, inputs, request))


def test_the_decoder_alone_without_text_or_prompt(mono: Pair) -> None:
    codes = mono[1].decoder.generate(do_sample=False, max_new_tokens=9)
    assert codes.shape == (1, 4, 6)
    ids = torch.full((8, 1), tiny.SPECIAL)
    assert torch.equal(mono[1].decoder.generate(ids, do_sample=False, max_new_tokens=9), codes.repeat(2, 1, 1))


def test_several_results_of_a_row_equal_the_row_repeated(mono: Pair) -> None:
    ours = mono[1]
    inputs = text_inputs(2)
    request = {"do_sample": True, "guidance_scale": 3.0, "max_new_tokens": 15}
    torch.manual_seed(3)
    together = ours.generate(**inputs, **request, num_return_sequences=3)
    torch.manual_seed(3)
    repeated = ours.generate(**{k: v.repeat_interleave(3, dim=0) for k, v in inputs.items()}, **request)
    assert together.shape[0] == 6
    assert torch.equal(together, repeated)
    assert not torch.equal(together[0], together[1])


def test_several_results_continue_the_same_prompt(mono: Pair) -> None:
    ours = mono[1]
    prompt = torch.randint(0, tiny.VOCAB, (2 * 4, 5))
    output = ours.generate(
        **text_inputs(2), decoder_input_ids=prompt, do_sample=True, max_new_tokens=15, num_return_sequences=2,
        return_dict_in_generate=True,
    )  # fmt: skip
    assert torch.equal(output.codes[..., :5], prompt.view(2, 4, 5).repeat_interleave(2, dim=0))


def test_a_row_with_its_own_generator_does_not_depend_on_the_others(mono: Pair) -> None:
    ours = mono[1]
    inputs = text_inputs()
    request = {"do_sample": True, "guidance_scale": 3.0, "max_new_tokens": 20, "return_dict_in_generate": True}
    together = ours.generate(**inputs, **request, generator=[torch.Generator().manual_seed(s) for s in (5, 6, 7)])
    for row in range(3):
        alone = ours.generate(
            **{name: value[row : row + 1] for name, value in inputs.items()},
            **request,
            generator=torch.Generator().manual_seed(5 + row),
        )
        assert torch.equal(alone.codes[0], together.codes[row])


def test_one_generator_makes_a_request_repeatable_and_leaves_the_global_one_alone(mono: Pair) -> None:
    ours = mono[1]
    state = torch.random.get_rng_state()
    request = {"do_sample": True, "max_new_tokens": 20}
    first = ours.generate(**text_inputs(), **request, generator=torch.Generator().manual_seed(1))
    second = ours.generate(**text_inputs(), **request, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_padded_text_generates_what_each_row_does_alone(mono: Pair) -> None:
    ours = mono[1]
    inputs = text_inputs()
    request = {"do_sample": False, "guidance_scale": 3.0, "max_new_tokens": 20, "return_dict_in_generate": True}
    together = ours.generate(**inputs, **request)
    alone = ours.generate(input_ids=inputs["input_ids"][1:2, :4], attention_mask=torch.ones(1, 4), **request)
    assert torch.equal(alone.codes[0], together.codes[1])


def test_two_prompts_make_different_music(mono: Pair) -> None:
    codes = mono[1].generate(**text_inputs(), do_sample=False, max_new_tokens=20, return_dict_in_generate=True).codes
    assert not torch.equal(codes[0], codes[1])


def test_guidance_of_one_or_less_is_none(mono: Pair) -> None:
    ours = mono[1]
    request = {"do_sample": False, "max_new_tokens": 12}
    expected = ours.generate(**text_inputs(), **request, guidance_scale=1.0)
    for scale in (None, 0.0, 0.5):
        assert torch.equal(ours.generate(**text_inputs(), **request, guidance_scale=scale), expected)


@pytest.mark.parametrize("prompted", [False, True])
@pytest.mark.parametrize("extend_stride", [None, 7])
def test_what_is_streamed_is_the_result(mono: Pair, prompted: bool, extend_stride: int | None) -> None:
    ours = mono[1]
    pieces: list[torch.Tensor] = []
    inputs: dict[str, Any] = {"input_values": audio_prompt(ours)} if prompted else {}
    output = ours.generate(
        **text_inputs(), **inputs, max_new_tokens=33, do_sample=False, streamer=pieces.append, max_window_frames=18,
        extend_stride=extend_stride or 5, return_dict_in_generate=True,
    )  # fmt: skip
    assert torch.equal(torch.cat(pieces, dim=-1), output.codes)
    assert all(piece.shape[:2] == (3, 4) for piece in pieces)
    assert len(pieces) == 30 + prompted


def test_frames_are_streamed_as_soon_as_their_last_codebook_is_known(mono: Pair) -> None:
    ours = mono[1].decoder
    steps: list[int] = []
    seen: list[int] = []
    handle = ours.lm_heads[0].register_forward_hook(lambda *_: steps.append(1))
    try:
        ours.generate(do_sample=False, max_new_tokens=13, streamer=lambda codes: seen.append(len(steps)))
    finally:
        handle.remove()
    assert seen == list(range(4, 14))


def test_stopping_by_count_cuts_all_rows(mono: Pair) -> None:
    ours = mono[1]
    request = {"do_sample": False, "max_new_tokens": 30, "return_dict_in_generate": True}
    whole = ours.generate(**text_inputs(), **request)
    stopped = ours.generate(**text_inputs(), **request, stopping_criteria=lambda codes: codes.shape[-1] == 9)
    assert torch.equal(stopped.codes, whole.codes[..., :9])
    assert stopped.sequences.shape[-1] == 9 * 8
    assert stopped.lengths.tolist() == [9, 9, 9]


def test_rows_can_stop_one_by_one_and_end_in_silence(mono: Pair) -> None:
    ours = mono[1]
    ends = torch.tensor([5, 11, 8])
    output = ours.generate(
        **text_inputs(), do_sample=False, max_new_tokens=30, return_dict_in_generate=True,
        stopping_criteria=[lambda codes: ends <= codes.shape[-1], lambda codes: False],
    )  # fmt: skip
    assert output.lengths.tolist() == [5, 11, 8]
    assert output.codes.shape[-1] == 11
    for row, end in enumerate(ends.tolist()):
        assert output.sequences[row, :, : end * 8].abs().max() > 0
        assert not output.sequences[row, :, end * 8 :].any()


def test_sliding_windows_equal_windows_made_by_hand(mono: Pair) -> None:
    ours = mono[1]
    states = torch.randn(2, TEXT_LENGTH, 24)
    request = {"do_sample": False, "guidance_scale": 3.0, "encoder_hidden_states": states}
    window, stride, frames = 20, 8, 45
    got = ours.decoder.generate(**request, max_new_tokens=frames + 3, max_window_frames=window, extend_stride=stride)
    expected = ours.decoder.generate(**request, max_new_tokens=window + 3)
    while expected.shape[-1] < frames:
        context = expected[..., -(window - stride) :]
        new = min(stride, frames - expected.shape[-1])
        longer = ours.decoder.generate(context.flatten(0, 1), **request, max_new_tokens=new + 3)
        expected = torch.cat([expected, longer[..., -new:]], dim=-1)
    assert torch.equal(got, expected)


def test_a_prompt_longer_than_a_window_is_continued(mono: Pair) -> None:
    decoder = mono[1].decoder
    prompt = torch.randint(0, tiny.VOCAB, (4, 31))
    got = decoder.generate(prompt, do_sample=False, max_new_tokens=13, max_window_frames=20, extend_stride=6)
    assert got.shape == (1, 4, 41)
    assert torch.equal(got[..., :31], prompt.view(1, 4, 31))
    expected = decoder.generate(prompt[:, -14:], do_sample=False, max_new_tokens=6 + 3)
    assert torch.equal(got[..., 31:37], expected[..., -6:])


def test_thirty_seconds_are_1503_new_tokens() -> None:
    model = MusicgenForCausalLM.from_config(
        decoder_config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=2048)
    )
    assert model.generation_config.max_length == 1504
    assert window_frames(model.config, model.generation_config) == 1500
    codes = model.generate(max_new_tokens=1503, do_sample=False)
    assert codes.shape == (1, 4, 1500)
    with pytest.raises(ValueError, match=r"1501 frames are more than the 1500 .* Pass extend_stride=900"):
        model.generate(max_new_tokens=1504, do_sample=False)


def decoder_config(**overrides: Any) -> MusicgenDecoderConfig:
    return MusicgenDecoderConfig(**{**tiny.DECODER, **overrides})


def test_stereo_continues_mono_audio_on_both_sides(tmp_path: Path) -> None:
    ours = tiny.ours_from(tiny.reference_composite(decoder=tiny.STEREO), tmp_path)
    one = torch.randn(2, 1, 45)
    both, _ = ours.encode_audio(one.repeat(1, 2, 1))
    assert torch.equal(ours.encode_audio(one)[0], both)
    assert torch.equal(both[:, ::2], both[:, 1::2])
    left_right, _ = ours.encode_audio(torch.cat([one, one.flip(-1)], dim=1))
    assert torch.equal(left_right[:, ::2], both[:, ::2])
    assert not torch.equal(left_right[:, 1::2], both[:, ::2])
    assert ours.decode_audio(left_right).shape == (2, 2, 48)


def test_the_model_comes_back_in_the_mode_it_was_in(mono: Pair) -> None:
    decoder = mono[1].decoder
    decoder.train()
    try:
        decoder.generate(do_sample=False, max_new_tokens=5)
        assert decoder.training
    finally:
        decoder.eval()


def test_generating_leaves_the_state_dict_as_it_was(mono: Pair) -> None:
    before = {name: value.clone() for name, value in mono[1].state_dict().items()}
    mono[1].generate(**text_inputs(), max_new_tokens=8)
    after = mono[1].state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@given(
    st.integers(1, 60),
    st.floats(0.05, 1.0),
    st.floats(0.2, 3.0),
    st.integers(0, 2**20),
)
@settings(max_examples=150, derandomize=True, deadline=None)
def test_truncation_equals_the_references_warpers(top_k: int, top_p: float, temperature: float, seed: int) -> None:
    logits = 3 * torch.randn(5, 40, generator=torch.Generator().manual_seed(seed))
    warpers = transformers.LogitsProcessorList(
        [
            transformers.TemperatureLogitsWarper(temperature),
            transformers.TopKLogitsWarper(min(top_k, 40)),
            transformers.TopPLogitsWarper(top_p),
        ]
    )
    config = GenerationConfig(do_sample=True, top_k=top_k, top_p=top_p, temperature=temperature)
    expected = warpers(None, logits)
    got = truncate(logits, config)
    assert_close(got, expected, rtol=1e-6, atol=1e-6)
    assert (got > float("-inf")).any(dim=-1).all()


def test_the_likeliest_code_stays_however_small_top_p_is() -> None:
    # Beside 1, in float32, so small a share is nothing: the sum of all shares may then seem to be cut off whole.
    logits = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    kept = truncate(logits, GenerationConfig(do_sample=True, top_k=0, top_p=1e-9)).isfinite()
    assert torch.equal(kept.sum(dim=-1), torch.ones(50).long())
    assert torch.equal(kept.int().argmax(dim=-1), logits.argmax(dim=-1))


def test_draws_follow_the_probabilities() -> None:
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.1])
    config = GenerationConfig(do_sample=True, top_k=None, top_p=None)
    logits = probabilities.log().expand(1, 20_000, 4)
    drawn = pick(logits, config, torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn.flatten(), minlength=4) / drawn.numel()
    assert_close(shares, probabilities, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"max_new_tokens": 3}, "max_new_tokens=3 is too short: 4 codebooks are delayed against each other"),
        ({"max_length": 4}, "max_length=4 is too short"),
        ({"max_new_tokens": 200}, r"197 frames are more than the 125 .*max_position_embeddings 128"),
        ({"max_new_tokens": 99, "max_window_frames": 50, "extend_stride": 50}, "extend_stride is 50; allowed: 1 to 49"),
        ({"max_new_tokens": 200, "extend_stride": 130}, "it must be below the window of 125 frames"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"num_beams": 4}, "num_beams=4 is not supported"),
        ({"output_scores": True}, "output_scores=True is not supported"),
        ({"use_cache": False}, "use_cache=False is not supported"),
        ({"torch_dtype": "float16"}, "has no 'torch_dtype'"),
        ({"max_new_token": 9}, "has no 'max_new_token'; did you mean 'max_new_tokens'"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_k": -1}, "top_k is -1"),
        ({"generator": [torch.Generator()] * 2, "do_sample": True}, "2 generators for 3 rows"),
        ({"decoder_input_ids": torch.zeros(8, 5, dtype=torch.long)}, "are of 3 rows, the codes to continue of 2"),
        (
            {"decoder_input_ids": torch.full((12, 5), 70)},
            "codes to continue must be 0 to 63; these range from 70 to 70",
        ),
        (
            {"decoder_input_ids": torch.zeros(12, 50, dtype=torch.long), "max_length": 40},
            "max_length=40 is too short after a prompt of 50 frames",
        ),
    ],
)
def test_requests_that_cannot_be_met_are_refused(mono: Pair, request_: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mono[1].generate(**text_inputs(), **request_)


def test_a_codec_of_another_family_is_refused_before_any_work(tmp_path: Path) -> None:
    ours = tiny.ours_from(tiny.reference_composite(codebook_size=128, target_bandwidths=[1.2]), tmp_path)
    with pytest.raises(ValueError, match="predicts codes below 64, the audio encoder's codebooks have 128 entries"):
        ours.generate(**text_inputs())


def test_a_stereo_decoder_refuses_other_channel_counts(tmp_path: Path) -> None:
    ours = tiny.ours_from(tiny.reference_composite(decoder=tiny.STEREO), tmp_path)
    with pytest.raises(ValueError, match=r"audio is \[3, 3, 45\]; a stereo decoder continues"):
        ours.generate(**text_inputs(), input_values=torch.zeros(3, 3, 45))


def test_a_settings_file_with_what_we_cannot_do_is_refused_at_the_request(mono: Pair) -> None:
    config = GenerationConfig.from_dict({"max_length": 30, "repetition_penalty": 1.2})
    with pytest.raises(ValueError, match=r"repetition_penalty=1.2 is not supported"):
        mono[1].generate(**text_inputs(), generation_config=config)


def test_generation_config_round_trips_with_transformers(tmp_path: Path) -> None:
    ours = GenerationConfig.for_decoder(decoder_config())
    ours.save_pretrained(tmp_path)
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path)
    for name in ("max_length", "do_sample", "top_k", "guidance_scale", "pad_token_id", "decoder_start_token_id"):
        assert getattr(theirs, name) == getattr(ours, name), name
    theirs.save_pretrained(tmp_path / "theirs")
    again = GenerationConfig.from_pretrained(tmp_path / "theirs")
    assert all(getattr(again, name) == getattr(ours, name) for name in ours.field_names())


def test_what_a_file_does_not_say_is_as_in_the_reference() -> None:
    ours, theirs = GenerationConfig.from_dict({}), transformers.GenerationConfig()
    defaults = theirs._get_default_generation_params()
    for name in ("do_sample", "temperature", "top_k", "top_p", "num_return_sequences", "max_length"):
        assert getattr(ours, name) == defaults[name], name


@pytest.mark.parametrize("do_sample", [True, False])
@pytest.mark.parametrize("frames", [3, 20])  # by the forward pass, and by steps
def test_logits_that_are_not_finite_are_refused(frames: int, do_sample: bool) -> None:
    model = MusicgenForCausalLM(MusicgenDecoderConfig(**tiny.DECODER))
    with torch.no_grad():
        model.model.decoder.layers[1].fc1.weight[0, 0] = float("nan")  # type: ignore[union-attr,index]
    with pytest.raises(ValueError, match="logits are not finite"):
        model.generate(max_new_tokens=frames + 3, do_sample=do_sample)
