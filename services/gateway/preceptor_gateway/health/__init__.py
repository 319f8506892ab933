"""Is it well, and what is it: `/health`, `/metrics`, `/`."""
