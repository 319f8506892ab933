"""Many answers in one request: so many at a time, and a failure is its item's own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from preceptor_contracts.errors import PreceptorError
from preceptor_contracts.served_names import RAW_BASE

from preceptor_gateway.domains.service import Target

T = TypeVar("T")
Job = Callable[[], Awaitable[T]]


def exact_name(target: Target) -> str:
    """The served name of just this target: an alias that moves in the middle of a batch must not split it."""
    return f"{target.domain.name}:{target.adapter or RAW_BASE}" if target.domain else RAW_BASE


async def run_each(jobs: Sequence[Job[T]], at_a_time: int) -> list[T | PreceptorError]:
    """Runs every job, at most `at_a_time` together, begun in order; cancelled as a whole.

    Raises:
        PreceptorError: Every job failed with one code, so there is no answer to give beside it.
    """
    results: dict[int, T | PreceptorError] = {}
    waiting = iter(enumerate(jobs))

    async def work() -> None:
        for index, job in waiting:
            try:
                results[index] = await job()
            except PreceptorError as error:
                results[index] = error

    async with asyncio.TaskGroup() as group:
        for _ in range(min(at_a_time, len(jobs))):
            group.create_task(work())
    ordered = [results[index] for index in range(len(jobs))]
    failures = [one for one in ordered if isinstance(one, PreceptorError)]
    if len(failures) == len(ordered) and len({error.code for error in failures}) == 1:
        raise failures[0]
    return ordered


async def all_or_none(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Runs parts of one answer together; the first that fails ends the others, for their answers would be lost."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
