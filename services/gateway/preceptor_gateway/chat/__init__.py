"""OpenAI-compatible chat completions: the hot path."""
