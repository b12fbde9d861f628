"""The settings of `generate`, stored as a hub folder's `generation_config.json`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from musicgen_train.files import read_json
from musicgen_train.hub.folder import GENERATION_CONFIG_NAME, PretrainedFolder
from musicgen_train.models.config import MusicgenDecoderConfig, PretrainedConfig

# The released models were trained on clips of this length: 30 s at 50 frames/s.
TRAINED_FRAMES = 1500

# Settings of other models' generation configs that are not supported, with the values that have no effect.
_NOT_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "num_beam_groups": (None, 1),
    "penalty_alpha": (None,),
    "repetition_penalty": (None, 1.0),
    "encoder_repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "min_length": (None, 0),
    "min_new_tokens": (None,),
    "min_p": (None,),
    "typical_p": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "bad_words_ids": (None,),
    "suppress_tokens": (None,),
    "begin_suppress_tokens": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "sequence_bias": (None,),
    "max_time": (None,),
    "stop_strings": (None,),
    "prompt_lookup_num_tokens": (None,),
    "watermarking_config": (None,),
    "output_attentions": (None, False),
    "output_hidden_states": (None, False),
    "output_logits": (None, False),
    "output_scores": (None, False),
    "use_cache": (None, True),
}


@dataclass(init=False, repr=False, eq=False)
class GenerationConfig(PretrainedConfig):
    """Holds the settings of `generate`; the defaults are the reference's for keys that a file does not have.

    Lengths count steps of the delayed sequence, one of which starts it: `max_new_tokens` new steps after a prompt of
    P frames give `P + max_new_tokens + 1 - K` frames, where K is the number of codebooks per audio channel. 30 s at
    50 frames/s with 4 codebooks are 1503 new tokens.
    """

    file_name: ClassVar[str] = GENERATION_CONFIG_NAME

    max_length: int = 20
    """Total number of steps, the start and the prompt included; used if `max_new_tokens` is not given."""
    max_new_tokens: int | None = None
    do_sample: bool = False
    """Draw codes at random; otherwise take the likeliest one each time."""
    temperature: float = 1.0
    """Above 1 flattens the distribution of codes, below 1 sharpens it."""
    top_k: int | None = 50
    """Draw among the k likeliest codes only; None or 0 for all."""
    top_p: float | None = 1.0
    """Draw among the likeliest codes that together have this probability; None or 1 for all."""
    guidance_scale: float | None = None
    """Classifier-free guidance: logits are `null + scale * (conditional - null)`. None or at most 1 for none."""
    num_return_sequences: int = 1
    """Results per input row; those of a row are adjacent."""
    max_window_frames: int = TRAINED_FRAMES
    """Frames generated with one context: the length the model was trained on. More needs `extend_stride`."""
    extend_stride: int | None = None
    """Longer results are generated in windows that move by this many frames and start with the rest of the last one."""
    return_dict_in_generate: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    decoder_start_token_id: int | None = None

    @classmethod
    def for_decoder(cls, config: MusicgenDecoderConfig) -> Self:
        """Returns the defaults of MusicGen (paper and released models): 30 s, top-k 250, guidance 3."""
        return cls(
            max_length=TRAINED_FRAMES + config.channel_codebooks,
            do_sample=True,
            top_k=250,
            guidance_scale=3.0,
            pad_token_id=config.pad_token_id,
            bos_token_id=config.bos_token_id,
            decoder_start_token_id=config.decoder_start_token_id,
        )

    @classmethod
    def from_folder(cls, folder: PretrainedFolder, config: MusicgenDecoderConfig) -> Self:
        """Read the generation config of a model's folder, or return `for_decoder` if it has none."""
        path = folder.find(cls.file_name)
        return cls.for_decoder(config) if path is None else cls.from_dict(read_json(path))

    def replace(self, **changes: Any) -> Self:
        """Returns a changed copy. A `max_length` given here overrides the config's `max_new_tokens`.

        Raises:
            ValueError: a setting that does not exist or is not supported, or a value that is not allowed.
        """
        changed = copy.deepcopy(self)
        if changes.get("max_length") is not None and "max_new_tokens" not in changes:
            changed.max_new_tokens = None
        changed.update(**changes)
        changed._require_supported()
        return changed

    def total_length(self, prompt_frames: int) -> int:
        """Returns the number of steps of the whole delayed sequence, including a prompt of `prompt_frames` frames."""
        if self.max_new_tokens is not None:
            return 1 + prompt_frames + self.max_new_tokens
        return self.max_length

    def fill_in(self) -> None:
        # null in a file means the default.
        defaults = {"max_length": 20, "do_sample": False, "temperature": 1.0, "num_return_sequences": 1}
        for name, default in {**defaults, "return_dict_in_generate": False}.items():
            if getattr(self, name) is None:
                setattr(self, name, default)

    def validate(self) -> None:
        self._require_positive("max_length", "num_return_sequences", "max_window_frames")
        if self.max_new_tokens is not None:
            self._require_positive("max_new_tokens")
        self._require(self.temperature > 0, "temperature", "a number above 0; for the likeliest codes do_sample=False")
        self._require(self.top_k is None or self.top_k >= 0, "top_k", "a whole number from 0 (all codes), or None")
        self._require(self.top_p is None or 0 < self.top_p <= 1, "top_p", "a number above 0, at most 1, or None")
        self._require(
            self.extend_stride is None or 0 < self.extend_stride < self.max_window_frames,
            "extend_stride",
            f"1 to {self.max_window_frames - 1} frames (below max_window_frames), or None",
        )

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        # Other readers do not know these settings, so they are written only if they differ from the default.
        for name, default in (("max_window_frames", TRAINED_FRAMES), ("extend_stride", None), ("max_new_tokens", None)):
            if values[name] == default:
                del values[name]
        return values

    def _require_supported(self) -> None:
        for name, harmless in _NOT_SUPPORTED.items():
            if self.extra.get(name) not in harmless:
                raise ValueError(
                    f"{name}={self.extra[name]!r} is not supported: MusicGen is generated with a cache, greedily or by "
                    f"sampling with temperature, top_k, top_p and guidance_scale; set {name} to {harmless[-1]!r}"
                )

    def _refuse_unknown(self, values: Mapping[str, Any], allowed: Any) -> None:
        # Allow the names that `_require_supported` checks, whose error says more; a file may hold anything.
        super()._refuse_unknown(values, allowed=frozenset(_NOT_SUPPORTED))
