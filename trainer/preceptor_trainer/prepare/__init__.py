"""Stage prepare: a file of records becomes a checked dataset. Start at `dataset`."""
