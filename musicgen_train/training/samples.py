"""Samples during a run: fixed prompts with fixed seeds, so that only the model changes from one to the next."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch

from musicgen_train.audio.io import write_audio
from musicgen_train.audio.mel import mel_picture
from musicgen_train.files import write_json
from musicgen_train.models.musicgen import MusicgenForConditionalGeneration
from musicgen_train.processing.musicgen_processor import MusicgenProcessor
from musicgen_train.training.module import MusicgenTraining
from musicgen_train.training.weights.ema import averaged_weights
from musicgen_train.training.weights.sharding import ShardedTraining, whole_composite


@dataclass(kw_only=True)
class SampleSettings:
    """Which samples are made during a run, and how."""

    prompts: list[str]
    """One sample is made of each; an empty prompt is unconditional."""
    every: int
    """Steps between samples; 0 for none. The first are made before training, the last after it."""
    seconds: float
    """Length of each sample."""
    guidance_scale: float
    top_k: int
    temperature: float
    seed: int
    """Prompt i is always sampled with `seed + i`."""

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ValueError(f"samples.every is {self.every}; it must be a number of steps, or 0 for no samples")
        if self.seconds <= 0:
            raise ValueError(f"samples.seconds is {self.seconds:g}; it must be above 0")
        if self.temperature <= 0:
            raise ValueError(f"samples.temperature is {self.temperature:g}; it must be above 0. top_k=1 is greedy")
        if self.top_k < 0:
            raise ValueError(f"samples.top_k is {self.top_k}; it must be 1 or more, or 0 to draw among all codes")
        if self.guidance_scale < 1:
            raise ValueError(f"samples.guidance_scale is {self.guidance_scale:g}; it must be 1 (none) or more")


class SamplePrompts(lightning.Callback):
    """Writes `step_<step>/prompt_<i>.wav` and `.png`, and gives both to loggers that show media.

    Sampling does not change training: it has its own generators, and puts the decoder back into its mode.

    Args:
        settings: see `SampleSettings`.
        composite: the frozen encoders around the decoder and projection that are trained.
        processor: the composite's processor, which tokenizes the prompts.
        folder: the folder to write into.
    """

    def __init__(
        self,
        settings: SampleSettings,
        composite: MusicgenForConditionalGeneration,
        processor: MusicgenProcessor,
        folder: Path,
    ) -> None:
        self._settings = settings
        self._composite = composite
        self._folder = folder
        self._sampling_rate = composite.config.audio_encoder.sampling_rate
        self._states, self._mask = encode_prompts(composite, processor, settings.prompts)
        self._last_step = -1

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.global_step == 0:
            self._sample(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, MusicgenTraining)
        if pl_module.ends_step(batch_idx) and trainer.global_step % self._settings.every == 0:
            self._sample(trainer, pl_module)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self._last_step != trainer.global_step:
            self._sample(trainer, pl_module)

    def _sample(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._last_step = trainer.global_step
        composite = self._composite
        with averaged_weights(trainer, pl_module):
            if isinstance(pl_module, ShardedTraining):
                # All ranks take part in gathering the weights; one of them samples.
                state = trainer.strategy.lightning_module_state_dict()
                if trainer.is_global_zero:
                    composite = whole_composite(composite, state, pl_module.device)
            if trainer.is_global_zero:
                self._write(trainer, self.draw(composite, pl_module.device))

    def _write(self, trainer: lightning.Trainer, audio_BCS: torch.Tensor) -> None:
        folder = self._folder / f"step_{trainer.global_step:07d}"
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "prompts.json", {"prompts": self._settings.prompts, "seed": self._settings.seed})
        for number, (prompt, audio_CS) in enumerate(zip(self._settings.prompts, audio_BCS, strict=True)):
            sound, picture = folder / f"prompt_{number}.wav", folder / f"prompt_{number}.png"
            write_audio(sound, audio_CS, self._sampling_rate)
            picture.write_bytes(mel_picture(audio_CS, self._sampling_rate))
            for logger in trainer.loggers:
                _show(
                    logger, f"samples/prompt_{number}", prompt or "(unconditional)", sound, picture, trainer.global_step
                )

    def draw(self, composite: MusicgenForConditionalGeneration, device: torch.device) -> torch.Tensor:
        """Generate the audio of all prompts, float32 `(prompts, channels, samples)` on the CPU."""
        settings = self._settings
        frames = max(1, round(settings.seconds * composite.config.audio_encoder.frame_rate))
        mode = composite.decoder.training
        composite.audio_encoder.to(device)
        parts = [part for part in (composite.decoder, composite.enc_to_dec_proj) if part is not None]
        for part in parts:
            part.eval()
        try:
            # Compiled layers would be compiled anew for every length of the key-value cache.
            with torch.compiler.set_stance("force_eager"):
                # Each prompt has its own generator, so its sample does not depend on the other prompts.
                audio = composite.generate(
                    encoder_outputs=(self._states.to(device),),
                    attention_mask=self._mask.to(device),
                    generator=[
                        torch.Generator(device).manual_seed(settings.seed + number)
                        for number in range(len(self._states))
                    ],
                    do_sample=True,
                    max_new_tokens=frames + composite.config.decoder.channel_codebooks - 1,
                    guidance_scale=settings.guidance_scale,
                    top_k=settings.top_k,
                    temperature=settings.temperature,
                )
        finally:
            for part in parts:
                part.train(mode)
        assert isinstance(audio, torch.Tensor)
        return audio.float().cpu()


@torch.no_grad()
def encode_prompts(
    composite: MusicgenForConditionalGeneration, processor: MusicgenProcessor, prompts: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode prompts to text states `(prompts, length, width)` and a mask `(prompts, length)`.

    An empty prompt is the null condition: its mask is all zeros.
    """
    inputs = processor(text=prompts, padding=True, return_tensors="pt")
    mask = inputs["attention_mask"] * torch.tensor([bool(prompt.strip()) for prompt in prompts])[:, None]
    states = composite.text_encoder(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    return states.last_hidden_state, mask


def _show(logger: Any, name: str, prompt: str, sound: Path, picture: Path, step: int) -> None:
    # Lightning's loggers that show media have these methods.
    if hasattr(logger, "log_audio"):
        logger.log_audio(name, [str(sound)], step=None, caption=[f"{prompt} (step {step})"])
    if hasattr(logger, "log_image"):
        logger.log_image(f"{name}_mel", [str(picture)], step=None, caption=[f"{prompt} (step {step})"])
