"""The sizes that the benchmarks offer, and the plan of a run.

The workers of both libraries import it, so it imports neither.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from benchmark_run import environment

OURS, THEIRS = "musicgen_train", "transformers"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class Size:
    """The shapes of the models, and the sizes of the cases' inputs."""

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

    @property
    def delay(self) -> int:
        """The steps of a generation beyond its frames: the delay of the last codebook."""
        return int(self.decoder["num_codebooks"]) - 1


def _decoder(width: int, layers: int, heads: int, ffn: int, codes: int = 2048) -> dict[str, Any]:
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "decoder_start_token_id"), codes)
    # Without dropout, so that training computes the same with both libraries.
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


def small_codec(codes: int) -> dict[str, Any]:
    """A codec with 50 frames/s and 4 codebooks that takes almost no time."""
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


# facebook/encodec_32khz, which MusicGen uses.
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
        "almost nothing, for codec and text encoder too",
        _decoder(width=48, layers=2, heads=3, ffn=80, codes=64),
        codec=small_codec(codes=64),
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
    """The settings of a run. Workers read them from a file in the folder they are given."""

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
        """The frames of one generation."""
        return self.new_tokens - self.size.delay

    def environment(self, script: str, arguments: Sequence[str]) -> dict[str, str]:
        """Facts about a run of a script."""
        return environment(
            script,
            arguments,
            {"torch": torch.__version__, THEIRS: version(THEIRS)},
            threads=self.threads,
            device=self.device,
            decoder=f"{self.size_name} ({self.size.description}), {self.dtype_name}, {self.repeats} timed runs a case",
        )


def require_a_frame(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Exit if --new-tokens is too low for one frame."""
    least = SIZES[options.size].delay + 1
    if options.new_tokens is not None and options.new_tokens < least:
        parser.error(f"--new-tokens {options.new_tokens}: the delay of {least} codebooks needs {least} at least")
