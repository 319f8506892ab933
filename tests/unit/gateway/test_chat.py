"""The hot path: what reaches the engine, and what comes back."""

from __future__ import annotations

import re
import time

import httpx
import pytest
from preceptor_contracts.report import Verdict

from tests.fakes.engine import ANSWER, END
from tests.unit.gateway.conftest import V1, Stack, StackMaker


def test_domain_prompt_comes_first_and_client_system_messages_join_it(stack: Stack) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi {x} $y ∑"}]
    stack.use.post("/v1/chat/completions", json={"model": "clinic:base", "messages": messages}).raise_for_status()
    assert stack.sent()["messages"] == [
        {"role": "system", "content": "You are a clinic. {braces} stay.\n\nBe brief."},
        {"role": "user", "content": "Hi {x} $y ∑"},
    ]


def test_raw_base_gets_no_domain_prompt(stack: Stack) -> None:
    assert stack.chat("base").status_code == 200
    assert stack.sent()["messages"] == [{"role": "user", "content": "Hello?"}]
    assert "max_tokens" not in stack.sent()


def test_unknown_fields_of_request_and_answer_survive(stack: Stack) -> None:
    with stack.use.stream(
        "POST",
        "/v1/chat/completions",
        json={"model": "base", "stream": True, "min_p": 0.1, "messages": [{"role": "user", "content": "a"}]},
    ) as response:
        text = response.read().decode()
    assert stack.sent()["min_p"] == 0.1
    assert '"odd": "kept"' in text
    assert text.endswith("data: [DONE]\n\n")


def test_adapter_stop_tokens_and_domain_limit_travel_with_each_request(stack: Stack) -> None:
    stack.add(V1)
    stack.load(V1).raise_for_status()
    answer = stack.chat(f"clinic:{V1}")
    assert answer.json()["choices"][0]["message"]["content"] == ANSWER
    assert answer.headers["x-preceptor-adapter"] == V1
    sent = stack.sent()
    assert (sent["model"], sent["stop_token_ids"], sent["max_tokens"]) == (V1, [END], 33)


def test_served_names_follow_what_is_ready(stack: Stack) -> None:
    def names() -> list[str]:
        return [card["id"] for card in stack.use.get("/v1/models").json()["data"]]

    assert names() == ["clinic:base", "base"]
    report = stack.add(V1, Verdict.BETTER)
    stack.promote(V1, report=report).raise_for_status()
    assert names() == ["clinic", "clinic:base", f"clinic:{V1}", "base"]
    assert stack.use.get(f"/v1/models/clinic:{V1}").json()["id"] == f"clinic:{V1}"
    assert stack.use.get("/v1/models/nope").status_code == 404


def test_emergency_is_told_first_in_stream_body_and_header(stack: Stack) -> None:
    whole = stack.chat("clinic:base", "Help, I can\u2019t breathe")
    assert whole.json()["choices"][0]["message"]["content"] == f"Call 112 first.\n\n{ANSWER}"
    assert whole.headers["x-preceptor-safety"] == "Call%20112%20first."
    streamed = stack.chat("clinic:base", "I can't breathe", stream=True).text
    assert streamed.index("Call 112 first.") < streamed.index("The")
    assert "x-preceptor-safety" not in stack.chat("clinic:base", "What is breathing?").headers


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"messages": [{"role": "user", "content": "a"}]}, 400, "invalid_field"),
        ({"model": "clinic:base"}, 400, "invalid_field"),
        ({"model": "clinic:base", "messages": ["a"]}, 400, "invalid_field"),
        ({"model": "clinic:base", "messages": [{"role": "user", "content": " "}]}, 400, "empty_message"),
        ({"model": "nope", "messages": [{"role": "user", "content": "a"}]}, 404, "unknown_served_name"),
        ({"model": "../x", "messages": [{"role": "user", "content": "a"}]}, 404, "unknown_served_name"),
        ({"model": f"clinic:{V1}", "messages": [{"role": "user", "content": "a"}]}, 404, "unknown_adapter"),
        ({"model": "clinic", "messages": [{"role": "user", "content": "a"}]}, 404, "nothing_promoted"),
        ({"model": "base", "messages": [{"role": "user", "content": "a" * 3000}]}, 400, "context_length_exceeded"),
        ({"model": "base", "chat_template": "x", "messages": [{"role": "user", "content": "a"}]}, 400, "field_refused"),
        (
            {"model": "base", "stop_token_ids": [1], "messages": [{"role": "user", "content": "a"}]},
            400,
            "field_refused",
        ),
    ],
)
def test_bad_requests_get_the_documented_shape(stack: Stack, body: object, status: int, code: str) -> None:
    answer = stack.use.post("/v1/chat/completions", json=body)
    assert answer.status_code == status
    problem = answer.json()
    assert set(problem) == {"error", "hint", "request_id"}
    assert problem["error"]["code"] == code
    assert problem["error"]["message"].endswith((".", "..."))
    assert answer.headers["x-request-id"] == problem["request_id"]


def test_body_that_is_not_json_and_body_that_is_too_large(make_stack: StackMaker) -> None:
    stack = make_stack(max_body_bytes=2048)
    broken = stack.use.post("/v1/chat/completions", content=b"{nope")
    assert (broken.status_code, broken.json()["error"]["code"]) == (400, "invalid_json")
    large = stack.chat("base", "a" * 5000)
    assert (large.status_code, large.json()["error"]["code"]) == (413, "body_too_large")


def test_nesting_beyond_json_and_broken_typed_bodies_are_400(stack: Stack) -> None:
    deep = b'{"model":"base","messages":[{"role":"user","content":"a"}],"x":' + b"[" * 300 + b"]" * 300 + b"}"
    nested = stack.use.post("/v1/chat/completions", content=deep)
    assert (nested.status_code, nested.json()["error"]["code"]) == (400, "invalid_json")
    for broken in (b"{nope", b"\xff", b"[" * 10_000):
        answer = stack.use.post("/submit_mcq", content=broken, headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")
    lone = b'{"text":"\\ud800","question":"q","choices":["a","b"]}'
    answer = stack.use.post("/submit_mcq", content=lone, headers={"content-type": "application/json"})
    assert answer.status_code == 400


@pytest.mark.parametrize(
    "content",
    ["I can't\nbreathe", "I can\u00a0t I can\u02bct  breathe", ["I can't breathe", {"type": "text", "text": ""}]],
)
def test_emergency_is_seen_however_it_is_typed(stack: Stack, content: object) -> None:
    body = {"model": "clinic:base", "messages": [{"role": "user", "content": content}]}
    answer = stack.use.post("/v1/chat/completions", json=body)
    assert "x-preceptor-safety" in answer.headers


def test_developer_message_joins_the_domain_prompt(stack: Stack) -> None:
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    stack.use.post("/v1/chat/completions", json={"model": "clinic:base", "messages": messages}).raise_for_status()
    sent = stack.sent()["messages"]
    assert isinstance(sent, list)
    assert [message["role"] for message in sent] == ["system", "user"]


def test_legacy_guided_fields_are_translated(stack: Stack) -> None:
    stack.chat("base", guided_choice=["a", "b"]).raise_for_status()
    assert stack.sent()["structured_outputs"] == {"choice": ["a", "b"]}
    assert "guided_choice" not in stack.sent()


@pytest.mark.parametrize(("key", "status"), [("", 401), ("wrong", 401)])
def test_wrong_keys_are_refused(stack: Stack, key: str, status: int) -> None:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    answer = httpx.get(f"{stack.url}/v1/models", headers=headers)
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "authentication_error"


def test_engine_failures_are_mapped(make_stack: StackMaker) -> None:
    stack = make_stack(engine_timeout_s=0.3)
    stack.fake.fail_with = 500
    assert stack.chat("base").status_code == 502
    stack.fake.fail_with = 0
    stack.fake.token_delay_s = 2.0
    assert stack.chat("base").status_code == 504
    down = make_stack(ENGINE_URLS="http://127.0.0.1:9")
    answer = down.chat("base")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_down")
    assert int(answer.headers["retry-after"]) > 0
    assert down.use.get("/health").status_code == 503


def test_error_in_mid_stream_becomes_an_event(stack: Stack) -> None:
    stack.fake.drop_after = 2
    text = stack.chat("base", stream=True).text
    assert '"error"' in text.splitlines()[-2]
    assert "engine_down" in text


def test_client_that_leaves_cancels_the_engine(stack: Stack) -> None:
    stack.fake.token_delay_s = 0.2
    body = {"model": "base", "stream": True, "messages": [{"role": "user", "content": "a"}]}
    with stack.use.stream("POST", "/v1/chat/completions", json=body) as response:
        next(response.iter_bytes())
    deadline = time.monotonic() + 5
    while not stack.fake.aborted and time.monotonic() < deadline:
        time.sleep(0.02)
    assert stack.fake.aborted == 1


def test_client_that_leaves_before_a_whole_answer_cancels_the_engine(stack: Stack) -> None:
    stack.fake.token_delay_s = 3.0
    with pytest.raises(httpx.ReadTimeout):
        stack.use.post(
            "/v1/chat/completions", json={"model": "base", "messages": [{"role": "user", "content": "a"}]}, timeout=0.3
        )
    deadline = time.monotonic() + 2
    while not stack.fake.aborted and time.monotonic() < deadline:
        time.sleep(0.02)
    assert stack.fake.aborted == 1


def test_large_body_of_a_typed_route_is_413_too(make_stack: StackMaker) -> None:
    stack = make_stack(max_body_bytes=2048)
    answer = stack.use.post("/submit_mcq", json={"question": "a" * 3000, "choices": ["a", "b"]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_generate_streams_text_events(stack: Stack) -> None:
    answer = stack.use.post("/generate", json={"prompt": "Hi", "domain": "clinic"})
    events = [line for line in answer.text.splitlines() if line]
    assert events[0] == 'data: {"text":"The"}'
    assert events[-1] == "data: [DONE]"
    empty = stack.use.post("/generate", json={"prompt": " "})
    assert (empty.status_code, empty.json()["error"]["param"]) == (400, "prompt")


def test_open_pages_need_no_key_and_metrics_count(stack: Stack) -> None:
    stack.chat("clinic:base")
    assert httpx.get(f"{stack.url}/").json()["domains"] == ["clinic"]
    assert httpx.get(f"{stack.url}/docs").status_code == 200
    text = httpx.get(f"{stack.url}/metrics").text
    assert 'preceptor_answers_total{adapter="base",domain="clinic",kind="chat"} 1.0' in text
    assert re.search(r'preceptor_requests_total\{.*route="/v1/chat/completions",status="200"\} 1\.0', text)


def test_a_rule_that_answers_instead_asks_no_engine(make_stack: StackMaker) -> None:
    stack = make_stack()
    path = stack.root / "domains" / "clinic" / "domain.yaml"
    path.write_text(path.read_text().replace("{name: emergency,", "{name: emergency, instead: true,"))
    stack = make_stack()
    before = len(stack.fake.calls)
    whole = stack.chat("clinic:base", "I can't breathe", n=2)
    assert [one["message"]["content"] for one in whole.json()["choices"]] == ["Call 112 first."] * 2
    assert whole.headers["x-preceptor-safety"] == "Call%20112%20first."
    streamed = stack.chat("clinic:base", "I can't breathe", stream=True)
    assert streamed.text.count("Call 112 first.") == 1
    assert streamed.text.endswith("data: [DONE]\n\n")
    told = stack.use.post("/generate", json={"domain": "clinic", "prompt": "I can't breathe"})
    assert told.text == 'data: {"text":"Call 112 first.\\n\\n"}\n\ndata: [DONE]\n\n'
    assert [path for path, _ in stack.fake.calls[before:] if "completions" in path] == []
    assert stack.chat("clinic:base", "What is breathing?").json()["choices"][0]["message"]["content"] == ANSWER


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("PATCH", "/v1/adapters", "GET, POST"),
        ("OPTIONS", "/v1/models/base", "GET"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(stack: Stack, method: str, path: str, allowed: str) -> None:
    answer = stack.use.request(method, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "bad_method")
    assert answer.headers["allow"] == allowed


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/submit_mcq"])
def test_a_browser_on_a_named_origin_may_ask_and_read_errors_too(make_stack: StackMaker, path: str) -> None:
    stack = make_stack(cors_origins="https://ours.example")
    asks = {"origin": "https://ours.example", "access-control-request-method": "POST"}
    before = httpx.options(stack.url + path, headers={**asks, "access-control-request-headers": "authorization"})
    assert before.status_code == 200
    assert before.headers["access-control-allow-origin"] == "https://ours.example"
    wrong = stack.use.post(path, json={"model": "nope"}, headers={"origin": "https://ours.example"})
    assert wrong.status_code == 400
    assert wrong.headers["access-control-allow-origin"] == "https://ours.example"
    assert wrong.headers["access-control-expose-headers"] == "*"
    other = stack.use.post(path, json={"model": "nope"}, headers={"origin": "https://theirs.example"})
    assert "access-control-allow-origin" not in other.headers
