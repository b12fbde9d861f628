"""Reads, writes, measures and pictures audio; nothing here knows models."""
