"""Stage plan: what a training will cost. Start at `forecast`."""
