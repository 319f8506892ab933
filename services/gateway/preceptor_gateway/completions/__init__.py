"""OpenAI-compatible plain completions: a raw prompt, or token ids, with no domain prompt added."""
