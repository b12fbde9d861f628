"""Train the MusicGen decoder on pre-extracted text states and audio codes, then make music with it.

The public names are those of the MusicGen documentation: in its snippets, `transformers` becomes `musicgen_train`.
"""

from musicgen_train.models.config import AutoConfig, EncodecConfig, MusicgenConfig, MusicgenDecoderConfig, T5Config
from musicgen_train.models.decoder import MusicgenForCausalLM, MusicgenModel
from musicgen_train.models.encodec import EncodecModel
from musicgen_train.models.generation_config import GenerationConfig
from musicgen_train.models.musicgen import MusicgenForConditionalGeneration
from musicgen_train.models.t5 import T5EncoderModel
from musicgen_train.processing.feature_extractor import EncodecFeatureExtractor
from musicgen_train.processing.musicgen_processor import AutoProcessor, MusicgenProcessor
from musicgen_train.processing.t5_tokenizer import T5Tokenizer

__all__ = [
    "AutoConfig",
    "AutoProcessor",
    "EncodecConfig",
    "EncodecFeatureExtractor",
    "EncodecModel",
    "GenerationConfig",
    "MusicgenConfig",
    "MusicgenDecoderConfig",
    "MusicgenForCausalLM",
    "MusicgenForConditionalGeneration",
    "MusicgenModel",
    "MusicgenProcessor",
    "T5Config",
    "T5EncoderModel",
    "T5Tokenizer",
]
