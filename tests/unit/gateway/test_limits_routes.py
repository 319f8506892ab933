"""Limits over HTTP: headers, refusals, and slots that come back however a request ends."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import httpx
import pytest
from preceptor_gateway.leaving import EventStream
from preceptor_gateway.limits.gate import CHARACTERS_PER_TOKEN
from preceptor_gateway.limits.limiter import Admission
from starlette.types import Message

from tests.fakes.serving import free_port
from tests.unit.gateway.conftest import Stack, StackMaker

ITEM = {"domain": "clinic", "question": "Which?", "choices": ["one", "two"]}
PROMPT = {"domain": "clinic", "prompt": "Hi", "max_tokens": 5}
RENDER = {"messages": [{"role": "user", "content": "Hi"}]}
ROUTES = [("/submit_mcq", ITEM), ("/generate", PROMPT), ("/v1/domains/clinic/render", RENDER)]


def limit_headers(answer: httpx.Response) -> dict[str, str]:
    return {
        name.removeprefix("x-ratelimit-"): value
        for name, value in answer.headers.items()
        if name.startswith("x-ratelimit-")
    }


def until(wanted: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 3
    while not wanted() and time.monotonic() < deadline:
        time.sleep(0.02)
    return wanted()


@pytest.mark.parametrize(("path", "body"), ROUTES, ids=lambda value: value if isinstance(value, str) else "")
def test_every_route_that_reaches_the_engine_counts(make_stack: StackMaker, path: str, body: object) -> None:
    stack = make_stack(requests_per_minute=2, tokens_per_minute=10_000)
    first, second, third = (stack.use.post(path, json=body) for _ in range(3))
    assert [first.status_code, second.status_code, third.status_code] == [200, 200, 429]
    assert limit_headers(first)["limit-requests"] == "2"
    assert limit_headers(first)["remaining-requests"] == "1"
    assert limit_headers(first)["limit-tokens"] == "10000"
    assert set(limit_headers(first)) == set(limit_headers(third))
    assert len(limit_headers(third)) == 6
    problem = third.json()["error"]
    assert (problem["type"], problem["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert "limit of 2 requests per minute" in problem["message"]
    assert 1 <= int(third.headers["retry-after"]) <= 120
    calls = len(stack.fake.calls)
    assert stack.use.post(path, json=body).status_code == 429
    assert len(stack.fake.calls) == calls  # the engine was not bothered
    metrics = httpx.get(f"{stack.url}/metrics").text
    refused = re.findall(r'^preceptor_limited_requests_total\{.*limit="requests".*\} (\S+)$', metrics, re.MULTILINE)
    assert sum(map(float, refused)) == 2


def test_without_limits_there_are_no_headers_and_the_admin_key_never_has_any(make_stack: StackMaker) -> None:
    free = make_stack()
    assert limit_headers(free.use.post("/submit_mcq", json=ITEM)) == {}
    stack = make_stack(requests_per_minute=1)
    for _ in range(3):
        answer = stack.admin.post("/submit_mcq", json=ITEM)
        assert answer.status_code == 200
        assert limit_headers(answer) == {}


def test_lists_do_not_count(make_stack: StackMaker) -> None:
    stack = make_stack(requests_per_minute=1)
    assert [stack.use.get("/v1/domains").status_code for _ in range(3)] == [200, 200, 200]


def test_tokens_are_booked_as_the_engine_counts_them(make_stack: StackMaker) -> None:
    stack = make_stack(tokens_per_minute=5000)
    used = stack.use.post("/submit_mcq", json=ITEM).json()["prompt_tokens"]
    second = limit_headers(stack.use.post("/v1/domains/clinic/render", json=RENDER))
    estimate = len(httpx.Request("POST", "http://a", json=RENDER).content) // CHARACTERS_PER_TOKEN + 1
    assert int(second["remaining-tokens"]) == 5000 - (used + 1) - estimate


def test_a_request_that_is_larger_than_the_minute(make_stack: StackMaker) -> None:
    stack = make_stack(tokens_per_minute=100)
    answer = stack.use.post("/generate", json={**PROMPT, "max_tokens": 500})
    assert answer.status_code == 429
    assert answer.headers["x-should-retry"] == "false"
    assert "waiting does not help" in answer.json()["hint"]


def test_a_stream_holds_its_slot_until_it_is_sent(make_stack: StackMaker) -> None:
    stack = make_stack(concurrent_requests=1)
    stack.fake.token_delay_s = 0.2
    with stack.use.stream("POST", "/generate", json=PROMPT) as answer:
        pieces = answer.iter_bytes()
        next(pieces)
        busy = httpx.post(f"{stack.url}/submit_mcq", json=ITEM, headers=stack.use.headers)
        assert busy.status_code == 429
        assert "1 requests under way, and its limit is 1 at once" in busy.json()["error"]["message"]
        assert busy.headers["retry-after"] == "1"
        assert b"[DONE]" in b"".join(pieces)
    assert until(lambda: stack.use.post("/submit_mcq", json=ITEM).status_code == 200)


def test_a_client_that_leaves_gives_its_slot_back(make_stack: StackMaker) -> None:
    stack = make_stack(concurrent_requests=1)
    stack.fake.token_delay_s = 0.5
    with stack.use.stream("POST", "/generate", json=PROMPT) as answer:
        next(answer.iter_bytes())
    assert until(lambda: stack.use.post("/submit_mcq", json=ITEM).status_code == 200)


@pytest.mark.parametrize("body", [b"{nope", b"{}", b'{"domain": "nope", "question": "q", "choices": ["a", "b"]}'])
def test_requests_that_fail_give_their_slot_back(make_stack: StackMaker, body: bytes) -> None:
    stack = make_stack(concurrent_requests=1)
    for _ in range(3):
        headers = {"content-type": "application/json"}
        assert stack.use.post("/submit_mcq", content=body, headers=headers).status_code in (400, 404)
    stack.fake.fail_with = 500
    assert [stack.use.post("/submit_mcq", json=ITEM).status_code for _ in range(3)] == [502, 502, 502]
    stack.fake.fail_with = 0
    assert stack.use.post("/submit_mcq", json=ITEM).status_code == 200


def test_a_keys_own_limits_win_over_the_defaults(make_stack: StackMaker) -> None:
    stack = make_stack(requests_per_minute=1)
    made = stack.admin.post("/v1/keys", json={"name": "a", "requests_per_minute": 0}).json()
    headers = {"authorization": f"Bearer {made['key']}"}
    answers = [httpx.post(f"{stack.url}/submit_mcq", json=ITEM, headers=headers) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 200]


def test_a_redis_that_is_away_does_not_take_the_service_down(make_stack: StackMaker) -> None:
    stack = make_stack(requests_per_minute=2, limits_url=f"redis://127.0.0.1:{free_port()}")
    started = time.perf_counter()
    assert [stack.use.post("/submit_mcq", json=ITEM).status_code for _ in range(3)] == [200, 200, 429]
    assert time.perf_counter() - started < 3
    assert "preceptor_limits_alone_total 0.0" not in httpx.get(f"{stack.url}/metrics").text


def test_the_metrics_name_no_key(make_stack: StackMaker) -> None:
    stack: Stack = make_stack(requests_per_minute=1)
    made = stack.admin.post("/v1/keys", json={"name": "a"}).json()
    for _ in range(2):
        httpx.post(f"{stack.url}/submit_mcq", json=ITEM, headers={"authorization": f"Bearer {made['key']}"})
    assert made["id"] not in httpx.get(f"{stack.url}/metrics").text


def test_a_request_whose_fields_are_wrong_takes_no_tokens(make_stack: StackMaker) -> None:
    stack = make_stack(tokens_per_minute=5000)
    wrong = stack.use.post("/generate", json={**PROMPT, "max_tokens": 4000, "temperatur": 0})
    assert wrong.status_code == 400
    asked = stack.use.post("/submit_mcq", json=ITEM)
    assert int(limit_headers(asked)["remaining-tokens"]) > 4000


def test_tokens_of_a_request_that_failed_are_given_back(make_stack: StackMaker) -> None:
    stack = make_stack(tokens_per_minute=1000)
    stack.fake.fail_with = 500
    assert [stack.use.post("/generate", json={**PROMPT, "max_tokens": 900}).status_code for _ in range(3)] == [502] * 3
    stack.fake.fail_with = 0
    assert stack.use.post("/generate", json={**PROMPT, "max_tokens": 900}).status_code == 200
    # A short answer gives back what its estimate took too much.
    assert stack.use.post("/generate", json={**PROMPT, "max_tokens": 900}).status_code == 200
    assert stack.use.post("/generate", json={**PROMPT, "max_tokens": 1000}).status_code == 429


async def test_a_stream_lets_its_admission_go_before_its_last_byte() -> None:
    # A client asks again once it has the last byte; what the limits hold for it must be free by then.
    order: list[str] = []
    admission = Admission([], lambda: order.append("slot"), lambda used: order.append(f"{used} tokens"))
    scope = {"type": "http", "asgi": {"spec_version": "2.3"}, "admission": admission}
    held = AsyncExitStack()
    held.callback(lambda: scope.__setitem__("tokens_used", 7))

    async def events() -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"

    async def receive() -> Message:
        await asyncio.sleep(3600)
        raise AssertionError

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            order.append("piece" if message["more_body"] else "last byte")

    await EventStream(events(), held, {})(scope, receive, send)
    assert order == ["piece", "slot", "7 tokens", "last byte"]
