"""The loop that keeps the engine as the registry wishes it, a restarted engine included. It blocks no request."""

from __future__ import annotations

import asyncio
import contextlib

import structlog
from preceptor_contracts.errors import PreceptorError

from preceptor_gateway.adapters.service import AdapterService

log = structlog.get_logger("reconciler")


async def reconcile_forever(adapters: AdapterService, pause_s: float) -> None:
    """Reconciles every `pause_s` seconds, and at once when a request met a lost adapter."""
    engine_was_up = True
    while True:
        adapters.nudge.clear()
        try:
            await adapters.reconcile()
            if not engine_was_up:
                log.info("engine is back")
            engine_was_up = True
        except PreceptorError as error:
            if engine_was_up:
                log.warning("engine is away", reason=error.message)
            engine_was_up = False
        except Exception:
            # The edge of a worker loop: an unforeseen failure is logged, and the next round tries again.
            log.exception("reconcile failed")
        # A nudge ends the pause, but a dead engine is not asked in a tight loop.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(adapters.nudge.wait(), timeout=pause_s)
        await asyncio.sleep(min(pause_s, 0.1))
