"""The least work of the benchmarks' cases: operations, and numbers that are read."""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmark_plan import Plan


@dataclass(frozen=True)
class Work:
    """The work of one run of a case: an amount, whose rate is reported, and the least operations and bytes for it."""

    amount: float
    unit: str
    flops: float = 0.0
    bytes_read: float = 0.0


def forward_flops(plan: Plan) -> float:
    """Operations of one forward pass that the result depends on, two for each multiplication of weights or states.

    Embeddings, norms and activations are not counted; of causal attention only the half that is not masked.
    """
    decoder = plan.size.decoder
    width, steps, text = decoder["hidden_size"], plan.frames, plan.size.text_length
    per_step = 6 * width**2 + 2 * width * decoder["ffn_dim"]  # q, k, v, out; cross q, out; feed-forward
    per_text_state = 2 * width**2  # cross k, v
    attention = width * steps * (steps + 1) + 2 * width * steps * text  # scores and sums, self and cross
    layer = steps * per_step + text * per_text_state + attention
    heads = steps * width * decoder["vocab_size"] * decoder["num_codebooks"]
    return 2.0 * plan.batch * (decoder["num_hidden_layers"] * layer + heads)


def text_flops(plan: Plan) -> float:
    """Operations of the text encoder, two for each multiplication, padding included."""
    t5, tokens = plan.size.text_encoder, plan.size.tokens
    inner = t5["num_heads"] * t5["d_kv"]
    weights = 4 * t5["d_model"] * inner + 2 * t5["d_model"] * t5["d_ff"]  # q, k, v, out; feed-forward
    attention = 2 * inner * tokens  # scores and sums
    return 2.0 * plan.size.texts * tokens * t5["num_layers"] * (weights + attention)


def codec_flops(plan: Plan) -> float:
    """Operations of EnCodec's encoder, or of its decoder, which has the same layers in reverse order.

    Two for each multiplication of a convolution, padding included, or of the LSTM; for audio of whole frames.
    """
    codec = plan.size.codec
    steps, width = _samples(plan), codec["num_filters"]
    products = steps * 7 * width  # 7 taps, of one channel
    for ratio in reversed(codec["upsampling_ratios"]):
        products += steps * (3 + 1) * width * (width // 2)  # a residual block: 3 taps to half the width, one back
        steps //= ratio
        products += steps * 2 * ratio * width * (2 * width)
        width *= 2
    products += codec["num_lstm_layers"] * steps * 8 * width**2  # four gates, of the input and of the step before
    products += steps * 7 * width * codec["hidden_size"]
    return 2.0 * products


def search_flops(plan: Plan) -> float:
    """Operations of the codec's search: each frame is compared with all entries of all codebooks."""
    codec = plan.size.codec
    frames = _samples(plan) // math.prod(codec["upsampling_ratios"])
    return 2.0 * frames * plan.size.decoder["num_codebooks"] * codec["codebook_size"] * codec["codebook_dim"]


def _samples(plan: Plan) -> int:
    return int(plan.size.codec["sampling_rate"] * plan.size.audio_seconds)


def weights_read_per_step(plan: Plan) -> int:
    """The number of weights that a step of generation must read: all but embeddings and cross-attention k and v."""
    decoder = plan.size.decoder
    width = decoder["hidden_size"]
    layer = 6 * width**2 + 2 * width * decoder["ffn_dim"] + 6 * width
    heads = width * decoder["vocab_size"] * decoder["num_codebooks"]
    return int(decoder["num_hidden_layers"] * layer + heads + 2 * width)


def states_read(plan: Plan, rows: int) -> int:
    """The number of key and value entries that a generation with guidance must read, its own and those of the text.

    The step after n others reads n + 1 keys of each row, with a text and without; the null text needs no keys.
    """
    decoder, steps = plan.size.decoder, plan.new_tokens
    own = 2 * rows * steps * (steps + 1) // 2
    text = rows * steps * plan.size.text_length
    return int(decoder["num_hidden_layers"] * 2 * decoder["hidden_size"] * (own + text))
