"""Which process of `accelerate launch` this is, by the variables that it sets; alone, it is the first of one."""

from __future__ import annotations

import os


def rank() -> int:
    """This process's number, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process's number on its machine, from 0: which GPU is its own."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def ranks() -> int:
    """Processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_follower() -> bool:
    """True for every process but the first, which alone writes to the run and to the terminal."""
    return rank() > 0


def is_sharded() -> bool:
    """True where `accelerate launch` was told to shard weights over the processes (FSDP)."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")
