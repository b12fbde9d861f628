"""A small EnCodec whose weights are computed in closed form: its round trip can be recognised before any training.

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

ELU is linear only near zero, so signals that must pass unchanged are scaled to a twentieth; below zero it is an
exponential, which is how the decoder undoes the logarithm.

Each codebook codes one part of the spectrum and has zeros in all other dimensions: the bass and the kick drum, the low
chords, the high chords and melodies, and the loudness above. That codes recordings as well as residual codebooks do,
uses nearly all entries, and is far easier to predict: the bass line is one stream of codes whatever else plays.

The residual blocks and LSTMs add nothing at first. Channels that the transform does not need have random weights and
nothing reads them, so that training (`codec_training`) can use them.

Axis letters: N samples of a window, K bands, B batch, T frames, D width of a latent, G groups of bands,
V entries of a codebook.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch

from musicgen_train.models.codec.convolutions import Conv, Kernel, MagnitudeAndDirection, ResidualBlock, TransposedConv
from musicgen_train.models.codec.encodec import EncodecModel, ResidualLSTM, VectorQuantizer
from musicgen_train.models.config import EncodecConfig

CODEC_HOP = 640
MDCT_BANDS = 44
# Edges of the groups in bands (200 Hz each) of the inner transform; the last one is where the last group ends.
_GROUP_EDGES = (5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 21, 24, 28, 32, 37, 42, 48, 55, 62, 70, 80)
LOUDNESS_GROUPS = len(_GROUP_EDGES) - 1
# First and last + 1 latent dimension that each codebook codes: up to 200 Hz, 450 Hz, 1100 Hz; the loudness groups.
CODEBOOK_PARTS = ((0, 8), (8, 18), (18, MDCT_BANDS), (MDCT_BANDS, MDCT_BANDS + LOUDNESS_GROUPS))

_INNER_HOP = 80
_INNER_BANDS = 16
# The scale of signals inside: small enough for ELU to be linear, and large compared with its rounding errors.
_SCALE = 0.05
# What the loudest half percent of a group is scaled to: far beyond the bend of ELU, which is at about one.
_LOUDEST = 400.0
_QUANTILE = 0.995
# Gains at which a group's loudness saturates; the sum over them grows like a logarithm over a range of 6 ** 4 (62 dB).
_GAIN_STEP = 6.0
_GAINS = tuple(_GAIN_STEP**-step for step in range(4))
# The mean over the gains times this is the natural logarithm.
_STEEPNESS = len(_GAINS) * math.log(_GAIN_STEP)
# Bands are weighted by their power to minus this: 0 is best for SI-SDR and deaf to high bands, 0.5 treats all alike.
_WHITENING = 0.125
# With fewer, the entries of a codebook are the frames themselves.
_FRAMES_PER_ENTRY = 3
_BATCH = 16
# Few enough rows of distances at a time that they stay in the CPU caches: twice as fast as thousands.
_KMEANS_ROWS = 512


def demo_codec_config() -> EncodecConfig:
    """The configuration: MusicGen's rates and number of codebooks (32 kHz, 50 frames/s, 4), with 1024 entries each."""
    return EncodecConfig(
        sampling_rate=32_000,
        audio_channels=1,
        upsampling_ratios=[8, 5, 4, 4],
        target_bandwidths=[2.0],
        codebook_size=1024,
        num_filters=8,
        hidden_size=MDCT_BANDS + LOUDNESS_GROUPS,
        num_lstm_layers=1,
        use_causal_conv=False,
        use_conv_shortcut=False,
        norm_type="weight_norm",
    )


def make_codec(audio: Sequence[torch.Tensor], seed: int, rounds: int = 6) -> EncodecModel:
    """Build the codec and fit its codebooks by k-means.

    Args:
        audio: clips to which the weights of the bands and the codebooks are fitted, each float32 `(samples,)`; more
            clips give better codebooks, still at 40,000 frames.
        seed: draws the first entries of the codebooks, and the weights that the transform does not use.
        rounds: rounds of k-means for each codebook; with 0 the entries are frames drawn at random.

    Returns:
        The codec, in eval mode.

    Raises:
        ValueError: the audio has fewer than three frames for each entry of a codebook.
    """
    config = demo_codec_config()
    frames, needed = sum(math.ceil(len(clip) / CODEC_HOP) for clip in audio), _FRAMES_PER_ENTRY * config.codebook_size
    if frames < needed:
        raise ValueError(
            f"{frames} frames of audio are too few for codebooks of {config.codebook_size} entries; give {needed} or "
            f"more, which are {needed * CODEC_HOP / config.sampling_rate:.0f} s"
        )
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        codec = EncodecModel(config).eval()
    loudness_G = group_loudness(audio)
    write_transform(codec, torch.ones(MDCT_BANDS), loudness_G)
    power = encoder_outputs(codec, audio)[:, :MDCT_BANDS].pow(2).mean(0)
    # A band that is silent in all clips, as happens with a handful, would get a huge weight.
    power = power.clamp_min(1e-4 * float(power.mean()))
    weights = power**-_WHITENING
    # Scaled so that latents have an RMS of one.
    write_transform(codec, weights / (weights.pow(2) * power).mean().sqrt(), loudness_G)
    fit_codebooks(codec, encoder_outputs(codec, audio), generator, rounds)
    return codec


def group_loudness(audio: Sequence[torch.Tensor]) -> torch.Tensor:
    """The amplitude of each group of high bands where it is loudest, `(G,)`."""
    waves_NG = _group_waves()
    loudness = torch.stack(
        [(clip.unfold(0, 2 * _INNER_HOP, _INNER_HOP) @ waves_NG).abs().quantile(_QUANTILE, dim=0) for clip in audio]
    )
    return loudness.quantile(0.9, dim=0).clamp_min(1e-4)


@torch.no_grad()
def encoder_outputs(codec: EncodecModel, audio: Sequence[torch.Tensor]) -> torch.Tensor:
    """The encoder's latents of all clips `(samples,)`, one clip after the other: `(T, D)`."""
    return torch.cat([codec.encoder(rows.transpose(1, 2)).flatten(0, 1) for rows in clip_batches(audio)])


def clip_batches(audio: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield clips `(samples,)` as batches `(B, 1, samples)`, in order; neighbours of equal length share a batch.

    A batch shares the LSTM's overhead for every frame, which costs much more than its arithmetic.
    """
    for _, neighbours in itertools.groupby(audio, key=len):
        clips = list(neighbours)
        for start in range(0, len(clips), _BATCH):
            yield torch.stack(clips[start : start + _BATCH])[:, None]


@torch.no_grad()
def fit_codebooks(codec: EncodecModel, latents_TD: torch.Tensor, generator: torch.Generator, rounds: int) -> None:
    """Fit each codebook to its dimensions of the latents by k-means.

    Entry 0 is zero in every codebook, so that silence stays silent.
    """
    for layer, (first, last) in zip(codec.quantizer.layers, CODEBOOK_PARTS, strict=True):
        assert isinstance(layer, VectorQuantizer)
        codebook = layer.codebook
        vectors_VD = torch.zeros_like(codebook.embed)
        vectors_VD[:, first:last] = kmeans(latents_TD[:, first:last], codec.config.codebook_size, rounds, generator)
        vectors_VD[0] = 0.0
        counts = torch.bincount(
            nearest_entries(latents_TD[:, first:last], vectors_VD[:, first:last]), minlength=len(vectors_VD)
        )
        codebook.embed.copy_(vectors_VD)
        codebook.cluster_size.copy_(counts)
        codebook.embed_avg.copy_(vectors_VD * counts[:, None])


def kmeans(data_TD: torch.Tensor, count: int, rounds: int, generator: torch.Generator) -> torch.Tensor:
    """Cluster vectors by k-means: Lloyd's algorithm, started from vectors drawn at random.

    An entry that is nearest to no vector moves to a vector drawn at random.

    Args:
        data_TD: `(T, D)`, at least V vectors.
        count: V, the number of entries.
        rounds: how often each entry moves to the mean of the vectors nearest to it; 0 leaves the entries as drawn.
        generator: draws the vectors.

    Returns:
        `(V, D)`.
    """
    entries_VD = data_TD[torch.randperm(len(data_TD), generator=generator)[:count]].clone()
    for _ in range(rounds):
        codes_T = nearest_entries(data_TD, entries_VD)
        counts_V = torch.bincount(codes_T, minlength=count)
        sums_VD = torch.zeros_like(entries_VD).index_add_(0, codes_T, data_TD)
        entries_VD = sums_VD / counts_V.clamp_min(1)[:, None]
        unused = (counts_V == 0).nonzero().flatten()
        entries_VD[unused] = data_TD[torch.randperm(len(data_TD), generator=generator)[: len(unused)]]
    return entries_VD


def nearest_entries(data_TD: torch.Tensor, entries_VD: torch.Tensor) -> torch.Tensor:
    """The index of the entry nearest to each vector, int64 `(T,)`."""
    # |x - e|^2 without |x|^2, which is the same for all entries.
    half_squares_V, negative_DV = entries_VD.pow(2).sum(1) / 2, -entries_VD.t().contiguous()
    scores = (torch.addmm(half_squares_V, rows, negative_DV) for rows in data_TD.split(_KMEANS_ROWS))
    return torch.cat([score.min(1).indices for score in scores])


@torch.no_grad()
def write_transform(codec: EncodecModel, weights: torch.Tensor, loudness: torch.Tensor) -> None:
    """Write the transform into the encoder's weights, and its inverse into the decoder's.

    Args:
        codec: a codec with `demo_codec_config`.
        weights: the factor of each band in the latents, `(MDCT_BANDS,)`, above 0.
        loudness: the result of `group_loudness`, `(LOUDNESS_GROUPS,)`, above 0.
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
    # A transposed convolution stores its weight as (in, out, size): the same numbers as the convolution it inverts.
    groups = _through(torch.full((LOUDNESS_GROUPS,), _STEEPNESS), size)
    kernels = [
        torch.cat((_beside(_through(1 / scales, size), groups), torch.zeros(1, MDCT_BANDS + LOUDNESS_GROUPS, size))),
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
            # Its rows are inputs; those that the transform does not use must not be heard.
            _normed(convolution.conv).original0[len(kernel) :] = 0.0
    # Below zero ELU is the exponential minus one; the last channel holds its output for silence, which is subtracted.
    convolutions[0].conv.bias[MDCT_BANDS : MDCT_BANDS + LOUDNESS_GROUPS + 1] = -_STEEPNESS
    for module in codec.modules():
        if isinstance(module, ResidualBlock):
            last = module.block[-1]
            assert isinstance(last, Conv)
            _write(last.conv, torch.zeros_like(_normed(last.conv).original1))
        elif isinstance(module, ResidualLSTM):
            width = module.lstm.hidden_size
            # The third quarter of the rows is the cell gate: with zeros, nothing is written to the memory.
            for parameter in module.lstm.parameters():
                parameter[2 * width : 3 * width] = 0.0


def mdct_window(hop: int) -> torch.Tensor:
    """The basis vectors of an MDCT with a sine window, float64 `(N, K)` with N = 2 * hop and K = hop."""
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
    """The MDCT of 640 bands over 16 blocks of the inner one, `(MDCT_BANDS, inner bands, 16)`.

    The inner vectors are orthonormal, so the inner products with them are the best approximation's coefficients.
    Sixteen blocks reach 80 samples further than the outer window, which is centred in them.
    """
    inner = mdct_window(_INNER_HOP)[:, :_INNER_BANDS]
    outer = torch.zeros(2 * CODEC_HOP + _INNER_HOP, MDCT_BANDS, dtype=torch.float64)
    start = _INNER_HOP // 2
    outer[start : start + 2 * CODEC_HOP] = mdct_window(CODEC_HOP)[:, :MDCT_BANDS]
    # (K, N) to windows (K, 16, 160)
    windows = outer.t().unfold(1, 2 * _INNER_HOP, _INNER_HOP)
    return torch.einsum("kin,nb->kbi", windows, inner).float()


def _group_waves() -> torch.Tensor:
    """The sum of the inner transform's vectors over each group, `(N, G)`, with signs that keep it from a click."""
    vectors = mdct_window(_INNER_HOP)
    signs = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64).repeat(_INNER_HOP // 4)
    groups = [(vectors * signs)[:, first:last].sum(1) for first, last in itertools.pairwise(_GROUP_EDGES)]
    return torch.stack(groups, dim=1).float()


def _group_waves_kernel() -> torch.Tensor:
    """`_group_waves` as a convolution over ten blocks of 16 samples, `(G, 16, 10)`."""
    return _group_waves().view(10, 16, LOUDNESS_GROUPS).permute(2, 1, 0)


def _rectifying_kernels(loudness: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each group and its negative, scaled so far up that ELU cuts off what is below zero."""
    waves = _group_waves_kernel() * (_LOUDEST / loudness)[:, None, None]
    return waves, -waves


def _averaging_kernel() -> torch.Tensor:
    """The mean of each group and its negative over 16 blocks, at every gain, `(G * gains, 2 * G, 16)`.

    The means are negated, since ELU saturates below zero.
    """
    window = torch.hann_window(17, periodic=False)[1:].flip(0)
    window = (window + window.flip(0)) / (window + window.flip(0)).sum()
    kernel = torch.zeros(LOUDNESS_GROUPS, len(_GAINS), 2, LOUDNESS_GROUPS, 16)
    for group in range(LOUDNESS_GROUPS):
        kernel[group, :, :, group] = -torch.tensor(_GAINS)[:, None, None] * window
    return kernel.view(LOUDNESS_GROUPS * len(_GAINS), 2 * LOUDNESS_GROUPS, 16)


def _summing_kernel(size: int) -> torch.Tensor:
    """The mean over the gains of each group, negated to be above zero, `(G, G * gains, size)`."""
    kernel = torch.zeros(LOUDNESS_GROUPS, LOUDNESS_GROUPS, len(_GAINS), size)
    for group in range(LOUDNESS_GROUPS):
        kernel[group, group, :, size // 2] = -1 / len(_GAINS)
    return kernel.view(LOUDNESS_GROUPS, LOUDNESS_GROUPS * len(_GAINS), size)


def _noise_kernel(loudness: torch.Tensor) -> torch.Tensor:
    """Noise for each group, and its negative for the channel that cancels ELU's output of silence, `(G + 1, G, 16)`."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (LOUDNESS_GROUPS, 16), generator=generator) * 2.0 - 1
    # Its square and that of the next frame's window add up to one.
    window = torch.sin(math.pi / 16 * (torch.arange(16) + 0.5))
    widths = torch.tensor(_GROUP_EDGES).diff()
    # The absolute sum of `width` independent coefficients is sqrt(2 / pi * width) times one of them on average.
    size = loudness / torch.sqrt(2 / math.pi * widths)
    waves = size[:, None] * signs * window
    kernel = torch.zeros(LOUDNESS_GROUPS + 1, LOUDNESS_GROUPS, 16)
    kernel[range(LOUDNESS_GROUPS), range(LOUDNESS_GROUPS)] = waves
    kernel[LOUDNESS_GROUPS] = -waves
    return kernel


def _through(scales: torch.Tensor, size: int) -> torch.Tensor:
    """A convolution that multiplies every channel by its scale, `(C, C, size)`."""
    kernel = torch.zeros(len(scales), len(scales), size)
    kernel[range(len(scales)), range(len(scales)), size // 2] = scales
    return kernel


def _beside(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Two convolutions side by side, block-diagonal: `(O, I, N)` and `(P, J, N)` to `(O + P, I + J, N)`."""
    both = first.new_zeros(first.shape[0] + second.shape[0], first.shape[1] + second.shape[1], first.shape[2])
    both[: first.shape[0], : first.shape[1]] = first
    both[first.shape[0] :, first.shape[1] :] = second
    return both


def _gathering_kernel(width: int, stride: int) -> torch.Tensor:
    """A convolution that turns `stride` steps into channels, `(stride * width, width, 2 * stride)`."""
    kernel = torch.zeros(stride * width, width, 2 * stride)
    for step in range(stride):
        for channel in range(width):
            # The convolution pads half a stride on the left.
            kernel[step * width + channel, channel, step + stride // 2] = 1.0
    return kernel


def _write(kernel: Kernel, values: torch.Tensor) -> None:
    """Write the first rows and columns of a convolution's weight; later rows keep random weights that nothing reads.

    Rows of zeros get a magnitude of zero and keep their random direction, since zero has no direction.
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
