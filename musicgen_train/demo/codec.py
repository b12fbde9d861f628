"""A small EnCodec whose round trip can be recognised, without training: its weights are written down.

A network of convolutions can be a lapped transform. Here the encoder is a modified discrete cosine transform (MDCT;
Princen and Bradley, 1986) of frames of 640 samples, cut to its lowest 128 of 640 bands (3.2 kHz); the decoder is the
transposed transform, which inverts it; and the codebooks are fitted to its coefficients by k-means. It works in four
strided convolutions:

    4 samples, 16 samples           side by side, as channels
    80 samples                      an MDCT of 80 bands, the lowest 64 of them kept
    640 samples                     the MDCT of 640 bands, as its projection on 16 blocks of the one before
    one convolution over frames     weights each band, so that the quantizer minds soft high bands too

Between them stand functions (ELU) that are straight lines only near zero, so signals travel at a twentieth of their
size. The residual blocks and LSTMs add nothing at first, and channels that are not needed have random weights and no
listeners: training can use them all.

Axis letters: N samples of a window, K bands, B batch, T frames, D width of a latent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch

from musicgen_train.demo.clusters import fit_vectors, nearest
from musicgen_train.models.config import EncodecConfig
from musicgen_train.models.encodec import (
    Conv,
    EncodecModel,
    Kernel,
    MagnitudeAndDirection,
    ResidualBlock,
    ResidualLSTM,
    TransposedConv,
    VectorQuantizer,
)

BANDS = 128
HOP = 640
_INNER_HOP = 80
_INNER_BANDS = 64
# The size of signals inside: small enough for ELU to be straight, and large beside its rounding.
_SCALE = 0.05
# Bands are weighted by their power to minus this: 0 is best for SI-SDR and deaf to high bands, 0.5 treats all alike.
_WHITENING = 0.125
# With fewer, codebooks repeat their frames exactly and leave nothing for those after them to learn from.
_FRAMES_PER_ENTRY = 3
_BATCH = 16


def demo_codec_config() -> EncodecConfig:
    """The demo's EnCodec: MusicGen's rates and codebooks (32 kHz, 50 frames/s, 4 x 2048), a 64th of its weights."""
    return EncodecConfig(
        sampling_rate=32_000,
        audio_channels=1,
        upsampling_ratios=[8, 5, 4, 4],
        target_bandwidths=[2.2],
        codebook_size=2048,
        num_filters=8,
        hidden_size=BANDS,
        num_lstm_layers=1,
        use_causal_conv=False,
        use_conv_shortcut=False,
        norm_type="weight_norm",
    )


def make_codec(audio: Sequence[torch.Tensor], seed: int, rounds: int = 6) -> EncodecModel:
    """Build the codec.

    Args:
        audio: clips to fit the weighting of bands and the codebooks to, each float32 `(samples,)`; the more, the
            better the codebooks, with no end in sight at 40,000 frames.
        seed: of the start of the codebooks, and of weights that wait for training.
        rounds: of k-means for each codebook; 0 takes frames as they come.

    Returns:
        The codec, in eval mode.

    Raises:
        ValueError: the audio has fewer than three frames for each entry of a codebook.
    """
    config = demo_codec_config()
    frames, needed = sum(math.ceil(len(clip) / HOP) for clip in audio), _FRAMES_PER_ENTRY * config.codebook_size
    if frames < needed:
        raise ValueError(
            f"{frames} frames of audio are too few for codebooks of {config.codebook_size} entries; give {needed} or "
            f"more, which are {needed * HOP / config.sampling_rate:.0f} s"
        )
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        codec = EncodecModel(config).eval()
    write_transform(codec, torch.ones(BANDS))
    power = latents_of(codec, audio).pow(2).mean(0)
    # Bands that are always silent, as with a handful of clips, shall not be blown up.
    power = power.clamp_min(1e-4 * float(power.mean()))
    weights = power**-_WHITENING
    # Latents of the size of one.
    write_transform(codec, weights / (weights.pow(2) * power).mean().sqrt())
    fit_codebooks(codec, latents_of(codec, audio), generator, rounds)
    return codec


@torch.no_grad()
def latents_of(codec: EncodecModel, audio: Sequence[torch.Tensor]) -> torch.Tensor:
    """What the encoder makes of clips, one after the other: each `(samples,)`, together `(T, D)`."""
    return torch.cat([codec.encoder(rows.transpose(1, 2)).flatten(0, 1) for rows in batches(audio)])


def batches(audio: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Clips `(samples,)` as batches `(B, 1, samples)`, in order; neighbours of one length share a batch.

    One by one, an LSTM would be called for every single frame, which costs much more than its arithmetic.
    """
    for _, neighbours in itertools.groupby(audio, key=len):
        clips = list(neighbours)
        for start in range(0, len(clips), _BATCH):
            yield torch.stack(clips[start : start + _BATCH])[:, None]


@torch.no_grad()
def fit_codebooks(codec: EncodecModel, latents_TD: torch.Tensor, generator: torch.Generator, rounds: int) -> None:
    """Fit each codebook to what those before it leave of the latents.

    Entry 0 is zero in all of them, so that silence stays silent.
    """
    residual = latents_TD
    for layer in codec.quantizer.layers:
        assert isinstance(layer, VectorQuantizer)
        codebook = layer.codebook
        vectors_VD = fit_vectors(residual, codec.config.codebook_size, rounds, generator)
        vectors_VD[0] = 0.0
        codes = nearest(residual, vectors_VD)
        counts = torch.bincount(codes, minlength=len(vectors_VD)).float()
        codebook.embed.copy_(vectors_VD)
        codebook.cluster_size.copy_(counts)
        codebook.embed_avg.copy_(vectors_VD * counts[:, None])
        residual = residual - vectors_VD[codes]


@torch.no_grad()
def write_transform(codec: EncodecModel, weights: torch.Tensor) -> None:
    """Make encoder and decoder the transform and its inverse.

    Args:
        codec: of the demo's configuration.
        weights: what each band is multiplied by in the latents, `(BANDS,)`, above 0.
    """
    inner, outer = inner_kernel(), outer_kernel()
    four, sixteen = _gathering_kernel(1, 4), _gathering_kernel(4, 4)
    strided = [four, sixteen, inner, outer]
    size = codec.config.kernel_size
    through = torch.zeros(BANDS, BANDS, size)
    through[range(BANDS), range(BANDS), size // 2] = 1.0
    spike = torch.zeros(1, 1, size)
    spike[0, 0, size // 2] = 1.0

    encoder, decoder = codec.encoder.layers, codec.decoder.layers
    scales = weights / _SCALE
    kernels = [spike * _SCALE, *strided, through * scales[:, None, None]]
    for layer, kernel in zip((layer for layer in encoder if isinstance(layer, Conv)), kernels, strict=True):
        _write(layer.conv, kernel)
    # A transposed convolution's weight is stored as (in, out, size): the same numbers as of the one it inverts.
    kernels = [through / scales[:, None, None], *reversed(strided), spike / _SCALE]
    convolutions = [layer for layer in decoder if isinstance(layer, Conv | TransposedConv)]
    for convolution, kernel in zip(convolutions, kernels, strict=True):
        _write(convolution.conv, kernel)
    for module in codec.modules():
        if isinstance(module, ResidualBlock):
            last = module.block[-1]
            assert isinstance(last, Conv)
            _write(last.conv, torch.zeros_like(_normed(last.conv).original1))
        elif isinstance(module, ResidualLSTM):
            width = module.lstm.hidden_size
            # Of the four gates' rows the third are what is written to the memory: nothing.
            for parameter in module.lstm.parameters():
                parameter[2 * width : 3 * width] = 0.0


def mdct_window(hop: int) -> torch.Tensor:
    """The vectors of an MDCT with a sine window, float64 `(N, K)` with N = 2 * hop and K = hop."""
    samples = torch.arange(2 * hop, dtype=torch.float64) + 0.5
    bands = torch.arange(hop, dtype=torch.float64) + 0.5
    window = torch.sin(math.pi / (2 * hop) * samples)
    waves = torch.cos(math.pi / hop * (samples[:, None] + hop / 2) * bands)
    return math.sqrt(2 / hop) * window[:, None] * waves


def inner_kernel() -> torch.Tensor:
    """The MDCT of 80 bands over ten blocks of 16 samples, `(bands, 16, 10)`."""
    blocks = mdct_window(_INNER_HOP)[:, :_INNER_BANDS].view(10, 16, _INNER_BANDS)
    return blocks.permute(2, 1, 0).float()


def outer_kernel() -> torch.Tensor:
    """The MDCT of 640 bands over 16 blocks of the inner one, `(BANDS, inner bands, 16)`.

    The inner vectors are orthonormal, so the nearest that can be made of them has inner products as its coefficients.
    Sixteen of them reach 80 samples further than the outer window, which lies in their middle.
    """
    inner = mdct_window(_INNER_HOP)[:, :_INNER_BANDS]
    outer = torch.zeros(2 * HOP + _INNER_HOP, BANDS, dtype=torch.float64)
    start = _INNER_HOP // 2
    outer[start : start + 2 * HOP] = mdct_window(HOP)[:, :BANDS]
    # (K, N) to windows (K, 16, 160)
    windows = outer.t().unfold(1, 2 * _INNER_HOP, _INNER_HOP)
    return torch.einsum("kin,nb->kbi", windows, inner).float()


def _gathering_kernel(width: int, stride: int) -> torch.Tensor:
    """Blocks of `stride` steps side by side as channels, `(stride * width, width, 2 * stride)`."""
    kernel = torch.zeros(stride * width, width, 2 * stride)
    for step in range(stride):
        for channel in range(width):
            # The convolution pads half a stride on the left.
            kernel[step * width + channel, channel, step + stride // 2] = 1.0
    return kernel


def _write(kernel: Kernel, values: torch.Tensor) -> None:
    """Write a convolution's weight; what `values` does not reach keeps random weights and is not listened to.

    Rows of zeros get a magnitude of zero and keep their random direction, since zero has none.
    """
    magnitude, direction = _normed(kernel).original0, _normed(kernel).original1
    first, second, _ = values.shape
    norms = torch.linalg.vector_norm(values, dim=(1, 2), keepdim=True)
    written = norms.flatten() > 0
    direction[:first, second:][written] = 0.0
    direction[:first, :second][written] = values[written]
    magnitude[:first] = norms
    kernel.bias.zero_()


def _normed(kernel: Kernel) -> MagnitudeAndDirection:
    normed = kernel.parametrizations["weight"]
    assert isinstance(normed, MagnitudeAndDirection)
    return normed
