"""The decoder against transformers: logits, losses, gradients, masks, caches, attentions, precisions, errors."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from torch.nn import functional as F
from torch.testing import assert_close

from musicgen_train import MusicgenDecoderConfig, MusicgenForCausalLM, MusicgenModel
from musicgen_train.models.delay_pattern import training_labels
from musicgen_train.models.layers import sinusoidal_positions

BATCH, STEPS, TEXT_LENGTH, WIDTH = 3, 11, 7, tiny.DECODER["hidden_size"]
KINDS: dict[str, dict[str, Any]] = {
    "mono": {},
    "stereo": tiny.STEREO,
    "scaled": {"scale_embedding": True},
    "odd-width": {"hidden_size": 21, "num_attention_heads": 3},
    "relu": {"activation_function": "relu"},
}


@pytest.fixture(params=KINDS, scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, MusicgenForCausalLM]:
    """The reference and ours with the same weights, of every kind."""
    reference = tiny.reference_decoder(**KINDS[request.param])
    return reference, tiny.ours_from(reference, tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="module")
def mono(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, MusicgenForCausalLM]:
    reference = tiny.reference_decoder()
    return reference, tiny.ours_from(reference, tmp_path_factory.mktemp("decoder"))


def inputs_for(model: MusicgenForCausalLM) -> dict[str, torch.Tensor]:
    """Ragged labels with the delay triangle and padding, text with a padded and a null row."""
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(0, tiny.VOCAB, (BATCH, model.num_codebooks, STEPS), generator=generator)
    codes[1, :, 8:] = -100
    mask = torch.ones(BATCH, TEXT_LENGTH, dtype=torch.long)
    mask[1, 4:] = 0
    mask[2] = 0
    text = torch.randn(BATCH, TEXT_LENGTH, model.config.hidden_size, generator=generator)
    return {
        "labels": training_labels(codes, model.delays, tiny.SPECIAL),
        "encoder_hidden_states": text * mask[..., None],
        "encoder_attention_mask": mask,
    }


def delayed_ids(model: MusicgenForCausalLM, steps: int = STEPS) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, tiny.VOCAB + 1, (BATCH * model.num_codebooks, steps), generator=generator)


def test_logits_and_loss_equal_the_reference(pair: tuple[Any, MusicgenForCausalLM]) -> None:
    reference, ours = pair
    inputs = inputs_for(ours)
    expected, got = reference(**inputs, use_cache=False), ours(**inputs)
    assert_close(got.logits, expected.logits, rtol=1e-5, atol=1e-5)
    assert_close(got.loss, expected.loss, rtol=1e-5, atol=0)


def test_double_precision_leaves_no_room_for_another_formula(mono: tuple[Any, MusicgenForCausalLM]) -> None:
    reference, ours = mono[0].double(), mono[1].double()
    inputs = inputs_for(ours)
    inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"].double()
    try:
        assert_close(ours(**inputs).logits, reference(**inputs, use_cache=False).logits, rtol=1e-9, atol=1e-9)
    finally:
        reference.float(), ours.float()


def test_gradients_equal_the_reference(pair: tuple[Any, MusicgenForCausalLM]) -> None:
    reference, ours = pair
    inputs = inputs_for(ours)
    reference.zero_grad(), ours.zero_grad()
    reference(**inputs, use_cache=False).loss.backward()
    ours(**inputs).loss.backward()
    expected = dict(reference.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        assert_close(
            parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_codebook_losses_are_each_codebooks_own_mean(mono: tuple[Any, MusicgenForCausalLM]) -> None:
    ours = mono[1]
    inputs = inputs_for(ours)
    output = ours(**inputs)
    logits = output.logits.view(BATCH, ours.num_codebooks, STEPS, -1)
    for k in range(ours.num_codebooks):
        scored = (inputs["labels"][..., k] != -100) & (inputs["labels"][..., k] != tiny.SPECIAL)
        expected = F.cross_entropy(logits[:, k][scored], inputs["labels"][..., k][scored])
        assert_close(output.codebook_losses[k], expected.detach())
        assert output.codebook_counts[k] == scored.sum() == 2 * (STEPS - k) + min(8, STEPS - k)
    assert_close(output.loss.detach(), output.codebook_losses.mean())


def test_a_codebook_with_nothing_to_score_is_left_out(mono: tuple[Any, MusicgenForCausalLM]) -> None:
    ours = mono[1]
    labels = inputs_for(ours)["labels"]
    labels[..., 2] = -100
    ours.zero_grad()
    output = ours(labels=labels)
    others = [output.codebook_losses[k] for k in (0, 1, 3)]
    assert_close(output.loss.detach(), torch.stack(others).mean())
    assert output.codebook_losses[2].isnan()
    output.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in ours.parameters())
    assert ours.lm_heads[2].weight.grad.abs().max() == 0


def test_nothing_to_score_at_all_is_a_loss_of_zero(mono: tuple[Any, MusicgenForCausalLM]) -> None:
    output = mono[1](labels=torch.full((2, 5, 4), -100))
    output.loss.backward()
    assert output.loss.item() == 0


def test_labels_beside_inputs_are_not_shifted(mono: tuple[Any, MusicgenForCausalLM]) -> None:
    reference, ours = mono
    labels = inputs_for(ours)["labels"]
    ids = delayed_ids(ours)
    expected = reference(input_ids=ids, labels=labels, use_cache=False)
    assert_close(ours(input_ids=ids, labels=labels).loss, expected.loss, rtol=1e-5, atol=0)


def test_padding_mask_equals_the_reference_where_it_counts(mono: tuple[Any, MusicgenForCausalLM]) -> None:
    reference, ours = mono
    ids = delayed_ids(ours)
    mask = torch.ones(BATCH, STEPS, dtype=torch.long)
    mask[0, :3] = 0
    mask[1, 9:] = 0
    expected = reference(input_ids=ids, attention_mask=mask, use_cache=False).logits.view(BATCH, 4, STEPS, -1)
    got = ours(input_ids=ids, attention_mask=mask).logits.view(BATCH, 4, STEPS, -1)
    seen = mask.bool()[:, None, :, None].expand_as(got)
    assert_close(got[seen], expected[seen], rtol=1e-5, atol=1e-5)
    assert got.isfinite().all()


def test_hidden_states_and_attentions_equal_the_reference(pair: tuple[Any, MusicgenForCausalLM]) -> None:
    reference, ours = pair
    inputs = {name: value for name, value in inputs_for(ours).items() if name != "labels"}
    # The reference's unfused path averages over a null row (trap 16); ours is checked for it elsewhere.
    inputs = {name: value[:2] for name, value in inputs.items()}
    ids = delayed_ids(ours)[: 2 * ours.num_codebooks]
    reference.set_attn_implementation("eager")
    try:
        expected = reference(ids, **inputs, output_attentions=True, output_hidden_states=True, use_cache=False)
    finally:
        reference.set_attn_implementation("sdpa")
    got = ours(ids, **inputs, output_attentions=True, output_hidden_states=True)
    assert_close(got.logits, expected.logits, rtol=1e-5, atol=1e-5)
    for name in ("hidden_states", "attentions", "cross_attentions"):
        ours_values, reference_values = getattr(got, name), getattr(expected, name)
        assert len(ours_values) == len(reference_values), name
        for mine, theirs in zip(ours_values, reference_values, strict=True):
            assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_both_attention_paths_agree_also_on_null_rows(mono: tuple[Any, MusicgenForCausalLM]) -> None:
    ours = mono[1]
    inputs = inputs_for(ours)
    fused = ours(**inputs)
    unfused = ours(**inputs, output_attentions=True)
    assert_close(unfused.logits, fused.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("output_attentions", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_null_row_adds_exactly_nothing_forward_and_backward(dtype: torch.dtype, output_attentions: bool) -> None:
    model = _fresh_model().to(dtype)
    labels = torch.randint(0, tiny.VOCAB, (2, STEPS, 4))
    text = torch.randn(2, TEXT_LENGTH, WIDTH, dtype=dtype)
    text[1, 2] = float("nan")  # stored garbage behind a mask must not matter either
    text.requires_grad_()
    mask = torch.ones(2, TEXT_LENGTH, dtype=torch.long)
    mask[1] = 0
    output = model(
        labels=labels, encoder_hidden_states=text, encoder_attention_mask=mask, output_attentions=output_attentions
    )
    without_text = model(labels=labels, output_attentions=output_attentions)
    steps_of_null_row = slice(4, 8)
    assert torch.equal(output.logits[steps_of_null_row], without_text.logits[steps_of_null_row])
    assert not torch.equal(output.logits[:4], without_text.logits[:4])
    output.loss.backward()
    assert text.grad is not None
    assert text.grad.isfinite().all()
    assert text.grad[1].abs().max() == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_padded_text_equals_each_row_alone(mono: tuple[Any, MusicgenForCausalLM]) -> None:
    ours = mono[1]
    ids = delayed_ids(ours)
    inputs = {name: value for name, value in inputs_for(ours).items() if name != "labels"}
    together = ours(ids, **inputs).logits
    for row, length in enumerate((TEXT_LENGTH, 4)):
        alone = ours(
            ids[4 * row : 4 * row + 4], encoder_hidden_states=inputs["encoder_hidden_states"][row : row + 1, :length]
        )
        assert_close(together[4 * row : 4 * row + 4], alone.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prefill", [1, 2, STEPS - 1])
def test_cached_equals_uncached_at_every_step(pair: tuple[Any, MusicgenForCausalLM], prefill: int) -> None:
    ours = pair[1]
    ids = delayed_ids(ours)
    text = {name: value for name, value in inputs_for(ours).items() if name != "labels"}
    whole = ours(ids, **text, use_cache=False)
    assert whole.past_key_values is None
    output = ours(ids[:, :prefill], **text, use_cache=True)
    assert_close(output.logits, whole.logits[:, :prefill], rtol=1e-5, atol=1e-5)
    for step in range(prefill, STEPS):
        output = ours(ids[:, step : step + 1], **text, past_key_values=output.past_key_values, use_cache=True)
        assert_close(output.logits[:, 0], whole.logits[:, step], rtol=1e-5, atol=1e-5)
    assert output.past_key_values.get_seq_length() == STEPS


def test_the_cache_reads_and_is_taken_as_nested_tuples(mono: tuple[Any, MusicgenForCausalLM]) -> None:
    ours = mono[1]
    ids = delayed_ids(ours)
    text = {name: value for name, value in inputs_for(ours).items() if name != "labels"}
    past = ours(ids[:, :6], **text, use_cache=True).past_key_values
    nested = tuple(past)
    heads, head_width = tiny.DECODER["num_attention_heads"], WIDTH // tiny.DECODER["num_attention_heads"]
    assert [list(tensor.shape) for tensor in nested[0]] == [[BATCH, heads, n, head_width] for n in (6, 6, 7, 7)]
    resumed = ours(ids[:, 6:], **text, past_key_values=nested, use_cache=False)
    assert_close(resumed.logits, ours(ids, **text).logits[:, 6:], rtol=1e-5, atol=1e-5)


def test_a_cache_grows_beyond_its_capacity() -> None:
    from musicgen_train.models.kv_cache import KVCache

    model = _fresh_model().eval()
    ids = delayed_ids(model, steps=40)
    cache = KVCache(model.config.num_hidden_layers, capacity=3)
    for step in range(40):
        last = model(ids[:, step : step + 1], past_key_values=cache).logits[:, 0]
    assert_close(last, model(ids).logits[:, -1], rtol=1e-5, atol=1e-5)


def test_gradients_flow_through_a_cache() -> None:
    model = _fresh_model().eval()
    ids = delayed_ids(model)
    first = model(ids[:, :5], use_cache=True)
    second = model(ids[:, 5:], past_key_values=first.past_key_values, use_cache=True)
    torch.cat([first.logits, second.logits], dim=1).square().sum().backward()
    through_cache = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    model(ids).logits.square().sum().backward()
    whole = [p.grad for p in model.parameters() if p.grad is not None]
    for got, expected in zip(through_cache, whole, strict=True):
        assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_padding_masks_extend_over_the_cache(mono: tuple[Any, MusicgenForCausalLM]) -> None:
    ours = mono[1]
    ids = delayed_ids(ours)
    mask = torch.ones(BATCH, STEPS, dtype=torch.long)
    mask[0, :3] = 0
    whole = ours(ids, attention_mask=mask).logits
    past = ours(ids[:, :6], attention_mask=mask[:, :6], use_cache=True).past_key_values
    rest = ours(ids[:, 6:], attention_mask=mask, past_key_values=past).logits
    assert_close(rest, whole[:, 6:], rtol=1e-5, atol=1e-5)


def test_no_step_sees_a_later_one() -> None:
    model = _fresh_model()
    embeddings = torch.randn(2, STEPS, WIDTH, requires_grad=True)
    logits = model(inputs_embeds=embeddings).logits.view(2, 4, STEPS, -1)
    for step in range(STEPS):
        (gradient,) = torch.autograd.grad(logits[:, :, step].sum(), embeddings, retain_graph=True)
        assert gradient[:, step + 1 :].abs().max().item() == 0 if step + 1 < STEPS else True
        assert (gradient[:, : step + 1].abs().amax(dim=(0, 2)) > 0).all()


def test_embeddings_can_stand_in_for_ids(mono: tuple[Any, MusicgenForCausalLM]) -> None:
    ours = mono[1]
    ids = delayed_ids(ours)
    tables = ours.get_input_embeddings()
    by_codebook = ids.view(BATCH, 4, STEPS)
    embeddings = sum(tables[k](by_codebook[:, k]) for k in range(4))
    assert_close(ours(inputs_embeds=embeddings).logits, ours(ids).logits)


def test_three_axes_of_ids_are_taken_too(mono: tuple[Any, MusicgenForCausalLM]) -> None:
    ids = delayed_ids(mono[1])
    assert torch.equal(mono[1](ids.view(BATCH, 4, STEPS)).logits, mono[1](ids).logits)


@pytest.mark.parametrize("output_attentions", [False, True])
@pytest.mark.parametrize(
    ("argument", "projection"), [("head_mask", "self_attn"), ("cross_attn_head_mask", "encoder_attn")]
)
def test_a_masked_head_equals_one_whose_output_columns_are_zero(
    argument: str, projection: str, output_attentions: bool
) -> None:
    model = _fresh_model().eval()
    ids = delayed_ids(model)
    text = torch.randn(BATCH, TEXT_LENGTH, WIDTH)
    head_mask = torch.ones(3, 2)
    head_mask[1, 0] = 0
    masked = model(ids, encoder_hidden_states=text, **{argument: head_mask}, output_attentions=output_attentions)
    with torch.no_grad():
        getattr(model.model.decoder.layers[1], projection).out_proj.weight[:, : WIDTH // 2] = 0
    assert_close(masked.logits, model(ids, encoder_hidden_states=text).logits, rtol=1e-5, atol=1e-5)


def test_return_dict_false_gives_the_values_that_are_there(mono: tuple[Any, MusicgenForCausalLM]) -> None:
    ours = mono[1]
    labels = inputs_for(ours)["labels"]
    as_output = ours(labels=labels)
    as_tuple = ours(labels=labels, return_dict=False)
    assert len(as_tuple) == len(as_output) == 4
    assert torch.equal(as_tuple[0], as_output["loss"])
    assert torch.equal(as_tuple[1], as_output[1])
    assert list(as_output) == ["loss", "logits", "codebook_losses", "codebook_counts"]


def test_training_keeps_no_cache_but_inference_does(mono: tuple[Any, MusicgenForCausalLM]) -> None:
    ours = mono[1]
    ids = delayed_ids(ours)
    assert ours(ids).past_key_values is not None
    assert ours(labels=inputs_for(ours)["labels"]).past_key_values is None
    try:
        assert ours.train()(ids).past_key_values is None
    finally:
        ours.eval()


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model = _fresh_model(dropout=0.1).train()
    inputs = inputs_for(model)
    gradients = []
    for enable in (model.gradient_checkpointing_disable, model.gradient_checkpointing_enable):
        enable()
        model.zero_grad()
        torch.manual_seed(1)
        model(**inputs).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def test_checkpointed_layers_are_run_again_in_the_backward_pass() -> None:
    model = _fresh_model().train()
    model.gradient_checkpointing_enable()
    calls = []
    model.model.decoder.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    loss = model(**inputs_for(model)).loss
    assert len(calls) == 1
    loss.backward()
    assert len(calls) == 2


def test_dropout_and_layerdrop_act_in_training_only() -> None:
    model = _fresh_model(dropout=0.5, layerdrop=0.5)
    ids = delayed_ids(model)
    assert not torch.equal(model.train()(ids).logits, model(ids).logits)
    assert torch.equal(model.eval()(ids).logits, model(ids).logits)


def test_dropout_falls_where_the_references_does(tmp_path: Path) -> None:
    """The same seed drops the same values only if every dropout has its place, its probability and its order."""
    reference = tiny.reference_decoder(dropout=0.3, activation_dropout=0.2)
    ours = tiny.ours_from(reference, tmp_path)
    logits = []
    for model in (reference.train(), ours.train()):
        torch.manual_seed(9)
        logits.append(model(**inputs_for(ours), use_cache=False).logits)
    assert_close(logits[1], logits[0], rtol=1e-5, atol=1e-5)


def test_every_layer_dropped_leaves_embeddings_and_norm() -> None:
    model = _fresh_model(layerdrop=1.0).train()
    ids = delayed_ids(model)
    got = model.model(ids).last_hidden_state
    decoder = model.model.decoder
    embedded = decoder.embed(ids.view(BATCH, 4, STEPS)) + sinusoidal_positions(0, STEPS, WIDTH, torch.device("cpu"))
    assert_close(got, decoder.layer_norm(embedded))


def test_positions_equal_the_references_table_in_every_dtype() -> None:
    for width in (24, 21, 1024):
        reference = transformers.models.musicgen.modeling_musicgen.MusicgenSinusoidalPositionalEmbedding(1600, width)
        table = sinusoidal_positions(0, 1600, width, torch.device("cpu"))
        assert table.dtype == torch.float32
        assert_close(table, reference.weights, rtol=0, atol=1e-6)
        assert torch.equal(sinusoidal_positions(1500, 3, width, torch.device("cpu")), table[1500:1503])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_half_precision_stays_close(
    mono: tuple[Any, MusicgenForCausalLM], dtype: torch.dtype, tolerance: float
) -> None:
    ours = mono[1]
    inputs = inputs_for(ours)
    exact = ours(**inputs)
    half = MusicgenForCausalLM(ours.config)
    half.load_state_dict(ours.state_dict())
    half.to(dtype).eval()
    got = half(**inputs)
    assert got.logits.dtype == dtype
    assert got.loss.dtype == torch.float32
    assert_close(got.logits.float(), exact.logits, rtol=0, atol=tolerance * exact.logits.abs().max().item())
    assert_close(got.loss, exact.loss, rtol=tolerance, atol=0)


def test_the_bare_model_equals_the_reference(mono: tuple[Any, MusicgenForCausalLM], tmp_path: Path) -> None:
    reference, ours = mono
    ours.save_pretrained(tmp_path)
    bare = MusicgenModel.from_pretrained(tmp_path)
    ids = delayed_ids(ours)
    assert_close(bare(ids).last_hidden_state, reference.model(ids).last_hidden_state, rtol=1e-5, atol=1e-5)
    bare.save_pretrained(tmp_path / "bare")
    again = MusicgenModel.from_pretrained(tmp_path / "bare")
    assert torch.equal(again(ids).last_hidden_state, bare(ids).last_hidden_state)


def test_transformers_loads_what_we_save(mono: tuple[Any, MusicgenForCausalLM], tmp_path: Path) -> None:
    reference, ours = mono
    ours.save_pretrained(tmp_path)
    loaded, report = transformers.MusicgenForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ids = delayed_ids(ours)
    assert torch.equal(loaded(ids).logits, reference(ids).logits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": torch.zeros(6, 5, dtype=torch.long)}, "the model has 4 codebooks"),
        ({"input_ids": torch.zeros(2, 3, 5, dtype=torch.long)}, "the model has 4 codebooks"),
        ({"input_ids": torch.zeros(4, 5)}, "expected integers"),
        ({"input_ids": torch.full((4, 5), tiny.SPECIAL + 1)}, "input ids range from 65 to 65; allowed are 0 to 64"),
        ({"input_ids": torch.full((4, 5), -100)}, "input ids range from -100 to -100"),
        ({"labels": torch.zeros(2, 5, 8, dtype=torch.long)}, r"labels are \[2, 5, 8\]; expected \(batch, steps, 4\)"),
        ({"labels": torch.full((2, 5, 4), 65)}, "labels range from 65 to 65"),
        (
            {"input_ids": torch.zeros(4, 129, dtype=torch.long)},
            "129 steps is longer than max_position_embeddings",
        ),
        ({}, "give either input_ids or inputs_embeds"),
        (
            {"input_ids": torch.zeros(4, 5, dtype=torch.long), "encoder_hidden_states": torch.zeros(1, 3, 20)},
            "go through the composite's enc_to_dec_proj first",
        ),
        (
            {"input_ids": torch.zeros(4, 5, dtype=torch.long), "encoder_hidden_states": torch.zeros(2, 3, 24)},
            r"encoder_hidden_states are \[2, 3, 24\]; expected \(1, text length, 24\)",
        ),
        (
            {
                "input_ids": torch.zeros(4, 5, dtype=torch.long),
                "encoder_hidden_states": torch.zeros(1, 3, 24),
                "encoder_attention_mask": torch.ones(1, 2),
            },
            r"encoder_attention_mask is \[1, 2\]; expected \[1, 3\]",
        ),
        (
            {"input_ids": torch.zeros(4, 5, dtype=torch.long), "attention_mask": torch.ones(1, 4)},
            r"attention_mask is \[1, 4\]; expected \(batch, 5\)",
        ),
        (
            {"input_ids": torch.zeros(4, 5, dtype=torch.long), "past_key_values": ((torch.zeros(1, 2, 3, 12),) * 2,)},
            "past_key_values has 1 layers, the model 3",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    mono: tuple[Any, MusicgenForCausalLM], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        mono[1](**arguments)


def _fresh_model(**overrides: Any) -> MusicgenForCausalLM:
    torch.manual_seed(2)
    config = MusicgenDecoderConfig(**{**tiny.DECODER, **overrides})
    model = MusicgenForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model


def test_states_of_earlier_layers_are_not_kept_unless_asked_for() -> None:
    model = MusicgenForCausalLM(MusicgenDecoderConfig(**{**tiny.DECODER, "num_hidden_layers": 5})).eval()
    made: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def note(layer: Any, inputs: Any, outputs: Any) -> None:
        alive.append(sum(reference() is not None for reference in made))
        made.append(weakref.ref(outputs[0]))

    for layer in model.model.decoder.layers:
        layer.register_forward_hook(note)
    with torch.no_grad():
        model(torch.zeros(1, model.num_codebooks, 3, dtype=torch.long), use_cache=False)
    assert alive == [0, 1, 1, 1, 1]  # what the layer itself was given


# The compiler looks at each tensor that comes out of a layer, and torch warns about that.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
# torch 2.11 warns of its own doings when it looks at an autograd function.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_layers_share_their_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each layer, or for each shape, would soon be as many as torch allows; the others then run uncompiled."""
    graphs = []

    def compile_(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    model = MusicgenForCausalLM(MusicgenDecoderConfig(**{**tiny.DECODER, "num_hidden_layers": 12})).train()
    uncompiled, compile_layer = model.state_dict(), torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda layer: compile_layer(layer, backend=compile_))
    model.compile_layers()
    for steps, text_length in ((9, 5), (9, 5), (12, 6), (15, 3), (10, 9)):
        text = torch.randn(2, text_length, WIDTH)
        mask = torch.ones(2, text_length, dtype=torch.bool)
        labels = torch.zeros(2, steps, model.num_codebooks, dtype=torch.long)
        model(labels=labels, encoder_hidden_states=text, encoder_attention_mask=mask).loss.backward()
    # One for the first shape, and one for all others.
    assert len(graphs) == 2
    assert list(model.state_dict()) == list(uncompiled)


@pytest.fixture
def torchs_own_limit() -> Iterator[None]:
    """Of graphs, to be raised in the test and put back after it; where it is reached, that is an error."""
    # Not by monkeypatch, which would remove it.
    with torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=True):
        yield


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.usefixtures("torchs_own_limit")
def test_compiled_layers_stay_compiled_whatever_a_run_does(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    model = MusicgenForCausalLM(MusicgenDecoderConfig(**tiny.DECODER))
    compile_layer = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda layer: compile_layer(layer, backend="eager"))
    model.compile_layers()
    for training, autocast, masked in itertools.product((True, False), repeat=3):
        model.train(training)
        # Clips and captions of several lengths, captions that are all dropped, the last batch.
        for rows, steps, text_length in ((4, 9, 5), (4, 9, 7), (4, 9, 1), (4, 12, 3), (1, 9, 5)):
            text = torch.randn(rows, text_length, WIDTH)
            mask = torch.ones(rows, text_length, dtype=torch.bool) if masked else None
            labels = torch.zeros(rows, steps, model.num_codebooks, dtype=torch.long)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.set_grad_enabled(training):
                model(labels=labels, encoder_hidden_states=text, encoder_attention_mask=mask)
