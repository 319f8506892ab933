"""What each shipped domain gains with the CPU recipe, seed by seed, as served: `python -m bench.gain`."""
