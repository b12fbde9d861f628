"""Time this package beside transformers: the same weights, inputs and torch, in turn, in one run.

    python scripts/benchmarks/speed.py                                everything, with the 42M decoder, on a GPU if any
    python scripts/benchmarks/speed.py --only forward train           some cases
    python scripts/benchmarks/speed.py --size small --dtype bfloat16  the decoder of musicgen-small in half precision

How it is measured: random weights and inputs are written to a temporary folder. For each case one process per library
loads them, and the two run it in turn (A B A B ...), so that other load on the machine affects both alike. First every
case is loaded and run once, and the results are compared: the exit code is 1 if they differ. Then it is loaded again,
warmed up, and timed; both processes hold their models meanwhile, so there must be memory for two. The ratio is the
median of the ratios of neighbouring runs; above 1, this package is faster. With --together one pair of processes runs
all cases; memory that earlier cases have freed then makes later ones faster, by a different amount for each library.

Peak memory is the largest growth of the process (on a GPU: of its tensors) since before the model was loaded, weights
included. The share of the roofline compares the operations that the mathematics needs with the rate of one large matrix
product of the same type on this machine (forward, train, encode, decode, text), or the bytes with the rate of a memory
copy (generate). Generation is the composite's own `generate`, with a text encoder and a codec so small that the decoder
dominates.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from benchmark_cases import TASKS, Side, Task, Tensors
from benchmark_costs import Work
from benchmark_models import write_models
from benchmark_plan import DTYPES, OURS, PLAN_FILE, SIZES, THEIRS, Plan, require_a_frame
from benchmark_run import (
    PeakMemory,
    add_device,
    fact_lines,
    megabytes,
    positive,
    progress,
    quiet,
    require_folders,
    settle_device,
    status_bytes,
    synchronize,
    table_line,
    three_digits,
)
from safetensors.torch import load_file, save_file

# The largest difference allowed, relative to the largest value of the result. Gradients accumulate more rounding.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2}
GRADIENT_SLACK = 10
# Not among TASKS, since it needs no worker.
IMPORT = "import"
IMPORTED_NAME = "MusicgenForConditionalGeneration"
# Left out by default: on a CPU it takes minutes.
ON_REQUEST = ("generate-64",)


def main(arguments: list[str]) -> int:
    """Run what the command line asks for. Returns the exit code: 0, or 1 if the two libraries' results differ."""
    if arguments[:1] == ["--worker"]:
        serve(arguments[1], Path(arguments[2]))
        return 0
    options = parse(arguments)
    plan = Plan.of(options)
    torch.set_num_threads(plan.threads)

    rooflines = [measure_roofline(plan)]
    cases = options.only or [case for case in (*TASKS, IMPORT) if case not in ON_REQUEST]
    rows = list(measure_tasks(plan, [case for case in cases if case in TASKS], options.together))
    if IMPORT in cases:
        rows.append(measure_imports(plan))
    rooflines.append(measure_roofline(plan))

    report = Report(plan, plan.environment(Path(__file__).name, arguments), best_of(rooflines), rows)
    print(report.markdown())
    if options.markdown:
        options.markdown.write_text(report.markdown() + "\n")
    if options.json:
        options.json.write_text(json.dumps(report.as_json(), indent=2) + "\n")
    return 0 if report.equal else 1


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line; exits with code 2 if it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_device(parser)
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="of decoder and text encoder; for a train step bfloat16 means autocast with float32 weights. The codec is "
        "always float32, since half precision gives other codes (default: float32)",
    )
    parser.add_argument("--threads", type=positive, help="of torch, in each process (default: torch's own choice)")
    parser.add_argument("--repeats", type=positive, default=5, help="timed runs of each case (default: 5)")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=(*TASKS, IMPORT),
        metavar="NAME",
        help=f"of: %(choices)s (default: all but {', '.join(ON_REQUEST)})",
    )
    parser.add_argument("--together", action="store_true", help="all cases in one process per library")
    parser.add_argument(
        "--compile", action="store_true", help="compile the decoder's layers for forward and train, on both sides"
    )
    sizes = "; ".join(f"{name} is {size.description}" for name, size in SIZES.items())
    parser.add_argument("--size", choices=SIZES, default="42m", help=f"of the decoder (default: 42m): {sizes}")
    parser.add_argument("--batch", type=positive, help="rows of forward and train (default: the size's, 4)")
    parser.add_argument("--frames", type=positive, help="frames of forward and train (default: the size's, 500)")
    parser.add_argument("--new-tokens", type=positive, help="steps of generate (default: the size's, 103)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the printed table there")
    options = parser.parse_args(arguments)
    settle_device(parser, options)
    require_folders(parser, options.json, options.markdown)
    require_a_frame(parser, options)
    return options


# The parent process


def measure_tasks(plan: Plan, cases: Sequence[str], together: bool) -> Iterator[Row]:
    """Run cases with both libraries in turn: each case in its own pair of processes, or all `together` in one pair."""
    if not cases:
        return
    with tempfile.TemporaryDirectory(prefix="musicgen-benchmark-") as name:
        root = Path(name)
        progress("writing weights and inputs")
        write_models(plan, root)
        for of_a_pair in [cases] if together else [[case] for case in cases]:
            with contextlib.ExitStack() as stack:
                workers = [stack.enter_context(Worker(side, root)) for side in (OURS, THEIRS)]
                for case in of_a_pair:
                    progress(TASKS[case].title(plan))
                    yield measure_task(plan, case, workers, root)


def measure_task(plan: Plan, case: str, workers: Sequence[Worker], root: Path) -> Row:
    """Compare the results of both libraries, then time them in turn."""
    task = TASKS[case]
    results: list[Tensors] = []
    for worker in workers:
        worker.ask("open", case=case)
        worker.ask("run")
        path = root / f"{worker.side}.safetensors"
        worker.ask("save_results", path=str(path))
        results.append(load_file(path))
        worker.ask("close")
    agreement = compare(results[0], results[1], task.precision(plan))

    for worker in workers:
        worker.ask("open", case=case)
        worker.ask("run")
    seconds = [[worker.ask("run") for worker in workers] for _ in range(plan.repeats)]
    peaks = [worker.ask("peak_bytes") for worker in workers]
    for worker in workers:
        worker.ask("close")
    ours, theirs = (
        Measurement([pair[index] for pair in seconds], None if peaks[index] is None else int(peaks[index]))
        for index in range(2)
    )
    return Row(case, task.title(plan), ours, theirs, agreement, task.work(plan))


def measure_imports(plan: Plan) -> Row:
    """Time new Python processes that import a library and end; torch alone shows the least it can take."""
    title = f"a new process that imports {IMPORTED_NAME}"
    progress(title)
    statements = [*(f"from {side} import {IMPORTED_NAME}" for side in (OURS, THEIRS)), "import torch"]
    for statement in statements:  # so that the files are in the page cache
        time_import(statement)
    rounds = [[time_import(statement) for statement in statements] for _ in range(plan.repeats)]
    ours, theirs, torch_alone = (
        Measurement([seconds for seconds, _ in column], column[-1][1]) for column in zip(*rounds, strict=True)
    )
    return Row(IMPORT, title, ours, theirs, torch_alone=torch_alone)


def time_import(statement: str) -> tuple[float, int | None]:
    """Run one statement in a new process; returns the seconds of the whole process and its peak memory."""
    report = "import pathlib; p = pathlib.Path('/proc/self/status'); print(p.read_text() if p.exists() else '')"
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}\n{report}"], check=True, stdout=subprocess.PIPE, text=True, env=quiet()
    )
    return time.perf_counter() - begin, status_bytes(done.stdout, "VmHWM")


class Worker:
    """A process that runs the cases of one library. Requests and answers are lines of JSON, one at a time."""

    def __init__(self, side: str, root: Path) -> None:
        self.side = side
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", side, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=quiet(),
        )

    def ask(self, action: str, **arguments: str) -> float:
        """Call a method of the worker's session (see `Session`) and return its answer.

        Raises:
            RuntimeError: the worker failed; its traceback is on stderr.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # the worker has ended, which the missing answer reports below
            print(json.dumps({"action": action, **arguments}), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            code = self.process.wait()
            raise RuntimeError(f"the process of {self.side} ended with code {code} at {action} {arguments}; see above")
        return cast(float, json.loads(answer))

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()  # closes stdin, which ends the worker


# The worker process


def serve(side: str, root: Path) -> None:
    """Answer requests, which are lines on stdin, on stdout."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # other output must not mix with the answers
    session = Session(side, root)
    gc.freeze()  # keeps the imported modules out of garbage collection
    actions: dict[str, Callable[..., float | None]] = {
        action.__name__: action
        for action in (session.open, session.run, session.save_results, session.peak_bytes, session.close)
    }
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(actions[request.pop("action")](**request)), file=answers, flush=True)


class Session:
    """The tasks of one library."""

    def __init__(self, side: str, root: Path) -> None:
        self.root = root
        self.plan = Plan(**json.loads((root / PLAN_FILE).read_text()))
        torch.set_num_threads(self.plan.threads)
        # By default cuDNN, and only it, may round float32 to TF32.
        torch.backends.cudnn.allow_tf32 = False
        self.side = cast(Side, importlib.import_module(side))
        for name in ("MusicgenForConditionalGeneration", "EncodecModel", "T5EncoderModel"):
            getattr(self.side, name)  # transformers imports a model's module at first access
        self.task: Task | None = None
        self.memory = PeakMemory(self.plan.device)

    def open(self, case: str) -> None:
        """Load the model and the inputs of a case."""
        self.memory.restart()
        torch.manual_seed(0)
        self.task = TASKS[case](self.side, self.plan, self.root)

    def run(self) -> float:
        """Run the case once and return the seconds it took."""
        assert self.task is not None
        self.task.reset()
        synchronize(self.plan.device)
        begin = time.perf_counter()
        self.task.run()
        synchronize(self.plan.device)
        return time.perf_counter() - begin

    def save_results(self, path: str) -> None:
        """Write the results of the last run."""
        assert self.task is not None
        save_file({name: value.detach().cpu().contiguous() for name, value in self.task.results().items()}, path)

    def peak_bytes(self) -> int | None:
        """Return the largest growth of memory since `open`."""
        return self.memory.growth()

    def close(self) -> None:
        """Drop the case."""
        self.task = None


# The roofline and the comparison


@dataclass(frozen=True)
class Roofline:
    """The best rates of the machine."""

    flops_per_s: Mapping[torch.dtype, float]
    """By dtype, of one large matrix product."""
    bytes_per_s: float
    """Of copying a large block: bytes read plus bytes written."""

    def share(self, work: Work, dtype: torch.dtype, seconds: float) -> float:
        """The share of the roofline that some work in this dtype reached."""
        return max(work.flops / self.flops_per_s[dtype], work.bytes_read / self.bytes_per_s) / seconds


def measure_roofline(plan: Plan) -> Roofline:
    """Time a matrix product, in float32 and in the dtype of the run, and a copy."""
    progress("matrix product and copy")
    source = torch.ones(2**30 if plan.device == "cuda" else 2**28, dtype=torch.uint8, device=plan.device)
    target = torch.empty_like(source)
    copy_s = fastest(lambda: target.copy_(source), plan.device)
    dtypes = [torch.float32] if plan.dtype == torch.float32 else [torch.float32, plan.dtype]
    return Roofline(
        flops_per_s={dtype: product_flops_per_s(plan.device, dtype) for dtype in dtypes},
        bytes_per_s=2 * len(source) / copy_s,
    )


def product_flops_per_s(device: str, dtype: torch.dtype) -> float:
    """Operations a second of one large matrix product, with the fastest of torch's libraries."""
    ways: list[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = [torch.mm]
    onednn_has_it = dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if device == "cpu" and torch.backends.mkldnn.is_available() and onednn_has_it:
        ways.append(lambda left, right: torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], ""))
    return max(_product_flops_per_s(way, device, dtype) for way in ways)


def _product_flops_per_s(
    multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], device: str, dtype: torch.dtype
) -> float:
    largest = 8192 if device == "cuda" else 2048
    side = 256
    while True:
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        seconds = fastest(lambda left=left, right=right: multiply(left, right), device)
        # On a processor without instructions for the dtype, small ones take long enough.
        if side == largest or seconds > 0.1:
            return 2 * side**3 / seconds
        side *= 2


def fastest(action: Callable[[], object], device: str, least_s: float = 0.5) -> float:
    """Seconds of the fastest of at least three runs, for at least `least_s` in all, after one warm-up run."""
    times: list[float] = []
    while len(times) < 4 or sum(times) < least_s:
        synchronize(device)
        begin = time.perf_counter()
        action()
        synchronize(device)
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def best_of(rooflines: Sequence[Roofline]) -> Roofline:
    """The best of several measurements, since other load can only make one worse."""
    return Roofline(
        flops_per_s={
            dtype: max(roofline.flops_per_s[dtype] for roofline in rooflines) for dtype in rooflines[0].flops_per_s
        },
        bytes_per_s=max(roofline.bytes_per_s for roofline in rooflines),
    )


@dataclass(frozen=True)
class Agreement:
    """Tells whether both libraries computed the same, and by how much they differ."""

    holds: bool
    text: str


def compare(ours: Tensors, theirs: Tensors, dtype: torch.dtype) -> Agreement:
    """Compare results by name.

    Integers, which are codes, must be identical in float32. In half precision two codes may be so close that rounding
    decides, and all later codes then differ too, so only the share of equal codes is reported. Other results may differ
    by `TOLERANCE`.
    """
    if {name: value.shape for name, value in ours.items()} != {name: value.shape for name, value in theirs.items()}:
        shapes = [{name: list(value.shape) for name, value in side.items()} for side in (ours, theirs)]
        return Agreement(False, f"different shapes: {shapes[0]} and {shapes[1]}")
    parts = [_compare_one(name, ours[name], theirs[name], dtype) for name in ours]
    return Agreement(all(part.holds for part in parts), "; ".join(part.text for part in parts))


def _compare_one(name: str, ours: torch.Tensor, theirs: torch.Tensor, dtype: torch.dtype) -> Agreement:
    if not ours.is_floating_point():
        same, total = int((ours == theirs).sum()), ours.numel()
        if same == total:
            return Agreement(True, f"{total:,} {name} identical ({len(theirs.unique()):,} different ones)")
        return Agreement(dtype != torch.float32, f"{same:,} of {total:,} {name} identical")
    tolerance = TOLERANCE[dtype] * (GRADIENT_SLACK if "gradient" in name else 1)
    ours, theirs = ours.double(), theirs.double()
    # NaN, which is no agreement, if either has a NaN or all values are zero, where nothing would be compared.
    difference = float((ours - theirs).abs().max() / theirs.abs().max())
    return Agreement(difference <= tolerance, f"{name} {difference:.0e}")


# The report


@dataclass(frozen=True)
class Measurement:
    """One library's part of a row."""

    seconds: list[float]
    peak_bytes: int | None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        low, high = min(self.seconds), max(self.seconds)
        scale, unit, digits = (1, "s", 2) if self.median >= 1 else (1000, "ms", 1)
        return f"{self.median * scale:.{digits}f} {unit} ({low * scale:.{digits}f}-{high * scale:.{digits}f})"


@dataclass(frozen=True)
class Row:
    """One case with both libraries."""

    case: str
    title: str
    ours: Measurement
    theirs: Measurement
    agreement: Agreement | None = None
    work: Work | None = None
    torch_alone: Measurement | None = None
    """Only in the row of imports."""

    @property
    def ratio(self) -> float:
        """How many times as fast as transformers this package is: the median over neighbouring runs."""
        pairs = zip(self.ours.seconds, self.theirs.seconds, strict=True)
        return statistics.median(theirs / ours for ours, theirs in pairs)

    @property
    def remark(self) -> str:
        """The agreement of the results, or for imports the time of torch alone."""
        if self.agreement is not None:
            return self.agreement.text + ("" if self.agreement.holds else " **DIFFERENT**")
        return "-" if self.torch_alone is None else f"import torch alone: {self.torch_alone}"

    def rate(self, side: Measurement) -> float | None:
        """Work per second."""
        return None if self.work is None else self.work.amount / side.median


@dataclass(frozen=True)
class Report:
    """All results of a run."""

    plan: Plan
    environment: Mapping[str, str]
    roofline: Roofline
    rows: Sequence[Row]

    @property
    def equal(self) -> bool:
        return all(row.agreement is None or row.agreement.holds for row in self.rows)

    def markdown(self) -> str:
        """The facts about the run as a list, and its table."""
        products = (
            f"matrix product {flops_per_s / 1e9:,.0f} GFLOP/s in {name_of(dtype)}"
            for dtype, flops_per_s in self.roofline.flops_per_s.items()
        )
        copy = f"copy {self.roofline.bytes_per_s / 1e9:,.1f} GB/s (read plus written)"
        facts = {**self.environment, "roofline": ", ".join((*products, copy))}
        columns = (
            "case",
            f"{OURS}, median (min-max)",
            f"{THEIRS}, median (min-max)",
            "ratio",
            "rate, ours",
            "of roofline, ours",
            "peak memory, ours / theirs",
            "results, largest relative difference",
        )
        lines = [*fact_lines(facts), ""]
        lines += [table_line(columns), table_line(["---"] * len(columns))]
        lines += [table_line(self._cells(row)) for row in self.rows]
        return "\n".join(lines)

    def _cells(self, row: Row) -> list[str]:
        rate = row.rate(row.ours)
        share = self._share(row)
        memory = [megabytes(side.peak_bytes) for side in (row.ours, row.theirs)]
        return [
            row.title,
            str(row.ours),
            str(row.theirs),
            f"{row.ratio:.2f}x",
            "-" if rate is None or row.work is None else f"{three_digits(rate)} {row.work.unit}",
            "-" if share is None else f"{share:.0%}",
            " / ".join(memory),
            row.remark,
        ]

    def _share(self, row: Row) -> float | None:
        """This package's share of the roofline; None if the case's work is not counted."""
        if row.work is None:
            return None
        return self.roofline.share(row.work, TASKS[row.case].precision(self.plan), row.ours.median)

    def as_json(self) -> dict[str, Any]:
        """All results with the time of every run."""
        return {
            "environment": dict(self.environment),
            "plan": dataclasses.asdict(self.plan),
            "roofline": {
                "flops_per_s": {name_of(dtype): number for dtype, number in self.roofline.flops_per_s.items()},
                "bytes_per_s": self.roofline.bytes_per_s,
            },
            "equal": self.equal,
            "rows": [self._json_row(row) for row in self.rows],
        }

    def _json_row(self, row: Row) -> dict[str, Any]:
        sides = {
            name: {**dataclasses.asdict(side), "median": side.median, "rate": row.rate(side)}
            for name, side in ((OURS, row.ours), (THEIRS, row.theirs), ("torch", row.torch_alone))
            if side is not None
        }
        return {
            "case": row.case,
            "title": row.title,
            **sides,
            "ratio": row.ratio,
            "rate_unit": None if row.work is None else row.work.unit,
            "roofline_share": self._share(row),
            "equal": None if row.agreement is None else row.agreement.holds,
            "remark": row.remark,
        }


def name_of(dtype: torch.dtype) -> str:
    """The name of a dtype on the command line."""
    return next(name for name, known in DTYPES.items() if known == dtype)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
