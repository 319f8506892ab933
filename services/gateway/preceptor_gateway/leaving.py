"""Work that ends with its client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from preceptor_gateway.limits.gate import release
from preceptor_gateway.problems import ClientLeft

T = TypeVar("T")


async def until_client_leaves(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Runs `work`, cancelled when the client hangs up, so that the engine stops too."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeft("The client hung up before its answer was there.")
        return task.result()
    finally:
        for one in (task, watch):
            one.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


class EventStream(StreamingResponse):
    """Server-sent events that let go of what they hold, even where the client is gone before the first is asked for.

    Args:
        events: What is sent.
        held: Left in every case; a generator that never began would leave nothing.
        headers: Sent with the status.
    """

    def __init__(self, events: AsyncIterator[bytes], held: AsyncExitStack, headers: Mapping[str, str]) -> None:
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends."""

        async def send_and_let_go(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                # A client may ask again once it has the last byte; what it gets back must be there by then.
                await self._held.aclose()
                await release(scope)
            await send(message)

        async with self._held:
            await super().__call__(scope, receive, send_and_let_go)
