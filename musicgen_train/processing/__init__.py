"""Tokenizer, feature extractor and processor turn text and audio into model inputs, and outputs back."""
