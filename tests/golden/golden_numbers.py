"""The numbers that the stored models give: codes, sound, text states, token ids. As a script it writes them to a file,
for a process of its own that has another environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_inputs import COMPOSITE, STEREO_DECODER, uniform, whole

from musicgen_train import MusicgenForCausalLM, MusicgenForConditionalGeneration, MusicgenProcessor

SEEDS = range(5)
SAMPLED: dict[str, Any] = {"do_sample": True, "top_k": 20, "guidance_scale": 3.0, "max_new_tokens": 24}
TEXTS = ["drums and bass, 120 bpm", "", "Jazz guitar\u2019s \u00e9t\u00e9 \u65e5\u672c!"]

C_CODE = "with C code"


def c_code_is_loaded() -> bool:
    """Whether this process holds a library that was made of the package's C files."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    return any("musicgen_train/" in line and line.endswith(".so") for line in maps)


def numbers_without_c_code(folder: Path) -> dict[str, np.ndarray]:
    """What `all_numbers` gives in a process that leaves everything to torch."""
    path = folder / "without_c_code.npz"
    # Where builders of tests lie is known to this process.
    environment = {**os.environ, "MUSICGEN_TRAIN_NATIVE": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, __file__, str(path)], env=environment, check=True)
    return dict(np.load(path))


@torch.no_grad()
def codes_in_double() -> dict[str, np.ndarray]:
    """All codes of the same models in float64: where they are the same, no rounding is near enough to change them."""
    composite = MusicgenForConditionalGeneration.from_pretrained(COMPOSITE)
    stereo = MusicgenForCausalLM.from_pretrained(STEREO_DECODER)
    found = {**_generated("mono", composite.decoder.double()), **_generated("stereo", stereo.double())}
    return {name: value.numpy() for name, value in found.items()}


@torch.no_grad()
def all_numbers() -> dict[str, np.ndarray]:
    """Every number by its name, whole ones as int64 and others as float32."""
    composite = MusicgenForConditionalGeneration.from_pretrained(COMPOSITE)
    found = {
        **_generated("mono", composite.decoder),
        **_generated("stereo", MusicgenForCausalLM.from_pretrained(STEREO_DECODER)),
        **_coded(composite),
        **_read(composite),
    }
    return {name: value.numpy() for name, value in found.items()}


def _generated(kind: str, model: MusicgenForCausalLM) -> dict[str, torch.Tensor]:
    def generate(seed: int, rows: int = 3, **settings: Any) -> torch.Tensor:
        mask = torch.ones(rows, 5, dtype=torch.long)
        mask[0, 3:] = 0
        mask[1] = 0
        return model.generate(
            encoder_hidden_states=uniform(1, rows, 5, model.config.hidden_size).to(model.dtype),
            encoder_attention_mask=mask,
            generator=torch.Generator().manual_seed(seed),
            **{**SAMPLED, **settings},
        )

    prompt = whole(2, model.config.vocab_size, 3, model.num_codebooks, 6)
    found = {
        **{f"seed {seed}": generate(seed) for seed in SEEDS},
        "greedy": generate(0, do_sample=False),
        "windows": generate(0, max_new_tokens=44, max_window_frames=16, extend_stride=7),
        "top p, warm": generate(0, top_k=0, top_p=0.9, temperature=1.3),
        "without guidance": generate(0, guidance_scale=1.0),
        "continued": generate(0, input_ids=prompt.flatten(0, 1)),
        # The C code does many rows in another way.
        "many rows": generate(0, rows=9),
    }
    return {f"codes/{kind}/{name}": codes for name, codes in found.items()}


def _coded(model: MusicgenForConditionalGeneration) -> dict[str, torch.Tensor]:
    sound = uniform(3, 2, 1, 500).cumsum(-1).sin().to(model.dtype)
    codes = model.audio_encoder.encode(sound).audio_codes
    decoded = model.audio_encoder.decode(codes, [None]).audio_values
    return {"codec/codes": codes, "codec/sound": decoded}


def _read(model: MusicgenForConditionalGeneration) -> dict[str, torch.Tensor]:
    inputs = MusicgenProcessor.from_pretrained(COMPOSITE)(text=TEXTS, padding=True, return_tensors="pt")
    states = model.text_encoder(**inputs).last_hidden_state
    sound = model.generate(**inputs, **SAMPLED, generator=torch.Generator().manual_seed(0))
    return {
        "text/ids": inputs["input_ids"],
        "text/mask": inputs["attention_mask"],
        "text/states": states,
        "text to sound": sound,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    np.savez_compressed(sys.argv[1], **all_numbers(), **{C_CODE: np.array(c_code_is_loaded())})
