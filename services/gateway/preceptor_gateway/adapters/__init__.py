"""Adapters between disk and engine: registry, canary, promotion, and the reconciler that closes the difference."""
