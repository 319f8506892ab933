"""A conversation as values, and the generator that extends it by one answer. No Gradio here; `chat` shows it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from preceptor_contracts.errors import PreceptorError
from preceptor_contracts.messages import Message

from preceptor_ui.client import Piece
from preceptor_ui.fragments import Notice

STOPPED = "Stopped."
BROKEN = "No complete answer arrived."
CUT = "The answer reached its length limit."
REFRESH_S = 0.06
"""Least time between two repaints of a growing answer."""

T = TypeVar("T")


@dataclass(frozen=True)
class Turn:
    """A question and what came back."""

    question: str
    answer: str = ""
    safety: str = ""
    """Message of the safety rules that fired; the gateway puts it before the answer."""
    note: str = ""
    """Said under the answer; not part of the history that is sent."""
    is_broken: bool = False
    """True where it failed: shown once more, never sent, and dropped at the next question."""

    @property
    def said(self) -> str:
        """The answer without the gateway's safety message, which the base model or adapter never said."""
        return self.answer.removeprefix(self.safety).strip()


Turns = tuple[Turn, ...]


@dataclass(frozen=True)
class Progress:
    """Where a conversation stands."""

    turns: Turns
    safety: str = ""
    notice: Notice | None = None
    is_running: bool = False


class Streamer(Protocol):
    """The one thing that this module needs of the gateway's client."""

    def stream(self, served: str, messages: tuple[Message, ...]) -> AsyncGenerator[Piece, None]:
        """Streams an answer."""


def history(turns: Turns) -> tuple[Message, ...]:
    """The messages to send: answered turns, and the last question where it is still open."""
    messages: list[Message] = []
    for position, turn in enumerate(turns, start=1):
        if turn.said:
            messages += [
                Message(role="user", content=turn.question),
                Message(role="assistant", content=turn.said),
            ]
        elif position == len(turns):
            messages.append(Message(role="user", content=turn.question))
    return tuple(messages)


async def converse(
    gateway: Streamer,
    turns: Turns,
    question: str,
    served: str | None,
    stop: asyncio.Event,
    *,
    refresh_s: float = REFRESH_S,
) -> AsyncGenerator[Progress, None]:
    """Asks one question and yields the conversation as its answer grows; setting `stop` ends the request."""
    question = question.strip()
    if not question:
        yield Progress(turns, notice=Notice("There is no question to send.", "Type one, or pick an example."))
        return
    if not served:
        yield Progress(turns, notice=Notice("Nothing is chosen to answer.", "Press Refresh, then choose who answers."))
        return
    kept = tuple(turn for turn in turns if not turn.is_broken)
    turn = Turn(question)
    now = Progress((*kept, turn), is_running=True)
    yield now
    shown_at = 0.0
    try:
        async with aclosing(until(gateway.stream(served, history(now.turns)), stop)) as pieces:
            async for piece in pieces:
                turn = replace(
                    turn,
                    answer=turn.answer + piece.text,
                    safety=piece.safety or turn.safety,
                    note=CUT if piece.is_cut else turn.note,
                )
                now = replace(now, turns=(*kept, turn), safety=turn.safety)
                if piece.safety or time.monotonic() - shown_at >= refresh_s:
                    yield now
                    shown_at = time.monotonic()
    except PreceptorError as error:
        broken = replace(turn, note=BROKEN, is_broken=True)
        yield replace(now, turns=(*kept, broken), notice=Notice.of(error), is_running=False)
        return
    if stop.is_set():
        turn = replace(turn, note=STOPPED, is_broken=not turn.answer.strip())
    elif not turn.answer.strip():
        turn = replace(turn, note="The answer was empty.", is_broken=True)
    yield replace(now, turns=(*kept, turn), is_running=False)


def unsent(turns: Turns, draft: str) -> str | None:
    """The question that got no answer, to go back into the question box; None where the box must be left alone."""
    if draft.strip() or not turns or not turns[-1].is_broken:
        return None
    return turns[-1].question


async def until(pieces: AsyncGenerator[T, None], stop: asyncio.Event) -> AsyncGenerator[T, None]:
    """Yields from `pieces` until they end or `stop` is set; closes them at once in either case."""
    stopped = asyncio.ensure_future(stop.wait())
    step: asyncio.Task[T] | None = None
    try:
        while not stop.is_set():
            step = asyncio.create_task(_next(pieces))
            await asyncio.wait({step, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not step.done():
                return
            try:
                piece = step.result()
            except StopAsyncIteration:
                return
            yield piece
    finally:
        stopped.cancel()
        if step is not None and not step.done():
            step.cancel()
            await asyncio.gather(step, return_exceptions=True)
        await pieces.aclose()


async def _next(pieces: AsyncGenerator[T, None]) -> T:
    return await anext(pieces)
