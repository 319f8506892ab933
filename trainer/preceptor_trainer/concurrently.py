"""Many requests at once, with a limit; the first failure ends the others and is raised as it is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


async def each(items: Iterable[Item], work: Callable[[Item], Awaitable[Answer]], *, limit: int) -> list[Answer]:
    """Awaits `work` for every item, at most `limit` at once.

    `asyncio.TaskGroup` would wrap our errors in an ExceptionGroup, which nobody could read as a sentence.

    Returns:
        The answers in the items' order.
    """
    slots = asyncio.Semaphore(limit)

    async def one(item: Item) -> Answer:
        async with slots:
            return await work(item)

    tasks = [asyncio.ensure_future(one(item)) for item in items]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
