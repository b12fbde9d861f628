"""Training of the codec that ships.

It starts from the codec whose weights are computed (`codec_design`) and has two stages:

1. the codebooks are refined on more music by exponential moving averages of the latents nearest to each entry, as in
   EnCodec (Défossez et al., "High Fidelity Neural Audio Compression", 2022; van den Oord et al., "Neural Discrete
   Representation Learning", 2017), with revival of dead entries. The encoder is not trained, so codes do not change
   afterwards;
2. the whole decoder is trained by gradients to reconstruct the recording from its codes, under spectral losses at
   several scales.

The result of each stage is saved, and the second stage also saves checkpoints: called again after a kill, the training
resumes.

Axis letters: B clips of a batch, K codebooks, T frames, V entries, D width of a latent, L samples, F frequencies.
"""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from codec_design import (
    CODEBOOK_PARTS,
    CODEC_HOP,
    clip_batches,
    demo_codec_config,
    encoder_outputs,
    make_codec,
    nearest_entries,
)

from musicgen_train.files import write_atomically
from musicgen_train.models.codec.encodec import EncodecModel, VectorQuantizer

_SAMPLING_RATE = 32_000


@dataclass(frozen=True)
class CodecTraining:
    """How the codec is trained.

    Args:
        seed: seed of the random weights, of the first entries of the codebooks, and of the order of the music.
        fitting_clips: number of clips for the k-means that initialises the codebooks; later stages use all clips.
        passes: passes over the music while the codebooks are refined.
        decay: decay of their moving averages, per batch of 16 clips.
        steps: training steps of the decoder; 0 leaves it untrained.
        batch_size: crops in a step.
        crop_frames: length of a crop, in frames.
        lr: the peak learning rate.
        warmup: steps until the peak; from there a cosine falls to a hundredth of it.
        save_every: steps between checkpoints.
    """

    seed: int = 0
    fitting_clips: int = 120
    passes: int = 4
    decay: float = 0.95
    steps: int = 3000
    batch_size: int = 8
    crop_frames: int = 75
    lr: float = 5e-4
    warmup: int = 100
    save_every: int = 200


def train_codec(
    audio: Sequence[torch.Tensor],
    folder: str | os.PathLike[str],
    settings: CodecTraining | None = None,
    *,
    report: Callable[[str], None] = print,
) -> EncodecModel:
    """Train the codec, or resume its training.

    Args:
        audio: music, each clip float32 `(samples,)` at 32 kHz, all of the same length, a whole number of frames.
        folder: where the result of each stage and the checkpoints are saved.
        settings: None for the default ones.
        report: called with a line of progress every 100 steps.

    Returns:
        The codec, in eval mode.

    Raises:
        ValueError: there is too little music, the clips differ in length, or their length is not a multiple of a frame.
    """
    settings = settings or CodecTraining()
    if len({len(clip) for clip in audio}) > 1 or len(audio[0]) % CODEC_HOP:
        raise ValueError(f"the clips have {len(audio[0])} samples, ...; expected one length, a multiple of {CODEC_HOP}")
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    fitted = target / "fitted.pt"
    if fitted.is_file():
        codec = EncodecModel(demo_codec_config()).eval()
        codec.load_state_dict(torch.load(fitted, weights_only=True))
    else:
        report(f"fitting the codebooks to {len(audio)} clips")
        codec = make_codec(audio[: settings.fitting_clips], settings.seed)
        update_codebooks(codec, audio, settings)
        write_atomically(fitted, functools.partial(torch.save, codec.state_dict()))
    train_decoder(codec, audio, settings, target / "decoder.pt", report)
    return codec


@torch.no_grad()
def update_codebooks(codec: EncodecModel, audio: Sequence[torch.Tensor], settings: CodecTraining) -> int:
    """Refine the codebooks on all of the music.

    Every entry becomes the moving average of the sum of the latents nearest to it over that of their number. An entry
    with fewer than a tenth of its share is dead and moves to a latent drawn from the batch. Entry 0 stays zero.

    Returns:
        The number of dead entries that were moved.
    """
    latents_BTD = torch.stack(list(encoder_outputs(codec, audio).split(len(audio[0]) // CODEC_HOP)))
    generator = torch.Generator().manual_seed(settings.seed)
    revived = 0
    for _ in range(settings.passes):
        for rows in torch.randperm(len(latents_BTD), generator=generator).split(16):
            latents_TD = latents_BTD[rows].flatten(0, 1)
            for layer, part in zip(codec.quantizer.layers, CODEBOOK_PARTS, strict=True):
                assert isinstance(layer, VectorQuantizer)
                revived += _update_codebook(layer, latents_TD, part, settings.decay, generator)
    return revived


def _update_codebook(
    layer: VectorQuantizer, latents_TD: torch.Tensor, part: tuple[int, int], decay: float, generator: torch.Generator
) -> int:
    book, (first, last) = layer.codebook, part
    data_TD = latents_TD[:, first:last]
    codes_T = nearest_entries(data_TD, book.embed[:, first:last])
    counts_V = torch.bincount(codes_T, minlength=len(book.embed)).float()
    sums_VD = torch.zeros_like(book.embed)
    sums_VD[:, first:last].index_add_(0, codes_T, data_TD)
    # k-means left the counts of all of its music; the averages are those of one batch.
    scale = len(data_TD) / book.cluster_size.sum()
    book.embed_avg.mul_(scale * decay).add_(sums_VD, alpha=1 - decay)
    book.cluster_size.mul_(scale * decay).add_(counts_V, alpha=1 - decay)
    book.embed.copy_(book.embed_avg / book.cluster_size.clamp_min(1e-5)[:, None])
    # However few frames are silent, the entry for silence is kept.
    dead = (book.cluster_size < 0.1 * len(data_TD) / len(book.embed)).nonzero().flatten()
    dead = dead[dead != 0]
    drawn = torch.randint(len(data_TD), (len(dead),), generator=generator)
    book.embed[dead, first:last] = data_TD[drawn]
    book.cluster_size[dead] = len(data_TD) / len(book.embed)
    book.embed_avg[dead] = book.embed[dead] * book.cluster_size[dead, None]
    book.embed[0] = 0.0
    book.embed_avg[0] = 0.0
    return len(dead)


def train_decoder(
    codec: EncodecModel,
    audio: Sequence[torch.Tensor],
    settings: CodecTraining,
    checkpoint: Path,
    report: Callable[[str], None],
) -> None:
    """Train the decoder to reconstruct recordings from codes; resumes from the file `checkpoint` and saves to it."""
    audio_BL = torch.stack(list(audio))
    latents_BTD = _decoded_latents(codec, audio)
    decoder = codec.decoder
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=settings.lr, betas=(0.8, 0.99), weight_decay=0.0)
    done = 0
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        decoder.load_state_dict(state["decoder"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["steps"]
    decoder.train()
    started, losses, at = time.monotonic(), torch.zeros(3), done
    for step in range(done, settings.steps):
        # Seeded by the step alone, so that a resumed run draws the same crops.
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        rows = torch.randint(len(audio_BL), (settings.batch_size,), generator=generator).tolist()
        last = latents_BTD.shape[1] - settings.crop_frames
        starts = torch.randint(last + 1, (settings.batch_size,), generator=generator).tolist()
        frames = settings.crop_frames
        crops = [latents_BTD[row, start : start + frames] for row, start in zip(rows, starts, strict=True)]
        wanted = [
            audio_BL[row, start * CODEC_HOP : (start + frames) * CODEC_HOP]
            for row, start in zip(rows, starts, strict=True)
        ]
        made_BL = decoder(torch.stack(crops))[..., 0]
        parts = reconstruction_losses(torch.stack(wanted), made_BL)
        optimizer.param_groups[0]["lr"] = settings.lr * _share_of_lr(step, settings)
        optimizer.zero_grad()
        parts.sum().backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        losses += parts.detach()
        if (step + 1) % 100 == 0 or step + 1 == settings.steps:
            rate = (step + 1 - done) / (time.monotonic() - started)
            mean = (losses / (step + 1 - at)).tolist()
            report(
                f"decoder {step + 1} of {settings.steps} steps: spectrum {mean[0]:.3f}, log spectrum {mean[1]:.3f}, "
                f"low bands {mean[2]:.3f}; {rate:.1f} steps/s, {(settings.steps - step - 1) / rate / 60:.0f} min left"
            )
            losses, at = torch.zeros(3), step + 1
        if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
            state = {"decoder": decoder.state_dict(), "optimizer": optimizer.state_dict(), "steps": step + 1}
            write_atomically(checkpoint, functools.partial(torch.save, state))
    codec.eval()


def reconstruction_losses(wanted_BL: torch.Tensor, made_BL: torch.Tensor) -> torch.Tensor:
    """Three losses between a decoded recording and the original, `(3,)`; training minimises their sum.

    - spectral convergence, the relative difference of magnitudes, over five scales (Arik et al., "Fast Spectrogram
      Inversion using Multi-head Convolutional Neural Networks", 2018);
    - the difference of log magnitudes over the same scales, which counts soft sounds as well;
    - the relative difference of the complex spectrum below 1.1 kHz, where the codes carry the phase. Above they do not,
      and a loss on the waveform would favour silence there.

    Args:
        wanted_BL, made_BL: `(B, L)`.
    """
    terms = []
    for size in (2048, 1024, 512, 256, 128):
        wanted, made = _spectrum(wanted_BL, size), _spectrum(made_BL, size)
        wanted_size, made_size = _magnitude(wanted), _magnitude(made)
        difference = (wanted_size - made_size).pow(2).sum((1, 2)).clamp_min(1e-12).sqrt()
        convergence = difference / (wanted_size.pow(2).sum((1, 2)).sqrt() + 0.1)
        logarithm = (torch.log(wanted_size + 3e-3) - torch.log(made_size + 3e-3)).abs().mean((1, 2))
        terms.append(torch.stack((convergence.mean(), logarithm.mean())))
        if size == 2048:
            below = round(1100 * size / _SAMPLING_RATE)
            wrong = (wanted - made)[:, :below].abs().pow(2).sum((1, 2))
            low = wrong / (wanted[:, :below].abs().pow(2).sum((1, 2)) + 1e-2)
    return torch.cat((torch.stack(terms).mean(0), low.mean()[None]))


def _spectrum(audio_BL: torch.Tensor, size: int) -> torch.Tensor:
    """The complex spectrum `(B, F, T)`: a sine of amplitude a has a peak of a / 2 times the square root of `size`."""
    window = torch.hann_window(size)
    spectrum = torch.stft(audio_BL, size, size // 4, window=window, return_complex=True)
    return spectrum * (2 / size**0.5)


def _magnitude(spectrum: torch.Tensor) -> torch.Tensor:
    # The derivative of the square root is infinite at zero.
    return (spectrum.real.pow(2) + spectrum.imag.pow(2) + 1e-10).sqrt()


@torch.no_grad()
def _decoded_latents(codec: EncodecModel, audio: Sequence[torch.Tensor]) -> torch.Tensor:
    """The quantized latents of each clip, which are the decoder's input, `(B, T, D)`."""
    rows = []
    for clips in clip_batches(audio):
        codes_BKT = codec.encode(clips, bandwidth=codec.config.target_bandwidths[-1]).audio_codes[0]
        rows.append(codec.quantizer.decode(codes_BKT))
    return torch.cat(rows)


def _share_of_lr(step: int, settings: CodecTraining) -> float:
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * done))
