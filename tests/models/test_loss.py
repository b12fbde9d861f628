"""The loss of heads against torch's cross-entropy of their logits, gradients and all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from musicgen_train import MusicgenDecoderConfig, MusicgenForCausalLM
from musicgen_train.models import loss as loss_module
from musicgen_train.models.loss import IGNORE, CodebookSums, mean_over_codebooks, score_heads
from musicgen_train.models.products import Linear

BATCH, STEPS, WIDTH, CODES, CODEBOOKS = 3, 11, 24, 40, 4
PAD = CODES
# What arrives from above is another number for each codebook.
UPSTREAM = torch.tensor([0.3, 2.0, 0.0, 5.0])


class Problem:
    """States, heads, and labels of which some are not scored: of the second codebook, none is."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        self.hidden = torch.randn(BATCH, STEPS, WIDTH, dtype=dtype, requires_grad=True)
        self.heads = nn.ModuleList(Linear(WIDTH, CODES) for _ in range(CODEBOOKS)).to(dtype)
        self.labels = torch.randint(0, CODES, (BATCH, STEPS, CODEBOOKS))
        self.labels[0, :4] = IGNORE
        self.labels[:, :2, 3] = PAD
        self.labels[..., 1] = IGNORE

    def score(self) -> CodebookSums:
        return score_heads(self.hidden, self.heads, self.labels, PAD)

    def expected(self) -> CodebookSums:
        sums, counts, correct = [], [], []
        for head, labels in zip(self.heads, self.labels.unbind(-1), strict=True):
            scored = (labels != IGNORE) & (labels != PAD)
            logits = F.linear(self.hidden, head.weight)[scored]
            losses = F.cross_entropy(
                logits.to(torch.promote_types(logits.dtype, torch.float32)), labels[scored], reduction="none"
            )
            sums.append(losses.sum())
            counts.append(scored.sum())
            correct.append((logits.argmax(dim=-1) == labels[scored]).sum())
        return CodebookSums(torch.stack(sums), torch.stack(counts), torch.stack(correct))

    def gradients(self, scores: CodebookSums) -> list[torch.Tensor | None]:
        parameters = [self.hidden, *self.heads.parameters()]
        for parameter in parameters:
            parameter.grad = None
        (scores.sums_K * UPSTREAM.to(scores.sums_K.dtype)).sum().backward()
        return [parameter.grad for parameter in parameters]


@pytest.fixture(params=[7, 10_000], ids=["many chunks", "one chunk"])
def rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "_CPU_CHUNK", request.param * CODES)


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_sums_hits_and_gradients_equal_torchs(dtype: torch.dtype, tolerance: float) -> None:
    problem = Problem(dtype)
    found, expected = problem.score(), problem.expected()
    assert_close(found.sums_K, expected.sums_K, rtol=tolerance, atol=0)
    assert torch.equal(found.counts_K, expected.counts_K)
    assert torch.equal(found.correct_K, expected.correct_K)
    assert found.sums_K[1] == 0
    for ours, theirs in zip(problem.gradients(found), problem.gradients(expected), strict=True):
        assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_autocast_stays_as_close_as_its_rounding(dtype: torch.dtype, tolerance: float) -> None:
    problem = Problem()
    with torch.autocast("cpu", dtype):
        found = problem.score()
    assert found.sums_K.dtype == torch.float32
    expected = problem.expected()
    assert_close(found.sums_K, expected.sums_K, rtol=tolerance, atol=0)
    for ours, theirs in zip(problem.gradients(found), problem.gradients(expected), strict=True):
        assert ours is not None
        assert theirs is not None
        assert ours.dtype == torch.float32
        assert float((ours - theirs).norm() / theirs.norm().clamp(min=1e-9)) < tolerance


def test_a_loss_scale_is_divided_out_again() -> None:
    # The gradient scaler of 16-mixed multiplies the loss with up to 2^16 and more.
    problem = Problem()
    with torch.autocast("cpu", torch.float16):
        plain, scaled = problem.score(), problem.score()
    expected = problem.gradients(plain)
    found = problem.gradients(scaled._replace(sums_K=scaled.sums_K * 2.0**16))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours is not None
        assert_close(ours / 2**16, theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("frozen", ["states", "heads"])
def test_what_is_frozen_gets_no_gradient(frozen: str) -> None:
    problem = Problem()
    expected = problem.gradients(problem.expected())
    (problem.hidden if frozen == "states" else problem.heads).requires_grad_(False)
    hidden, *weights = problem.gradients(problem.score())
    if frozen == "states":
        assert hidden is None
        for ours, theirs in zip(weights, expected[1:], strict=True):
            assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    else:
        assert weights == [None] * CODEBOOKS
        assert_close(hidden, expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("rows")
def test_without_gradients_the_same_is_found() -> None:
    problem = Problem()
    with torch.no_grad():
        found = problem.score()
    assert not found.sums_K.requires_grad
    for ours, theirs in zip(found, problem.score(), strict=True):
        assert torch.equal(ours, theirs)


def test_logits_far_apart_are_no_infinity() -> None:
    # The share of the label's code is below the smallest float32.
    problem = Problem()
    problem.hidden = (problem.hidden * 300).detach().requires_grad_()
    assert_close(problem.score().sums_K, problem.expected().sums_K, rtol=1e-5, atol=0)


def test_a_head_that_is_wrapped_is_called() -> None:
    class Shifted(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return self.inner(states) * 0.5

    problem = Problem()
    problem.heads[2] = Shifted(problem.heads[2])
    found = problem.score()
    hidden_grad, *_ = problem.gradients(found)
    with torch.no_grad():
        problem.heads[2] = problem.heads[2].inner
        problem.heads[2].weight.mul_(0.5)
    expected = problem.expected()
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert_close(hidden_grad, problem.gradients(expected)[0], rtol=1e-5, atol=1e-5)


def test_the_mean_leaves_out_what_has_nothing_to_score() -> None:
    sums, counts = torch.tensor([6.0, 0.0, 2.0]), torch.tensor([4, 0, 8])
    assert mean_over_codebooks(sums, counts) == (6 / 4 + 2 / 8) / 2


@pytest.fixture
def decoder() -> MusicgenForCausalLM:
    torch.manual_seed(0)
    config: dict[str, Any] = {"vocab_size": CODES, "pad_token_id": PAD, "bos_token_id": PAD, "dropout": 0.0}
    shape = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 56}
    return MusicgenForCausalLM(MusicgenDecoderConfig(**config, **shape)).train()


def test_logits_beside_a_loss_are_made_when_looked_at(decoder: MusicgenForCausalLM) -> None:
    calls: list[nn.Module] = []
    for head in decoder.lm_heads:
        head.register_forward_hook(lambda head, *_: calls.append(head))
    labels = torch.randint(0, CODES, (BATCH, STEPS, CODEBOOKS))
    output = decoder(labels=labels)
    assert not calls
    assert_close(mean_of_logits(output.logits, labels), output.loss)
    assert calls == list(decoder.lm_heads)
    assert output.logits is output.logits
    assert output["logits"] is output.logits
    assert output.to_tuple()[1] is output.logits
    # They have the graph, the precision and the mode of the forward pass.
    of_loss = torch.autograd.grad(output.loss, list(decoder.parameters()), retain_graph=True, allow_unused=True)
    of_logits = torch.autograd.grad(
        mean_of_logits(output.logits, labels), list(decoder.parameters()), allow_unused=True
    )
    for ours, theirs in zip(of_loss, of_logits, strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output = decoder(labels=labels)
    assert output.logits.dtype == torch.bfloat16
    assert not output.logits.requires_grad


def mean_of_logits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    losses = [
        F.cross_entropy(logits.unflatten(0, (BATCH, CODEBOOKS))[:, k].flatten(0, 1), labels[..., k].flatten())
        for k in range(CODEBOOKS)
    ]
    return torch.stack(losses).mean()


# The compiler looks at each tensor that comes out of a break, and torch warns about that.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
# torch 2.11 warns of its own doings when it looks at an autograd function.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_decoder_has_the_same_loss(decoder: MusicgenForCausalLM) -> None:
    labels = torch.randint(0, CODES, (BATCH, STEPS, CODEBOOKS))
    compiled = torch.compile(decoder, backend="eager")
    found, expected = compiled(labels=labels), decoder(labels=labels)
    assert_close(found.loss, expected.loss)
    assert_close(found.logits, expected.logits)
