"""Series: what is counted, under which labels, and that clients cannot make more of them."""

from __future__ import annotations

import json
import re
import secrets

import httpx
import pytest
import structlog
from preceptor_gateway import metrics as metrics_module
from preceptor_gateway.metrics import Metrics
from preceptor_gateway.telemetry.cells import OTHER
from preceptor_gateway.telemetry.logs import add_request
from preceptor_gateway.telemetry.meter import CURRENT, RequestMeter
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.unit.gateway.conftest import Stack, StackMaker

ROUTE = "/v1/chat/completions"
PIECE = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
USAGE = (
    b'data: {"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":3,'
    b'"prompt_tokens_details":{"cached_tokens":8}},"metrics":{"queue_time_ms":20.0}}\n\n'
)


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("preceptor_gateway.telemetry.meter.perf_counter", clock)
    return clock


def begin(metrics: Metrics) -> RequestMeter:
    return metrics.begin({"type": "http", "headers": []}, "an-id")


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    found: float | None = metrics.registry.get_sample_value(name, labels)
    return found


WHO = {"route": ROUTE, "domain": "clinic", "adapter": "clinic-v1-00000001"}


def test_a_stream_counts_its_times_tokens_and_pieces(clock: Clock) -> None:
    metrics = Metrics()
    meter = begin(metrics)
    clock.now += 0.004
    one = meter.call(ROUTE, "clinic", "clinic-v1-00000001")
    for wait, data in ((0.3, PIECE), (0.02, PIECE + PIECE), (0.02, USAGE), (0.0, DONE)):
        clock.now += wait
        one.chunk(data)
    one.end()
    one.end()
    meter.done(200)
    assert value(metrics, "preceptor_queue_seconds_sum", **WHO) == pytest.approx(0.004)
    assert value(metrics, "preceptor_engine_queue_seconds_sum", **WHO) == pytest.approx(0.02)
    assert value(metrics, "preceptor_time_to_first_token_seconds_sum", **WHO) == pytest.approx(0.304)
    assert value(metrics, "preceptor_inter_token_seconds_count", **WHO) == 3
    assert value(metrics, "preceptor_inter_token_seconds_bucket", **WHO, le="0.001") == 1
    assert value(metrics, "preceptor_inter_token_seconds_bucket", **WHO, le="0.025") == 3
    assert value(metrics, "preceptor_request_seconds_sum", **WHO) == pytest.approx(0.344)
    assert value(metrics, "preceptor_prompt_tokens_total", **WHO) == 10
    assert value(metrics, "preceptor_cached_prompt_tokens_total", **WHO) == 8
    assert value(metrics, "preceptor_completion_tokens_total", **WHO, counted="usage") == 3
    assert value(metrics, "preceptor_completion_tokens_total", **WHO, counted="chunks") == 0
    assert value(metrics, "preceptor_answers_without_usage_total", **WHO) == 0
    assert value(metrics, "preceptor_stream_chunks_total", **WHO) == 5
    assert value(metrics, "preceptor_requests_total", **WHO, status="200") == 1


def test_a_stream_without_usage_counts_a_token_for_each_piece() -> None:
    metrics = Metrics()
    one = begin(metrics).call(ROUTE, "clinic", "clinic-v1-00000001")
    # vLLM: the role, three tokens, the end.
    for data in (PIECE, PIECE, PIECE, PIECE, DONE):
        one.chunk(data)
    one.end()
    assert (one.usage, one.completion_tokens) == (None, 3)
    assert value(metrics, "preceptor_completion_tokens_total", **WHO, counted="chunks") == 3
    assert value(metrics, "preceptor_prompt_tokens_total", **WHO) == 0
    assert value(metrics, "preceptor_answers_without_usage_total", **WHO) == 1


def test_a_stream_that_breaks_off_is_an_error_under_its_sent_status() -> None:
    metrics = Metrics()
    meter = begin(metrics)
    one = meter.call(ROUTE, "clinic", "clinic-v1-00000001")
    one.chunk(PIECE)
    one.end("engine_down")
    meter.done(200)
    assert value(metrics, "preceptor_requests_total", **WHO, status="200") == 1
    assert value(metrics, "preceptor_errors_total", **WHO, status="200", code="engine_down") == 1


def test_an_engine_that_never_answers_counts_no_tokens() -> None:
    metrics = Metrics()
    meter = begin(metrics)
    meter.call(ROUTE, "clinic", "clinic-v1-00000001").end("engine_down")
    meter.done(503, "engine_down")
    assert value(metrics, "preceptor_errors_total", **WHO, status="503", code="engine_down") == 1
    assert value(metrics, "preceptor_answers_without_usage_total", **WHO) == 0
    assert value(metrics, "preceptor_time_to_first_token_seconds_count", **WHO) is None


def test_several_calls_of_one_request_are_one_request() -> None:
    metrics = Metrics()
    meter = begin(metrics)
    for _ in range(3):
        meter.call(ROUTE, "clinic", None).answered(b'{"usage":{"prompt_tokens":5,"completion_tokens":1}}')
    who = {**WHO, "adapter": "base"}
    assert value(metrics, "preceptor_requests_in_flight", **who) == 1
    meter.done(200)
    assert value(metrics, "preceptor_requests_in_flight", **who) == 0
    assert value(metrics, "preceptor_requests_total", **who, status="200") == 1
    assert value(metrics, "preceptor_queue_seconds_count", **who) == 1
    assert value(metrics, "preceptor_prompt_tokens_total", **who) == 15


def test_limited_requests_are_told_apart_by_their_limit() -> None:
    metrics = Metrics()
    for limit in ("requests", "tokens", "tokens", ""):
        meter = begin(metrics)
        meter.about(ROUTE, "clinic", "clinic-v1-00000001")
        metrics.note_limit(limit)
        meter.done(429, "rate_limit_exceeded")
    assert value(metrics, "preceptor_limited_requests_total", **WHO, limit="tokens") == 2
    assert value(metrics, "preceptor_limited_requests_total", **WHO, limit="requests") == 1
    assert value(metrics, "preceptor_limited_requests_total", **WHO, limit="other") == 1
    assert value(metrics, "preceptor_errors_total", **WHO, status="429", code="rate_limit_exceeded") == 4
    assert value(metrics, "preceptor_queue_seconds_count", **WHO) is None


def test_series_of_a_lost_adapter_can_be_dropped_in_mid_request() -> None:
    metrics = Metrics()
    meter = begin(metrics)
    meter.call(ROUTE, "clinic", "clinic-v1-00000001").answered(b"{}")
    metrics.forget("clinic-v1-00000001")
    meter.done(200)
    assert b"clinic-v1-00000001" not in generate_latest(metrics.registry)


def test_cells_and_codes_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "_MAX_CELLS", 50)
    metrics = Metrics()
    for number in range(500):
        meter = begin(metrics)
        meter.call(ROUTE, "clinic", f"clinic-v{number}-00000001").answered(b"{}")
        meter.done(200)
        begin(metrics).done(400, f"code_{number}")
    text = generate_latest(metrics.registry).decode()
    assert len(re.findall(r"^preceptor_requests_total", text, re.MULTILINE)) <= 55
    assert len(re.findall(r"^preceptor_errors_total", text, re.MULTILINE)) <= 202
    other = dict.fromkeys(WHO, OTHER)
    assert value(metrics, "preceptor_requests_total", **other, status="200") == 500 - 49


def names(url: str) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    text = httpx.get(f"{url}/metrics").text
    return {
        (sample.name, frozenset(sample.labels.items()))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def hostile(stack: Stack, mark: str) -> None:
    evil = f"{mark}\"}}\n# HELP x {secrets.token_hex(4)} ../..:\u2028'"
    stack.chat(evil)
    stack.chat(f"clinic:{evil}")
    stack.chat(f"clinic:clinic-v9-{secrets.token_hex(4)}")
    stack.use.get(f"/{mark}/../{secrets.token_hex(4)}")
    stack.use.get(f"/v1/models/{mark}%0a{secrets.token_hex(4)}")
    stack.use.get(f"/v1/domains/{mark}{secrets.token_hex(4)}")
    stack.use.request(f"X{secrets.token_hex(4).upper()}", "/v1/models")
    stack.use.post("/generate", json={"prompt": "x", "domain": evil})
    stack.use.post("/submit_mcq", json={"question": "x", "choices": ["a", "b"], "domain": evil, "model": evil})
    httpx.get(f"{stack.url}/v1/models", headers={"authorization": f"Bearer {mark}", "x-request-id": mark})
    stack.use.post("/v1/chat/completions", content=evil.encode(), headers={"content-type": mark})


def test_clients_cannot_make_series(stack: Stack) -> None:
    hostile(stack, "first0mark")
    names(stack.url)
    before = names(stack.url)
    for number in range(20):
        hostile(stack, f"evil{number}mark")
    after = names(stack.url)
    assert {name for name, _ in after - before} == set()
    assert "mark" not in httpx.get(f"{stack.url}/metrics").text


def test_errors_are_counted_by_code_and_status(stack: Stack) -> None:
    stack.chat("nope")
    stack.use.get("/nowhere")
    stack.use.post("/submit_mcq", content=b"{", headers={"content-type": "application/json"})
    httpx.get(f"{stack.url}/v1/models")
    codes = {
        (labels["route"], labels["status"], labels["code"])
        for name, pairs in names(stack.url)
        if name == "preceptor_errors_total" and (labels := dict(pairs))
    }
    assert codes == {
        ("/v1/chat/completions", "404", "unknown_served_name"),
        ("(none)", "404", "no_such_route"),
        ("/submit_mcq", "400", "invalid_json"),
        ("/v1/models", "401", "missing_api_key"),
    }


def scraped(url: str, name: str) -> dict[tuple[str, ...], float]:
    """Values of a series by route, domain and adapter, and then its other labels from a to z."""
    found = {}
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text):
        for sample in family.samples:
            if sample.name == name:
                who = [sample.labels.pop(label) for label in ("route", "domain", "adapter")]
                found[(*who, *(value for _, value in sorted(sample.labels.items())))] = sample.value
    return found


def test_chat_is_counted_under_whom_it_asked(stack: Stack) -> None:
    stack.add("clinic-v1-00000001")
    stack.promote("clinic-v1-00000001", force=True).raise_for_status()
    stack.chat("clinic").raise_for_status()
    stack.chat("clinic", stream=True).raise_for_status()
    stack.chat("clinic:base", "a" * 3000)
    who, base = (ROUTE, "clinic", "clinic-v1-00000001"), (ROUTE, "clinic", "base")
    requests = scraped(stack.url, "preceptor_requests_total")
    assert (requests[*who, "200"], requests[*base, "400"]) == (2, 1)
    assert scraped(stack.url, "preceptor_errors_total") == {(*base, "context_length_exceeded", "400"): 1.0}
    assert scraped(stack.url, "preceptor_time_to_first_token_seconds_count")[who] == 1
    assert scraped(stack.url, "preceptor_queue_seconds_count")[who] == 2
    assert scraped(stack.url, "preceptor_prompt_tokens_total")[who] > 0
    assert scraped(stack.url, "preceptor_answers_without_usage_total")[who] == 1


def test_a_broken_stream_is_counted(stack: Stack) -> None:
    stack.fake.drop_after = 2
    assert "engine_down" in stack.chat("base", stream=True).text
    assert scraped(stack.url, "preceptor_errors_total") == {(ROUTE, "base", "base", "engine_down", "200"): 1.0}


def test_a_key_that_met_its_limit_is_counted(make_stack: StackMaker) -> None:
    stack = make_stack(requests_per_minute=1)
    codes = [stack.chat("clinic:base").status_code for _ in range(3)]
    assert codes.count(429) >= 1
    limited = scraped(stack.url, "preceptor_limited_requests_total")
    assert sum(limited.values()) == codes.count(429)
    assert {key[:3] for key in limited} == {(ROUTE, "clinic", "base")}


def test_a_body_that_is_too_large_is_counted(make_stack: StackMaker) -> None:
    stack = make_stack(max_body_bytes=2048)
    stack.chat("base", "a" * 5000)
    found = [dict(pairs) for name, pairs in names(stack.url) if name == "preceptor_errors_total"]
    assert [(one["status"], one["code"]) for one in found] == [("413", "body_too_large")]


def test_nothing_stays_in_flight(stack: Stack) -> None:
    for _ in range(5):
        stack.chat("base")
        stack.chat("nope")
    text = httpx.get(f"{stack.url}/metrics").text
    flying = {
        float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith("preceptor_requests_in_flight{")
    }
    # The scrape itself is the one that is being answered.
    assert sum(flying) == 1


def test_an_alias_shows_what_it_points_at(stack: Stack) -> None:
    assert "preceptor_adapter_promoted{" not in httpx.get(f"{stack.url}/metrics").text
    stack.add("clinic-v1-00000001")
    stack.promote("clinic-v1-00000001", force=True).raise_for_status()
    text = httpx.get(f"{stack.url}/metrics").text
    assert 'preceptor_adapter_promoted{adapter="clinic-v1-00000001",domain="clinic"} 1.0' in text


def test_each_log_line_of_a_request_has_its_id() -> None:
    metrics = Metrics()
    token = CURRENT.set(None)
    try:
        assert add_request(None, "info", {"event": "start"}) == {"event": "start"}
        begin(metrics)
        assert add_request(None, "info", {"event": "inside"}) == {"event": "inside", "request_id": "an-id"}
        said = add_request(None, "info", {"event": "inside", "request_id": "its own"})
        assert isinstance(said, dict)
        assert said["request_id"] == "its own"
    finally:
        CURRENT.reset(token)


def test_a_log_line_deep_in_a_request_has_its_id(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    from preceptor_gateway.__main__ import _log_as_json

    before = structlog.get_config()
    try:
        _log_as_json("info")
        stack.add("clinic-v1-00000001")
        stack.promote("clinic-v1-00000001", force=True).raise_for_status()
        answer = stack.chat("clinic")
    finally:
        structlog.configure(**before)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    promoted = next(line for line in lines if line["event"] == "promoted")
    (edge,) = [line for line in lines if line.get("path") == "/v1/domains/clinic/promote"]
    assert re.fullmatch(r"[0-9a-f]{32}", promoted["request_id"])
    assert promoted["request_id"] == edge["request_id"]
    assert answer.headers["x-request-id"] in {line.get("request_id") for line in lines}
