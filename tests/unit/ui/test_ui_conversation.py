"""Conversations: history, streaming, Stop, and that no question is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

import pytest
from preceptor_contracts.messages import Message, wire
from preceptor_ui.chat import Stops, bubbles
from preceptor_ui.client import Gateway, GatewayFailure, Piece
from preceptor_ui.conversation import CUT, STOPPED, Progress, Turn, Turns, converse, history, unsent
from preceptor_ui.settings import Settings

from tests.unit.ui.ui_fake_gateway import FakeGateway


class Script:
    """Streams what it is told to, then fails or hangs if told so."""

    def __init__(self, *pieces: Piece, error: GatewayFailure | None = None, hangs: bool = False) -> None:
        self.pieces = pieces
        self.error = error
        self.hangs = hangs
        self.is_closed = False
        self.sent: tuple[Message, ...] = ()

    async def stream(self, served: str, messages: tuple[Message, ...]) -> AsyncGenerator[Piece, None]:
        self.sent = messages
        try:
            for piece in self.pieces:
                yield piece
            if self.error is not None:
                raise self.error
            if self.hangs:
                await asyncio.Event().wait()
        finally:
            self.is_closed = True


def run(script: Script, question: str, turns: Turns = (), served: str | None = "allergy") -> list[Progress]:
    async def collect() -> list[Progress]:
        steps = converse(script, turns, question, served, asyncio.Event(), refresh_s=0)
        return [progress async for progress in steps]

    return asyncio.run(collect())


def test_answer_grows_and_ends() -> None:
    steps = run(Script(Piece("One"), Piece(" two")), "  Count  ")
    assert [step.turns[-1].answer for step in steps] == ["", "One", "One two", "One two"]
    assert [step.is_running for step in steps] == [True, True, True, False]
    assert steps[-1].turns == (Turn("Count", "One two"),)


def test_all_turns_are_sent() -> None:
    script = Script(Piece("Fine."))
    run(script, "And you?", (Turn("Hi", "Hello"),))
    assert [entry["content"] for entry in wire(script.sent)] == ["Hi", "Hello", "And you?"]


def test_broken_turns_and_safety_messages_are_not_sent() -> None:
    turns = (Turn("a", "CALL 112\n\nRest.", safety="CALL 112"), Turn("b", "par", is_broken=True))
    script = Script(Piece("x"))
    last = run(script, "c", turns)[-1]
    assert [entry["content"] for entry in wire(script.sent)] == ["a", "Rest.", "c"]
    assert [turn.question for turn in last.turns] == ["a", "c"]


def test_safety_message_reaches_the_banner() -> None:
    steps = run(Script(Piece(safety="CALL 112"), Piece("CALL 112\n\nThen rest.")), "help")
    assert [step.safety for step in steps] == ["", "CALL 112", "CALL 112", "CALL 112"]


def test_safety_message_alone_is_an_answer_but_no_history() -> None:
    last = run(Script(Piece(safety="CALL 112"), Piece("CALL 112")), "help")[-1]
    assert not last.turns[-1].is_broken
    script = Script(Piece("x"))
    run(script, "and now?", last.turns)
    assert [message.content for message in script.sent] == ["and now?"]


def test_failure_keeps_the_question_for_the_box() -> None:
    last = run(Script(Piece("Half"), error=GatewayFailure("Gone.", hint="Wait.")), "Why?")[-1]
    assert last.notice is not None
    assert (last.notice.message, last.notice.hint) == ("Gone.", "Wait.")
    assert last.turns[-1].is_broken
    assert unsent(last.turns, "") == "Why?"


def test_box_is_left_alone_otherwise() -> None:
    assert unsent((Turn("Why?", is_broken=True),), "typing") is None
    assert unsent((Turn("Why?", "So."),), "") is None
    assert unsent((), "") is None


@pytest.mark.parametrize(("question", "served"), [("   ", "allergy"), ("Why?", None), ("Why?", "")])
def test_nothing_is_sent_without_question_or_served_name(question: str, served: str | None) -> None:
    script = Script(Piece("x"))
    (only,) = run(script, question, served=served)
    assert only.notice is not None
    assert script.sent == ()


def test_empty_and_cut_answers_are_said() -> None:
    assert run(Script(), "Why?")[-1].turns[-1].is_broken
    assert run(Script(Piece("x"), Piece(is_cut=True)), "Why?")[-1].turns[-1].note == CUT


@pytest.mark.parametrize(("pieces", "is_broken"), [((Piece("Half"),), False), ((), True)])
def test_stop_closes_the_stream_at_once(pieces: tuple[Piece, ...], is_broken: bool) -> None:
    script = Script(*pieces, hangs=True)

    async def stop_soon() -> Progress:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(0.02, stop.set)
        steps = [step async for step in converse(script, (), "Why?", "allergy", stop, refresh_s=0)]
        return steps[-1]

    last = asyncio.run(asyncio.wait_for(stop_soon(), 5))
    assert script.is_closed
    assert last.turns[-1].note == STOPPED
    assert last.turns[-1].is_broken is is_broken
    assert last.notice is None


def test_leaving_the_generator_closes_the_stream() -> None:
    script = Script(Piece("a"), hangs=True)

    async def leave() -> None:
        steps = converse(script, (), "Why?", "allergy", asyncio.Event(), refresh_s=0)
        await anext(steps)
        await anext(steps)
        await steps.aclose()

    asyncio.run(asyncio.wait_for(leave(), 5))
    assert script.is_closed


def test_stop_hangs_up_on_the_gateway(fake: FakeGateway, settings_for: Callable[..., Settings]) -> None:
    fake.is_endless = True

    async def stop_soon() -> bool:
        gateway = Gateway(settings_for(fake.url))
        stop = asyncio.Event()
        async for step in converse(gateway, (), "Why?", "allergy", stop):
            if step.turns[-1].answer:
                stop.set()
        is_ended = await asyncio.to_thread(fake.hung_up.wait, 5)
        await gateway.aclose()
        return is_ended

    assert asyncio.run(asyncio.wait_for(stop_soon(), 10))


def test_long_answers_are_not_repainted_for_every_token() -> None:
    async def count() -> int:
        script = Script(*[Piece("x")] * 1000)
        return len([step async for step in converse(script, (), "Why?", "allergy", asyncio.Event())])

    assert asyncio.run(count()) < 100


def test_stops_end_only_their_session() -> None:
    stops = Stops()
    mine, other = stops.begin("mine"), stops.begin("other")
    stops.end("mine")
    stops.end("unknown")
    assert (mine.is_set(), other.is_set()) == (True, False)
    again = stops.begin("other")
    assert other.is_set()
    stops.forget("other", other)
    stops.end("other")
    assert again.is_set()


def test_history_skips_unanswered_turns_before_the_last() -> None:
    assert [message.content for message in history((Turn("a"), Turn("b")))] == ["b"]


def test_bubbles_show_notes_but_no_empty_answers() -> None:
    shown = bubbles((Turn("*a*", "<b>x</b>", note=STOPPED), Turn("b")))
    assert shown == [
        {"role": "user", "content": "&#42;a&#42;"},
        {"role": "assistant", "content": f"&lt;b>x&lt;/b>\n\n*{STOPPED}*"},
        {"role": "user", "content": "b"},
    ]
