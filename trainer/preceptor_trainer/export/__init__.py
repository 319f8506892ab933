"""Weights in other forms: merged, GGUF, archive."""
