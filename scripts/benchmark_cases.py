"""What the benchmarks measure: sizes, the plan of a run, the cases and what each costs at least, models and inputs.

Workers of either side import it, so it imports neither library itself: a case is given its side's module, and only
writing the models, the parent's part, asks for this package.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import torch
from benchmark_tools import environment
from safetensors.torch import load_file, save_file
from torch import nn

OURS, THEIRS = "musicgen_train", "transformers"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PLAN_FILE, INPUTS_FILE = "plan.json", "inputs.safetensors"

Tensors = dict[str, torch.Tensor]


# Sizes and plan


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
    "medium": Size("that of musicgen-medium, 1536 wide, 48 layers", _decoder(1536, 48, 24, 6144), CODEC_32KHZ, T5_BASE),
    "large": Size("that of musicgen-large, 2048 wide, 48 layers", _decoder(2048, 48, 32, 8192), CODEC_32KHZ, T5_BASE),
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
    compile: bool

    @classmethod
    def of(cls, options: argparse.Namespace) -> Plan:
        """The plan that the command line asks for."""
        size = SIZES[options.size]
        return cls(
            size_name=options.size,
            device=options.device,
            dtype_name=options.dtype,
            threads=options.threads or torch.get_num_threads(),
            repeats=options.repeats,
            batch=options.batch or size.batch,
            frames=options.frames or size.frames,
            new_tokens=options.new_tokens or size.new_tokens,
            compile=options.compile,
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

    def environment(self, script: str, arguments: Sequence[str]) -> dict[str, str]:
        """Where, when and with what a run of a script took place."""
        return environment(
            script,
            arguments,
            {"torch": torch.__version__, THEIRS: version(THEIRS)},
            threads=self.threads,
            device=self.device,
            decoder=f"{self.size_name} ({self.size.description}), {self.dtype_name}, {self.repeats} timed runs a case",
        )


# Cases


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

    def __init__(self, side: Side, plan: Plan, root: Path) -> None:
        super().__init__(side, plan, root)
        if plan.compile:
            for layer in self.model.model.decoder.layers:
                layer.compile()

    @classmethod
    def title(cls, plan: Plan) -> str:
        compiled = ", compiled" if plan.compile else ""
        return f"{cls.name}, {plan.batch} x {plan.frames} frames, {plan.size.text_length} text states{compiled}"


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
        numbers = weights_read_per_step(plan) * plan.new_tokens + states_read(plan, cls.rows)
        return Work(cls.rows * plan.new_frames, "frames/s", bytes_read=numbers * plan.dtype.itemsize)


class GenerateOne(Generate):
    rows = 1


class GenerateEight(Generate):
    rows = 8


class GenerateSixtyFour(Generate):
    rows = 64


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
    "generate-64": GenerateSixtyFour,
    "encode": Encode,
    "decode": Decode,
    "text": EncodeText,
    "load": Load,
}


# What cases cost at least


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


def states_read(plan: Plan, rows: int) -> int:
    """Numbers of the keys and values that a generation with guidance must read, its own and those of the text.

    The step after n others reads n + 1 keys of each of its rows, with a text and without; the text of the latter is
    nothing.
    """
    decoder, steps = plan.size.decoder, plan.new_tokens
    own = 2 * rows * steps * (steps + 1) // 2
    text = rows * steps * plan.size.text_length
    return int(decoder["num_hidden_layers"] * 2 * decoder["hidden_size"] * (own + text))


# Models and inputs


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
    rows = GenerateSixtyFour.rows
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
