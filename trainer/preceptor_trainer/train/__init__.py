"""Stage train. Start at `training`."""
