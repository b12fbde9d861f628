"""The steps of generation (one that a CUDA graph can be made of, and that in C) against the decoder's forward pass,
which is itself held against transformers'."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import tiny
import torch
from torch.testing import assert_close

from musicgen_train import MusicgenDecoderConfig, MusicgenForCausalLM
from musicgen_train.models import products
from musicgen_train.models.generation import loop as generation
from musicgen_train.models.generation.cuda_graph import FixedStep, StepWeights
from musicgen_train.models.generation.steps import MakeStep, is_plain, step_maker
from musicgen_train.models.kernels.compiler import reason_without
from musicgen_train.models.kv_cache import KVCache

ROWS, STEPS, TEXT_LENGTH = 3, 9, 5
WIDE = {"hidden_size": 192, "ffn_dim": 768, "num_attention_heads": 3}
# The C code wants sizes that are multiples of eight; heads of 24 numbers, here.
EIGHTS = {"hidden_size": 48, "num_attention_heads": 2}
KINDS: dict[str, dict[str, Any]] = {
    "small": EIGHTS,
    "heads of 12": {},
    "wide": WIDE,
    "stereo": {**EIGHTS, **tiny.STEREO},
    "relu": {**WIDE, "activation_function": "relu"},
}

WAYS = ("fixed", "native")
CASES = [(kind, way) for way in WAYS for kind in KINDS if (kind, way) != ("heads of 12", "native")]


@torch.no_grad()
def step_of(way: str, model: MusicgenForCausalLM, rows: int) -> MakeStep:
    """The maker of either kind of step."""
    decoder, heads = model.model.decoder, model.lm_heads
    if way == "fixed":
        return functools.partial(FixedStep, StepWeights(decoder, heads))
    if (reason := reason_without("decode_step.c")) is not None:
        pytest.skip(reason)
    make = step_maker(decoder, heads, rows)
    assert make is not None
    return make


def build(**overrides: Any) -> MusicgenForCausalLM:
    """A decoder whose norms are off identity and whose logits are some units large."""
    torch.manual_seed(5)
    model = MusicgenForCausalLM(MusicgenDecoderConfig(**{**tiny.DECODER, **overrides})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def request(model: MusicgenForCausalLM, rows: int = ROWS) -> dict[str, torch.Tensor]:
    """Text of several lengths; the second row has none."""
    generator = torch.Generator().manual_seed(7)
    mask = torch.ones(rows, TEXT_LENGTH, dtype=torch.long)
    mask[0, 3:] = 0
    mask[1] = 0
    return {
        "encoder_hidden_states": torch.randn(rows, TEXT_LENGTH, model.config.hidden_size, generator=generator),
        "encoder_attention_mask": mask,
    }


def random_ids(model: MusicgenForCausalLM, rows: int = ROWS) -> torch.Tensor:
    generator = torch.Generator().manual_seed(9)
    return torch.randint(0, tiny.VOCAB + 1, (rows, model.num_codebooks, STEPS), generator=generator)


@torch.no_grad()
def stepped(
    model: MusicgenForCausalLM,
    ids_BKS: torch.Tensor,
    text: dict[str, torch.Tensor],
    guided: bool,
    way: str = "fixed",
    make: MakeStep | None = None,
) -> Any:
    """Logits after each column but the first two, which fill the cache: `(steps, rows, codebooks, codes)`."""
    states, mask = text.get("encoder_hidden_states"), text.get("encoder_attention_mask")
    if guided:
        assert states is not None
        assert mask is not None
        states, null_mask = torch.cat([states, states]), torch.cat([mask, 0 * mask])
    else:
        null_mask = mask
    repeats = 2 if guided else 1
    cache = KVCache(model.config.num_hidden_layers, capacity=STEPS)
    decoder = model.model.decoder
    first = decoder.embed(ids_BKS[..., :2].repeat(repeats, 1, 1))
    decoder(first, text_states=states, text_mask=null_mask, cache=cache)
    step = (make or step_of(way, model, repeats * len(ids_BKS)))(cache, STEPS, mask, guided)
    return torch.stack([step(ids_BKS[..., place]).clone() for place in range(2, STEPS)])


@torch.no_grad()
def forward(model: MusicgenForCausalLM, ids_BKS: torch.Tensor, text: dict[str, torch.Tensor]) -> torch.Tensor:
    logits = model(ids_BKS, **text, use_cache=False).logits
    return logits.unflatten(0, (len(ids_BKS), -1))[:, :, 2:].permute(2, 0, 1, 3)


@pytest.mark.parametrize(("kind", "way"), CASES)
@pytest.mark.parametrize("with_text", [True, False])
def test_a_step_computes_what_the_forward_pass_does(kind: str, with_text: bool, way: str) -> None:
    model = build(**KINDS[kind])
    text = request(model) if with_text else {}
    ids = random_ids(model)
    assert_close(stepped(model, ids, text, guided=False, way=way), forward(model, ids, text), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(("kind", "way"), CASES)
def test_null_rows_of_guidance_are_those_of_a_forward_pass_without_text(kind: str, way: str) -> None:
    model = build(**KINDS[kind])
    text, ids = request(model), random_ids(model)
    conditional, null = stepped(model, ids, text, guided=True, way=way).chunk(2, dim=1)
    assert_close(conditional, forward(model, ids, text), rtol=1e-5, atol=2e-5)
    assert_close(null, forward(model, ids, {}), rtol=1e-5, atol=2e-5)


@torch.no_grad()
# Pairs of 56 and of 120 numbers fill no whole vectors. Of a few rows, with a text, no pairs are made.
@pytest.mark.parametrize(("width", "ffn_dim"), [(48, 96), (56, 120)])
@pytest.mark.parametrize(("batch", "guided"), [(1, False), (2, True), (5, True), (6, False), (9, True)])
def test_native_steps_in_bfloat16_round_weights_and_at_most_what_they_multiply(
    batch: int, guided: bool, width: int, ffn_dim: int, variant: str
) -> None:
    # Of one layer: what is nearly between two numbers may go either way, and after some layers all has been there.
    fields = {"hidden_size": width, "ffn_dim": ffn_dim, "num_attention_heads": width // 8, "num_hidden_layers": 1}
    model = build(**fields).to(torch.bfloat16)
    exact = build(**fields)
    exact.load_state_dict({name: value.float() for name, value in model.state_dict().items()})
    text = {name: value[:batch] for name, value in request(exact, max(batch, 2)).items()}
    ids = random_ids(exact, batch)

    def error() -> float:
        def step_of_rounded(*window: Any) -> Any:
            return step_of("native", model, (2 if guided else 1) * batch)(*window)

        found = stepped(exact, ids, text, guided=guided, make=step_of_rounded)
        assert found.dtype == torch.float32
        expected = [forward(exact, ids, text)] + ([forward(exact, ids, {})] if guided else [])
        return float((found - torch.cat(expected, dim=1)).norm() / found.norm())

    def rounded(_: Any, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        return inputs[0].bfloat16().float()

    error_of_floats = error()
    for name, part in exact.named_modules():
        # Keys and values of the text are made before the steps, by torch.
        if isinstance(part, torch.nn.Linear) and not name.endswith(("encoder_attn.k_proj", "encoder_attn.v_proj")):
            part.register_forward_pre_hook(rounded)
    error_of_pairs = error()
    rows = (2 if guided else 1) * batch
    if width == 56 or rows <= 4 or variant == "-DNARROW":
        assert error_of_floats < 1e-6
    elif variant == "-DWIDE":
        assert error_of_pairs < 1e-6
    else:  # as the processor has it
        assert min(error_of_floats, error_of_pairs) < 1e-6


@pytest.mark.parametrize("way", WAYS)
def test_half_precision_follows_its_forward_pass(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_CPU_MULTIPLIES_BFLOAT16", True)  # as a GPU does
    model = build(**EIGHTS).to(torch.bfloat16)
    text = {
        name: value.to(torch.bfloat16) if value.is_floating_point() else value for name, value in request(model).items()
    }
    ids = random_ids(model)
    expected = forward(model, ids, text).float()
    error = (stepped(model, ids, text, guided=False, way=way) - expected).norm() / expected.norm()
    assert error < 0.02


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_generation_is_the_same_step_by_step_and_by_the_forward_pass(
    guidance_scale: float, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(**WIDE)
    settings = {"max_new_tokens": 30, "guidance_scale": guidance_scale, "do_sample": True, "top_k": 20}

    def generate() -> torch.Tensor:
        codes = model.generate(**request(model), **settings, generator=torch.Generator().manual_seed(3))
        assert isinstance(codes, torch.Tensor)
        return codes

    calls = 0

    def counting(decoder: object, heads: object, rows: int) -> MakeStep:
        made = step_of(way, model, rows)

        def make(*window: Any) -> Any:
            step = made(*window)

            def call(ids_BK: torch.Tensor) -> torch.Tensor:
                nonlocal calls
                calls += 1
                return step(ids_BK)

            return call

        return make

    monkeypatch.setattr(generation, "step_maker", counting)
    by_steps = generate()
    assert calls == 30 - 1
    monkeypatch.setattr(generation, "step_maker", lambda decoder, heads, rows: None)
    assert torch.equal(by_steps, generate())
    assert calls == 30 - 1


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_any_number_of_threads_shares_a_native_step(threads: int) -> None:
    model = build(**EIGHTS, **tiny.STEREO)
    text, ids = request(model), random_ids(model)
    usual = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        logits = stepped(model, ids, text, guided=False, way="native")
    finally:
        torch.set_num_threads(usual)
    assert_close(logits, forward(model, ids, text), rtol=1e-5, atol=2e-5)


# Rows with a text and all of them: one after the other, a vector side by side, and groups of two.
@pytest.mark.parametrize("batch", [2, 4, 5, 8, 9, 17, 32])
def test_native_steps_with_guidance_of_any_number_of_rows(batch: int) -> None:
    model = build(**EIGHTS)
    text, ids = request(model, batch), random_ids(model, batch)
    conditional, null = stepped(model, ids, text, guided=True, way="native").chunk(2, dim=1)
    assert_close(conditional, forward(model, ids, text), rtol=1e-5, atol=2e-5)
    assert_close(null, forward(model, ids, {}), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 7, 8, 9, 16, 31])
def test_native_steps_of_any_number_of_rows(rows: int) -> None:
    # A vocabulary that nothing divides.
    model = build(**EIGHTS, vocab_size=61, pad_token_id=61, bos_token_id=61, decoder_start_token_id=61)
    ids = torch.randint(0, 61, (rows, model.num_codebooks, 4), generator=torch.Generator().manual_seed(1))
    cache = KVCache(model.config.num_hidden_layers, capacity=1)
    with torch.no_grad():
        model.model.decoder(model.model.decoder.embed(ids[..., :1]), cache=cache)
        step = step_of("native", model, rows)(cache, 4, None, False)
        logits = torch.stack([step(ids[..., place]).clone() for place in range(1, 4)])
        expected = model(ids, use_cache=False).logits.unflatten(0, (rows, -1))[:, :, 1:].permute(2, 0, 1, 3)
    assert_close(logits, expected, rtol=1e-5, atol=2e-5)


def test_a_native_step_takes_the_cache_of_its_window_as_it_is() -> None:
    model = build(**EIGHTS)
    # As generation makes it: the last column of ten is never fed.
    cache = KVCache(model.config.num_hidden_layers, capacity=9)
    with torch.no_grad():
        model.model.decoder(model.model.decoder.embed(random_ids(model)[..., :1]), cache=cache)
    before = [cache.buffers(layer)[0].data_ptr() for layer in range(len(cache))]
    step_of("native", model, ROWS)(cache, 10, None, False)
    assert [cache.buffers(layer)[0].data_ptr() for layer in range(len(cache))] == before


@torch.no_grad()
def test_what_the_c_code_does_not_know_is_left_to_torch() -> None:
    def made(model: MusicgenForCausalLM, rows: int = 2) -> MakeStep | None:
        return step_maker(model.model.decoder, model.lm_heads, rows)

    if (reason := reason_without("decode_step.c")) is not None:
        pytest.skip(reason)
    assert made(build(**EIGHTS)) is not None
    assert made(build(**EIGHTS, activation_function="silu")) is None
    assert made(build()) is None  # heads of 12 numbers
    assert made(build(**EIGHTS).to(torch.float16)) is None
    assert made(build(**EIGHTS), rows=65) is None  # a matrix product like any other


def test_a_decoder_that_is_hooked_or_wrapped_goes_its_own_way() -> None:
    model = build()
    assert is_plain(model.model.decoder, model.lm_heads)
    seen: list[torch.Size] = []
    hook = model.model.decoder.layers[1].fc1.register_forward_hook(lambda *call: seen.append(call[2].shape))
    assert not is_plain(model.model.decoder, model.lm_heads)
    model.generate(**request(model), max_new_tokens=12)
    assert len(seen) == 12
    hook.remove()
    assert is_plain(model.model.decoder, model.lm_heads)
    model.model.decoder.layers[0].fc2 = torch.nn.Sequential(model.model.decoder.layers[0].fc2)
    assert not is_plain(model.model.decoder, model.lm_heads)


def test_weights_that_change_between_requests_count() -> None:
    model = build()
    before = model.generate(**request(model), max_new_tokens=12)
    with torch.no_grad():
        for head in model.lm_heads:
            head.weight.neg_()
    assert not torch.equal(before, model.generate(**request(model), max_new_tokens=12))
