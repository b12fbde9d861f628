"""What only a GPU can show: graphs that fail, memory that is given back, half precision. `python -m pytest -m gpu`."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap

import pytest
import torch
from torch.testing import assert_close

from musicgen_train import MusicgenDecoderConfig, MusicgenForCausalLM
from musicgen_train.models.delay_pattern import training_labels
from musicgen_train.models.generation import cuda_graph

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# Heads are 64 wide, as all released models' are: other kernels of attention take them than those of tiny ones.
CONFIG = {"hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 2, "ffn_dim": 1024, "dropout": 0.0}
TEXT_LENGTH = 11


def decoder(dtype: torch.dtype = torch.float32) -> MusicgenForCausalLM:
    torch.manual_seed(0)
    return MusicgenForCausalLM(MusicgenDecoderConfig(**CONFIG)).to("cuda", dtype).eval()


def text(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    mask = torch.ones(2, TEXT_LENGTH, dtype=torch.long, device="cuda")
    mask[0, 4:] = 0
    return {
        "encoder_hidden_states": torch.randn(2, TEXT_LENGTH, 256, device="cuda", dtype=dtype),
        "encoder_attention_mask": mask,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_graphs_are_made_in_any_precision(
    dtype: torch.dtype, guidance_scale: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[torch.Tensor] = []
    record = cuda_graph.capture_graph
    monkeypatch.setattr(
        cuda_graph, "capture_graph", lambda function, given: made.append(given) or record(function, given)
    )
    generators = [torch.Generator("cuda").manual_seed(seed) for seed in (1, 2)]
    codes = decoder(dtype).generate(
        **text(dtype), max_new_tokens=560, guidance_scale=guidance_scale, do_sample=True, generator=generators
    )
    assert isinstance(codes, torch.Tensor)
    assert codes.shape == (2, 4, 557)
    assert len(made) == 3  # up to columns 256, 512 and the end
    # The first run of each was compared with the same done kernel by kernel.
    assert "without a CUDA graph" not in caplog.text


def test_requests_leave_no_memory_behind() -> None:
    model, given = decoder(torch.bfloat16), text(torch.bfloat16)
    held = []
    for _ in range(6):
        model.generate(**given, max_new_tokens=300, guidance_scale=3.0, do_sample=False)
        gc.collect()
        held.append(torch.cuda.memory_allocated())
    # The first leaves what libraries keep: room for matrix products of two streams.
    assert held[1:] == [held[1]] * 5


def test_a_recording_that_fails_leaves_the_device_usable() -> None:
    # In a process of its own: before torch 2.12 its allocator is not what it was (pytorch pull request 180395).
    script = """
        import torch
        from musicgen_train.models.generation import cuda_graph

        torch.rand(1, device="cuda")
        state = torch.cuda.get_rng_state()
        stream = torch.cuda.current_stream()
        try:
            cuda_graph.capture_graph(lambda numbers: numbers * float(numbers.sum()), torch.ones(3, device="cuda"))
        except RuntimeError as error:
            print("refused")
        assert torch.cuda.current_stream() == stream
        assert torch.equal(torch.cuda.get_rng_state(), state)
        assert torch.nn.functional.dropout(torch.ones(100, device="cuda"), 0.5).unique().tolist() == [0.0, 2.0]
        assert len(cuda_graph._failed) == 1
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.stdout, done.returncode) == ("refused\n", 0), done.stderr


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_step_in_half_precision_is_close_to_one_in_float32(dtype: torch.dtype, checkpointing: bool) -> None:
    model, given = decoder().train(), text()
    if checkpointing:
        model.gradient_checkpointing_enable()
    codes = torch.randint(0, 2048, (2, 4, 130), device="cuda")
    labels = training_labels(codes, model.delays, model.config.pad_token_id)

    def step(half: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype, enabled=half, cache_enabled=False):
            loss = model(labels=labels, **given).loss
        loss.backward()
        return loss.detach(), [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    (exact, exact_grads), (rounded, rounded_grads) = step(False), step(True)
    assert_close(rounded, exact, rtol=0.01, atol=0.0)
    total = torch.stack([grad.norm() for grad in exact_grads]).norm()
    difference = torch.stack(
        [(one - other).norm() for one, other in zip(rounded_grads, exact_grads, strict=True)]
    ).norm()
    assert difference < 0.05 * total
