"""Train the MusicGen decoder on pre-extracted text states and audio codes, then make music with it.

The public names are those of the MusicGen documentation: in its snippets, `transformers` becomes `musicgen_train`.
"""

from musicgen_train.models.config import AutoConfig, EncodecConfig, MusicgenConfig, MusicgenDecoderConfig, T5Config
from musicgen_train.models.decoder import MusicgenForCausalLM, MusicgenModel
from musicgen_train.models.encodec import EncodecModel
from musicgen_train.models.generation_config import GenerationConfig
from musicgen_train.models.musicgen import MusicgenForConditionalGeneration
from musicgen_train.models.t5 import T5EncoderModel

__all__ = [
    "AutoConfig",
    "EncodecConfig",
    "EncodecModel",
    "GenerationConfig",
    "MusicgenConfig",
    "MusicgenDecoderConfig",
    "MusicgenForCausalLM",
    "MusicgenForConditionalGeneration",
    "MusicgenModel",
    "T5Config",
    "T5EncoderModel",
]
