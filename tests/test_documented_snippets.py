"""The snippets of the MusicGen documentation, to the letter but for `transformers`, on a small model.

`facebook/musicgen-small` is here a folder of that name in the working directory, which wins over the hub.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece_models
import tiny
import torch

from musicgen_train import AutoProcessor, EncodecFeatureExtractor, MusicgenProcessor, T5Tokenizer

SETUP = """
from musicgen_train import AutoProcessor, MusicgenForConditionalGeneration

processor = AutoProcessor.from_pretrained("facebook/musicgen-small")
model = MusicgenForConditionalGeneration.from_pretrained("facebook/musicgen-small")
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the folder `facebook/musicgen-small`."""
    folder = tmp_path / "facebook" / "musicgen-small"
    text = {**tiny.TEXT, "vocab_size": 1000}
    reference = tiny.reference_composite(text=text, decoder={"max_position_embeddings": 512})
    reference.generation_config.max_length = 504
    reference.save_pretrained(folder)
    sentencepiece_models.write_t5_tokenizer_folder(folder)
    extractor = EncodecFeatureExtractor(feature_size=1, sampling_rate=320, padding_side="left")
    MusicgenProcessor(extractor, T5Tokenizer.from_pretrained(folder)).save_pretrained(folder)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def sample() -> dict[str, Any]:
    """What `datasets` gives for an audio column."""
    seconds = np.arange(400) / 320
    return {"array": np.sin(2 * np.pi * 40 * seconds), "sampling_rate": 320}


def run(snippet: str, **names: Any) -> dict[str, Any]:
    """Execute a snippet; its variables."""
    variables: dict[str, Any] = {"torch": torch, **names}
    exec(snippet, variables)
    return variables


def test_unconditional_generation(hub: Path) -> None:
    variables = run("""
from musicgen_train import MusicgenForConditionalGeneration

model = MusicgenForConditionalGeneration.from_pretrained("facebook/musicgen-small")
unconditional_inputs = model.get_unconditional_inputs(num_samples=1)

audio_values = model.generate(**unconditional_inputs, do_sample=True, max_new_tokens=256)
sampling_rate = model.config.audio_encoder.sampling_rate
array = audio_values[0, 0].numpy()
""")
    assert variables["audio_values"].shape == (1, 1, (256 + 1 - 4) * 8)
    assert variables["sampling_rate"] == 320
    assert variables["array"].dtype == np.float32


def test_text_conditional_generation(hub: Path) -> None:
    variables = run(
        SETUP
        + """
inputs = processor(
    text=["80s pop track with bassy drums and synth", "90s rock song with loud guitars and heavy drums"],
    padding=True,
    return_tensors="pt",
)
audio_values = model.generate(**inputs, do_sample=True, guidance_scale=3, max_new_tokens=256)
"""
    )
    assert variables["audio_values"].shape == (2, 1, 253 * 8)


def test_audio_prompted_generation(hub: Path, sample: dict[str, Any]) -> None:
    variables = run(
        SETUP
        + """
# take the first half of the audio sample
sample["array"] = sample["array"][: len(sample["array"]) // 2]

inputs = processor(
    audio=sample["array"],
    sampling_rate=sample["sampling_rate"],
    text=["80s blues track with groovy saxophone"],
    padding=True,
    return_tensors="pt",
)
audio_values = model.generate(**inputs, do_sample=True, guidance_scale=3, max_new_tokens=256)
""",
        sample=sample,
    )
    assert variables["audio_values"].shape == (1, 1, (200 // 8 + 253) * 8)


def test_batched_audio_prompts(hub: Path, sample: dict[str, Any]) -> None:
    variables = run(
        SETUP
        + """
# take the first quarter of the audio sample
sample_1 = sample["array"][: len(sample["array"]) // 4]

# take the first half of the audio sample
sample_2 = sample["array"][: len(sample["array"]) // 2]

inputs = processor(
    audio=[sample_1, sample_2],
    sampling_rate=sample["sampling_rate"],
    text=["80s blues track with groovy saxophone", "90s rock song with loud guitars and heavy drums"],
    padding=True,
    return_tensors="pt",
)
audio_values = model.generate(**inputs, do_sample=True, guidance_scale=3, max_new_tokens=256)

# post-process to remove padding from the batched audio
audio_values = processor.batch_decode(audio_values, padding_mask=inputs.padding_mask)
""",
        sample=sample,
    )
    whole = (200 // 8 + 253) * 8
    assert [array.shape for array in variables["audio_values"]] == [(1, whole - 100), (1, whole)]


def test_generation_config(hub: Path) -> None:
    variables = run("""
from musicgen_train import MusicgenForConditionalGeneration

model = MusicgenForConditionalGeneration.from_pretrained("facebook/musicgen-small")

# inspect the default generation config
model.generation_config

# increase the guidance scale to 4.0
model.generation_config.guidance_scale = 4.0

# decrease the max length to 256 tokens
model.generation_config.max_length = 256
""")
    model = variables["model"]
    assert model.generate(torch.ones(1, 3, dtype=torch.long)).shape[-1] == (256 - 4) * 8


def test_loading_the_decoder_alone(hub: Path) -> None:
    variables = run("""
from musicgen_train import AutoConfig, MusicgenForCausalLM, MusicgenForConditionalGeneration

# Option 1: get decoder config and pass to `.from_pretrained`
decoder_config = AutoConfig.from_pretrained("facebook/musicgen-small").decoder
decoder = MusicgenForCausalLM.from_pretrained("facebook/musicgen-small", **decoder_config)
option_1 = decoder

# Option 2: load the entire composite model, but only return the decoder
decoder = MusicgenForConditionalGeneration.from_pretrained("facebook/musicgen-small").decoder
""")
    one, two = variables["option_1"].state_dict(), variables["decoder"].state_dict()
    assert all(torch.equal(one[name], value) for name, value in two.items())


def test_making_a_model_from_configs(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # At the snippet's own sizes the composite has 0.5 billion parameters, so the defaults are made small.
    import musicgen_train

    for name, small in (
        ("T5Config", tiny.TEXT),
        ("MusicgenDecoderConfig", tiny.DECODER),
        ("EncodecConfig", tiny.CODEC),
    ):
        config_class = getattr(musicgen_train, name)
        monkeypatch.setattr(musicgen_train, name, lambda config_class=config_class, small=small: config_class(**small))
    variables = run("""
from musicgen_train import (
    MusicgenConfig,
    MusicgenDecoderConfig,
    T5Config,
    EncodecConfig,
    MusicgenForConditionalGeneration,
)

# Initializing text encoder, audio encoder, and decoder model configurations
text_encoder_config = T5Config()
audio_encoder_config = EncodecConfig()
decoder_config = MusicgenDecoderConfig()

configuration = MusicgenConfig.from_sub_models_config(
    text_encoder_config, audio_encoder_config, decoder_config
)

# Initializing a MusicgenForConditionalGeneration (with random weights)
model = MusicgenForConditionalGeneration(configuration)

# Accessing the model configuration
configuration = model.config
config_text_encoder = model.config.text_encoder
config_audio_encoder = model.config.audio_encoder
config_decoder = model.config.decoder

# Saving the model, including its configuration
model.save_pretrained("musicgen-model")

# loading model and config from pretrained folder
musicgen_config = MusicgenConfig.from_pretrained("musicgen-model")
first = model
model = MusicgenForConditionalGeneration.from_pretrained("musicgen-model", config=musicgen_config)
""")
    first, second = variables["first"].state_dict(), variables["model"].state_dict()
    assert all(torch.equal(first[name], value) for name, value in second.items())


def test_a_forward_pass(hub: Path) -> None:
    variables = run(
        SETUP
        + """
inputs = processor(
    text=["80s pop track with bassy drums and synth", "90s rock song with loud guitars and heavy drums"],
    padding=True,
    return_tensors="pt",
)

pad_token_id = model.generation_config.pad_token_id
decoder_input_ids = (
    torch.ones((inputs.input_ids.shape[0] * model.decoder.num_codebooks, 1), dtype=torch.long)
    * pad_token_id
)

logits = model(**inputs, decoder_input_ids=decoder_input_ids).logits
"""
    )
    assert variables["logits"].shape == (8, 1, tiny.VOCAB)


def test_the_wrong_sampling_rate_is_refused(hub: Path, sample: dict[str, Any]) -> None:
    processor = AutoProcessor.from_pretrained("facebook/musicgen-small")
    with pytest.raises(ValueError, match=r"44100.*320|320.*44100"):
        processor(audio=sample["array"], sampling_rate=44100, return_tensors="pt")
