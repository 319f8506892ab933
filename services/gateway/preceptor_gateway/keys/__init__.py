"""Bearer keys: made once, stored as hashes, known in memory on the hot path."""
