"""Text and audio into model inputs, and model outputs back into text and audio."""
