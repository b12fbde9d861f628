"""Train the MusicGen decoder on pre-extracted text states and audio codes, then make music with it.

The public names are those of the MusicGen documentation: in its snippets, `transformers` becomes `musicgen_train`.
Each is imported when it is first asked for, so that a command line can answer before torch is there.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from musicgen_train.moved import MovedModules

if TYPE_CHECKING:
    from musicgen_train.models.causal_lm import MusicgenForCausalLM
    from musicgen_train.models.codec.encodec import EncodecModel
    from musicgen_train.models.config import AutoConfig, EncodecConfig, MusicgenConfig, MusicgenDecoderConfig, T5Config
    from musicgen_train.models.decoder import MusicgenModel
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

_HOMES = {
    "models.config": ("AutoConfig", "EncodecConfig", "MusicgenConfig", "MusicgenDecoderConfig", "T5Config"),
    "models.causal_lm": ("MusicgenForCausalLM",),
    "models.decoder": ("MusicgenModel",),
    "models.codec.encodec": ("EncodecModel",),
    "models.generation_config": ("GenerationConfig",),
    "models.musicgen": ("MusicgenForConditionalGeneration",),
    "models.t5": ("T5EncoderModel",),
    "processing.feature_extractor": ("EncodecFeatureExtractor",),
    "processing.musicgen_processor": ("AutoProcessor", "MusicgenProcessor"),
    "processing.t5_tokenizer": ("T5Tokenizer",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

# Last of all finders: it is asked about names only that nothing else knows.
sys.meta_path.append(MovedModules())


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
