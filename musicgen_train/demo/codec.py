"""A small EnCodec whose round trip can be recognised before any training: its weights are written down.

A network of convolutions can be a lapped transform. Below 1.1 kHz the encoder is a modified discrete cosine transform
(MDCT; Princen and Bradley, 1986) of frames of 640 samples, 44 bands of 25 Hz, and the decoder is its inverse. Above,
where ears mind loudness more than phase, the latents are the logarithms of how loud 20 bands are, and the decoder gives
noise of that loudness. It works in four strided convolutions:

    4 samples, 16 samples   side by side, as channels
    80 samples              an MDCT of 80 bands: the lowest 16 as they are; all above 1 kHz in 20 groups, so loud that
                            the function behind (ELU) cuts off one side: each group and its negative
    640 samples             the MDCT of 640 bands, as its projection on 16 blocks of the one before; and the sums of
                            the two halves of each group over time, at four gains
    one over frames         weighs each band; sums the four saturated gains, which is close to a logarithm

ELU is a straight line only near zero, so signals that shall pass travel at a twentieth of their size; and it is an
exponential function below zero, which is how the decoder undoes the logarithm.

Codebooks stand for parts of the spectrum, each with zeros outside of its own dimensions: the bass and the kick drum,
the low chords, the high chords and melodies, and the loudness above. That codes recordings as well as codebooks that
refine each other, uses nearly all entries, and is far easier to predict: the bass line is one stream of codes whatever
else plays.

The residual blocks and LSTMs add nothing at first, and channels that are not needed have random weights and no
listeners: training (`codec_training`) can use them all.

Axis letters: N samples of a window, K bands, B batch, T frames, D width of a latent, G groups of bands.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch

from musicgen_train.demo.clusters import fit_vectors, nearest
from musicgen_train.models.codec.convolutions import Conv, Kernel, MagnitudeAndDirection, ResidualBlock, TransposedConv
from musicgen_train.models.codec.encodec import EncodecModel, ResidualLSTM, VectorQuantizer
from musicgen_train.models.config import EncodecConfig

HOP = 640
BANDS = 44
# Of the inner transform, in bands of 200 Hz: where groups start, and where the last one ends.
_GROUP_EDGES = (5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 21, 24, 28, 32, 37, 42, 48, 55, 62, 70, 80)
GROUPS = len(_GROUP_EDGES) - 1
# Which dimensions of the latents each codebook stands for: below 200 Hz, 450 Hz, 1100 Hz; the groups.
PARTS = ((0, 8), (8, 18), (18, BANDS), (BANDS, BANDS + GROUPS))

_INNER_HOP = 80
_INNER_BANDS = 16
# The size of signals inside: small enough for ELU to be straight, and large beside its rounding.
_SCALE = 0.05
# How loud the loudest half percent of a group is made: far beyond the bend of ELU, whose size is one.
_LOUDEST = 400.0
_QUANTILE = 0.995
# Gains at which a group's loudness saturates; their sum grows like a logarithm over 6 ** 4, which is 62 dB.
_GAIN_STEP = 6.0
_GAINS = tuple(_GAIN_STEP**-step for step in range(4))
# What that sum, divided by 4, has to be multiplied by to be the natural logarithm.
_STEEPNESS = len(_GAINS) * math.log(_GAIN_STEP)
# Bands are weighted by their power to minus this: 0 is best for SI-SDR and deaf to high bands, 0.5 treats all alike.
_WHITENING = 0.125
# With fewer, codebooks repeat their frames exactly and leave nothing for those after them to learn from.
_FRAMES_PER_ENTRY = 3
_BATCH = 16


def demo_codec_config() -> EncodecConfig:
    """The demo's EnCodec: MusicGen's rates and number of codebooks (32 kHz, 50 frames/s, 4), each of 1024 entries."""
    return EncodecConfig(
        sampling_rate=32_000,
        audio_channels=1,
        upsampling_ratios=[8, 5, 4, 4],
        target_bandwidths=[2.0],
        codebook_size=1024,
        num_filters=8,
        hidden_size=BANDS + GROUPS,
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
    loudness_G = group_loudness(audio)
    write_transform(codec, torch.ones(BANDS), loudness_G)
    power = latents_of(codec, audio)[:, :BANDS].pow(2).mean(0)
    # Bands that are always silent, as with a handful of clips, shall not be blown up.
    power = power.clamp_min(1e-4 * float(power.mean()))
    weights = power**-_WHITENING
    # Latents of the size of one.
    write_transform(codec, weights / (weights.pow(2) * power).mean().sqrt(), loudness_G)
    fit_codebooks(codec, latents_of(codec, audio), generator, rounds)
    return codec


def group_loudness(audio: Sequence[torch.Tensor]) -> torch.Tensor:
    """How loud each group of high bands is where it is loudest, `(G,)`."""
    waves_NG = _group_waves()
    loudness = torch.stack(
        [(clip.unfold(0, 2 * _INNER_HOP, _INNER_HOP) @ waves_NG).abs().quantile(_QUANTILE, dim=0) for clip in audio]
    )
    return loudness.quantile(0.9, dim=0).clamp_min(1e-4)


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
    """Fit each codebook to its part of the latents.

    Entry 0 is zero in all of them, so that silence stays silent.
    """
    for layer, (first, last) in zip(codec.quantizer.layers, PARTS, strict=True):
        assert isinstance(layer, VectorQuantizer)
        codebook = layer.codebook
        vectors_VD = torch.zeros_like(codebook.embed)
        vectors_VD[:, first:last] = fit_vectors(
            latents_TD[:, first:last], codec.config.codebook_size, rounds, generator
        )
        vectors_VD[0] = 0.0
        counts = torch.bincount(
            nearest(latents_TD[:, first:last], vectors_VD[:, first:last]), minlength=len(vectors_VD)
        )
        codebook.embed.copy_(vectors_VD)
        codebook.cluster_size.copy_(counts)
        codebook.embed_avg.copy_(vectors_VD * counts[:, None])


@torch.no_grad()
def write_transform(codec: EncodecModel, weights: torch.Tensor, loudness: torch.Tensor) -> None:
    """Make encoder and decoder the transform and its inverse.

    Args:
        codec: of the demo's configuration.
        weights: what each band is multiplied by in the latents, `(BANDS,)`, above 0.
        loudness: as `group_loudness` gives it, `(GROUPS,)`, above 0.
    """
    four, sixteen = _gathering_kernel(1, 4), _gathering_kernel(4, 4)
    inner, outer = inner_kernel(), outer_kernel()
    size = codec.config.kernel_size
    spike = torch.zeros(1, 1, size)
    spike[0, 0, size // 2] = 1.0
    scales = weights / _SCALE

    kernels = [
        spike * _SCALE,
        four,
        sixteen,
        torch.cat((inner, *_rectifying_kernels(loudness * _SCALE))),
        _beside(outer, _averaging_kernel()),
        _beside(_through(scales, size), _summing_kernel(size)),
    ]
    for layer, kernel in zip(
        (layer for layer in codec.encoder.layers if isinstance(layer, Conv)), kernels, strict=True
    ):
        _write(layer.conv, kernel)
    # A transposed convolution's weight is stored as (in, out, size): the same numbers as of the one it inverts.
    groups = _through(torch.full((GROUPS,), _STEEPNESS), size)
    kernels = [
        torch.cat((_beside(_through(1 / scales, size), groups), torch.zeros(1, BANDS + GROUPS, size))),
        _beside(outer, _noise_kernel(loudness * _SCALE)),
        torch.cat((inner, _group_waves_kernel())),
        sixteen,
        four,
        spike / _SCALE,
    ]
    convolutions = [layer for layer in codec.decoder.layers if isinstance(layer, Conv | TransposedConv)]
    for convolution, kernel in zip(convolutions, kernels, strict=True):
        _write(convolution.conv, kernel)
        if isinstance(convolution, TransposedConv):
            # Its rows are inputs: those that are not needed shall not be heard.
            _normed(convolution.conv).original0[len(kernel) :] = 0.0
    # Below zero ELU is the exponential less one; the last channel is what it makes of silence, to be taken away.
    convolutions[0].conv.bias[BANDS : BANDS + GROUPS + 1] = -_STEEPNESS
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


def _group_waves() -> torch.Tensor:
    """The sum of the inner transform's vectors over each group, `(N, G)`; their signs keep it from being a click."""
    vectors = mdct_window(_INNER_HOP)
    signs = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64).repeat(_INNER_HOP // 4)
    groups = [(vectors * signs)[:, first:last].sum(1) for first, last in itertools.pairwise(_GROUP_EDGES)]
    return torch.stack(groups, dim=1).float()


def _group_waves_kernel() -> torch.Tensor:
    """`(G, 16, 10)`."""
    return _group_waves().view(10, 16, GROUPS).permute(2, 1, 0)


def _rectifying_kernels(loudness: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each group so loud that ELU cuts off what is below zero, and its negative."""
    waves = _group_waves_kernel() * (_LOUDEST / loudness)[:, None, None]
    return waves, -waves


def _averaging_kernel() -> torch.Tensor:
    """The mean of each group and its negative over 16 blocks, at every gain, `(G * gains, 2 * G, 16)`; below zero.

    Below zero ELU saturates.
    """
    window = torch.hann_window(17, periodic=False)[1:].flip(0)
    window = (window + window.flip(0)) / (window + window.flip(0)).sum()
    kernel = torch.zeros(GROUPS, len(_GAINS), 2, GROUPS, 16)
    for group in range(GROUPS):
        kernel[group, :, :, group] = -torch.tensor(_GAINS)[:, None, None] * window
    return kernel.view(GROUPS * len(_GAINS), 2 * GROUPS, 16)


def _summing_kernel(size: int) -> torch.Tensor:
    """The mean of what the gains of each group make, above zero, `(G, G * gains, size)`."""
    kernel = torch.zeros(GROUPS, GROUPS, len(_GAINS), size)
    for group in range(GROUPS):
        kernel[group, group, :, size // 2] = -1 / len(_GAINS)
    return kernel.view(GROUPS, GROUPS * len(_GAINS), size)


def _noise_kernel(loudness: torch.Tensor) -> torch.Tensor:
    """Noise for each group, and the negative of all of it for the channel of silence, `(G + 1, G, 16)`."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (GROUPS, 16), generator=generator) * 2.0 - 1
    # Its square and the next frame's add up to one.
    window = torch.sin(math.pi / 16 * (torch.arange(16) + 0.5))
    widths = torch.tensor(_GROUP_EDGES).diff()
    # A sum of `width` equal independent coefficients has a mean size of sqrt(2 / pi * width) of theirs.
    size = loudness / torch.sqrt(2 / math.pi * widths)
    waves = size[:, None] * signs * window
    kernel = torch.zeros(GROUPS + 1, GROUPS, 16)
    kernel[range(GROUPS), range(GROUPS)] = waves
    kernel[GROUPS] = -waves
    return kernel


def _through(scales: torch.Tensor, size: int) -> torch.Tensor:
    """Every channel as it is, times its scale, `(C, C, size)`."""
    kernel = torch.zeros(len(scales), len(scales), size)
    kernel[range(len(scales)), range(len(scales)), size // 2] = scales
    return kernel


def _beside(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Two convolutions of one size beside each other: `(O, I, N)` and `(P, J, N)` to `(O + P, I + J, N)`."""
    both = first.new_zeros(first.shape[0] + second.shape[0], first.shape[1] + second.shape[1], first.shape[2])
    both[: first.shape[0], : first.shape[1]] = first
    both[first.shape[0] :, first.shape[1] :] = second
    return both


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
