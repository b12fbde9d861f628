"""The T5 encoder against transformers' T5EncoderModel, on tiny random models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.models.t5.modeling_t5 import T5Attention as ReferenceAttention

from musicgen_train.hub.weights import CheckpointError
from musicgen_train.models.config import T5Config
from musicgen_train.models.t5 import T5EncoderModel, T5LayerNorm, _within_float16, position_buckets

# Heads times head width never equals the width, and no two sizes of a config are equal.
RELU: dict[str, Any] = {"vocab_size": 53, "d_model": 20, "d_kv": 7, "d_ff": 37, "num_layers": 2, "num_heads": 3}
GATED: dict[str, Any] = {
    "vocab_size": 59,
    "d_model": 22,
    "d_kv": 5,
    "d_ff": 31,
    "num_layers": 3,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
}
FEW_BUCKETS = {**RELU, "relative_attention_num_buckets": 10, "relative_attention_max_distance": 17}
ODD_BUCKETS = {**GATED, "relative_attention_num_buckets": 13, "relative_attention_max_distance": 29}
CONFIGS = {"relu": RELU, "gated-gelu": GATED, "few-buckets": FEW_BUCKETS, "odd-buckets": ODD_BUCKETS}


def reference_and_ours(values: dict[str, Any], *, attention: str = "sdpa", **more: Any) -> tuple[Any, Any]:
    """A random reference model in eval mode, and ours with its weights."""
    torch.manual_seed(1)
    config = transformers.T5Config(**{**values, **more}, attn_implementation=attention)  # type: ignore[call-arg]
    reference = transformers.T5EncoderModel(config).eval()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            # The initial norms are all ones and the initial position bias is small: neither would show an error.
            if "layer_norm" in name or "relative_attention_bias" in name:
                parameter.add_(torch.randn_like(parameter))
    ours = T5EncoderModel(T5Config(**{**values, **more})).eval()
    ours.load_state_dict(reference.state_dict(), strict=True)
    return reference, ours


def padded_batch(vocab_size: int, length: int = 11) -> dict[str, torch.Tensor]:
    """Four rows: full, padded on the right, padded on the left, all padding."""
    ids = torch.randint(1, vocab_size, (4, length), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[1, length // 2 :] = 0
    mask[2, : length // 3] = 0
    mask[3] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def relative_error(ours: torch.Tensor, reference: torch.Tensor) -> float:
    assert ours.shape == reference.shape
    return ((ours.float() - reference.float()).abs().max() / reference.float().abs().max()).item()


@pytest.mark.parametrize("length", [1, 2, 11, 150])
@pytest.mark.parametrize("name", CONFIGS)
def test_states_equal_the_reference(name: str, length: int) -> None:
    reference, ours = reference_and_ours(CONFIGS[name])
    batch = padded_batch(CONFIGS[name]["vocab_size"], length)
    with torch.no_grad():
        expected = reference(**batch, output_hidden_states=True)
        found = ours(**batch, output_hidden_states=True)
    assert len(found.hidden_states) == len(expected.hidden_states) == CONFIGS[name]["num_layers"] + 1
    for state, reference_state in zip(found.hidden_states, expected.hidden_states, strict=True):
        assert relative_error(state, reference_state) < 1e-5
    assert torch.equal(found.hidden_states[-1], found.last_hidden_state)
    assert found.attentions is None


@pytest.mark.parametrize("name", CONFIGS)
def test_attentions_equal_the_reference_and_both_paths_agree(name: str) -> None:
    reference, ours = reference_and_ours(CONFIGS[name], attention="eager")
    batch = padded_batch(CONFIGS[name]["vocab_size"])
    with torch.no_grad():
        expected = reference(**batch, output_attentions=True)
        found = ours(**batch, output_attentions=True)
        fused = ours(**batch)
    assert len(found.attentions) == CONFIGS[name]["num_layers"]
    for weights, reference_weights in zip(found.attentions, expected.attentions, strict=True):
        assert relative_error(weights, reference_weights) < 1e-5
    assert relative_error(found.last_hidden_state, expected.last_hidden_state) < 1e-5
    assert relative_error(fused.last_hidden_state, found.last_hidden_state) < 1e-5


@pytest.mark.parametrize("explicit", [False, True], ids=["fused", "explicit"])
@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_equal_the_reference(name: str, explicit: bool) -> None:
    reference, ours = reference_and_ours(CONFIGS[name])
    batch = padded_batch(CONFIGS[name]["vocab_size"], 41)
    shape = (*batch["input_ids"].shape, CONFIGS[name]["d_model"])
    # The row without a token has no state that anything may depend on.
    weights = torch.randn(shape) * batch["attention_mask"][..., None]
    (reference(**batch).last_hidden_state * weights).sum().backward()
    (ours(**batch, output_attentions=explicit).last_hidden_state * weights).sum().backward()
    expected = {key: parameter.grad for key, parameter in reference.named_parameters()}
    found = {key: parameter.grad for key, parameter in ours.named_parameters()}
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        assert relative_error(found[key], gradient) < 1e-4, key


@pytest.mark.parametrize("name", ["relu", "gated-gelu"])
def test_dropout_falls_where_the_reference_has_it(name: str) -> None:
    # On the explicit path the same random numbers are drawn in the same order.
    reference, ours = reference_and_ours(CONFIGS[name], attention="eager", dropout_rate=0.3)
    batch = padded_batch(CONFIGS[name]["vocab_size"])
    torch.manual_seed(3)
    expected = reference.train()(**batch, output_attentions=True, output_hidden_states=True)
    torch.manual_seed(3)
    found = ours.train()(**batch, output_attentions=True, output_hidden_states=True)
    for kind in ("hidden_states", "attentions"):
        for value, reference_value in zip(found[kind], expected[kind], strict=True):
            assert relative_error(value, reference_value) < 1e-5


def test_the_fused_path_drops_attention_weights_only_in_training() -> None:
    _, ours = reference_and_ours(RELU, dropout_rate=0.5)
    for module in ours.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    batch = padded_batch(53)
    with torch.no_grad():
        assert torch.equal(ours(**batch)[0], ours(**batch)[0])
        ours.train()
        assert not torch.equal(ours(**batch)[0], ours(**batch)[0])


@pytest.mark.parametrize("explicit", [False, True], ids=["fused", "explicit"])
def test_a_padded_row_equals_the_row_alone(explicit: bool) -> None:
    _, ours = reference_and_ours(GATED)
    batch = padded_batch(59)
    with torch.no_grad():
        together = ours(**batch, output_attentions=explicit).last_hidden_state
        for row, mask in enumerate(batch["attention_mask"][:3].bool()):
            alone = ours(batch["input_ids"][row, mask][None], output_attentions=explicit).last_hidden_state
            assert relative_error(together[row, mask], alone[0]) < 1e-5


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int32, torch.float32])
def test_the_mask_may_have_any_dtype(mask_dtype: torch.dtype) -> None:
    _, ours = reference_and_ours(RELU)
    batch = padded_batch(53)
    with torch.no_grad():
        expected = ours(**batch).last_hidden_state
        found = ours(batch["input_ids"], batch["attention_mask"].to(mask_dtype)).last_hidden_state
    assert torch.equal(found, expected)


@pytest.mark.parametrize("explicit", [False, True], ids=["fused", "explicit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, "autocast"])
def test_a_row_without_tokens_stays_finite_in_both_directions(dtype: torch.dtype | str, explicit: bool) -> None:
    _, ours = reference_and_ours(RELU)
    with torch.no_grad():
        # Far below zero, where adding the least number of the dtype to it would overflow.
        attention = ours.encoder.block[0].layer[0].SelfAttention
        attention.relative_attention_bias.weight.sub_(60)
        attention.k.weight.copy_(-9 * attention.q.weight)
    if isinstance(dtype, torch.dtype):
        ours = ours.to(dtype)
    batch = padded_batch(53)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast"):
        states = ours(**batch, output_attentions=explicit).last_hidden_state
    states.float().square().mean().backward()
    assert states.isfinite().all()
    for name, parameter in ours.named_parameters():
        assert parameter.grad.isfinite().all(), name


def test_autocast_stays_close_to_float32() -> None:
    _, ours = reference_and_ours(GATED)
    batch = padded_batch(59)
    with torch.no_grad():
        expected = ours(**batch).last_hidden_state
        for explicit in (False, True):
            with torch.autocast("cpu", torch.bfloat16):
                found = ours(**batch, output_attentions=explicit).last_hidden_state
            # The row of padding attends evenly in any precision, so it is close too.
            assert relative_error(found, expected) < 0.05


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.02), (torch.float16, 0.003)])
@pytest.mark.parametrize("name", ["relu", "gated-gelu"])
def test_half_precision_is_close_to_the_reference(
    name: str, dtype: torch.dtype, tolerance: float, tmp_path: Path
) -> None:
    reference, _ = reference_and_ours(CONFIGS[name])
    reference.save_pretrained(tmp_path)
    reference = transformers.T5EncoderModel.from_pretrained(tmp_path, dtype=dtype)
    ours = T5EncoderModel.from_pretrained(tmp_path, dtype=dtype)
    assert {key: value.dtype for key, value in ours.state_dict().items()} == {
        key: value.dtype for key, value in reference.state_dict().items()
    }
    batch = padded_batch(CONFIGS[name]["vocab_size"])
    with torch.no_grad():
        expected = reference(**batch, output_hidden_states=True)
        found = ours(**batch, output_hidden_states=True)
    for state, reference_state in zip(found.hidden_states, expected.hidden_states, strict=True):
        assert state.dtype == reference_state.dtype
        assert relative_error(state, reference_state) < tolerance


def test_float16_keeps_the_last_feed_forward_matrix_in_float32(tmp_path: Path) -> None:
    reference_and_ours(RELU)[1].save_pretrained(tmp_path)
    dtypes = {
        name: value.dtype
        for name, value in T5EncoderModel.from_pretrained(tmp_path, dtype="float16").state_dict().items()
    }
    kept = {name for name, dtype in dtypes.items() if dtype == torch.float32}
    assert kept == {f"encoder.block.{layer}.layer.1.DenseReluDense.wo.weight" for layer in range(2)}
    assert set(dtypes.values()) == {torch.float16, torch.float32}


@pytest.mark.parametrize("part", ["layer.0.SelfAttention.o", "layer.1.DenseReluDense.wo"])
def test_float16_overflow_is_brought_back_into_range(part: str) -> None:
    reference, _ = reference_and_ours(RELU)
    with torch.no_grad():
        reference.get_submodule(f"encoder.block.0.{part}").weight.mul_(3e4)
    reference = reference.half()
    ours: Any = T5EncoderModel(T5Config(**RELU)).half().eval()
    ours.load_state_dict(reference.state_dict())
    ids = padded_batch(53)["input_ids"][:1]
    with torch.no_grad():
        expected = reference(ids, output_hidden_states=True)
        found = ours(ids, output_hidden_states=True)
    limit = torch.finfo(torch.float16).max - 1000
    assert abs(found.hidden_states[1].abs().max().item() - limit) < 32
    for state, reference_state in zip(found.hidden_states, expected.hidden_states, strict=True):
        assert state.isfinite().all()
        assert relative_error(state, reference_state) < 0.01


def test_float16_in_range_is_left_alone() -> None:
    in_range = torch.tensor([65504.0, -1.5, -65504.0], dtype=torch.float16)
    assert _within_float16(in_range).tolist() == [65504.0, -1.5, -65504.0]
    # 65504 - 1000 to the nearest float16.
    overflown = torch.tensor([math.inf, -math.inf, 65504.0, 3.0], dtype=torch.float16)
    assert _within_float16(overflown).tolist() == [64512.0, -64512.0, 64512.0, 3.0]
    wide = torch.tensor([math.inf])
    assert _within_float16(wide) is wide


def test_buckets_by_hand() -> None:
    # 32 buckets, 128 tokens: one bucket each up to 7, then a doubling every 2 buckets; keys after the query from 16 on.
    by_hand = {0: 0, -1: 1, -7: 7, -8: 8, -11: 8, -12: 9, -16: 10, -32: 12, -64: 14, -91: 15, -127: 15, -500: 15}
    by_hand |= {1: 17, 7: 23, 8: 24, 15: 25, 16: 26, 64: 30, 128: 31, 10_000: 31}
    found = position_buckets(torch.tensor(list(by_hand)), num_buckets=32, max_distance=128)
    assert found.tolist() == list(by_hand.values())


@pytest.mark.parametrize(
    ("num_buckets", "max_distance"), [(32, 128), (4, 2), (5, 3), (10, 17), (13, 29), (64, 256), (256, 128)]
)
def test_buckets_equal_the_reference(num_buckets: int, max_distance: int) -> None:
    distances = torch.arange(-700, 701).reshape(3, 467)
    found = position_buckets(distances, num_buckets=num_buckets, max_distance=max_distance)
    expected = ReferenceAttention._relative_position_bucket(
        distances, bidirectional=True, num_buckets=num_buckets, max_distance=max_distance
    )
    assert torch.equal(found, expected)
    assert found.min() >= 0
    assert found.max() < num_buckets


def test_the_position_bias_is_looked_up_for_each_pair() -> None:
    bias = reference_and_ours(FEW_BUCKETS)[1].encoder.block[0].layer[0].SelfAttention.relative_attention_bias
    found = bias(23)
    for query in (0, 5, 22):
        for key in (0, 1, 6, 22):
            bucket = position_buckets(torch.tensor(key - query), num_buckets=10, max_distance=17)
            assert torch.equal(found[:, query, key], bias.weight[bucket])


@pytest.mark.parametrize("values", [RELU, GATED], ids=["relu", "gated-gelu"])
def test_folders_of_the_reference_load_and_ours_load_there(values: dict[str, Any], tmp_path: Path) -> None:
    reference, _ = reference_and_ours(values)
    reference.save_pretrained(tmp_path / "theirs")
    ours = T5EncoderModel.from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    reader: Any = transformers.T5EncoderModel
    again, report = reader.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    for name, value in reference.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name])
        assert torch.equal(value, again.state_dict()[name])
    for name in T5Config.field_names():
        assert getattr(again.config, name) == getattr(reference.config, name)
    assert T5EncoderModel.from_pretrained(tmp_path / "ours").config == ours.config
    # As the reference writes it: the tied name is not in the file.
    assert (
        load_file(tmp_path / "ours/model.safetensors").keys() == load_file(tmp_path / "theirs/model.safetensors").keys()
    )


def test_the_encoder_of_a_whole_t5_loads(tmp_path: Path) -> None:
    config: Any = transformers.T5Config(**RELU, decoder_start_token_id=0)  # type: ignore[call-arg]
    whole = transformers.T5ForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path)
    # Files of T5 v1.1 hold an output layer of its own; the reference ties it and no longer writes it.
    state = load_file(tmp_path / "model.safetensors")
    save_file({**state, "lm_head.weight": torch.ones(53, 20)}, tmp_path / "model.safetensors")
    ours = T5EncoderModel.from_pretrained(tmp_path)
    batch = padded_batch(53)
    with torch.no_grad():
        assert relative_error(ours(**batch)[0], whole.get_encoder()(**batch)[0]) < 1e-5


def test_the_text_encoder_of_a_composite_loads(tmp_path: Path) -> None:
    text = transformers.T5EncoderModel(transformers.T5Config(**RELU))
    audio = transformers.EncodecConfig(
        hidden_size=8, num_filters=2, upsampling_ratios=[2], num_lstm_layers=1, codebook_size=16, codebook_dim=8
    )
    decoder = transformers.MusicgenDecoderConfig(
        vocab_size=16, hidden_size=12, ffn_dim=14, num_hidden_layers=1, num_attention_heads=2, num_codebooks=4
    )
    composite = transformers.MusicgenForConditionalGeneration(
        transformers.MusicgenConfig(text_encoder=text.config, audio_encoder=audio, decoder=decoder)
    ).eval()
    composite.save_pretrained(tmp_path)
    ours = T5EncoderModel.from_pretrained(tmp_path)
    assert ours.config.d_kv == 7
    batch = padded_batch(53)
    with torch.no_grad():
        assert relative_error(ours(**batch)[0], composite.text_encoder(**batch)[0]) < 1e-5


def test_a_file_may_hold_either_name_of_the_embedding(tmp_path: Path) -> None:
    _, ours = reference_and_ours(RELU)
    ours.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["encoder.embed_tokens.weight"] = state.pop("shared.weight")
    save_file(state, tmp_path / "model.safetensors")
    loaded = T5EncoderModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.shared.weight, ours.shared.weight)
    assert loaded.encoder.embed_tokens.weight is loaded.shared.weight


def test_other_tensors_in_a_file_are_refused(tmp_path: Path) -> None:
    _, ours = reference_and_ours(RELU)
    ours.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["encoder.block.2.layer.0.layer_norm.weight"] = torch.ones(20)
    del state["encoder.final_layer_norm.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"1 missing: encoder.final_layer_norm.weight; 1 unexpected: encoder.block.2"
    ):
        T5EncoderModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "values",
    [
        {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
        {"d_model": 1024, "d_ff": 2816, "num_layers": 24, "num_heads": 16, "feed_forward_proj": "gated-gelu"},
    ],
    ids=["t5-base", "flan-t5-large"],
)
def test_names_and_shapes_at_real_size(values: dict[str, Any]) -> None:
    with torch.device("meta"):
        reference = transformers.T5EncoderModel(transformers.T5Config(**values))
        ours = T5EncoderModel(T5Config(**values))
    expected = [(name, value.shape) for name, value in reference.state_dict().items()]
    assert [(name, value.shape) for name, value in ours.state_dict().items()] == expected
    assert ours.num_parameters() == reference.num_parameters()


@pytest.mark.parametrize("activation", ["relu", "gated-gelu"])
def test_new_weights_have_the_spread_of_the_reference(activation: str) -> None:
    values: dict[str, Any] = {
        "vocab_size": 131,
        "d_model": 64,
        "d_kv": 24,
        "d_ff": 200,
        "num_layers": 1,
        "num_heads": 6,
        "relative_attention_num_buckets": 240,
        "relative_attention_max_distance": 1000,
        "initializer_factor": 0.7,
        "feed_forward_proj": activation,
    }
    reference = transformers.T5EncoderModel(transformers.T5Config(**values)).state_dict()
    for name, value in T5EncoderModel(T5Config(**values)).state_dict().items():
        if "layer_norm" in name:
            assert torch.equal(value, reference[name])
            continue
        # The spread of n samples is off by about 1/sqrt(2n), twice as the reference is a sample too.
        assert abs(value.std() / reference[name].std() - 1) < 5 / math.sqrt(value.numel()), name
        assert abs(value.mean()) < 5 * value.std() / math.sqrt(value.numel()), name


def test_the_layer_norm_neither_overflows_nor_loses_float64() -> None:
    norm = T5LayerNorm(T5Config(**RELU))
    large = torch.full((2, 3, 20), 6e4, dtype=torch.float16)
    assert torch.allclose(norm(large), torch.ones(2, 3, 20))
    values = torch.randn(2, 3, 20, dtype=torch.float64)
    by_hand = values / (values.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert torch.allclose(norm.double()(values), by_hand, rtol=1e-14, atol=0)


def test_embeddings_in_place_of_ids() -> None:
    _, ours = reference_and_ours(RELU)
    batch = padded_batch(53)
    with torch.no_grad():
        expected = ours(**batch).last_hidden_state
        embeds = ours.shared(batch["input_ids"])
        assert torch.equal(ours(inputs_embeds=embeds, attention_mask=batch["attention_mask"])[0], expected)


def test_what_is_returned_follows_arguments_then_config() -> None:
    _, ours = reference_and_ours(RELU)
    ids = padded_batch(53)["input_ids"]
    assert isinstance(ours(ids, return_dict=False), tuple)
    assert ours(ids).keys() == ["last_hidden_state"]
    ours.config.update(output_hidden_states=True, output_attentions=True)
    assert ours(ids).keys() == ["last_hidden_state", "hidden_states", "attentions"]
    assert ours(ids, output_hidden_states=False, output_attentions=False).keys() == ["last_hidden_state"]


def test_the_embedding_is_one_parameter_after_loading_and_moving(tmp_path: Path) -> None:
    _, ours = reference_and_ours(RELU)
    ours.save_pretrained(tmp_path)
    loaded = T5EncoderModel.from_pretrained(tmp_path).to(torch.bfloat16)
    assert loaded.shared.weight is loaded.encoder.embed_tokens.weight
    loaded.shared = nn.Embedding(3, 20)
    loaded.tie_weights()
    assert loaded.encoder.embed_tokens.weight is loaded.shared.weight


IDS = torch.tensor([[3, 4, 1], [5, 1, 0]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "neither was given"),
        ({"input_ids": IDS, "inputs_embeds": torch.zeros(2, 3, 20)}, "both was given"),
        ({"input_ids": IDS[0]}, r"input_ids is \[3\]; expected \[batch, length\]"),
        ({"input_ids": IDS[:, :0]}, "length of at least 1"),
        ({"inputs_embeds": torch.zeros(2, 3, 21)}, r"inputs_embeds is \[2, 3, 21\]; expected \[batch, length, 20\]"),
        ({"inputs_embeds": torch.zeros(2, 0, 20)}, "length of at least 1"),
        ({"input_ids": IDS + 48}, r"range from 48 to 53; the vocabulary has 0 to 52\. Is the tokenizer"),
        ({"input_ids": IDS - 1}, "range from -1 to 4"),
        ({"input_ids": IDS, "attention_mask": torch.ones(2, 4)}, r"attention_mask is \[2, 4\]; .* = \[2, 3\]"),
        ({"input_ids": IDS, "attention_mask": torch.ones(2, 1, 3)}, r"attention_mask is \[2, 1, 3\]"),
        ({"input_ids": IDS, "attention_mask": torch.ones(3)}, r"attention_mask is \[3\]"),
    ],
)
def test_wrong_inputs_are_refused(arguments: dict[str, torch.Tensor], message: str) -> None:
    ours = T5EncoderModel(T5Config(**RELU))
    with pytest.raises(ValueError, match=message):
        ours(**arguments)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"relative_attention_num_buckets": 3}, "num_buckets is 3; allowed: 4 or more"),
        ({"relative_attention_max_distance": 8}, r"max_distance is 8; allowed: more than a quarter .*\(32\)"),
    ],
)
def test_buckets_that_cannot_be_are_refused(values: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        T5Config(**values)


@pytest.mark.parametrize("output_attentions", [False, True])
def test_a_masked_head_equals_one_whose_output_columns_are_zero(output_attentions: bool) -> None:
    torch.manual_seed(4)
    config = T5Config(vocab_size=53, d_model=20, d_kv=6, d_ff=44, num_layers=3, num_heads=2)
    model: Any = T5EncoderModel(config).eval()
    ids = torch.randint(0, 53, (2, 7))
    head_mask = torch.ones(3, 2)
    head_mask[1, 1] = 0
    masked = model(ids, head_mask=head_mask, output_attentions=output_attentions).last_hidden_state
    assert not torch.allclose(masked, model(ids).last_hidden_state, atol=1e-3)
    with torch.no_grad():
        model.encoder.block[1].layer[0].SelfAttention.o.weight[:, 6:] = 0
    torch.testing.assert_close(masked, model(ids).last_hidden_state, rtol=1e-5, atol=1e-5)
