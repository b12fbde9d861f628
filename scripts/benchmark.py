"""Time this package beside transformers: the same weights, inputs and torch, in turn, in one run.

    python scripts/benchmark.py                                  everything, with the 42M decoder, on a GPU if any
    python scripts/benchmark.py --only forward train             some cases
    python scripts/benchmark.py --size small --dtype bfloat16    the decoder of musicgen-small in half precision

How it is measured: random weights and inputs are written to a temporary folder; one process per library loads them;
and the two run each case in turn (A B A B ...), so that what else the machine does hits both alike. Every case is
loaded and run once before, and what it computed is compared: the exit code is 1 where the two differ. Then it is loaded
again, warmed up, and timed; both processes then hold their models, so memory must do for two. The ratio is the median
of those of neighbouring runs; above 1, this package is faster.

Peak memory is what the process (on a GPU: its tensors) grew by at the highest, weights included, from before the model
was loaded. The share of the roofline compares the work that the mathematics asks for with what this machine does
in one large matrix product (forward, train) or in copying memory (generate), both measured here. Generation is the
composite's own `generate`, with text encoder and codec so small that the decoder is what counts.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import datetime
import functools
import gc
import importlib
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import torch
from safetensors.torch import load_file, save_file
from torch import nn

OURS, THEIRS = "musicgen_train", "transformers"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# The largest difference allowed, relative to the largest value of the result. Gradients add up more rounding.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2}
GRADIENT_SLACK = 10
PLAN_FILE, INPUTS_FILE = "plan.json", "inputs.safetensors"

Tensors = dict[str, torch.Tensor]


def main(arguments: list[str]) -> int:
    """Run what the command line asks for. Returns the exit code: 0, or 1 where the two libraries' results differ."""
    if arguments[:1] == ["--worker"]:
        serve(arguments[1], Path(arguments[2]))
        return 0
    options = parse(arguments)
    plan = Plan.of(options)
    torch.set_num_threads(plan.threads)

    rooflines = [measure_roofline(plan)]
    cases = options.only or [*TASKS, IMPORT]
    rows = list(measure_tasks(plan, [case for case in cases if case in TASKS]))
    if IMPORT in cases:
        rows.append(measure_imports(plan))
    rooflines.append(measure_roofline(plan))

    report = Report(plan, environment(plan, arguments), best_of(rooflines), rows)
    print(report.markdown())
    if options.markdown:
        options.markdown.write_text(report.markdown() + "\n")
    if options.json:
        options.json.write_text(json.dumps(report.as_json(), indent=2) + "\n")
    return 0 if report.equal else 1


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; exits with code 2 where it cannot be understood."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="of decoder and text encoder; for a train step bfloat16 means autocast with float32 weights. The codec is "
        "float32 always, since half precision gives other codes (default: float32)",
    )
    parser.add_argument("--threads", type=_positive, help="of torch, in each process (default: torch's own choice)")
    parser.add_argument("--repeats", type=_positive, default=5, help="timed runs of each case (default: 5)")
    parser.add_argument("--only", nargs="+", choices=(*TASKS, IMPORT), metavar="NAME", help="of: %(choices)s")
    sizes = "; ".join(f"{name} is {size.description}" for name, size in SIZES.items())
    parser.add_argument("--size", choices=SIZES, default="42m", help=f"of the decoder (default: 42m): {sizes}")
    parser.add_argument("--batch", type=_positive, help="rows of forward and train (default: the size's, 4)")
    parser.add_argument("--frames", type=_positive, help="frames of forward and train (default: the size's, 500)")
    parser.add_argument("--new-tokens", type=_positive, help="steps of generate (default: the size's, 103)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the printed table there")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here")
    for path in filter(None, (options.json, options.markdown)):
        if not path.absolute().parent.is_dir():  # said now, not after the measurement
            parser.error(f"there is no folder {path.parent} to write {path.name} into")
    least = SIZES[options.size].decoder["num_codebooks"]
    if options.new_tokens is not None and options.new_tokens < least:
        parser.error(f"--new-tokens {options.new_tokens}: the delay of {least} codebooks needs {least} at least")
    return options


# What is measured


@dataclass(frozen=True)
class Size:
    """Shapes of the models, and how much each case gives them to do."""

    description: str
    decoder: Mapping[str, Any]
    codec: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    batch: int = 4
    frames: int = 500
    text_length: int = 32
    new_tokens: int = 103
    audio_seconds: float = 10.0
    texts: int = 8
    tokens: int = 64


def _decoder(width: int, layers: int, heads: int, ffn: int, codes: int = 2048) -> dict[str, Any]:
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "decoder_start_token_id"), codes)
    # Without dropout, so that training computes the same on both sides.
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "ffn_dim": ffn,
        "vocab_size": codes,
        "num_codebooks": 4,
        "dropout": 0.0,
        **special,
    }


def _small_codec(codes: int) -> dict[str, Any]:
    """A codec of 50 frames/s with 4 codebooks, which takes next to no time."""
    return {
        "sampling_rate": 3200,
        "target_bandwidths": [50 * 4 * (codes - 1).bit_length() / 1000],
        "codebook_size": codes,
        "hidden_size": 16,
        "codebook_dim": 16,
        "num_filters": 4,
        "upsampling_ratios": [8, 8],
        "num_lstm_layers": 1,
        "use_causal_conv": False,
        "use_conv_shortcut": False,
    }


# As facebook/encodec_32khz, which MusicGen uses.
CODEC_32KHZ: dict[str, Any] = {
    "sampling_rate": 32_000,
    "target_bandwidths": [2.2],
    "codebook_size": 2048,
    "hidden_size": 128,
    "codebook_dim": 128,
    "num_filters": 64,
    "upsampling_ratios": [8, 5, 4, 4],
    "num_lstm_layers": 2,
    "use_causal_conv": False,
    "use_conv_shortcut": False,
}
T5_BASE: dict[str, Any] = {
    "vocab_size": 32_128,
    "d_model": 768,
    "d_kv": 64,
    "d_ff": 3072,
    "num_layers": 12,
    "num_heads": 12,
    "dropout_rate": 0.0,
}
SMALL_T5: dict[str, Any] = {
    "vocab_size": 256,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "dropout_rate": 0.0,
}
SIZES = {
    "test": Size(
        "next to nothing, also for codec and text encoder",
        _decoder(width=48, layers=2, heads=3, ffn=80, codes=64),
        codec=_small_codec(codes=64),
        text_encoder=SMALL_T5,
        batch=2,
        frames=11,
        text_length=5,
        new_tokens=9,
        audio_seconds=0.5,
        texts=3,
        tokens=7,
    ),
    "tiny": Size("128 wide, 4 layers", _decoder(128, 4, 4, 512), CODEC_32KHZ, T5_BASE),
    "42m": Size("512 wide, 8 layers", _decoder(512, 8, 8, 2048), CODEC_32KHZ, T5_BASE),
    "small": Size("that of musicgen-small, 1024 wide, 24 layers", _decoder(1024, 24, 16, 4096), CODEC_32KHZ, T5_BASE),
}


@dataclass(frozen=True)
class Plan:
    """What a run measures. Workers read it from a file in the folder they are given."""

    size_name: str
    device: str
    dtype_name: str
    threads: int
    repeats: int
    batch: int
    frames: int
    new_tokens: int

    @classmethod
    def of(cls, options: argparse.Namespace) -> Plan:
        """The plan that the command line asks for."""
        size = SIZES[options.size]
        automatic = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(
            size_name=options.size,
            device=automatic if options.device == "auto" else options.device,
            dtype_name=options.dtype,
            threads=options.threads or torch.get_num_threads(),
            repeats=options.repeats,
            batch=options.batch or size.batch,
            frames=options.frames or size.frames,
            new_tokens=options.new_tokens or size.new_tokens,
        )

    @property
    def size(self) -> Size:
        return SIZES[self.size_name]

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.dtype_name]

    @property
    def new_frames(self) -> int:
        """Frames that one generation gives: the delay of the last codebook takes steps, too."""
        return self.new_tokens + 1 - int(self.size.decoder["num_codebooks"])


class Side(Protocol):
    """What a library must offer. Both modules have it under the same names, so one code measures either."""

    MusicgenForCausalLM: Any
    MusicgenForConditionalGeneration: Any
    EncodecModel: Any
    T5EncoderModel: Any


@dataclass(frozen=True)
class Work:
    """What one run of a case does: an amount to divide by its time, and what that costs at least."""

    amount: float
    unit: str
    flops: float = 0.0
    bytes_read: float = 0.0


class Task(ABC):
    """One case on one side: models and inputs when it is built, the timed part in `run`."""

    model_class: ClassVar[str]
    folder: ClassVar[str]

    def __init__(self, side: Side, plan: Plan, root: Path) -> None:
        self.plan = plan
        model_class = getattr(side, self.model_class)
        self.model = model_class.from_pretrained(root / self.folder, dtype=self.weights_dtype(plan))
        self.model = self.model.to(plan.device).eval()
        self.inputs: Tensors = {
            name: value.to(plan.device, self.model.dtype if value.is_floating_point() else None)
            for name, value in load_file(root / self.folder / INPUTS_FILE).items()
        }

    @staticmethod
    def precision(plan: Plan) -> torch.dtype:
        """What is computed in."""
        return plan.dtype

    @classmethod
    def weights_dtype(cls, plan: Plan) -> torch.dtype:
        """What the weights are stored in."""
        return cls.precision(plan)

    def reset(self) -> None:  # noqa: B027 - most cases need none
        """Undo, before a run and outside its time, what the one before left."""

    @abstractmethod
    def run(self) -> None:
        """What is timed."""

    @abstractmethod
    def results(self) -> Tensors:
        """What the last run computed, to be compared: integers must be equal, the rest close."""

    @staticmethod
    @abstractmethod
    def title(plan: Plan) -> str:
        """The row's name."""

    @staticmethod
    @abstractmethod
    def work(plan: Plan) -> Work | None:
        """None where a rate says nothing."""


class DecoderTask(Task):
    """A case of the decoder alone, on whole sequences."""

    model_class, folder = "MusicgenForCausalLM", "decoder"
    name: ClassVar[str]

    @classmethod
    def title(cls, plan: Plan) -> str:
        return f"{cls.name}, {plan.batch} x {plan.frames} frames, {plan.size.text_length} text states"


class Forward(DecoderTask):
    """Logits, as in validation."""

    name = "decoder forward"

    @torch.no_grad()
    def run(self) -> None:
        self.logits = self.model(
            input_ids=self.inputs["input_ids"],
            encoder_hidden_states=self.inputs["text_states"],
            encoder_attention_mask=self.inputs["text_mask"],
            use_cache=False,
        ).logits

    def results(self) -> Tensors:
        return {"logits": self.logits}

    @staticmethod
    def work(plan: Plan) -> Work:
        return Work(plan.batch * plan.frames, "frames/s", flops=forward_flops(plan))


class TrainStep(DecoderTask):
    """Forward, backward and a fused AdamW step; in bfloat16 under autocast."""

    name = "train step"

    def __init__(self, side: Side, plan: Plan, root: Path) -> None:
        super().__init__(side, plan, root)
        self.model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)

    @classmethod
    def weights_dtype(cls, plan: Plan) -> torch.dtype:
        return torch.float32

    def run(self) -> None:
        # Before the step, so that the gradients are there to be compared after it.
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.plan.device, torch.bfloat16, enabled=self.plan.dtype == torch.bfloat16):
            self.loss = self.model(
                labels=self.inputs["labels"],
                encoder_hidden_states=self.inputs["text_states"],
                encoder_attention_mask=self.inputs["text_mask"],
                use_cache=False,
            ).loss
        self.loss.backward()
        self.optimizer.step()

    def results(self) -> Tensors:
        norms = [parameter.grad.norm() for parameter in self.model.parameters() if parameter.grad is not None]
        return {"loss": self.loss.detach(), "gradient norm": torch.stack(norms).norm()}

    @staticmethod
    def work(plan: Plan) -> Work:
        # The backward pass takes each product twice: by the inputs and by the weights.
        return Work(plan.batch * plan.frames, "frames/s", flops=3 * forward_flops(plan))


class Generate(Task):
    """Greedy generation with guidance, from token ids to audio; the codes are taken where they enter the codec."""

    model_class, folder = "MusicgenForConditionalGeneration", "composite"
    rows: ClassVar[int]

    def __init__(self, side: Side, plan: Plan, root: Path) -> None:
        super().__init__(side, plan, root)
        decode = self.model.audio_encoder.decode

        def keep_codes(audio_codes: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            self.codes = audio_codes
            return decode(audio_codes, *arguments, **options)

        self.model.audio_encoder.decode = keep_codes

    def run(self) -> None:
        self.model.generate(
            input_ids=self.inputs["input_ids"][: self.rows],
            attention_mask=self.inputs["attention_mask"][: self.rows],
            do_sample=False,
            guidance_scale=3.0,
            max_new_tokens=self.plan.new_tokens,
        )

    def results(self) -> Tensors:
        return {"codes": self.codes}

    @classmethod
    def title(cls, plan: Plan) -> str:
        return f"generate with guidance, batch {cls.rows}, {plan.new_frames} frames"

    @classmethod
    def work(cls, plan: Plan) -> Work:
        weights = weights_read_per_step(plan) * plan.dtype.itemsize
        return Work(cls.rows * plan.new_frames, "frames/s", bytes_read=weights * plan.new_tokens)


class GenerateOne(Generate):
    rows = 1


class GenerateEight(Generate):
    rows = 8


class CodecTask(Task):
    """A case of the codec."""

    model_class, folder = "EncodecModel", "codec"
    name: ClassVar[str]

    @staticmethod
    def precision(plan: Plan) -> torch.dtype:
        return torch.float32

    @classmethod
    def title(cls, plan: Plan) -> str:
        return f"{cls.name}, {plan.size.audio_seconds:g} s, float32"

    @staticmethod
    def work(plan: Plan) -> Work:
        return Work(plan.size.audio_seconds, "x real time")


class Encode(CodecTask):
    """Audio to codes."""

    name = "EnCodec encode"

    @torch.no_grad()
    def run(self) -> None:
        self.codes = self.model.encode(self.inputs["audio"]).audio_codes

    def results(self) -> Tensors:
        return {"codes": self.codes}


class Decode(CodecTask):
    """Codes to audio."""

    name = "EnCodec decode"

    @torch.no_grad()
    def run(self) -> None:
        self.audio = self.model.decode(self.inputs["codes"], [None]).audio_values

    def results(self) -> Tensors:
        return {"audio": self.audio}


class EncodeText(Task):
    """Token ids to hidden states. States at padding mean nothing and are left out of the comparison."""

    model_class, folder = "T5EncoderModel", "text_encoder"

    @torch.no_grad()
    def run(self) -> None:
        self.states = self.model(
            input_ids=self.inputs["input_ids"], attention_mask=self.inputs["attention_mask"]
        ).last_hidden_state

    def results(self) -> Tensors:
        return {"states": self.states[self.inputs["attention_mask"].bool()]}

    @staticmethod
    def title(plan: Plan) -> str:
        return f"T5 encode, {plan.size.texts} texts of {plan.size.tokens} tokens"

    @staticmethod
    def work(plan: Plan) -> Work:
        return Work(plan.size.texts * plan.size.tokens, "tokens/s")


class Load(Task):
    """The composite from its folder, every weight read once: a weight that is only mapped is not loaded yet."""

    model_class, folder = "MusicgenForConditionalGeneration", "composite"

    def __init__(self, side: Side, plan: Plan, root: Path) -> None:
        self.plan = plan
        self.load = functools.partial(
            getattr(side, self.model_class).from_pretrained, root / self.folder, dtype=self.weights_dtype(plan)
        )
        self.model: nn.Module | None = None

    def reset(self) -> None:
        self.model = None

    @torch.no_grad()
    def run(self) -> None:
        self.model = cast(nn.Module, self.load().to(self.plan.device))
        parameters = dict(self.model.named_parameters())
        self.sums = torch.stack([parameters[name].sum(dtype=torch.float32) for name in sorted(parameters)])

    def results(self) -> Tensors:
        return {"sums of weights": self.sums}

    @staticmethod
    def title(plan: Plan) -> str:
        return "load the composite from a folder, read each weight"

    @staticmethod
    def work(plan: Plan) -> None:
        return None


TASKS: dict[str, type[Task]] = {
    "forward": Forward,
    "train": TrainStep,
    "generate-1": GenerateOne,
    "generate-8": GenerateEight,
    "encode": Encode,
    "decode": Decode,
    "text": EncodeText,
    "load": Load,
}
IMPORT = "import"
IMPORTED_NAME = "MusicgenForConditionalGeneration"


def forward_flops(plan: Plan) -> float:
    """Operations of one forward pass that the result depends on, two for each multiplication of weights or states.

    Lookups, norms and activations are left out; causal attention counts the half that is not masked.
    """
    decoder = plan.size.decoder
    width, steps, text = decoder["hidden_size"], plan.frames, plan.size.text_length
    per_step = 6 * width**2 + 2 * width * decoder["ffn_dim"]  # q, k, v, out; cross q, out; feed-forward
    per_text_state = 2 * width**2  # cross k, v
    attention = width * steps * (steps + 1) + 2 * width * steps * text  # scores and sums, self and cross
    layer = steps * per_step + text * per_text_state + attention
    heads = steps * width * decoder["vocab_size"] * decoder["num_codebooks"]
    return 2.0 * plan.batch * (decoder["num_hidden_layers"] * layer + heads)


def weights_read_per_step(plan: Plan) -> int:
    """Numbers of the weights that a step of generation must read: not the embeddings, and not cross k and v."""
    decoder = plan.size.decoder
    width = decoder["hidden_size"]
    layer = 6 * width**2 + 2 * width * decoder["ffn_dim"] + 6 * width
    heads = width * decoder["vocab_size"] * decoder["num_codebooks"]
    return int(decoder["num_hidden_layers"] * layer + heads + 2 * width)


# The measurement: the parent's part


def measure_tasks(plan: Plan, cases: Sequence[str]) -> Iterator[Row]:
    """Run cases on both sides in turn; one pair of worker processes serves them all."""
    if not cases:
        return
    with tempfile.TemporaryDirectory(prefix="musicgen-benchmark-") as name, contextlib.ExitStack() as stack:
        root = Path(name)
        progress("writing weights and inputs")
        write_models(plan, root)
        workers = [stack.enter_context(Worker(side, root)) for side in (OURS, THEIRS)]
        for case in cases:
            progress(TASKS[case].title(plan))
            yield measure_task(plan, case, workers, root)


def measure_task(plan: Plan, case: str, workers: Sequence[Worker], root: Path) -> Row:
    """Compare what the sides compute, then time them in turn."""
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
    """Time new Python processes that import a library and end, and beside them torch alone, the least it can take."""
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
    """Seconds of a whole process that runs one statement, and its peak memory."""
    report = "import pathlib; p = pathlib.Path('/proc/self/status'); print(p.read_text() if p.exists() else '')"
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}\n{report}"], check=True, stdout=subprocess.PIPE, text=True, env=quiet()
    )
    return time.perf_counter() - begin, status_bytes(done.stdout, "VmHWM")


def write_models(plan: Plan, root: Path) -> None:
    """Write a folder per model, with random weights and the inputs of the cases that use it."""
    # Imported here, so that a worker of the other side never has this package in its process.
    from musicgen_train import (
        EncodecConfig,
        EncodecModel,
        MusicgenDecoderConfig,
        MusicgenForCausalLM,
        MusicgenForConditionalGeneration,
        T5Config,
        T5EncoderModel,
    )
    from musicgen_train.models.delay_pattern import training_labels

    torch.manual_seed(0)
    size = plan.size
    (root / PLAN_FILE).write_text(json.dumps(dataclasses.asdict(plan)))
    codes = size.decoder["vocab_size"]
    decoder = MusicgenForCausalLM(MusicgenDecoderConfig(**size.decoder))
    spread_weights(decoder)
    composite = MusicgenForConditionalGeneration(
        text_encoder=T5EncoderModel(T5Config(**SMALL_T5)),
        audio_encoder=EncodecModel(EncodecConfig(**_small_codec(codes))),
        decoder=decoder,
    )
    assert composite.enc_to_dec_proj is not None
    spread_weights(composite.enc_to_dec_proj)
    text_encoder = T5EncoderModel(T5Config(**size.text_encoder))
    codec = EncodecModel(EncodecConfig(**size.codec)).eval()
    audio = synthetic_audio(codec.config.sampling_rate, size.audio_seconds)
    fit_codebooks(codec, audio)

    width, codebooks = size.decoder["hidden_size"], size.decoder["num_codebooks"]
    labels = training_labels(torch.randint(codes, (plan.batch, codebooks, plan.frames)), decoder.delays, codes)
    save(
        decoder,
        root / Forward.folder,
        input_ids=labels.transpose(1, 2).flatten(0, 1),  # (B * K, T)
        labels=labels,
        text_states=torch.randn(plan.batch, size.text_length, width),
        text_mask=right_padded(plan.batch, size.text_length),
    )
    rows = GenerateEight.rows
    save(
        composite,
        root / Generate.folder,
        input_ids=torch.randint(2, SMALL_T5["vocab_size"], (rows, size.text_length)),
        attention_mask=right_padded(rows, size.text_length),
    )
    frames = -(-audio.shape[-1] // codec.config.hop_length)
    save(
        codec,
        root / Encode.folder,
        audio=audio,
        codes=torch.randint(codec.config.codebook_size, (1, 1, codec.config.num_quantizers, frames)),
    )
    save(
        text_encoder,
        root / EncodeText.folder,
        input_ids=torch.randint(2, size.text_encoder["vocab_size"], (size.texts, size.tokens)),
        attention_mask=right_padded(size.texts, size.tokens),
    )


def save(model: Any, folder: Path, **inputs: torch.Tensor) -> None:
    """Write a model and the inputs of its cases."""
    model.save_pretrained(folder)
    save_file({name: value.contiguous() for name, value in inputs.items()}, folder / INPUTS_FILE)


@torch.no_grad()
def spread_weights(model: nn.Module) -> None:
    """Random weights that give logits of about 1 and norms off identity, so that an error anywhere shows."""
    for name, parameter in model.named_parameters():
        if "embed_tokens" in name:
            parameter.normal_()  # as large as the positions, which would drown the codes out
        elif parameter.dim() > 1:
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
        else:
            parameter.add_(torch.randn_like(parameter), alpha=0.2 if "norm" in name else 0.02)


@torch.no_grad()
def fit_codebooks(codec: Any, audio: torch.Tensor) -> None:
    """Give the codebooks the mean and spread of what they code; else one code might be nearest to everything."""
    latents_BTD = codec.encoder(audio.transpose(1, 2))
    deviation, mean = torch.std_mean(latents_BTD, dim=(0, 1))
    for index, layer in enumerate(codec.quantizer.layers):
        layer.codebook.embed.normal_().mul_(deviation * 0.5**index).add_(mean if index == 0 else 0.0)


def synthetic_audio(rate: int, seconds: float) -> torch.Tensor:
    """A gliding tone with harmonics in changing noise, float32 `(1, 1, samples)`."""
    times = torch.arange(int(rate * seconds)) / rate
    phase = 2 * torch.pi * (110 * times + 40 * times.sin())
    tones = sum((harmonic * phase).sin() / harmonic for harmonic in range(1, 6))
    noise = torch.randn(len(times)) * (0.5 + 0.5 * (5 * times).sin())
    return (0.2 * tones + 0.1 * noise)[None, None]


def right_padded(rows: int, length: int) -> torch.Tensor:
    """A mask of rows that are each shorter than the one before, down to half."""
    lengths = torch.linspace(length, (length + 1) // 2, rows).long()
    return (torch.arange(length) < lengths[:, None]).long()


class Worker:
    """A process that runs the cases of one side. It is asked and answers in lines of JSON, one at a time."""

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
        """Have the worker's session do something (see `Session`), and return what it answers.

        Raises:
            RuntimeError: the worker failed; what it said of it is on stderr.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, which the missing answer tells better
            print(json.dumps({"action": action, **arguments}), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            code = self.process.wait()
            raise RuntimeError(f"the process of {self.side} ended with code {code} at {action} {arguments}; see above")
        return cast(float, json.loads(answer))

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()  # closes stdin, at which the worker ends


# The measurement: the worker's part


def serve(side: str, root: Path) -> None:
    """Do what the lines on stdin ask for and answer each on stdout."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints must not come between
    session = Session(side, root)
    gc.freeze()  # collecting garbage need not look through the imported modules each time
    actions: dict[str, Callable[..., float | None]] = {
        action.__name__: action
        for action in (session.open, session.run, session.save_results, session.peak_bytes, session.close)
    }
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(actions[request.pop("action")](**request)), file=answers, flush=True)


class Session:
    """One side's task, from opening to closing."""

    def __init__(self, side: str, root: Path) -> None:
        self.root = root
        self.plan = Plan(**json.loads((root / PLAN_FILE).read_text()))
        torch.set_num_threads(self.plan.threads)
        # float32 is to mean the same everywhere; by default cuDNN alone may round to TF32.
        torch.backends.cudnn.allow_tf32 = False
        self.side = cast(Side, importlib.import_module(side))
        for name in ("MusicgenForConditionalGeneration", "EncodecModel", "T5EncoderModel"):
            getattr(self.side, name)  # transformers imports a model's module when it is first asked for
        self.task: Task | None = None
        self.memory = PeakMemory(self.plan.device)

    def open(self, case: str) -> None:
        """Load models and inputs of a case."""
        self.memory.restart()
        torch.manual_seed(0)
        self.task = TASKS[case](self.side, self.plan, self.root)

    def run(self) -> float:
        """Run the case once, and return its seconds."""
        assert self.task is not None
        self.task.reset()
        synchronize(self.plan.device)
        begin = time.perf_counter()
        self.task.run()
        synchronize(self.plan.device)
        return time.perf_counter() - begin

    def save_results(self, path: str) -> None:
        """Write what the last run computed."""
        assert self.task is not None
        save_file({name: value.detach().cpu().contiguous() for name, value in self.task.results().items()}, path)

    def peak_bytes(self) -> int | None:
        """Memory since `open`, at its highest."""
        return self.memory.growth()

    def close(self) -> None:
        """Forget the case."""
        self.task = None


class PeakMemory:
    """How much memory grew since a start, at the highest: the process's, or where the work is on a GPU, its tensors'.

    None where the system does not tell: this reads Linux's /proc.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._start: int | None = None
        if device == "cuda":
            torch.cuda.init()  # else there are no statistics to reset

    def restart(self) -> None:
        """Count from now on; first give back what is no longer used."""
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self._start = torch.cuda.memory_allocated()
            return
        with contextlib.suppress(OSError, AttributeError):  # not glibc: freed memory may stay and hide growth
            ctypes.CDLL(None).malloc_trim(0)
        try:
            Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is in use now
            self._start = status_bytes(Path("/proc/self/status").read_text(), "VmRSS")
        except OSError:
            self._start = None

    def growth(self) -> int | None:
        """Bytes."""
        if self._start is None:
            return None
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated() - self._start
        peak = status_bytes(Path("/proc/self/status").read_text(), "VmHWM")
        return None if peak is None else peak - self._start


def synchronize(device: str) -> None:
    """Wait for the GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def status_bytes(status: str, field: str) -> int | None:
    """A field of a /proc status file; None where it is not there."""
    lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return int(lines[field].removesuffix("kB")) * 1024 if field in lines else None


def quiet() -> dict[str, str]:
    """The environment of processes that should neither reach for the network nor draw progress bars."""
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }


# Machine and comparison


@dataclass(frozen=True)
class Roofline:
    """What the machine does at its best."""

    flops_per_s: float
    """Of one large matrix product in the run's dtype."""
    bytes_per_s: float
    """Of a copy of a large block, bytes read plus bytes written."""

    def share(self, work: Work | None, seconds: float) -> float | None:
        """The share of it that some work reached; None for work that is not counted."""
        if work is None or not (work.flops or work.bytes_read):
            return None
        return max(work.flops / self.flops_per_s, work.bytes_read / self.bytes_per_s) / seconds


def measure_roofline(plan: Plan) -> Roofline:
    """Time a matrix product and a copy."""
    progress("matrix product and copy")
    side, block = (8192, 2**30) if plan.device == "cuda" else (2048, 2**28)
    left, right = (torch.randn(side, side, device=plan.device).to(plan.dtype) for _ in range(2))
    source = torch.ones(block, dtype=torch.uint8, device=plan.device)
    target = torch.empty_like(source)
    product_s = fastest(lambda: left @ right, plan.device)
    copy_s = fastest(lambda: target.copy_(source), plan.device)
    return Roofline(flops_per_s=2 * side**3 / product_s, bytes_per_s=2 * block / copy_s)


def fastest(action: Callable[[], object], device: str, least_s: float = 0.5) -> float:
    """Seconds of the fastest of three runs or more, for half a second, after one that does not count."""
    times: list[float] = []
    while len(times) < 4 or sum(times) < least_s:
        synchronize(device)
        begin = time.perf_counter()
        action()
        synchronize(device)
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def best_of(rooflines: Sequence[Roofline]) -> Roofline:
    """The best of measurements at different times, since another program can only make one worse."""
    return Roofline(
        flops_per_s=max(roofline.flops_per_s for roofline in rooflines),
        bytes_per_s=max(roofline.bytes_per_s for roofline in rooflines),
    )


@dataclass(frozen=True)
class Agreement:
    """Whether both sides computed the same."""

    holds: bool
    text: str


def compare(ours: Tensors, theirs: Tensors, dtype: torch.dtype) -> Agreement:
    """Compare results by name.

    Integers, which are codes, must be identical in float32; in half precision a code that wins by less than rounding
    may be another, and all after it with it, so their share is only told. The rest may differ by `TOLERANCE`.
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
    # NaN, and so no agreement, where either has one or all is zero and nothing was compared.
    difference = float((ours - theirs).abs().max() / theirs.abs().max())
    return Agreement(difference <= tolerance, f"{name} {difference:.0e}")


# The report


@dataclass(frozen=True)
class Measurement:
    """One side of a row."""

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
    """One case on both sides."""

    case: str
    title: str
    ours: Measurement
    theirs: Measurement
    agreement: Agreement | None = None
    work: Work | None = None
    torch_alone: Measurement | None = None
    """Of the row of imports."""

    @property
    def ratio(self) -> float:
        """How many times as fast as the other side, the median over neighbouring runs."""
        pairs = zip(self.ours.seconds, self.theirs.seconds, strict=True)
        return statistics.median(theirs / ours for ours, theirs in pairs)

    @property
    def remark(self) -> str:
        """How the results compare, or what the times compare with."""
        if self.agreement is not None:
            return self.agreement.text + ("" if self.agreement.holds else " **DIFFERENT**")
        return "-" if self.torch_alone is None else f"import torch alone: {self.torch_alone}"

    def rate(self, side: Measurement) -> float | None:
        """Work per second."""
        return None if self.work is None else self.work.amount / side.median


@dataclass(frozen=True)
class Report:
    """Everything a run found."""

    plan: Plan
    environment: Mapping[str, str]
    roofline: Roofline
    rows: Sequence[Row]

    @property
    def equal(self) -> bool:
        return all(row.agreement is None or row.agreement.holds for row in self.rows)

    def markdown(self) -> str:
        """A list of circumstances and a table."""
        roofline = self.roofline
        facts = {
            **self.environment,
            "roofline": f"matrix product {roofline.flops_per_s / 1e9:,.0f} GFLOP/s in {self.plan.dtype_name}, copy "
            f"{roofline.bytes_per_s / 1e9:,.1f} GB/s (read plus written)",
        }
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
        lines = [*(f"- {name}: {value}" for name, value in facts.items()), ""]
        lines += [_table_line(columns), _table_line(["---"] * len(columns))]
        lines += [_table_line(self._cells(row)) for row in self.rows]
        return "\n".join(lines)

    def _cells(self, row: Row) -> list[str]:
        rate = row.rate(row.ours)
        share = self.roofline.share(row.work, row.ours.median)
        memory = [_megabytes(side.peak_bytes) for side in (row.ours, row.theirs)]
        return [
            row.title,
            str(row.ours),
            str(row.theirs),
            f"{row.ratio:.2f}x",
            "-" if rate is None or row.work is None else f"{_three_digits(rate)} {row.work.unit}",
            "-" if share is None else f"{share:.0%}",
            " / ".join(memory),
            row.remark,
        ]

    def as_json(self) -> dict[str, Any]:
        """The same and every single time, for programs."""
        return {
            "environment": dict(self.environment),
            "plan": dataclasses.asdict(self.plan),
            "roofline": dataclasses.asdict(self.roofline),
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
            "roofline_share": self.roofline.share(row.work, row.ours.median),
            "equal": None if row.agreement is None else row.agreement.holds,
            "remark": row.remark,
        }


def environment(plan: Plan, arguments: Sequence[str], script: str = "benchmark.py") -> dict[str, str]:
    """Where, when and with what a run of a script took place."""
    machine = f"{cpu_name()}, {os.cpu_count()} cores, {plan.threads} threads"
    if plan.device == "cuda":
        machine += f"; {torch.cuda.get_device_name()}"
    if hasattr(os, "getloadavg"):
        # Above the number of threads it had company, and only ratios count.
        machine += f"; load {os.getloadavg()[0]:.1f} at the end"
    facts = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["python", f"scripts/{script}", *arguments]),
        "machine": machine,
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, transformers {version(THEIRS)}",
        "decoder": f"{plan.size_name} ({plan.size.description}), {plan.dtype_name}, {plan.repeats} timed runs a case",
    }
    commit = git("rev-parse", "--short", "HEAD")
    if commit:
        facts["commit"] = commit + (", with changes" if git("status", "--porcelain") else "")
    return facts


def cpu_name() -> str:
    """The processor as the system calls it."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].split(":", 1)[1].strip() if names else platform.processor() or platform.machine()


def git(*arguments: str) -> str:
    """What git says of this repository; nothing where there is no git, no repository or no commit."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def progress(what: str) -> None:
    """Tell what is going on, on stderr."""
    print(what, file=sys.stderr, flush=True)


def _table_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _megabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:,.0f} MB"


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is given; allowed are whole numbers from 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
