"""How vLLM is launched. `settings` says with what, `launch` says how, `materialise` makes the embedded base model."""
