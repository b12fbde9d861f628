"""Makes a stereo model out of a mono one, the start from which MusicGen's stereo models were fine-tuned.

A stereo model has a codebook for each channel where the mono model has one, in the order `[1L, 1R, 2L, 2R, ...]`. Both
take over the embedding and the head of the mono codebook; everything else stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from musicgen_train.models.config import MusicgenDecoderConfig

_PER_CODEBOOK = re.compile(r"((?:model\.decoder\.)?embed_tokens|lm_heads)\.(\d+)\.weight")


def expand_to_stereo(
    config: MusicgenDecoderConfig, state: Mapping[str, torch.Tensor]
) -> tuple[MusicgenDecoderConfig, dict[str, torch.Tensor]]:
    """Make config and state of a stereo decoder that starts as the given mono one (audiocraft's docs/MUSICGEN.md).

    Codebooks 2k and 2k + 1 of the result have the embedding and head of codebook k, as tensors of their own. So the two
    channels get the same logits, whatever the input. As inputs are sums over codebooks, now twice as many, the result
    is a start for fine-tuning and not yet a model to listen to.

    Args:
        config: that of a mono decoder.
        state: that of a `MusicgenForCausalLM`: per codebook an embedding (V + 1, D) and a head (V, D), and the rest.

    Returns:
        A new config and a new dict; tensors that do not belong to a codebook are those given.

    Raises:
        ValueError: the decoder is stereo already, or the state does not have one embedding and head for each codebook.
    """
    if config.audio_channels != 1:
        raise ValueError(
            f"the decoder has audio_channels {config.audio_channels} already; only a mono one can be expanded"
        )
    expanded: dict[str, torch.Tensor] = {}
    found = []
    for name, value in state.items():
        match = _PER_CODEBOOK.fullmatch(name)
        if match is None:
            expanded[name] = value
            continue
        stem, codebook = match[1], int(match[2])
        found.append((stem, codebook))
        for channel in (0, 1):
            expanded[f"{stem}.{2 * codebook + channel}.weight"] = value.clone()
    stems = sorted({stem for stem, _ in found})
    if len(stems) != 2 or sorted(found) != [(stem, k) for stem in stems for k in range(config.num_codebooks)]:
        raise ValueError(
            f"the state has embeddings and heads {sorted(found)}, expected one of each for {config.num_codebooks} "
            "codebooks"
        )
    values = {**config.to_dict(), "num_codebooks": 2 * config.num_codebooks, "audio_channels": 2}
    return MusicgenDecoderConfig.from_dict(values), expanded


def mono_name(name: str) -> str:
    """Return the name of the mono model's tensor from which a tensor of the expanded model was copied."""
    match = _PER_CODEBOOK.fullmatch(name)
    return name if match is None else f"{match[1]}.{int(match[2]) // 2}.weight"
