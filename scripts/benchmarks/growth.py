"""Measure how the cost of training and generation grows with frames, batch and layers, each varied alone.

    python scripts/benchmarks/growth.py                            all tables, on a GPU if there is one
    python scripts/benchmarks/growth.py --only frames --size tiny

Weights and codes are random; only this package is measured (`speed.py` has transformers beside it). A training step is
forward, backward and a fused AdamW step, on a CPU in float32, on a GPU under bfloat16 autocast. Generation is greedy,
with guidance 3, by the decoder alone from given text states; its time per step is for all rows of the batch together.
What a table does not vary is one row, 500 frames of training, and the layers of --size. Each number is the median of
the timed runs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from benchmark_plan import SIZES, Plan, require_a_frame
from benchmark_run import add_device, fact_lines, positive, progress, settle_device, synchronize

from musicgen_train import MusicgenDecoderConfig, MusicgenForCausalLM
from musicgen_train.models.delay_pattern import training_labels

VALUES = {"frames": (250, 500, 1000, 1500), "batch": (1, 4, 16, 64), "layers": (2, 4, 8, 16)}


def main(arguments: list[str]) -> int:
    """Measure and print; the exit code is 0."""
    options = parse(arguments)
    plan = Plan.of(options)
    torch.set_num_threads(plan.threads)
    print("\n".join(fact_lines(plan.environment(Path(__file__).name, arguments))))
    for axis in options.only or VALUES:
        print(f"\n| {axis} | training step | frames/s | generation, per step | frames/s |")
        print("| --- | --- | --- | --- | --- |")
        for point in points(axis, plan, options.largest):
            progress(f"{axis} {getattr(point, axis)}")
            print(row(axis, point, plan), flush=True)
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line; exits with code 2 if it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_device(parser)
    parser.add_argument("--size", choices=SIZES, default="42m", help="of the decoder (default: 42m)")
    parser.add_argument("--threads", type=positive, help="of torch (default: torch's own choice)")
    parser.add_argument("--repeats", type=positive, default=3, help="timed runs of each number (default: 3)")
    parser.add_argument("--only", nargs="+", choices=VALUES, metavar="AXIS", help="of: %(choices)s")
    parser.add_argument("--largest", type=positive, default=1500, help="leave out larger values (default: none)")
    parser.add_argument(
        "--new-tokens", type=positive, default=53, help="steps of generation, but for the table of frames (default: 53)"
    )
    parser.set_defaults(dtype="float32", batch=None, frames=None, compile=False)
    options = parser.parse_args(arguments)
    settle_device(parser, options)
    require_a_frame(parser, options)
    return options


@dataclass(frozen=True)
class Point:
    """The sizes of one line of a table."""

    frames: int
    batch: int
    layers: int
    new_tokens: int


def points(axis: str, plan: Plan, largest: int) -> Iterator[Point]:
    """The lines of a table: one size varies, the others are as planned."""
    usual = Point(plan.frames, 1, plan.size.decoder["num_hidden_layers"], plan.new_tokens)
    for value in VALUES[axis]:
        if value > largest:
            return
        point = replace(usual, **{axis: value})
        yield replace(point, new_tokens=value + plan.size.delay) if axis == "frames" else point


def row(axis: str, point: Point, plan: Plan) -> str:
    """Measure one line; returns it as Markdown."""
    model = build(point, plan)
    text = torch.randn(point.batch, plan.size.text_length, model.config.hidden_size, device=plan.device)
    trained = median_s(training_step(model.train(), point, text), plan)
    model.zero_grad(set_to_none=True)

    def generate() -> None:
        model.generate(encoder_hidden_states=text, max_new_tokens=point.new_tokens, guidance_scale=3.0, do_sample=False)

    generated = median_s(generate, plan)
    rates = point.batch * point.frames / trained, point.batch * (point.new_tokens - plan.size.delay) / generated
    return (
        f"| {getattr(point, axis)} | {1e3 * trained:,.0f} ms | {rates[0]:,.0f} "
        f"| {1e3 * generated / point.new_tokens:,.1f} ms | {rates[1]:,.0f} |"
    )


def build(point: Point, plan: Plan) -> MusicgenForCausalLM:
    """Build a decoder with random weights."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {**plan.size.decoder, "num_hidden_layers": point.layers}
    return MusicgenForCausalLM(MusicgenDecoderConfig(**settings)).to(plan.device)


def training_step(model: MusicgenForCausalLM, point: Point, text: torch.Tensor) -> Callable[[], None]:
    """A function that runs one training step, on the same codes every time."""
    config = model.config
    codes = torch.randint(config.vocab_size, (point.batch, config.num_codebooks, point.frames), device=model.device)
    labels = training_labels(codes, model.delays, config.pad_token_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
            loss = model(labels=labels, encoder_hidden_states=text, use_cache=False).loss
        loss.backward()
        optimizer.step()

    return step


def median_s(action: Callable[[], None], plan: Plan) -> float:
    """The median seconds of a run, after a warm-up run."""
    seconds = []
    for run in range(1 + plan.repeats):
        synchronize(plan.device)
        begin = time.perf_counter()
        action()
        synchronize(plan.device)
        if run:
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
