"""The gateway's client: what it reads, and that every failure becomes a sentence with a hint."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from preceptor_contracts.messages import Message
from preceptor_contracts.wire import McqRequest
from preceptor_ui import client
from preceptor_ui.client import Gateway, GatewayFailure, Piece
from preceptor_ui.settings import Settings
from starlette.responses import PlainTextResponse, Response

from tests.unit.ui.ui_fake_gateway import ANSWER, EPIPEN, KEY, SERVED, FakeGateway, html_error, problem

SettingsFor = Callable[..., Settings]
ITEM = McqRequest(question="Which?", choices=("Tree", "Grass"), model="allergy")


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Gateway]:
    gateway = Gateway(settings)
    try:
        yield gateway
    finally:
        await gateway.aclose()


def ask(settings: Settings, question: str = "Hello?") -> list[Piece]:
    async def collect() -> list[Piece]:
        async with opened(settings) as gateway:
            message = Message(role="user", content=question)
            return [piece async for piece in gateway.stream("allergy", (message,))]

    return asyncio.run(collect())


def call(settings: Settings, act: Callable[[Gateway], Coroutine[Any, Any, Any]]) -> Any:
    async def run() -> Any:
        async with opened(settings) as gateway:
            return await act(gateway)

    return asyncio.run(run())


def failure(settings: Settings) -> GatewayFailure:
    with pytest.raises(GatewayFailure) as caught:
        ask(settings)
    return caught.value


def test_catalogue_keeps_the_gateways_order(fake: FakeGateway, settings_for: SettingsFor) -> None:
    catalogue = call(settings_for(fake.url), lambda gateway: gateway.catalogue())
    assert catalogue.served == tuple(SERVED)
    assert [domain.name for domain in catalogue.domains] == ["allergy", "sql"]


def test_every_request_carries_the_key(fake: FakeGateway, settings_for: SettingsFor) -> None:
    call(settings_for(fake.url), lambda gateway: gateway.catalogue())
    assert set(fake.keys) == {f"Bearer {KEY}"}


def test_stream_yields_the_whole_answer(fake: FakeGateway, settings_for: SettingsFor) -> None:
    pieces = ask(settings_for(fake.url))
    assert "".join(piece.text for piece in pieces) == ANSWER
    assert fake.heard == [
        {"model": "allergy", "messages": [{"role": "user", "content": "Hello?"}], "stream": True},
    ]


def test_safety_header_comes_first_and_decoded(fake: FakeGateway, settings_for: SettingsFor) -> None:
    first, *rest = ask(settings_for(fake.url), "I cannot breathe")
    assert first == Piece(safety=EPIPEN)
    assert not any(piece.safety for piece in rest)


def test_length_limit_is_told(fake: FakeGateway, settings_for: SettingsFor) -> None:
    fake.finish = "length"
    assert ask(settings_for(fake.url))[-1].is_cut


def test_mcq_answer_is_read(fake: FakeGateway, settings_for: SettingsFor) -> None:
    answer = call(settings_for(fake.url), lambda gateway: gateway.answer(ITEM))
    assert (answer.answer, answer.choice) == ("B", "Grass")
    assert fake.heard[0]["model"] == "allergy"


@pytest.mark.parametrize(
    ("status", "hint"),
    [(401, "GATEWAY_API_KEY"), (404, "Press Refresh"), (429, "Wait"), (503, "starting"), (504, "again")],
)
def test_status_without_a_hint_gets_ours(fake: FakeGateway, settings_for: SettingsFor, status: int, hint: str) -> None:
    fake.refusal = lambda: problem(status, "No.", code="a_code")
    error = failure(settings_for(fake.url))
    assert (error.message, error.code) == ("No.", "a_code")
    assert hint in error.hint


def test_gateways_hint_wins(fake: FakeGateway, settings_for: SettingsFor) -> None:
    fake.refusal = lambda: problem(404, "There is no 'x'.", hint="GET /v1/models lists them.")
    assert str(failure(settings_for(fake.url))) == "There is no 'x'. GET /v1/models lists them."


def test_wrong_key_is_told(fake: FakeGateway, settings_for: SettingsFor) -> None:
    error = failure(settings_for(fake.url, key="wrong"))
    assert error.message == "This key is not known."
    assert "wrong" not in str(error)


def test_nobody_listening_names_the_address(closed_url: str, settings_for: SettingsFor) -> None:
    error = failure(settings_for(closed_url))
    assert error.code == "gateway_down"
    assert closed_url in error.message
    assert "make demo" in error.hint


def test_silence_is_a_timeout(fake: FakeGateway, settings_for: SettingsFor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "TIMEOUT", httpx.Timeout(0.1))
    fake.chunk_s = 5
    assert failure(settings_for(fake.url)).code == "gateway_timeout"


def test_proxys_page_is_no_explanation(fake: FakeGateway, settings_for: SettingsFor) -> None:
    fake.refusal = html_error
    error = failure(settings_for(fake.url))
    assert "502" in error.message
    assert "<html>" not in str(error)


@pytest.mark.parametrize("body", ["{not json", "{}", "<html>hello</html>"])
def test_broken_success_is_unreadable(fake: FakeGateway, settings_for: SettingsFor, body: str) -> None:
    fake.refusal = lambda: PlainTextResponse(body)
    with pytest.raises(GatewayFailure, match="cannot read"):
        call(settings_for(fake.url), lambda gateway: gateway.catalogue())


def test_redirect_is_not_followed(fake: FakeGateway, settings_for: SettingsFor) -> None:
    fake.refusal = lambda: Response(status_code=302, headers={"location": "http://127.0.0.1:1/"})
    assert failure(settings_for(fake.url)).code == "unreadable_answer"


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ('data: {"error": {"message": "Engine gone."}, "hint": "Wait."}\n\n', "Engine gone. Wait."),
        ('data: {"error": {"message": "Engine gone.", "code": 500}}\n\n', "Engine gone. Send the question again."),
        ("data: {broken\n\n", "cannot read"),
        ("", "broke off"),
    ],
)
def test_failure_in_mid_stream_comes_after_the_text(
    fake: FakeGateway, settings_for: SettingsFor, event: str, message: str
) -> None:
    fake.breaks_with = event
    seen: list[str] = []

    async def collect(gateway: Gateway) -> None:
        async for piece in gateway.stream("allergy", (Message(role="user", content="Hello?"),)):
            seen.append(piece.text)

    with pytest.raises(GatewayFailure) as caught:
        call(settings_for(fake.url), collect)
    assert "".join(seen) == "An **allergy**"
    assert message in str(caught.value)


def test_closing_the_stream_ends_the_request(fake: FakeGateway, settings_for: SettingsFor) -> None:
    fake.is_endless = True

    async def leave(gateway: Gateway) -> bool:
        stream = gateway.stream("allergy", (Message(role="user", content="Hello?"),))
        await anext(stream)
        await stream.aclose()
        return await asyncio.to_thread(fake.hung_up.wait, 5)

    assert call(settings_for(fake.url), leave)
