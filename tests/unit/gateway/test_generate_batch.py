"""`POST /generate/batch`: many prompts, one JSON answer, in order."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest
from preceptor_contracts.wire_generate import GenerateBatchAnswer

from tests.fakes.engine import ANSWER, END, MAX_MODEL_LEN
from tests.unit.gateway.conftest import V1, Stack, StackMaker

Json = dict[str, Any]


def batch(stack: Stack, *prompts: str, **more: object) -> list[Json]:
    answer = stack.use.post("/generate/batch", json={"prompts": prompts, **more})
    assert answer.status_code == 200, answer.text
    GenerateBatchAnswer.model_validate(answer.json())
    results: list[Json] = answer.json()["results"]
    return results


def test_answers_come_in_order_with_usage(stack: Stack) -> None:
    results = batch(stack, *(f"Prompt {n}?" for n in range(256)))
    assert [result["index"] for result in results] == list(range(256))
    assert {result["text"] for result in results} == {ANSWER}
    assert {result["finish_reason"] for result in results} == {"stop"}
    usage = results[0]["usage"]
    assert usage["prompt_tokens"] > 0
    assert usage["completion_tokens"] > 0
    assert usage["cached_tokens"] is not None


def test_each_prompt_gets_what_generate_gives_it(stack: Stack) -> None:
    stack.add(V1)
    stack.load(V1).raise_for_status()
    batch(stack, "Hello?", model=f"clinic:{V1}", max_tokens=7, temperature=0.5)
    sent = stack.sent()
    assert sent["messages"][0] == {"role": "system", "content": "You are a clinic. {braces} stay."}  # type: ignore[index]  # JSON
    assert (sent["model"], sent["max_tokens"], sent["temperature"]) == (V1, 7, 0.5)
    assert (sent["stream"], sent["stop_token_ids"]) == (False, [END])


def test_emergency_is_told_before_the_answer(stack: Stack) -> None:
    plain, urgent = batch(stack, "Hello?", "I can't breathe", domain="clinic")
    assert plain["text"] == ANSWER
    assert urgent["text"] == f"Call 112 first.\n\n{ANSWER}"


def test_concurrency_is_bounded(make_stack: StackMaker) -> None:
    stack = make_stack(batch_concurrency=3)
    stack.fake.token_delay_s = 0.02
    batch(stack, *(f"Prompt {n}?" for n in range(12)))
    assert stack.fake.most_together == 3


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"prompts": []}, 400, "invalid_field", "prompts"),
        ({"prompts": ["a"] * 257}, 400, "invalid_field", "prompts"),
        ({"prompts": ["a", " "]}, 400, "invalid_field", "prompts.1"),
        ({"prompts": ["a", 1]}, 400, "invalid_field", "prompts.1"),
        ({"prompts": ["a"], "odd": 1}, 400, "invalid_field", "odd"),
        ({"prompts": ["a"], "max_tokens": 0}, 400, "invalid_field", "max_tokens"),
        ({"prompts": ["a"], "model": "nope"}, 404, "unknown_served_name", "model"),
        ({"prompts": ["a"], "model": "clinic"}, 404, "nothing_promoted", "model"),
    ],
)
def test_bad_requests_reach_no_engine(stack: Stack, body: Json, status: int, code: str, param: str) -> None:
    answer = stack.use.post("/generate/batch", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert not [path for path, _ in stack.fake.calls if path.endswith("completions")]


def test_one_prompt_that_fails_does_not_lose_the_others(make_stack: StackMaker) -> None:
    stack = make_stack(batch_concurrency=1)
    first, long, last = batch(stack, "Hello?", "a" * MAX_MODEL_LEN, "Bye?")
    assert first["text"] == last["text"] == ANSWER
    assert long["error"]["code"] == "context_length_exceeded"
    stack.fake.die_after = stack.fake.answered + 1
    alive, dead = batch(stack, "Hello?", "Bye?")
    assert alive["text"] == ANSWER
    assert (dead["index"], dead["error"]["code"]) == (1, "engine_down")


def test_where_all_fail_alike_the_request_fails(stack: Stack) -> None:
    stack.fake.fail_with = 503
    answer = stack.use.post("/generate/batch", json={"prompts": ["a", "b"]})
    assert (answer.status_code, answer.json()["error"]["code"], answer.headers["retry-after"]) == (
        503,
        "engine_busy",
        "5",
    )


def test_client_that_leaves_cancels_the_batch(make_stack: StackMaker) -> None:
    stack = make_stack(batch_concurrency=4)
    stack.fake.token_delay_s = 5
    with pytest.raises(httpx.ReadTimeout):
        stack.use.post(
            "/generate/batch", json={"prompts": [str(n) for n in range(50)]}, timeout=httpx.Timeout(5, read=0.4)
        )
    deadline = time.monotonic() + 2
    while stack.fake.aborted < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert stack.fake.aborted == 4
