"""Who has the GPU: a training that holds a lock, or else the engine. One machine, one GPU."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def hand_off_lock(adapters: Path) -> Path:
    """Held by a training that wants the GPU, or has it; in the folder that trainer, engine and gateway see."""
    return adapters / ".engine-hand-off.lock"


def away_lock(adapters: Path) -> Path:
    """Held by the engine's launcher while its vLLM is gone for a training. The trainer makes both files."""
    return adapters / ".engine-away.lock"


def is_held(lock: Path) -> bool:
    """Tells whether another process holds the lock; a file that is not there is held by nobody.

    Raises:
        OSError: It cannot be looked at.
    """
    try:
        handle = os.open(lock, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
