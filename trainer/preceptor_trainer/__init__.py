"""Turns a domain's records into a promoted adapter. Start at `pipeline`."""
