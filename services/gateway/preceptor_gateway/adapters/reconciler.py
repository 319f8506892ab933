"""The loops that keep each engine as the registry wishes it, a restarted engine included. They block no request."""

from __future__ import annotations

import asyncio
import contextlib
import time

import structlog
from preceptor_contracts.errors import PreceptorError

from preceptor_gateway.adapters.on_engine import AdaptersOnEngine
from preceptor_gateway.adapters.service import AdapterService

log = structlog.get_logger("reconciler")
_LEAST_PAUSE_S = 0.1
"""However often it is nudged, a dead engine is not asked in a tight loop."""


async def reconcile_forever(adapters: AdapterService, pause_s: float) -> None:
    """Looks at every engine every `pause_s` seconds, and at once when a request met a lost adapter or no answer.

    One loop an engine: none waits for another.
    """
    loops = [asyncio.ensure_future(_reconcile_one(one, pause_s)) for one in adapters.on]
    try:
        await asyncio.gather(*loops)
    finally:
        await _end(*loops)


async def _reconcile_one(one: AdaptersOnEngine, pause_s: float) -> None:
    settling: asyncio.Task[None] | None = None
    nudge = one.engine.nudge
    try:
        while True:
            nudge.clear()
            started = time.monotonic()
            if await _answers(one):
                # Loading goes on beside the looks, so that an engine that dies meanwhile is noticed.
                if settling is None or settling.done():
                    settling = asyncio.ensure_future(_settle(one))
            elif settling and one.engine.is_out:
                await _end(settling)
                settling = None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(nudge.wait(), timeout=pause_s)
            await asyncio.sleep(started + min(pause_s, _LEAST_PAUSE_S) - time.monotonic())
    finally:
        if settling:
            await _end(settling)


async def _answers(one: AdaptersOnEngine) -> bool:
    try:
        await one.look()
    except PreceptorError:
        return False
    except Exception:
        # The edge of a worker loop: an unforeseen failure is logged, and the next round tries again.
        log.exception("look failed", engine=one.engine.name)
        return False
    return True


async def _settle(one: AdaptersOnEngine) -> None:
    try:
        await one.settle()
    except Exception:
        # As above.
        log.exception("reconcile failed", engine=one.engine.name)


async def _end(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
