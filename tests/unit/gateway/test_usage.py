"""The reader of `usage` against a whole decoding."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from preceptor_gateway.telemetry import usage
from preceptor_gateway.telemetry.usage import Usage, find_stream_usage, find_usage, usage_of

# Time is not what these tests are about, and the machine may be busy.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
NASTY = ['"usage":{"prompt_tokens":9}', '\\"usage\\":', "}", "{", 'a"usage', "usage", "data:", "\u2028", "\n\n"]
texts = st.text(max_size=12) | st.sampled_from(NASTY)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | st.just("usage"), inner, max_size=3),
    max_leaves=12,
)
counts = st.integers(0, 2**31)
details = st.none() | st.fixed_dictionaries({}, optional={"cached_tokens": st.none() | counts, "created": counts})
usages = values | st.fixed_dictionaries(
    {"prompt_tokens": counts, "completion_tokens": counts},
    optional={"prompt_tokens_details": details, "total_tokens": counts, "more": values},
)
timings = values | st.fixed_dictionaries({"queue_time_ms": st.none() | st.floats(0, 1e6)}, optional={"mean": values})


@st.composite
def answers(draw: st.DrawFn) -> dict[str, Any]:
    """Answers of any shape, `metrics` behind `usage` as vLLM writes it."""
    answer = {f"a{key}": value for key, value in draw(st.dictionaries(texts, values, max_size=3)).items()}
    if draw(st.booleans()):
        answer["usage"] = draw(usages)
        answer |= {f"b{key}": value for key, value in draw(st.dictionaries(texts, values, max_size=2)).items()}
        if draw(st.booleans()):
            answer["metrics"] = draw(timings)
            answer |= {f"c{key}": value for key, value in draw(st.dictionaries(texts, values, max_size=2)).items()}
    return answer


@pytest.fixture(autouse=True, scope="module")
def looks_in_short_answers_too() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(usage, "_SHORT", 0)
        yield


@patient
@given(answers(), st.booleans())
def test_it_reads_what_a_whole_decoding_reads(answer: dict[str, Any], spaced: bool) -> None:
    raw = json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace") if spaced else orjson.dumps(answer)
    assert find_usage(raw) == usage_of(orjson.loads(raw))


@patient
@given(answers(), st.lists(texts, max_size=3))
def test_it_reads_the_end_of_a_stream(answer: dict[str, Any], words: list[str]) -> None:
    before = b"".join(b"data: " + orjson.dumps({"choices": [{"delta": {"content": word}}]}) + b"\n\n" for word in words)
    tail = before + b"data: " + orjson.dumps(answer) + b"\n\ndata: [DONE]\n\n"
    assert find_stream_usage(tail) == usage_of(answer)


@patient
@given(st.binary(max_size=60), st.integers(0, 200))
def test_it_never_raises_on_broken_bytes(noise: bytes, cut: int) -> None:
    raw = b'{"a":"b","usage":{"prompt_tokens":3,"completion_tokens":4}}'
    for broken in (noise, raw[:cut] + noise, noise + raw[cut:], b"data: " + raw[:cut]):
        find_usage(broken)
        find_stream_usage(broken)


def test_values_of_wrong_types_count_as_nothing() -> None:
    raw = b'{"usage":{"prompt_tokens":true,"completion_tokens":-4,"prompt_tokens_details":{"cached_tokens":"9"}}}'
    assert find_usage(raw) == Usage(0, 0, 0)
    assert find_usage(b'{"usage":null}') is None
    assert find_usage(b"[]") is None


def test_a_long_answer_is_not_decoded_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(raw: bytes) -> None:
        raise AssertionError("decoded all")

    monkeypatch.setattr(usage, "_decoded", refuse)
    # vLLM's own field order, prompt_logprobs and timings behind the usage.
    raw = (
        b'{"id":"chatcmpl-1","choices":[{"message":{"content":"\\"usage\\":{\\"prompt_tokens\\":1}"}}],'
        b'"service_tier":null,"usage":{"prompt_tokens":120,"total_tokens":220,"completion_tokens":100,'
        b'"prompt_tokens_details":{"cached_tokens":64}},"prompt_logprobs":null,"prompt_text":null,'
        b'"metrics":{"time_to_first_token_ms":9.5,"queue_time_ms":250.0}}'
    )
    assert find_usage(raw) == Usage(120, 100, 64, 0.25)
