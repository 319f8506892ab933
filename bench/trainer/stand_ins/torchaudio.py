"""Stands in for torchaudio, whose build does not fit this torch; LLaMA-Factory imports it, and uses it for sound."""
