"""Generation: the loop over delayed steps, the ways to do a step, and the sampling of codes."""

from musicgen_train.models.generation.loop import StoppingCriterion, Streamer, generate_codes

__all__ = ["StoppingCriterion", "Streamer", "generate_codes"]
