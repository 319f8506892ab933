from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from preceptor_contracts.errors import PrerequisiteError
from preceptor_contracts.mcq import McqItem
from preceptor_trainer.concurrently import each
from preceptor_trainer.gateway import ATTEMPTS, Gateway, GatewayBusy, GatewayFailure

HEALTH = {"status": "ok", "engine": "vllm", "domains": 1, "adapters_ready": 0}


def _problem(message: str, hint: str) -> dict[str, object]:
    return {"error": {"message": message, "type": "x", "code": "some_code"}, "hint": hint, "request_id": "r"}


def _gateway(answer: Callable[[httpx.Request], httpx.Response]) -> Gateway:
    return Gateway("http://gateway", "k", transport=httpx.MockTransport(answer))


async def test_it_waits_as_asked_and_tries_again() -> None:
    answers = [httpx.Response(503, headers={"retry-after": "0"}), httpx.Response(200, json=HEALTH)]
    async with _gateway(lambda request: answers.pop(0)) as gateway:
        assert (await gateway.health()).engine == "vllm"


async def test_it_does_not_try_for_ever() -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return httpx.Response(503, headers={"retry-after": "0"}, json=_problem("The engine is down.", "make serve"))

    async with _gateway(answer) as gateway:
        with pytest.raises(GatewayFailure, match="engine is down") as caught:
            await gateway.health()
    assert (len(asked), caught.value.hint, caught.value.code) == (ATTEMPTS, "make serve", "some_code")


async def test_a_gateway_that_is_not_there_says_how_to_start_it() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    async with _gateway(answer) as gateway:
        with pytest.raises(PrerequisiteError) as caught:
            await gateway.health()
    assert caught.value.hint == "Start the stack: make serve"


async def test_a_password_in_its_url_is_not_shown() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    async with Gateway("http://me:s3cret@gateway:8000/", "k", transport=httpx.MockTransport(answer)) as gateway:
        with pytest.raises(PrerequisiteError) as caught:
            await gateway.health()
    assert caught.value.message == "The gateway at http://gateway:8000 does not answer."


@pytest.mark.parametrize(
    ("status", "code", "passes"),
    [(503, "engine_down", True), (502, "engine_error", True), (503, "adapter_failed", False), (404, "x", False)],
)
async def test_a_failure_that_may_pass_is_told_apart(status: int, code: str, passes: bool) -> None:
    problem = {"error": {"message": "No.", "type": "x", "code": code}, "hint": "", "request_id": "r"}
    response = httpx.Response(status, headers={"retry-after": "0"}, json=problem)
    async with _gateway(lambda request: response) as gateway:
        with pytest.raises(GatewayFailure) as caught:
            await gateway.health()
    assert isinstance(caught.value, GatewayBusy) is passes


async def test_a_wrong_key_is_a_missing_prerequisite() -> None:
    async with _gateway(lambda request: httpx.Response(401, json=_problem("No such key.", ""))) as gateway:
        with pytest.raises(PrerequisiteError) as caught:
            await gateway.health()
    assert "GATEWAY_ADMIN_KEY" in caught.value.hint


@pytest.mark.parametrize("response", [httpx.Response(404, text="<html>"), httpx.Response(200, json={"x": 1})])
async def test_something_else_that_listens_there_is_told_as_such(response: httpx.Response) -> None:
    async with _gateway(lambda request: response) as gateway:
        with pytest.raises(GatewayFailure):
            await gateway.health()


async def test_options_are_sent_with_their_labels() -> None:
    sent: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.content)
        return httpx.Response(400, json=_problem("no", ""))

    async with _gateway(answer) as gateway:
        with pytest.raises(GatewayFailure):
            await gateway.answer_mcq("d:base", McqItem(question="q", options=("I. alone", "You")))
    assert b'["A) I. alone","B) You"]' in sent[0]


async def test_the_first_failure_is_raised_as_it_is_and_ends_the_rest() -> None:
    done: list[int] = []

    async def work(item: int) -> int:
        if item == 0:
            raise PrerequisiteError("first")
        done.append(item)
        return item

    with pytest.raises(PrerequisiteError, match="first"):
        await each(range(100), work, limit=1)
    assert len(done) < 100


async def test_answers_keep_the_order_of_their_questions() -> None:
    async def work(item: int) -> int:
        return item * 2

    assert await each(range(5), work, limit=3) == [0, 2, 4, 6, 8]
