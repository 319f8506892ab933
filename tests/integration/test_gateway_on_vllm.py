"""The gateway in front of real vLLM: what it passes on is what the engine says, and what clients leave is ended."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import httpx
import pytest

from tests.integration.conftest import RealStack

ITEM = {
    "passage": "Pollen is carried by wind from April to July. Grass pollen peaks in June. " * 4,
    "question": "When does grass pollen peak?",
    "options": ["In June.", "In winter.", "At noon."],
}


def ask(stack: RealStack, **more: object) -> httpx.Response:
    body = {"model": "base", "messages": [{"role": "user", "content": "Name three colours."}], "temperature": 0, **more}
    return stack.use.post("/v1/chat/completions", json=body).raise_for_status()


def running(stack: RealStack) -> float:
    """Requests that the engine says it works on."""
    with stack.engine.client() as engine:
        lines = engine.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_running"))


def series(stack: RealStack, name: str, **labels: str) -> float:
    """Sum of a series of the gateway's."""
    found = re.findall(rf"^{name}({{.*}}) (\S+)$", stack.use.get("/metrics").text, re.MULTILINE)
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(float(value) for shown, value in found if all(one in shown for one in wanted))


def test_a_client_that_leaves_ends_the_engines_work_within_a_second(real_stack: RealStack) -> None:
    body = {
        "model": "base",
        "messages": [{"role": "user", "content": "Count."}],
        "max_tokens": 1500,
        "ignore_eos": True,
        "stream": True,
    }
    with real_stack.use.stream("POST", "/v1/chat/completions", json=body) as answer:
        pieces = answer.iter_bytes()
        for _ in range(3):
            next(pieces)
        assert running(real_stack) == 1
    left = time.monotonic()
    while running(real_stack) and time.monotonic() - left < 5:
        time.sleep(0.02)
    assert time.monotonic() - left < 1


def test_the_time_in_the_engines_queue_is_counted_by_adapter(real_stack: RealStack) -> None:
    who = {"route": "/v1/chat/completions", "adapter": "base"}
    before = series(real_stack, "preceptor_engine_queue_seconds_count", **who)
    told = ask(real_stack, max_tokens=4).json()["metrics"]["queue_time_ms"]
    assert told >= 0
    assert series(real_stack, "preceptor_engine_queue_seconds_count", **who) == before + 1


def test_what_an_evaluation_harness_asks_passes_untouched(real_stack: RealStack) -> None:
    body: dict[str, Any] = {
        "model": "base",
        "prompt": [[1, 2683, 314, 260], [1, 2683, 314]],
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    ours = real_stack.use.post("/v1/completions", json=body).raise_for_status().json()
    with real_stack.engine.client() as engine:
        theirs = engine.post("/v1/completions", json=body).raise_for_status().json()
    assert ours["choices"] == theirs["choices"]
    assert ours["choices"][0]["logprobs"]["token_logprobs"][0] is None


def test_items_on_one_passage_share_its_prompt_and_an_explanation_follows(real_stack: RealStack) -> None:
    other = {**ITEM, "question": "What carries pollen?", "options": ["Wind.", "Trains.", "Letters."]}
    answer = real_stack.use.post("/v1/mcq", json={"model": "letters:base", "items": [ITEM, other]})
    results = answer.raise_for_status().json()["results"]
    for result in results:
        assert sum(one["probability"] for one in result["options"]) == pytest.approx(1)
    again = real_stack.use.post("/v1/mcq", json={"model": "letters:base", "items": [ITEM], "explain": True})
    first, *pieces, last = [line.removeprefix("data: ") for line in again.text.splitlines() if line]
    told = json.loads(first)["answer"]
    assert told["usage"]["cached_tokens"] >= 32
    assert last == "[DONE]"
    assert "".join(json.loads(piece)["text"] for piece in pieces).strip()
