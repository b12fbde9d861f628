"""A step as a CUDA graph: captured and replayed here call by call, where each result has its own memory as on a GPU."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from musicgen_train import GenerationConfig, MusicgenDecoderConfig, MusicgenForCausalLM
from musicgen_train.models.generation import cuda_graph
from musicgen_train.models.generation import loop as generation
from musicgen_train.models.generation.cuda_graph import FixedStep, GraphedStep, StepWeights
from musicgen_train.models.generation.sampling import draw_codes, guide, pick
from musicgen_train.models.kv_cache import KVCache

COLUMNS, TEXT_LENGTH = 40, 5


def graphed(*window: Any) -> GraphedStep:
    return GraphedStep(FixedStep(*window))


Function = Callable[[torch.Tensor], torch.Tensor]


class Recorder(TorchDispatchMode):
    """Keeps every call of an operator with its arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        self.calls.append((operator, args, kwargs or {}, result))
        return result


def record_calls(function: Function, example: torch.Tensor) -> Function:
    """`cuda_graph.capture_graph` for a CPU: a replay runs the operators again, on the memory that they had."""
    argument = example.clone()
    with Recorder() as recorder:
        result = function(argument)

    def replay(given: torch.Tensor) -> torch.Tensor:
        argument.copy_(given)
        for operator, args, kwargs, before in recorder.calls:
            again = operator(*args, **kwargs)
            for old, new in zip(tree_leaves(before), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)
        return result

    return replay


def build() -> MusicgenForCausalLM:
    torch.manual_seed(5)
    model = MusicgenForCausalLM(MusicgenDecoderConfig(**{**tiny.DECODER, "max_position_embeddings": 100})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def request(model: MusicgenForCausalLM) -> dict[str, torch.Tensor]:
    mask = torch.ones(2, TEXT_LENGTH, dtype=torch.long)
    mask[0, 3:] = 0
    states = torch.randn(2, TEXT_LENGTH, model.config.hidden_size, generator=torch.Generator().manual_seed(7))
    return {"encoder_hidden_states": states, "encoder_attention_mask": mask}


def generated(model: MusicgenForCausalLM, make: Any, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> torch.Tensor:
    """Codes by a kind of step; None is the forward pass."""
    kind = None if make is None else lambda *window: make(StepWeights(model.model.decoder, model.lm_heads), *window)
    monkeypatch.setattr(generation, "step_maker", lambda decoder, heads, rows: kind)
    codes = model.generate(
        **request(model),
        **{"max_new_tokens": COLUMNS, "guidance_scale": 3.0, "do_sample": True, "top_k": 20, **settings},
        generator=torch.Generator().manual_seed(3),
    )
    assert isinstance(codes, torch.Tensor)
    return codes


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Function]:
    """The graphs that were made."""
    made: list[Function] = []

    def record(function: Function, example: torch.Tensor) -> Function:
        made.append(record_calls(function, example))
        return made[-1]

    monkeypatch.setattr(cuda_graph, "capture_graph", record)
    return made


@pytest.mark.parametrize(("border", "graphs"), [(256, 1), (16, 2), (20, 2)])
def test_generation_is_the_same_by_graphs(
    border: int, graphs: int, recorded: list[Function], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build()
    monkeypatch.setattr(cuda_graph, "_BORDER", border)
    monkeypatch.setattr(cuda_graph, "_STEPS_WORTH_A_GRAPH", 10)
    assert torch.equal(generated(model, graphed, monkeypatch), generated(model, None, monkeypatch))
    # Between the last border and the end of the window there are fewer steps than a graph is worth.
    assert len(recorded) == graphs


def test_windows_have_graphs_of_their_own(recorded: list[Function], monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    windows = {"max_new_tokens": 80, "max_window_frames": 40, "extend_stride": 20}
    by_graphs = generated(model, graphed, monkeypatch, **windows)
    assert torch.equal(by_graphs, generated(model, None, monkeypatch, **windows))
    assert len(recorded) == 3


def test_memory_of_columns_to_come_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    allocate = KVCache._allocate

    def with_garbage(*arguments: Any) -> Any:
        keys, values = allocate(*arguments)
        keys.fill_(float("nan"))
        values.fill_(float("nan"))
        return keys, values

    monkeypatch.setattr(KVCache, "_allocate", with_garbage)
    model = build()
    assert torch.equal(generated(model, FixedStep, monkeypatch), generated(model, None, monkeypatch))


@pytest.mark.parametrize("fault", ["refused", "wrong"])
def test_without_a_graph_it_goes_on_and_says_so_once(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(function: Function, example: torch.Tensor) -> Function:
        if fault == "refused":
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        result = function(example)
        return lambda given: result + 1

    monkeypatch.setattr(cuda_graph, "capture_graph", broken)
    monkeypatch.setattr(cuda_graph, "_BORDER", 16)
    monkeypatch.setattr(cuda_graph, "_STEPS_WORTH_A_GRAPH", 10)
    model = build()
    with caplog.at_level(logging.WARNING):
        codes = generated(model, graphed, monkeypatch)
    assert torch.equal(codes, generated(model, None, monkeypatch))
    (message,) = [record.getMessage() for record in caplog.records]
    assert "without a CUDA graph" in message
    assert ("not permitted" if fault == "refused" else "logits differ") in message


class FakeCuda:
    """What `capture_graph` asks of `torch.cuda`, and in which order; nothing is run on a device.

    Args:
        fault: an error while recording, and the one that ending the recording then is.
    """

    def __init__(self, fault: bool) -> None:
        self.log: list[str] = []
        self._fault = fault
        self._current = self._stream("caller")
        self.generator = SimpleNamespace(
            graphsafe_get_state=lambda: "own",
            clone_state=lambda: "copy",
            graphsafe_set_state=lambda state: self.log.append(f"generator: {state}"),
        )
        self.default_generators = [self.generator]
        self.Stream = lambda device: self._stream("aside")
        self.CUDAGraph = lambda: SimpleNamespace(replay=lambda: self.log.append("replay"))

    def _stream(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(
            name=name,
            device=torch.device("cuda:0"),
            wait_stream=lambda other: self.log.append(f"{name} waits for {other.name}"),
        )

    def current_stream(self, device: torch.device | None = None) -> SimpleNamespace:
        return self._current

    @contextlib.contextmanager
    def stream(self, stream: SimpleNamespace) -> Iterator[None]:
        before, self._current = self._current, stream
        try:
            yield
        finally:
            self._current = before

    @contextlib.contextmanager
    def graph(self, graph: Any, stream: SimpleNamespace, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        # As torch's own: where ending raises, the stream is not set back.
        before, self._current = self._current, stream
        self.log.append("recording")
        try:
            yield
        finally:
            if self._fault:
                raise RuntimeError("operation failed due to a previous error during capture")
        self._current = before

    def computed(self, argument: torch.Tensor) -> torch.Tensor:
        self.log.append(f"computed on {self._current.name}")
        if self._fault and "recording" in self.log:
            raise RuntimeError("operation not permitted when stream is capturing")
        return argument + 1


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> FakeCuda:
    cuda = FakeCuda(request.param)
    monkeypatch.setattr(cuda_graph, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(cuda_graph, "_failed", [])
    cuda_graph._aside.cache_clear()
    return cuda


@pytest.mark.parametrize("fake_cuda", [False], indirect=True)
def test_recording_happens_on_a_stream_of_its_own(fake_cuda: FakeCuda) -> None:
    replay = cuda_graph.capture_graph(fake_cuda.computed, torch.zeros(2))
    assert fake_cuda.log == [
        "aside waits for caller",
        "computed on aside",
        "generator: copy",
        "recording",
        "computed on aside",
        "generator: own",
        "caller waits for aside",
    ]
    assert fake_cuda.current_stream().name == "caller"
    replay(torch.ones(2))
    assert fake_cuda.log[-1] == "replay"
    # One stream for all: torch keeps memory for each that ever had a matrix product.
    assert cuda_graph._aside(torch.device("cuda:0")) is cuda_graph._aside(torch.device("cuda:0"))
    assert not cuda_graph._failed


@pytest.mark.parametrize("fake_cuda", [True], indirect=True)
def test_a_recording_that_fails_leaves_the_device_as_it_was(
    fake_cuda: FakeCuda, caplog: pytest.LogCaptureFixture
) -> None:
    class Step:
        border, steps_to_border = 256, 200

        def logits(self, ids: torch.Tensor, border: int) -> torch.Tensor:
            return fake_cuda.computed(ids)

        def move_on(self) -> None:
            fake_cuda.log.clear()

    replay = GraphedStep(Step())._graph(torch.zeros(2), 256)  # type: ignore[arg-type]
    assert replay is None
    assert fake_cuda.current_stream().name == "caller"
    assert fake_cuda.log[-2:] == ["generator: own", "caller waits for aside"]
    # What went wrong first, and not that ending failed because of it.
    assert "not permitted when stream is capturing" in caplog.text
    assert "previous error" not in caplog.text
    # None is begun again: the allocator of a torch before 2.12 may be confused for good.
    assert len(cuda_graph._failed) == 1
    assert not GraphedStep(Step())._can_graph  # type: ignore[arg-type]


def test_a_step_on_a_gpu_waits_for_nothing() -> None:
    """On tensors that have a device but no values: what needs a value, or another device, raises."""
    settings = GenerationConfig(do_sample=True, top_k=20, top_p=0.9, temperature=0.9)
    with FakeTensorMode(), torch.no_grad():
        with torch.device("cuda"):
            model = MusicgenForCausalLM(MusicgenDecoderConfig(**tiny.DECODER)).eval()
        text = torch.randn(2, TEXT_LENGTH, model.config.hidden_size, device="cuda")
        ids = torch.zeros(2, model.num_codebooks, 1, dtype=torch.long, device="cuda")
        cache = KVCache(model.config.num_hidden_layers, capacity=16)
        decoder = model.model.decoder
        decoder(decoder.embed(ids.repeat(2, 1, 1)), text_states=torch.cat([text, 0 * text]), cache=cache)
        step = FixedStep(StepWeights(decoder, model.lm_heads), cache, 16, None, True)
        newest = ids[..., 0]
        for _ in range(4):
            newest = pick(guide(step(newest), 3.0), settings, None)
    assert newest.device.type == "cuda"
    assert newest.shape == (2, model.num_codebooks)


def assert_draws_of_multinomial(device: str) -> None:
    probabilities = (3 * torch.randn(16, 4, 2048, device=device)).softmax(dim=-1)
    probabilities[..., ::3] = 0

    def generator(seed: int) -> torch.Generator:
        return torch.Generator(device).manual_seed(seed)

    for seed in range(20):
        expected = torch.multinomial(probabilities.flatten(0, 1), 1, generator=generator(seed))
        assert torch.equal(draw_codes(probabilities, generator(seed)), expected.view(16, 4))
        by_row = [torch.multinomial(row, 1, generator=generator(seed + n))[:, 0] for n, row in enumerate(probabilities)]
        found = draw_codes(probabilities, [generator(seed + number) for number in range(16)])
        assert torch.equal(found, torch.stack(by_row))


def test_draws_are_those_of_multinomial() -> None:
    assert_draws_of_multinomial("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_draws_on_a_gpu_are_those_of_multinomial() -> None:
    assert_draws_of_multinomial("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_generation_on_a_gpu_is_the_same_by_graphs(
    guidance_scale: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = build().cuda()
    text = {name: value.cuda() for name, value in request(model).items()}
    made: list[Function] = []
    record = cuda_graph.capture_graph
    monkeypatch.setattr(cuda_graph, "capture_graph", lambda *given: made.append(record(*given)) or made[-1])

    def generate() -> torch.Tensor:
        codes = model.generate(**text, max_new_tokens=90, guidance_scale=guidance_scale, do_sample=False)
        assert isinstance(codes, torch.Tensor)
        return codes

    stream = torch.cuda.current_stream()
    by_graphs = generate()
    assert "without a CUDA graph" not in caplog.text
    assert made
    assert torch.cuda.current_stream() == stream
    monkeypatch.setattr(generation, "step_maker", lambda decoder, heads, rows: None)
    assert torch.equal(by_graphs, generate())
