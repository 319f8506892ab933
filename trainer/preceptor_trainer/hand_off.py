"""Training on the GPU that the engine serves from: the engine makes way, and comes back however the training ends."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from preceptor_contracts.errors import PreceptorError
from preceptor_contracts.hand_off import away_lock, hand_off_lock, is_held
from preceptor_contracts.wire import Health

from preceptor_trainer.gateway import GatewayBusy, GatewayDown
from preceptor_trainer.stages import Workshop

LEAVE_S = 300.0
"""Longest time that an engine may take to finish what is under way and end: over twice the most of ENGINE_DRAIN_S."""
POLL_S = 1.0


@contextmanager
def handed_off(shop: Workshop) -> Iterator[None]:
    """Has the engine make way for the block, and waits until it serves again.

    The kernel frees the lock when this process dies, so no crash leaves the engine stopped. Where the block fails, the
    engine comes back too, and nobody waits for it.

    Raises:
        PreceptorError: Another training has the GPU, no engine makes way, or it did not come back in time.
    """
    adapters = shop.settings.adapters_dir
    adapters.mkdir(parents=True, exist_ok=True)
    before = _look(shop)
    with _opened(hand_off_lock(adapters)) as lock:
        _opened(away_lock(adapters)).close()
        _take(lock)
        shop.terminal.say("The engine finishes what is under way and makes way for the training.")
        _wait_until_away(away_lock(adapters))
        gone = _who_makes_way(shop) or _up(before)
        shop.terminal.say("It has made way. Requests get 503 with retry-after, unless another engine serves.")
        yield
        _leave_the_gpu()
    shop.terminal.say("The GPU is free again; waiting for the engine, whose adapters must pass their canaries.")
    _wait_until_back(shop, gone, was_whole=before.status == "ok")


def _opened(path: Path) -> IO[bytes]:
    """Opens a lock's file, which engine and gateway may read whatever this process's umask is."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    with suppress(PermissionError):
        os.fchmod(handle, 0o644)
    return os.fdopen(handle, "r+b", buffering=0)


def _take(lock: IO[bytes]) -> None:
    # An engine's look at the lock holds it for a moment.
    for _ in range(20):
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.05)
    raise PreceptorError("Another training has the GPU.", code="gpu_taken", hint="Wait for it or stop it.")


def _wait_until_away(away: Path) -> None:
    end = time.monotonic() + LEAVE_S
    while not is_held(away):
        if time.monotonic() > end:
            raise PreceptorError(
                f"No engine made way within {LEAVE_S:.0f} s.",
                code="engine_stays",
                hint="ENGINE_HAND_OFF=true must be set where the engine runs, and it must see the same ADAPTERS_DIR. "
                "Where no engine runs, leave --hand-off out.",
            )
        time.sleep(POLL_S)


def _leave_the_gpu() -> None:
    """Gives back what torch keeps for the next batch: vLLM wants its whole share free when it starts."""
    from preceptor_trainer.train.memory import free_memory

    free_memory()


def _wait_until_back(shop: Workshop, gone: set[str], *, was_whole: bool) -> None:
    """Waits until the engine serves, and every promoted adapter on it; that not, where one was missing before."""
    limit_s = shop.settings.gateway_patience_s
    end = time.monotonic() + limit_s
    up: set[str] = set()
    while True:
        with suppress(GatewayBusy, GatewayDown):
            found = _look(shop)
            up = _up(found)
            if up and gone <= up and (found.status == "ok" or not was_whole):
                return
        if time.monotonic() > end:
            break
        time.sleep(POLL_S)
    if up and gone <= up:
        shop.terminal.say("The engine serves again, but not every promoted adapter is ready there: see /health.")
        return
    raise PreceptorError(
        f"{', '.join(sorted(gone - up)) or 'The engine'} did not come back within {limit_s:.0f} s.",
        code="engine_down",
        hint=f"Look at its log. Then go on: preceptor-trainer {shop.go_on}",
    )


def _look(shop: Workshop) -> Health:
    async def ask() -> Health:
        async with shop.connect(shop.settings) as gateway:
            return await gateway.glance()

    return asyncio.run(ask())


def _up(found: Health) -> set[str]:
    return {one.engine for one in found.engines if one.up}


def _who_makes_way(shop: Workshop) -> set[str]:
    """What the gateway was told by GATEWAY_HAND_OFF_ENGINE; nothing where it was not told."""
    with suppress(GatewayBusy, GatewayDown):
        return {one.engine for one in _look(shop).engines if one.makes_way}
    return set()
