"""Waiting for several engines without being held up by the slowest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence

from preceptor_contracts.errors import PreceptorError

PATIENCE_S = 20.0
"""How long a slow engine is waited for, in seconds, where another one is done; the reconciler goes on with it."""


async def all_but_slow(
    work: Sequence[Coroutine[object, object, None]], is_enough: Callable[[], bool]
) -> list[PreceptorError]:
    """Waits for all of `work`, but for `PATIENCE_S` only where what is done is enough; the rest is cancelled.

    Returns:
        The expected errors; an unexpected one is raised.
    """
    tasks = {asyncio.ensure_future(one) for one in work}
    pending, deadline = tasks, time.monotonic() + PATIENCE_S
    try:
        while pending and not (is_enough() and time.monotonic() >= deadline):
            left = deadline - time.monotonic()
            # Past the deadline the first success ends it.
            timeout = left if left > 0 else None
            _, pending = await asyncio.wait(pending, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in pending:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    errors = [one for one in results if isinstance(one, Exception)]
    for error in errors:
        if not isinstance(error, PreceptorError):
            raise error
    return [error for error in errors if isinstance(error, PreceptorError)]
