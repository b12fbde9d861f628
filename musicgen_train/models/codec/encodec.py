"""EnCodec, the neural codec: audio to a few discrete codes per frame, and back.

Axis letters: B batch, N chunks, C channels of audio or width of an activation, L steps at any rate between samples and
frames, T frames of codes, K codebooks, V codes of a codebook, D width of a code's vector.

Audio is `(B, C, L)` outside. Inside, every activation is `(B, L, C)`, which makes products of convolutions
(`convolutions.py`). The local layers run over segments of the signal (`segments.py`), so activations stay in the
processor's caches and memory does not grow with the length of the audio.

Source: Defossez et al., "High Fidelity Neural Audio Compression", 2022. State-dict names are the hub's.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import nn
from torch.nn import functional as F

from musicgen_train.models.codec.convolutions import Conv, ResidualBlock, TransposedConv
from musicgen_train.models.codec.fused_layers import run_layers
from musicgen_train.models.codec.segments import in_segments
from musicgen_train.models.config import EncodecConfig
from musicgen_train.models.kernels.lstm import choose_lstm, lstm_layer
from musicgen_train.models.outputs import EncodecDecoderOutput, EncodecEncoderOutput, EncodecOutput, as_requested
from musicgen_train.models.pretrained import PretrainedModel
from musicgen_train.models.products import without_autocast

# Rows of the frames x codes distance matrix that are held at a time.
_ROWS_OF_DISTANCES = 8192


class EncodecModel(PretrainedModel[EncodecConfig]):
    """Encodes audio to codes (`encode`) and decodes codes to audio (`decode`); calling it does both.

    Weights under weight norm are folded into plain ones once and cached while no gradient is needed, at the cost of a
    second copy of the convolutions. Every change that torch can see (optimizers, loading, moving, in-place
    operations) recomputes them; after writing through `parameter.data`, which torch cannot see, call `eval()`.

    Raises:
        ValueError: the config has a value that EnCodec does not support; the message says which.
    """

    config_class: ClassVar[type[EncodecConfig]] = EncodecConfig

    def __init__(self, config: EncodecConfig) -> None:
        super().__init__(config)
        _check_config(config)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantizer = ResidualVectorQuantizer(config)

    @classmethod
    def model_key(cls, file_key: str) -> str | None:
        """Translate the older names of weight norm, `weight_g` and `weight_v`."""
        for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
            if file_key.endswith(f".{old}"):
                return f"{file_key.removesuffix(old)}parametrizations.weight.{new}"
        return file_key

    @torch.no_grad()
    def encode(
        self,
        input_values: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        bandwidth: float | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Turn audio into codes.

        Only rows of one length should share a batch: padding is encoded too, and in a codec that is not causal it
        changes the last real codes.

        Args:
            input_values: floating-point audio, `(batch, channels, samples)`, at the config's sampling rate. Any
                number of samples from 1 on; T is the number of samples over `config.hop_length`, rounded up.
            padding_mask: `(batch, samples)` or `(batch, channels, samples)`; samples where it is 0 are silenced.
            bandwidth: one of `config.target_bandwidths` in kbit/s, default the first. It sets how many codebooks K.
            return_dict: False for a plain tuple.

        Returns:
            `EncodecEncoderOutput` with int64 codes `(chunks, batch, K, T)`; one chunk unless the config has
            `chunk_length_s`.

        Raises:
            ValueError: audio of another shape or type, empty audio, an unknown bandwidth, or a length whose chunks
                do not overlap as they should.
        """
        self._check_audio(input_values)
        num_codebooks = self.quantizer.num_codebooks(self._check_bandwidth(bandwidth))
        if padding_mask is not None:
            input_values = input_values * self._mask_like(padding_mask, input_values)
        codes: list[torch.Tensor] = []
        scales: list[torch.Tensor | None] = []
        for chunk in self._chunks(input_values):
            chunk_codes, scale = self._encode_chunk(chunk, num_codebooks)
            codes.append(chunk_codes)
            scales.append(scale)

        missing = codes[0].shape[-1] - codes[-1].shape[-1]
        codes[-1] = F.pad(codes[-1], (0, missing))
        return as_requested(EncodecEncoderOutput(torch.stack(codes), scales, missing), return_dict)

    def decode(
        self,
        audio_codes: torch.Tensor,
        audio_scales: Sequence[torch.Tensor | None] | torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
        return_dict: bool | None = None,
        last_frame_pad_length: int | None = 0,
    ) -> Any:
        """Turn codes into audio.

        Args:
            audio_codes: integers `(chunks, batch, K, T)` below `config.codebook_size`; K may be less than the codec
                has, for a lower bandwidth.
            audio_scales: the volumes that `encode` gave, one `(batch, 1)` per chunk; only with `config.normalize`.
            padding_mask: the audio is cut to the length of its last axis.
            return_dict: False for a plain tuple.
            last_frame_pad_length: as returned by `encode`.

        Returns:
            `EncodecDecoderOutput` with `(batch, channels, samples)` in the model's dtype. Without a mask samples is
            `T * config.hop_length`, which may be more than went in.

        Raises:
            ValueError: codes of another shape or type, out of range (checked on the CPU, where it costs no
                waiting), from more codebooks than there are, in more than one chunk for a codec without chunks, or
                volumes that do not fit.
        """
        self._check_codes(audio_codes)
        scales = self._scales_of_chunks(audio_scales, len(audio_codes))
        chunks = list(audio_codes)
        if last_frame_pad_length:
            if not 0 < last_frame_pad_length < chunks[-1].shape[-1]:
                raise ValueError(
                    f"last_frame_pad_length is {last_frame_pad_length}; the last chunk has {chunks[-1].shape[-1]} "
                    "frames, of which at least one must be left"
                )
            chunks[-1] = chunks[-1][..., :-last_frame_pad_length]
        audio = [self._decode_chunk(codes, scale) for codes, scale in zip(chunks, scales, strict=True)]
        values = audio[0] if len(audio) == 1 else overlap_add(audio, self.config.chunk_stride or 1)
        if padding_mask is not None:
            values = values[..., : padding_mask.shape[-1]]
        return as_requested(EncodecDecoderOutput(values), return_dict)

    def forward(
        self,
        input_values: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        bandwidth: float | None = None,
        audio_codes: torch.Tensor | None = None,
        audio_scales: Sequence[torch.Tensor | None] | torch.Tensor | None = None,
        return_dict: bool | None = None,
        last_frame_pad_length: int | None = 0,
    ) -> Any:
        """Encode and decode again, or decode `audio_codes`; the audio is as long as `input_values` at most.

        Args:
            input_values: audio as for `encode`.
            padding_mask, bandwidth: as for `encode`.
            audio_codes, audio_scales, last_frame_pad_length: as for `decode`, in place of encoding.
            return_dict: False for a plain tuple.

        Returns:
            `EncodecOutput` with codes `(chunks, batch, K, T)` and audio `(batch, channels, samples)`.

        Raises:
            ValueError: as `encode` and `decode`.
        """
        if audio_codes is None:
            if audio_scales is not None:
                raise ValueError("audio_scales was given without the audio_codes that it belongs to")
            encoded = self.encode(input_values, padding_mask, bandwidth)
            audio_codes, audio_scales = encoded.audio_codes, encoded.audio_scales
            last_frame_pad_length = encoded.last_frame_pad_length
        assert audio_codes is not None
        decoded = self.decode(
            audio_codes,
            audio_scales,
            input_values if padding_mask is None else padding_mask,
            last_frame_pad_length=last_frame_pad_length,
        )
        return as_requested(EncodecOutput(audio_codes, decoded.audio_values), return_dict)

    def _encode_chunk(self, audio_BCL: torch.Tensor, num_codebooks: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        scale = None
        if self.config.normalize:
            mono = audio_BCL.sum(1, keepdim=True) / audio_BCL.shape[1]
            volume = mono.pow(2).mean(dim=-1, keepdim=True).sqrt() + 1e-8
            audio_BCL = audio_BCL / volume
            scale = volume.view(-1, 1)
        # In a lower precision than its own a codec gives different codes.
        with without_autocast(self.device):
            latents_BTD = self.encoder(audio_BCL.to(self.dtype).transpose(1, 2))
            return self.quantizer.encode(latents_BTD, num_codebooks), scale

    def _decode_chunk(self, codes_BKT: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
        with without_autocast(self.device):
            latents_BTD = self.quantizer.decode(codes_BKT)
            audio_BCL = self.decoder(latents_BTD.to(self.dtype)).transpose(1, 2)
        return audio_BCL if scale is None else audio_BCL * scale.view(-1, 1, 1)

    def _chunks(self, audio_BCL: torch.Tensor) -> list[torch.Tensor]:
        length, chunk, stride = audio_BCL.shape[-1], self.config.chunk_length, self.config.chunk_stride
        if chunk is None or stride is None:
            return [audio_BCL]
        starts = range(0, length, stride)
        # The second to last chunk falls short when the last one begins inside the overlap at the signal's end.
        if len(starts) > 1 and length - starts[-2] < min(chunk, length):
            raise ValueError(
                f"{length} samples do not divide into chunks of {chunk} every {stride}: the last two would both be "
                f"short. Pad the audio to {starts[-2] + chunk} samples, as EncodecFeatureExtractor does"
            )
        return [audio_BCL[..., start : start + chunk] for start in starts]

    def _check_audio(self, audio: torch.Tensor) -> None:
        channels = self.config.audio_channels
        if audio.ndim != 3 or audio.shape[1] != channels:
            raise ValueError(
                f"input_values has the shape {list(audio.shape)}; expected [batch, {channels}, samples], since this "
                f"codec has {channels} audio channel{'s' * (channels > 1)}"
            )
        if audio.shape[0] == 0 or audio.shape[2] == 0:
            raise ValueError(f"input_values is empty: its shape is {list(audio.shape)}")
        if not audio.is_floating_point():
            raise ValueError(f"input_values is {audio.dtype}; expected floating-point audio between -1 and 1")

    def _check_bandwidth(self, bandwidth: float | None) -> float:
        allowed = self.config.target_bandwidths
        if bandwidth is None:
            return allowed[0]
        if bandwidth not in allowed:
            raise ValueError(f"bandwidth is {bandwidth}; this codec allows {', '.join(map(str, allowed))} kbit/s")
        return bandwidth

    @staticmethod
    def _mask_like(mask: torch.Tensor, audio_BCL: torch.Tensor) -> torch.Tensor:
        batch, channels, length = audio_BCL.shape
        if tuple(mask.shape) not in {(batch, length), (batch, 1, length), (batch, channels, length)}:
            raise ValueError(
                f"padding_mask has the shape {list(mask.shape)}; expected [{batch}, {length}] or "
                f"[{batch}, {channels}, {length}] like input_values"
            )
        return mask.view(batch, -1, length).bool()

    def _check_codes(self, codes: torch.Tensor) -> None:
        codebooks, size = len(self.quantizer.layers), self.config.codebook_size
        if codes.ndim != 4 or codes.numel() == 0 or codes.shape[2] > codebooks:
            raise ValueError(
                f"audio_codes has the shape {list(codes.shape)}; expected [chunks, batch, codebooks, frames] with no "
                f"axis empty and at most {codebooks} codebooks"
            )
        if codes.is_floating_point() or codes.dtype == torch.bool:
            raise ValueError(f"audio_codes is {codes.dtype}; expected integers")
        if self.config.chunk_length is None and len(codes) != 1:
            raise ValueError(f"audio_codes has {len(codes)} chunks; a codec without chunk_length_s decodes one")
        if codes.device.type == "cpu":
            low, high = (int(bound) for bound in codes.aminmax())
            if low < 0 or high >= size:
                raise ValueError(
                    f"audio_codes has values from {low} to {high}; allowed are 0 to {size - 1}. Remove the special id "
                    f"{size} that MusicGen puts where a codebook has no code yet"
                    if high == size and low >= 0
                    else f"audio_codes has values from {low} to {high}; allowed are 0 to {size - 1}"
                )

    def _scales_of_chunks(
        self, scales: Sequence[torch.Tensor | None] | torch.Tensor | None, chunks: int
    ) -> list[torch.Tensor | None]:
        if scales is None:
            if self.config.normalize:
                raise ValueError("audio_scales is missing: this codec divides the volume out and needs it back")
            return [None] * chunks
        if self.config.chunk_length is None:
            # One chunk; callers that decode row by row pass a None for every row.
            scales = scales[:1]
        if len(scales) != chunks:
            raise ValueError(f"audio_scales has {len(scales)} entries, audio_codes has {chunks} chunks")
        return list(scales)


class Encoder(nn.Module):
    """Maps audio `(B, L, C)` to latents `(B, T, D)`: per ratio, residual blocks and a strided convolution."""

    def __init__(self, config: EncodecConfig) -> None:
        super().__init__()
        width = config.num_filters
        layers: list[nn.Module] = [Conv(config, config.audio_channels, width, config.kernel_size)]
        for ratio in reversed(config.upsampling_ratios):
            layers += _residual_blocks(config, width)
            layers += [nn.ELU(), Conv(config, width, width * 2, 2 * ratio, stride=ratio)]
            width *= 2
        local = len(layers)
        if config.num_lstm_layers:
            layers.append(ResidualLSTM(width, config.num_lstm_layers))
        layers += [nn.ELU(), Conv(config, width, config.hidden_size, config.last_kernel_size)]
        self.layers = nn.Sequential(*layers)
        self.num_local = local

    def forward(self, audio_BLC: torch.Tensor) -> torch.Tensor:
        hidden_BTC = in_segments(self.layers[: self.num_local], audio_BLC)
        return run_layers(self.layers[self.num_local :], hidden_BTC)


class Decoder(nn.Module):
    """Maps latents `(B, T, D)` to audio `(B, L, C)`; it mirrors the encoder."""

    def __init__(self, config: EncodecConfig) -> None:
        super().__init__()
        width = config.num_filters * 2 ** len(config.upsampling_ratios)
        layers: list[nn.Module] = [Conv(config, config.hidden_size, width, config.kernel_size)]
        if config.num_lstm_layers:
            layers.append(ResidualLSTM(width, config.num_lstm_layers))
        first_local = len(layers)
        for ratio in config.upsampling_ratios:
            layers += [nn.ELU(), TransposedConv(config, width, width // 2, ratio)]
            width //= 2
            layers += _residual_blocks(config, width)
        layers += [nn.ELU(), Conv(config, width, config.audio_channels, config.last_kernel_size)]
        self.layers = nn.Sequential(*layers)
        self.first_local = first_local

    def forward(self, latents_BTD: torch.Tensor) -> torch.Tensor:
        hidden_BTC = run_layers(self.layers[: self.first_local], latents_BTD)
        return in_segments(self.layers[self.first_local :], hidden_BTC)


def _residual_blocks(config: EncodecConfig, width: int) -> list[nn.Module]:
    return [ResidualBlock(config, width, config.dilation_growth_rate**i) for i in range(config.num_residual_layers)]


class ResidualLSTM(nn.Module):
    """Adds the output of an LSTM over frames to its input, `(B, T, C)`."""

    def __init__(self, width: int, num_layers: int) -> None:
        super().__init__()
        self.lstm = LSTM(width, width, num_layers)

    def forward(self, hidden_BTC: torch.Tensor) -> torch.Tensor:
        hidden_TBC = hidden_BTC.transpose(0, 1)
        return (run_lstm(self.lstm, hidden_TBC) + hidden_TBC).transpose(0, 1)


def run_lstm(lstm: nn.LSTM, input_TBU: torch.Tensor) -> torch.Tensor:
    """Returns the output `(T, B, U)` of `lstm` from a zero state, computed in C where that is possible and faster.

    Args:
        lstm: one direction, without projections, any number of layers.
        input_TBU: `(T, B, U)`, as wide as the LSTM.
    """
    hooked = lstm._forward_hooks or lstm._forward_pre_hooks
    library = None if hooked else choose_lstm(input_TBU, list(lstm.parameters()))
    if library is None:
        return cast(torch.Tensor, lstm(input_TBU)[0])
    for layer in range(lstm.num_layers):
        to_gates, recurrent, bias, second_bias = (
            cast(torch.Tensor, getattr(lstm, f"{name}_l{layer}"))
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        input_TBU = lstm_layer(library, input_TBU, to_gates, recurrent, bias + second_bias)
    return input_TBU


class LSTM(nn.LSTM):
    """Runs torch's LSTM without TF32 on a GPU.

    Unlike torch's matrix products, cuDNN rounds operands to 10 bits (TF32) by default, and the codes would differ from
    those of a CPU. Loading also puts the weights into one block of memory; otherwise cuDNN copies them at every call.
    """

    def forward(self, input: torch.Tensor, hx: Any = None) -> Any:  # type: ignore[override]  # torch's has overloads
        with _exact_cudnn() if input.is_cuda else contextlib.nullcontext():
            return super().forward(input, hx)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.flatten_parameters()


@contextlib.contextmanager
def _exact_cudnn() -> Iterator[None]:
    # Not `cudnn.flags`, which fails if the precision of a single kind of layer has been set elsewhere.
    settings: Any = torch.backends.cudnn.rnn
    before, settings.fp32_precision = settings.fp32_precision, "ieee"
    try:
        yield
    finally:
        settings.fp32_precision = before


class ResidualVectorQuantizer(nn.Module):
    """Quantizes with a sequence of codebooks, each coding the residual of those before it."""

    def __init__(self, config: EncodecConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VectorQuantizer(config, index) for index in range(config.num_quantizers))
        self._bandwidth_per_codebook = config.codebook_nbits * config.frame_rate

    def num_codebooks(self, bandwidth: float) -> int:
        """Returns how many codebooks fit into `bandwidth` kbit/s, at least one."""
        return max(1, math.floor(bandwidth * 1000 / self._bandwidth_per_codebook))

    def encode(self, latents_BTD: torch.Tensor, num_codebooks: int) -> torch.Tensor:
        """Quantize latents `(B, T, D)` to int64 codes `(B, K, T)`."""
        # The residual gets small: in half precision the later codebooks would code rounding errors.
        residual = latents_BTD.to(torch.promote_types(latents_BTD.dtype, torch.float32))
        codes = []
        for codebook in self._codebooks(num_codebooks):
            codes.append(codebook.nearest(residual))
            residual = residual - codebook.vectors(codes[-1])
        return torch.stack(codes, dim=1)

    def decode(self, codes_BKT: torch.Tensor) -> torch.Tensor:
        """Map codes `(B, K, T)` to latents `(B, T, D)`."""
        latents: torch.Tensor | None = None
        for codebook, codes_BT in zip(self._codebooks(codes_BKT.shape[1]), codes_BKT.unbind(1), strict=True):
            vectors = codebook.vectors(codes_BT)
            latents = vectors if latents is None else latents + vectors
        assert latents is not None
        return latents

    def _codebooks(self, count: int) -> list[Codebook]:
        return [cast(VectorQuantizer, layer).codebook for layer in self.layers][:count]


class VectorQuantizer(nn.Module):
    """Wraps one codebook, so that its tensors have the hub's names."""

    def __init__(self, config: EncodecConfig, index: int) -> None:
        super().__init__()
        self.codebook = Codebook(config, index)


class Codebook(nn.Module):
    """Holds V vectors of width D. The other buffers are state of EnCodec's own training, only loaded and saved."""

    inited: torch.Tensor
    cluster_size: torch.Tensor
    embed: torch.Tensor
    embed_avg: torch.Tensor

    def __init__(self, config: EncodecConfig, index: int) -> None:
        super().__init__()
        assert config.codebook_dim is not None
        # Random vectors halve their spread from codebook to codebook, as residuals do.
        embed = torch.empty(config.codebook_size, config.codebook_dim).normal_(std=0.5 ** (index + 1))
        self.register_buffer("inited", torch.ones(1))
        self.register_buffer("cluster_size", torch.zeros(config.codebook_size))
        self.register_buffer("embed", embed)
        self.register_buffer("embed_avg", embed.clone())

    def nearest(self, latents_BTD: torch.Tensor) -> torch.Tensor:
        """Find the nearest vector by Euclidean distance, in a tie the lowest index; `(B, T, D)` to int64 `(B, T)`."""
        embed_VD = self.embed.to(latents_BTD.dtype)
        squares_V = embed_VD.pow(2).sum(1)
        found = []
        for rows in latents_BTD.reshape(-1, latents_BTD.shape[-1]).split(_ROWS_OF_DISTANCES):
            # (|x|^2 - 2 x e) + |e|^2 in the reference's order: another one rounds differently, and near ties flip.
            distances = (2 * rows) @ embed_VD.t()
            distances.neg_().add_(rows.pow(2).sum(1, keepdim=True)).add_(squares_V)
            found.append(distances.min(dim=1).indices)
        return torch.cat(found).view(latents_BTD.shape[:-1])

    def vectors(self, codes: torch.Tensor) -> torch.Tensor:
        """Look up the vectors of codes of any shape; D is the new last axis."""
        return F.embedding(codes.long(), self.embed)


def overlap_add(chunks: Sequence[torch.Tensor], stride: int) -> torch.Tensor:
    """Add chunks `(B, C, L)` that start every `stride` samples, fading linearly from one to the next.

    Every chunk is weighted by a triangular window, and the sum is divided by the sum of weights: a single chunk is
    unchanged.
    """
    longest = chunks[0].shape[-1]
    total = stride * (len(chunks) - 1) + chunks[-1].shape[-1]
    ramp = torch.linspace(0, 1, longest + 2, device=chunks[0].device, dtype=chunks[0].dtype)[1:-1]
    weight = 0.5 - (ramp - 0.5).abs()
    output = chunks[0].new_zeros(*chunks[0].shape[:-1], total)
    weights = chunks[0].new_zeros(total)
    for index, chunk in enumerate(chunks):
        span = slice(index * stride, index * stride + chunk.shape[-1])
        output[..., span] += weight[: chunk.shape[-1]] * chunk
        weights[span] += weight[: chunk.shape[-1]]
    return output / weights


def _check_config(config: EncodecConfig) -> None:
    if config.codebook_size & (config.codebook_size - 1):
        raise ValueError(f"codebook_size is {config.codebook_size}; expected a power of two")
    if not config.use_causal_conv and config.trim_right_ratio != 1.0:
        raise ValueError(
            f"trim_right_ratio is {config.trim_right_ratio}; a codec that is not causal (use_causal_conv) allows 1.0"
        )
    if (config.chunk_length_s is None) != (config.overlap is None):
        raise ValueError(
            f"chunk_length_s is {config.chunk_length_s} and overlap is {config.overlap}; give both or neither"
        )
    if config.num_filters < config.compress:
        raise ValueError(f"compress is {config.compress}; expected num_filters ({config.num_filters}) or less")
