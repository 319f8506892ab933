"""Watches the lock by which a training asks for an engine's GPU, so that the engine can finish before it ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog
from preceptor_contracts.hand_off import is_held

from preceptor_gateway.engine.pool import EnginePool

log = structlog.get_logger("hand_off")

POLL_S = 0.25
"""Between two looks; the engine's launcher waits for longer than that."""


async def watch_hand_off(pool: EnginePool, url: str, lock: Path) -> None:
    """Keeps requests from one engine while somebody holds the lock.

    Args:
        pool: The engines.
        url: Which of them is on the trainer's GPU.
        lock: `hand_off_lock` of the adapters' folder.
    """
    (one,) = [each for each in pool.engines if each.client.url == url]
    trouble = ""
    while True:
        held, before = one.makes_way, trouble
        try:
            # In a thread: a disk that hangs must not hold the answers up.
            held, trouble = await asyncio.to_thread(is_held, lock), ""
        except OSError as error:
            trouble = str(error)
        if trouble and trouble != before:
            log.error("hand-off lock cannot be looked at", reason=trouble)
        if held != one.makes_way:
            pool.make_way(one, wanted=held)
        await asyncio.sleep(POLL_S)
