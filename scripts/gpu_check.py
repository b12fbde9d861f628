"""Checks what only a GPU can show, in the order of what it decides: nine minutes on one device, `--dry` on a CPU.

    python scripts/gpu_check.py [--out FOLDER] [--budget 560] [--only NAME ...] [--dry]

Each section prints lines that begin with PASS, FAIL or INFO and is caught on its own; it is left out once the budget of
seconds is spent. The exit code is 1 if any line says FAIL. `--dry` runs tiny shapes on the CPU, which shows that the
script goes with the code. All lines and numbers are also written to `gpu_check.json` in the folder `--out`.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Builders of tiny models and latents, which the tests share.
PATHS = [ROOT, ROOT / "scripts" / "benchmarks", ROOT / "tests" / "support"]
sys.path[:0] = map(str, PATHS)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["PYTHONPATH"] = os.pathsep.join(map(str, PATHS))

import torch  # noqa: E402
import yaml  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

# What an H100 or H200 computes in bfloat16 by its data sheet, and what it copies, in units per second.
DATASHEET_FLOPS = 989e12
DATASHEET_COPY = 4e12


class Check:
    """What one run of the checks was asked for and has found.

    Args:
        dry: run tiny shapes on the CPU.
        budget: seconds after which no further section begins.
    """

    def __init__(self, *, dry: bool, budget: float) -> None:
        self.dry = dry
        self.device = torch.device("cpu" if dry else "cuda")
        self.lines: list[str] = []
        self.flops = DATASHEET_FLOPS
        self.copy = DATASHEET_COPY
        self._budget = budget
        self._begin = time.monotonic()

    @property
    def seconds_left(self) -> float:
        return self._budget - (time.monotonic() - self._begin)

    @property
    def failed(self) -> list[str]:
        return [line for line in self.lines if line.startswith("FAIL")]

    def say(self, kind: str, what: str, **numbers: object) -> None:
        """Print a line and keep it; `kind` is PASS, FAIL or INFO."""
        shown = [
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in numbers.items()
        ]
        line = " ".join([f"{kind:4s}", what, *shown])
        print(f"[{time.monotonic() - self._begin:5.0f}s] {line}", flush=True)
        self.lines.append(line)

    def expect(self, condition: bool, what: str, **numbers: object) -> None:
        self.say("PASS" if condition else "FAIL", what, **numbers)

    def wait(self) -> None:
        """Wait until the device has done all it was given."""
        if not self.dry:
            torch.cuda.synchronize()

    def release(self) -> None:
        """Give memory that nothing holds back to the device."""
        if not self.dry:
            torch.cuda.empty_cache()

    def seconds(self, function: Callable[[], object], repeats: int = 5, warm: int = 2) -> float:
        """Seconds that one call takes: the mean of `repeats` calls after `warm` others."""
        for _ in range(warm):
            function()
        self.wait()
        begin = time.perf_counter()
        for _ in range(repeats):
            function()
        self.wait()
        return (time.perf_counter() - begin) / repeats

    def say_kernels(self, function: Callable[[], object], most: int) -> None:
        """Print which kernels of the device a call spends its time in."""
        if self.dry:
            function()
            return
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as trace:
            function()
            self.wait()
        spent = [event for event in trace.key_averages() if event.self_device_time_total]
        for event in sorted(spent, key=lambda event: -event.self_device_time_total)[:most]:
            milliseconds = event.self_device_time_total / 1e3
            self.say("INFO", f"    {milliseconds:8.2f} ms x{event.count:6d} {event.key[:90]}")


def decoder_config(check: Check, size: str) -> Any:
    """The architecture of `configs/model/SIZE.yaml`, or a tiny one in a dry run; without dropout."""
    from musicgen_train import MusicgenDecoderConfig

    if check.dry:
        return MusicgenDecoderConfig(
            hidden_size=64, num_hidden_layers=2, num_attention_heads=2, ffn_dim=128, dropout=0.0
        )
    architecture = yaml.safe_load((ROOT / f"configs/model/{size}.yaml").read_text(encoding="utf-8"))["architecture"]
    return MusicgenDecoderConfig(**{**architecture, "dropout": 0.0})


def flops_of(config: Any, clips: int, steps: int) -> float:
    """Operations of a training step: six per weight and step, and attention (Kaplan et al. 2020, section 2.1)."""
    width, layers = config.hidden_size, config.num_hidden_layers
    weights = 14 * width**2 * layers + config.num_codebooks * config.vocab_size * width
    return clips * steps * (6 * weights + 3 * layers * 2 * steps * width)


def environment(check: Check) -> None:
    """The yardstick of the rest. On an H200: 700 to 800 TFLOP/s, 4.0 to 4.3 TB/s, cuDNN's attention first."""
    check.say("INFO", f"torch {torch.__version__} cuda {torch.version.cuda} cudnn {torch.backends.cudnn.version()}")
    if check.dry:
        return
    properties = torch.cuda.get_device_properties(0)
    capability = f"{properties.major}.{properties.minor}"
    check.say("INFO", properties.name, gib=properties.total_memory / 2**30, capability=capability)
    with contextlib.suppress(Exception):
        order = torch._C._get_sdp_priority_order()
        check.say("INFO", f"SDPA order (1 flash, 2 efficient, 0 math, 3 cudnn): {order}")
    size = 8192
    a, b = (torch.randn(size, size, device=check.device, dtype=torch.bfloat16) for _ in range(2))
    check.flops = 2 * size**3 / check.seconds(lambda: a @ b)
    source = torch.empty(2**30, dtype=torch.uint8, device=check.device)
    target = torch.empty_like(source)
    check.copy = 2 * 2**30 / check.seconds(lambda: target.copy_(source))
    check.say("INFO", "roofline", tflops=check.flops / 1e12, copy_tb_s=check.copy / 1e12)


def gpu_tests(check: Check) -> None:
    """All tests marked `gpu` pass: graphs, halves, codec, pinned batches."""
    files = [
        "tests/models",
        "tests/data/test_pinned.py",
        "tests/training/test_optimizers.py",
        "tests/doctor/test_machine.py",
    ]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "--maxfail=20", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170, check=False)
    lines = done.stdout.strip().splitlines() or [done.stderr[-300:]]
    check.expect(done.returncode == 0, f"pytest -m gpu: {lines[-1]}")
    if done.returncode:
        print("\n".join(lines[-25:]))


def attention_backends(check: Check) -> None:
    """On sm90 and sm100 causal attention is cuDNN's; with a mask it is too, and each new text length then costs 0.3 to
    1 s. Without cuDNN: flash for the causal one, cutlass (mem-efficient) for the mask, and no costly first call."""
    for cudnn in (True, False):
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        _causal_attention(check, cudnn)
        _masked_attention(check, cudnn)
    torch.backends.cuda.enable_cudnn_sdp(True)


def _attention_shape(check: Check) -> tuple[int, int, int, int]:
    """Batch, heads, steps and head width."""
    return (2, 2, 16, 32) if check.dry else (8, 16, 1500, 64)


def _states(check: Check, length: int) -> torch.Tensor:
    batch, heads, _, width = _attention_shape(check)
    states = torch.randn(batch, length, heads, width, device=check.device, dtype=torch.bfloat16)
    return states.transpose(1, 2).requires_grad_()


def _causal_attention(check: Check, cudnn: bool) -> None:
    batch, heads, steps, width = _attention_shape(check)
    q, k, v = (_states(check, steps) for _ in range(3))

    def run() -> None:
        F.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()

    first, then = check.seconds(run, 1, 0), check.seconds(run)
    tflops = 3.5 * 2 * batch * heads * steps**2 * width / then / 1e12
    check.say("INFO", f"self causal, cudnn={cudnn}", first_ms=1e3 * first, then_ms=1e3 * then, tflops=tflops)
    check.say_kernels(run, 4)


def _masked_attention(check: Check, cudnn: bool) -> None:
    batch, _, steps, _ = _attention_shape(check)
    firsts = []
    for length in (33, 41, 47, 48, 64, 1):
        tensors = [_states(check, steps), _states(check, length), _states(check, length)]
        mask = torch.ones(batch, 1, 1, length, dtype=torch.bool, device=check.device)
        mask[0, ..., length // 2 + 1 :] = False

        def run(tensors: list[torch.Tensor] = tensors, mask: torch.Tensor = mask) -> None:
            F.scaled_dot_product_attention(*tensors, attn_mask=mask).sum().backward()

        firsts.append(check.seconds(run, 1, 0))
        if not all(tensor.grad is not None and bool(torch.isfinite(tensor.grad).all()) for tensor in tensors):
            check.say("FAIL", f"NaN in gradients of masked attention, {length} keys, cudnn={cudnn}")
    shown = [round(1e3 * first, 1) for first in firsts]
    check.say(
        "INFO", f"cross with mask, cudnn={cudnn}, first call of six lengths", ms=shown, then_ms=1e3 * check.seconds(run)
    )
    check.say_kernels(run, 3)
    if cudnn and not check.dry:
        slow = sum(first > 0.1 for first in firsts[1:])
        check.expect(slow < 3, f"{slow} of 5 further text lengths cost more than 0.1 s once")


def generation(check: Check) -> None:
    """No "without a CUDA graph"; batch 1 makes 500 to 800 steps a second, of 5,000 that reading the weights allows."""
    from musicgen_train import MusicgenForCausalLM

    config = decoder_config(check, "small")
    torch.manual_seed(0)
    model = MusicgenForCausalLM(config).to(check.device, torch.bfloat16).eval()
    with _heard_warnings() as heard, _counted_graphs(check) as spent:
        for rows in (1,) if check.dry else (1, 8, 64):
            _generate(check, model, rows, spent)
    check.expect(not heard, f"CUDA graphs: {heard or 'recorded, replayed, equal'}")


def _generate(check: Check, model: Any, rows: int, spent: dict[str, float]) -> None:
    tokens, width = 20 if check.dry else 503, model.config.hidden_size
    states = torch.randn(rows, 20, width, device=check.device, dtype=torch.bfloat16)
    mask = torch.ones(rows, 20, dtype=torch.long, device=check.device)
    mask[0, 15:] = 0
    generators = [torch.Generator(check.device) for _ in range(rows)]

    def make() -> torch.Tensor:
        for seed, generator in enumerate(generators):
            generator.manual_seed(seed)
        return model.generate(
            encoder_hidden_states=states, encoder_attention_mask=mask, max_new_tokens=tokens, guidance_scale=3.0,
            do_sample=True, top_k=250, generator=generators,
        )  # fmt: skip

    spent.update(graphs=0, seconds=0.0)
    seconds = check.seconds(make, 1 if rows > 8 else 2, 1)
    check.say(
        "INFO", f"generate, batch {rows}, {tokens} steps", s=seconds, steps_per_s=tokens / seconds,
        frames_per_s=rows * tokens / seconds, graphs=spent["graphs"], s_for_graphs=spent["seconds"],
    )  # fmt: skip
    if rows == 1:
        check.expect(torch.equal(make(), make()), "the same seed gives the same codes")
        check.say_kernels(make, 10)


@contextlib.contextmanager
def _heard_warnings() -> Iterator[list[str]]:
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("musicgen_train")
    logger.addHandler(handler)
    try:
        yield heard
    finally:
        logger.removeHandler(handler)


@contextlib.contextmanager
def _counted_graphs(check: Check) -> Iterator[dict[str, float]]:
    from musicgen_train.models.generation import cuda_graph

    spent = {"graphs": 0, "seconds": 0.0}
    capture_graph = cuda_graph.capture_graph

    def counted(*given: Any) -> Any:
        check.wait()
        begin = time.perf_counter()
        made = capture_graph(*given)
        check.wait()
        spent["graphs"] += 1
        spent["seconds"] += time.perf_counter() - begin
        return made

    cuda_graph.capture_graph = counted
    try:
        yield spent
    finally:
        cuda_graph.capture_graph = capture_graph


def train_step(check: Check) -> None:
    """On an H200, small, 8 x 1500: eager 28 to 35 % of 989 TFLOP/s, compiled 36 to 43 %; memory as estimated."""
    for clips, compiled in ((1, False),) if check.dry else ((8, False), (16, False), (16, True)):
        _train_step(check, clips, compiled)
        check.release()


def _train_step(check: Check, clips: int, compiled: bool) -> None:
    from musicgen_train import MusicgenForCausalLM
    from musicgen_train.training.memory import ModelMemory, Step
    from musicgen_train.training.step.optimizers import adamw
    from musicgen_train.training.step.scores import score

    config = decoder_config(check, "small")
    steps, length = (16, 5) if check.dry else (1500, 48)
    torch.manual_seed(0)
    with check.device:
        projection = nn.Linear(768, config.hidden_size)
        model = nn.ModuleDict({"decoder": MusicgenForCausalLM(config), "enc_to_dec_proj": projection}).train()
        labels = torch.randint(0, config.vocab_size, (clips, steps, config.num_codebooks))
        text, mask = torch.randn(clips, length, 768), torch.ones(clips, length, dtype=torch.bool)
        mask[0, length // 2 :] = False
    if compiled:
        model["decoder"].compile_layers()
    make_optimizer = functools.partial(adamw, lr=1e-5, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    optimizer = make_optimizer(model.parameters())
    launch: list[float] = []

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        begin = time.perf_counter()
        with torch.autocast(check.device.type, torch.bfloat16, cache_enabled=False):
            states = projection(text).masked_fill(~mask[..., None], 0.0)
            scores = score(model["decoder"], labels, states, mask)
            loss = (scores.sums_K / scores.counts_K).mean()
        loss.backward()
        launch.append(time.perf_counter() - begin)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    if not check.dry:
        torch.cuda.reset_peak_memory_stats()
    first, seconds = check.seconds(step, 1, 0), check.seconds(step)
    flops = flops_of(config, clips, steps) / seconds
    check.say(
        "INFO", f"train step, {clips} x {steps}, compiled={compiled}", first_s=first, ms=1e3 * seconds,
        launch_ms=1e3 * sorted(launch)[len(launch) // 2], mfu_of_989=flops / DATASHEET_FLOPS,
        of_measured=flops / check.flops, frames_per_s=clips * steps / seconds,
    )  # fmt: skip
    if check.dry:
        return
    peak = torch.cuda.max_memory_allocated()
    estimate = ModelMemory(model, config, make_optimizer, device=check.device).of(
        Step(clips=clips, frames=steps, text_length=length, precision="bf16-mixed", checkpointing=False)
    )
    close = compiled or abs(peak / estimate.total - 1) < 0.1
    check.expect(close, "memory", peak_gib=peak / 2**30, estimate_gib=estimate.total / 2**30)
    if clips == 8:
        check.say_kernels(step, 14)


def whole_run(check: Check) -> None:
    """`scripts/train.py` on a tiny model: where the host waits, then DDP and FSDP2 with NCCL on one device."""
    from tiny_latents import write_composite, write_latents
    from tiny_run import TRAIN, VALIDATION, compose

    from musicgen_train.training.run import run

    folder = Path(tempfile.mkdtemp())
    composite = write_composite(folder / "composite")
    latents = write_latents(folder / "latents", composite, TRAIN, VALIDATION)
    settings = [
        *(f"data.path={latents}", f"init_from={composite}", "experiment=debug"),
        *("trainer.max_steps=12", "trainer.log_every_n_steps=5", "validate_every=6", "samples.every=6"),
        *("data.global_batch_size=4", "data.micro_batch_size=2", "data.workers=2"),
    ]
    with _counted_waits(check) as waits:
        run(compose("train", *settings, f"trainer={'cpu' if check.dry else 'gpu'}", f"output={folder / 'one'}"))
    check.say("PASS", "a whole run on one device: checks, samples, validation, checkpoint, export")
    for place, count in waits.most_common(14):
        check.say("INFO", f"    the host waited {count} times (12 steps of 2 micro-batches) at {place}")
    if check.dry:
        return
    script = [sys.executable, str(ROOT / "scripts/train.py"), *settings]
    for name, extra in (("ddp", []), ("fsdp", ["model.activation_checkpointing=true"])):
        command = [*script, f"trainer={name}", "trainer.devices=1", f"output={folder / name}", *extra]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        said = done.stderr[-400:] if done.returncode else "done"
        check.expect(done.returncode == 0, f"trainer={name} with NCCL on one device: {said}")


@contextlib.contextmanager
def _counted_waits(check: Check) -> Iterator[collections.Counter[str]]:
    """Counts the places of ours and of Lightning's where the host waits for the device."""
    waits: collections.Counter[str] = collections.Counter()

    def heard(message: Any, category: Any, filename: str, lineno: int, *_: Any) -> None:
        if "synchroniz" in str(message):
            stack = [
                frame
                for frame in traceback.extract_stack()
                if "musicgen_train" in frame.filename or "lightning" in frame.filename
            ]
            waits[" <- ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(stack[-3:]))] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = heard
        if not check.dry:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            if not check.dry:
                torch.cuda.set_sync_debug_mode("default")


def decode_attention(check: Check) -> None:
    """One query over a cache, microseconds a layer: what the graph uses (mem-efficient with a bias) beside others."""
    if check.dry:
        return
    for rows, keys in ((2, 256), (2, 1504), (128, 512), (128, 1504)):
        _decode_attention(check, rows, keys)


def _decode_attention(check: Check, rows: int, keys: int) -> None:
    q = torch.randn(rows, 16, 1, 64, device=check.device, dtype=torch.bfloat16)
    k, v = (torch.randn(rows, 16, keys, 64, device=check.device, dtype=torch.bfloat16) for _ in range(2))
    bias = torch.zeros(1, 1, 1, keys, device=check.device, dtype=torch.bfloat16)

    def by(backend: SDPBackend, mask: torch.Tensor | None) -> torch.Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    ways: dict[str, Callable[[], torch.Tensor]] = {
        "efficient+bias": lambda: by(SDPBackend.EFFICIENT_ATTENTION, bias),
        "math+bias": lambda: by(SDPBackend.MATH, bias),
        "flash, no mask": lambda: by(SDPBackend.FLASH_ATTENTION, None),
        "two products": lambda: torch.softmax((q @ k.mT) * 0.125 + bias, -1) @ v,
    }
    layers = 24
    micros = {}
    for name, way in ways.items():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            way()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                for _ in range(layers):
                    way()
        micros[name] = round(1e6 * check.seconds(graph.replay, 20) / layers, 1)
    least = 1e6 * 2 * k.nbytes / check.copy
    check.say("INFO", f"decode attention {rows} rows x {keys} keys, us a layer: {micros}", least=least)


def codec(check: Check) -> None:
    """8 x 30 s are encoded in 80 to 110 ms (1,700 to 2,700 times real time), into the codes that a CPU finds."""
    from benchmark_plan import CODEC_32KHZ

    from musicgen_train import EncodecConfig, EncodecModel

    torch.manual_seed(0)
    model = EncodecModel(EncodecConfig(**CODEC_32KHZ)).eval().requires_grad_(False)
    wave = 0.1 * torch.randn(1, 1, 32000)
    with torch.no_grad():
        expected = model.encode(wave).audio_codes
        model = model.to(check.device)
        found = model.encode(wave.to(check.device)).audio_codes.cpu()
        equal = float((found == expected).float().mean())
        check.expect(equal > 0.995, "codes of GPU and CPU", equal_share=equal)
        for rows, length in ((1, 1),) if check.dry else ((8, 30), (1, 20)):
            audio = 0.1 * torch.randn(rows, 1, 32000 * length, device=check.device)
            encode = functools.partial(model.encode, audio)
            seconds = check.seconds(encode, 3, 1)
            check.say("INFO", f"encode {rows} x {length} s", ms=1e3 * seconds, times_real_time=rows * length / seconds)
            check.say_kernels(encode, 6)


def large_fits(check: Check) -> None:
    """`hardware=80g`: large, 8 x 1500 with checkpointing, and 2 without; two micro-batches. By a simulation of the
    caching allocator they take 54.4 and 63.8 GiB."""
    if not check.dry and torch.cuda.get_device_properties(0).total_memory < 75 * 2**30:
        return
    for clips, checkpointing, expected_gib in ((8, True, 54.4), (2, False, 63.8)):
        _large_fits(check, clips, checkpointing, expected_gib)
        check.release()


def _large_fits(check: Check, clips: int, checkpointing: bool, expected_gib: float) -> None:
    from musicgen_train import MusicgenForCausalLM
    from musicgen_train.training.step.optimizers import adamw
    from musicgen_train.training.step.scores import score

    config, steps = decoder_config(check, "large"), 16 if check.dry else 1500
    with check.device:
        model = MusicgenForCausalLM(config).train()
        labels = torch.randint(0, config.vocab_size, (clips, steps, config.num_codebooks))
        text, mask = torch.randn(clips, 64, config.hidden_size), torch.ones(clips, 64, dtype=torch.bool)
    if checkpointing:
        model.gradient_checkpointing_enable()
    optimizer = adamw(model.parameters(), lr=1e-5, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)

    def step() -> None:
        for _ in range(2):
            with torch.autocast(check.device.type, torch.bfloat16, cache_enabled=False):
                scores = score(model, labels, text, mask)
                loss = (scores.sums_K / scores.counts_K).mean()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    if check.dry:
        return
    torch.cuda.reset_peak_memory_stats()
    seconds = check.seconds(step, 2, 0)
    peak_gib = torch.cuda.max_memory_allocated() / 2**30
    check.expect(
        abs(peak_gib / expected_gib - 1) < 0.06, f"large, {clips} clips, checkpointing={checkpointing}",
        peak_gib=peak_gib, expected_gib=expected_gib, reserved_gib=torch.cuda.max_memory_reserved() / 2**30,
        s_per_step=seconds, mfu=flops_of(config, 2 * clips, steps) / seconds / DATASHEET_FLOPS,
    )  # fmt: skip


SECTIONS = (
    *(environment, gpu_tests, attention_backends, generation, train_step, whole_run, decode_attention, codec),
    large_fits,
)


def main() -> int:
    """Run the sections that were asked for; returns the exit code."""
    names = [section.__name__ for section in SECTIONS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")), help="folder of gpu_check.json")
    parser.add_argument("--budget", type=float, default=560, help="seconds after which no further section begins")
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="NAME", help=f"of {', '.join(names)}"
    )
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU")
    options = parser.parse_args()
    if not options.dry and not torch.cuda.is_available():
        print("error: there is no CUDA device here; --dry shows on a CPU that the script works", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)

    check = Check(dry=options.dry, budget=options.budget)
    for section in SECTIONS:
        if section.__name__ not in options.only:
            continue
        if check.seconds_left < 20:
            check.say("INFO", f"left out for lack of time: {section.__name__}")
            continue
        print(f"\n== {section.__name__} ({check.seconds_left:.0f} s left)", flush=True)
        try:
            section(check)
        # Whatever goes wrong in one section, the others are worth their minutes on a device.
        except Exception as error:
            check.say("FAIL", f"{section.__name__}: {type(error).__name__}: {str(error)[:600]}")
            traceback.print_exc()
        check.release()
    result = {"lines": check.lines, "flops": check.flops, "copy": check.copy}
    (options.out / "gpu_check.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    print("\n".join([f"\n{len(check.failed)} failed", *check.failed]))
    return int(bool(check.failed))


if __name__ == "__main__":
    sys.exit(main())
