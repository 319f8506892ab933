"""The official OpenAI SDK against the gateway: what people write first, and the exceptions that they catch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from preceptor_contracts.report import Verdict
from preceptor_gateway.client_fields import REFUSED
from pydantic import BaseModel

from tests.fakes.engine import ANSWER, END
from tests.fakes.serving import free_port
from tests.unit.gateway.conftest import V1, Stack, StackMaker

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello?"}]


def client_of(stack: Stack, key: str = "use-key", **more: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{stack.url}/v1", api_key=key, **{"max_retries": 0, "timeout": 10, **more})


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with client_of(stack) as one:
        yield one


# --- answers ---


def test_chat_whole_and_streamed_say_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="clinic:base", messages=HELLO)
    assert whole.choices[0].message.content == ANSWER
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    chunks = list(client.chat.completions.create(model="clinic:base", messages=HELLO, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_the_async_client_does_the_same(stack: Stack) -> None:
    async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="use-key", max_retries=0) as client:
        whole = await client.chat.completions.create(model="base", messages=HELLO)
        assert whole.choices[0].message.content == ANSWER
        stream = await client.chat.completions.create(model="base", messages=HELLO, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == ANSWER
        assert "base" in [card.id async for card in client.models.list()]
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="nope", messages=HELLO)


def test_the_streaming_helper_collects_a_whole_answer(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="base", messages=HELLO) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == ANSWER


def test_a_stream_that_asks_for_usage_ends_with_it(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="base", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
    )
    usage = chunks[-1].usage
    assert chunks[-1].choices == []
    assert usage is not None
    assert usage.completion_tokens == len(ANSWER) + 1
    assert usage.prompt_tokens_details is not None


def test_several_choices_arrive_by_index(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="base", messages=HELLO, n=3)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    said = {0: "", 1: ""}
    for chunk in client.chat.completions.create(model="base", messages=HELLO, n=2, stream=True):
        for choice in chunk.choices:
            said[choice.index] += choice.delta.content or ""
    assert said == {0: ANSWER, 1: ANSWER}


def test_logprobs_come_through(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="base", messages=HELLO, logprobs=True, top_logprobs=2, max_tokens=4)
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(entry.token for entry in logprobs.content) == whole.choices[0].message.content == ANSWER[:4]
    assert {len(entry.top_logprobs) for entry in logprobs.content} == {2}
    assert whole.choices[0].finish_reason == "length"


class Case(BaseModel):
    severe: bool
    kind: str


def test_parse_gives_an_object(client: openai.OpenAI) -> None:
    parsed = client.chat.completions.parse(model="clinic:base", messages=HELLO, response_format=Case)
    assert parsed.choices[0].message.parsed == Case(severe=False, kind="a")


def test_raw_response_shows_headers_and_request_id(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="clinic:base", messages=HELLO, extra_headers={"x-request-id": "mine-1"}
    )
    assert raw.headers["x-request-id"] == "mine-1"
    assert raw.request_id == "mine-1"
    assert raw.headers["x-preceptor-served"] == "clinic:base"
    assert raw.parse().choices[0].message.content == ANSWER
    assert client.chat.completions.create(model="base", messages=HELLO)._request_id
    with client.chat.completions.with_streaming_response.create(model="base", messages=HELLO, stream=True) as streamed:
        assert streamed.headers["content-type"].startswith("text/event-stream")
        assert list(streamed.iter_lines())[-2] == "data: [DONE]"


def test_served_names_are_listed_and_shown(stack: Stack, client: openai.OpenAI) -> None:
    stack.promote(V1, report=stack.add(V1, Verdict.BETTER)).raise_for_status()
    names = [card.id for card in client.models.list()]
    assert names == ["clinic", "clinic:base", f"clinic:{V1}", "base"]
    for name in names:
        assert client.models.retrieve(name).id == name
    with pytest.raises(openai.NotFoundError, match="'clinic:nope' is not a served name"):
        client.models.retrieve("clinic:nope")


# --- plain completions ---


@pytest.mark.parametrize(
    ("prompt", "choices"),
    [("Pollen is", 1), (["Pollen is", "Mites are"], 2), ([65, 66], 1), ([[65, 66], [67]], 2)],
    ids=["text", "texts", "ids", "lists of ids"],
)
def test_completions_of_texts_and_token_ids(stack: Stack, client: openai.OpenAI, prompt: Any, choices: int) -> None:
    whole = client.completions.create(model="base", prompt=prompt, max_tokens=5)
    assert [choice.index for choice in whole.choices] == list(range(choices))
    sent = stack.sent("/v1/completions")
    assert sent == {"model": "base", "prompt": prompt, "max_tokens": 5}
    told = dict.fromkeys(range(choices), "")
    for chunk in client.completions.create(model="base", prompt=prompt, max_tokens=5, stream=True):
        for choice in chunk.choices:
            told[choice.index] += choice.text
    assert told == {choice.index: choice.text for choice in whole.choices}


def test_an_echo_with_logprobs_keeps_its_nulls(client: openai.OpenAI) -> None:
    whole = client.completions.create(
        model="base", prompt=[[65, 66, 67], [68]], echo=True, logprobs=1, max_tokens=1, temperature=0, seed=1234
    )
    for choice, length in zip(whole.choices, (3, 1), strict=True):
        assert choice.logprobs is not None
        assert choice.logprobs.token_logprobs is not None
        assert choice.logprobs.top_logprobs is not None
        assert len(choice.logprobs.token_logprobs) == length + 1
        # OpenAI's types forget the null of the first token.
        first: list[object] = [choice.logprobs.token_logprobs[0], choice.logprobs.top_logprobs[0]]
        assert first == [None, None]
    assert whole.choices[0].text.startswith("ABC")


def test_completions_of_an_adapter_get_no_domain_prompt_and_its_stop_tokens(
    stack: Stack, client: openai.OpenAI
) -> None:
    stack.add(V1)
    stack.load(V1).raise_for_status()
    client.completions.create(model=f"clinic:{V1}", prompt="Pollen is", max_tokens=2)
    sent = stack.sent("/v1/completions")
    assert sent == {"model": V1, "prompt": "Pollen is", "max_tokens": 2, "stop_token_ids": [END]}


def test_embeddings_of_an_engine_without_them_are_a_clear_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="The engine has no such route") as caught:
        client.embeddings.create(model="base", input="a")
    assert caught.value.code == "not_supported_by_engine"


# --- fields ---


TOOL: Any = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
PASSED: list[dict[str, Any]] = [
    {"tools": [TOOL]},
    {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "look_up"}}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}},
    {"response_format": {"type": "json_object"}},
    {"extra_body": {"structured_outputs": {"choice": ["yes", "no"]}}},
    {"extra_body": {"min_p": 0.1, "repetition_penalty": 1.1, "a_field_of_tomorrow": {"x": [1, None]}}},
    {"logprobs": True, "top_logprobs": 3},
    {"n": 2},
    {"stop": ["\n", "END"]},
    {"stop": "END"},
    {"seed": 7},
    {"temperature": 0.25, "top_p": 0.5, "frequency_penalty": 0.5, "presence_penalty": -0.5},
    {"stream": True, "stream_options": {"include_usage": True}},
    {"max_completion_tokens": 9},
    {"logit_bias": {"5": -100}},
    {"user": "somebody"},
]


@pytest.mark.parametrize("fields", PASSED, ids=lambda fields: ",".join(fields.get("extra_body", fields)))
def test_fields_reach_the_engine_untouched(stack: Stack, client: openai.OpenAI, fields: dict[str, Any]) -> None:
    answer = client.chat.completions.create(model="base", messages=HELLO, **fields)
    if fields.get("stream"):
        list(answer)
    expected = {**fields, **fields.get("extra_body", {})}
    expected.pop("extra_body", None)
    assert stack.sent() == {"model": "base", "messages": HELLO, **expected}


@pytest.mark.parametrize(
    ("legacy", "constraint"),
    [
        ({"guided_choice": ["a", "b"]}, {"choice": ["a", "b"]}),
        ({"guided_regex": "a+"}, {"regex": "a+"}),
        ({"guided_json": {"type": "object"}}, {"json": {"type": "object"}}),
        ({"guided_grammar": 'root ::= "a"'}, {"grammar": 'root ::= "a"'}),
        ({"guided_choice": ["a"], "guided_decoding_backend": "outlines"}, {"choice": ["a"]}),
        (
            {"guided_json": {"type": "object"}, "guided_whitespace_pattern": " "},
            {"json": {"type": "object"}, "whitespace_pattern": " "},
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("plain", [False, True], ids=["chat", "plain"])
def test_legacy_constraints_are_translated(
    stack: Stack, client: openai.OpenAI, legacy: dict[str, Any], constraint: dict[str, Any], plain: bool
) -> None:
    if plain:
        client.completions.create(model="base", prompt="a", extra_body=legacy)
    else:
        client.chat.completions.create(model="base", messages=HELLO, extra_body=legacy)
    sent = stack.sent("/v1/completions" if plain else "/v1/chat/completions")
    assert sent["structured_outputs"] == constraint
    assert [field for field in sent if field.startswith("guided_")] == []


def test_two_constraints_at_once_are_refused(client: openai.OpenAI) -> None:
    both = {"guided_choice": ["a"], "structured_outputs": {"choice": ["b"]}}
    with pytest.raises(openai.BadRequestError, match="Only one constraint"):
        client.chat.completions.create(model="base", messages=HELLO, extra_body=both)


def test_refused_fields_are_refused_by_name(stack: Stack, client: openai.OpenAI) -> None:
    assert len(REFUSED) >= 20
    for field in REFUSED:
        with pytest.raises(openai.BadRequestError, match=repr(field)) as chat:
            client.chat.completions.create(model="base", messages=HELLO, extra_body={field: "x"})
        with pytest.raises(openai.BadRequestError, match=repr(field)) as plain:
            client.completions.create(model="base", prompt="a", extra_body={field: "x"})
        for caught in (chat, plain):
            assert (caught.value.code, caught.value.param) == ("field_refused", field)
    assert stack.fake.calls == []


# --- exceptions ---


def test_bad_request(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="must be a non-empty list") as caught:
        client.chat.completions.create(model="base", messages=[])
    error = caught.value
    assert (error.status_code, error.code, error.param, error.type) == (
        400,
        "invalid_field",
        "messages",
        "invalid_request_error",
    )
    assert error.request_id == error.response.json()["request_id"]
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="base", messages=[{"role": "user", "content": "a" * 3000}])
    assert long.value.code == "context_length_exceeded"


def test_authentication(stack: Stack) -> None:
    with client_of(stack, "wrong") as stranger:
        with pytest.raises(openai.AuthenticationError) as caught:
            stranger.models.list()
        with pytest.raises(openai.AuthenticationError):
            stranger.chat.completions.create(model="base", messages=HELLO)
    assert (caught.value.status_code, caught.value.code) == (401, "invalid_api_key")


def test_permission(stack: Stack, client: openai.OpenAI) -> None:
    with pytest.raises(openai.PermissionDeniedError) as caught:
        client.post("/adapters", body={"adapter": V1}, cast_to=object)
    assert caught.value.code == "missing_scope"


def test_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'nope'") as caught:
        client.chat.completions.create(model="nope", messages=HELLO)
    assert (caught.value.code, caught.value.param) == ("unknown_served_name", "model")
    with pytest.raises(openai.NotFoundError) as lost:
        client.post("/images/generations", body={}, cast_to=object)
    assert lost.value.code == "no_such_route"


def test_rate_limit(make_stack: StackMaker) -> None:
    with client_of(make_stack(requests_per_minute=2)) as client:
        for left in (1, 0):
            raw = client.chat.completions.with_raw_response.create(model="base", messages=HELLO)
            assert raw.headers["x-ratelimit-remaining-requests"] == str(left)
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="base", messages=HELLO)
    assert (caught.value.status_code, caught.value.type) == (429, "rate_limit_error")
    assert 0 < int(caught.value.response.headers["retry-after"]) <= 120


def test_an_engine_that_is_away(make_stack: StackMaker) -> None:
    with client_of(make_stack(ENGINE_URLS=f"http://127.0.0.1:{free_port()}")) as client:
        with pytest.raises(openai.InternalServerError, match="does not answer") as caught:
            client.chat.completions.create(model="base", messages=HELLO, stream=True)
        assert (caught.value.status_code, caught.value.code) == (503, "engine_down")
        assert int(caught.value.response.headers["retry-after"]) > 0
        assert "base" in [card.id for card in client.models.list()]


def test_a_silent_engine(make_stack: StackMaker) -> None:
    stack = make_stack(engine_timeout_s=0.2)
    stack.fake.token_delay_s = 1
    with client_of(stack) as client, pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="base", messages=HELLO)
    assert (caught.value.status_code, caught.value.code) == (504, "engine_timeout")


def test_retries_wait_as_long_as_the_gateway_says(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []

    def back_meanwhile(seconds: float) -> None:
        waits.append(seconds)
        stack.fake.fail_with = 0

    monkeypatch.setattr(time, "sleep", back_meanwhile)
    stack.fake.fail_with = 503
    with client_of(stack, max_retries=2) as client:
        assert client.chat.completions.create(model="base", messages=HELLO).choices[0].message.content == ANSWER
    assert waits == [5.0]


def test_an_engine_that_breaks_off_in_a_stream_is_an_api_error(stack: Stack, client: openai.OpenAI) -> None:
    stack.fake.drop_after = 2
    said: list[str] = []
    stream = client.chat.completions.create(model="base", messages=HELLO, stream=True)

    def listen() -> None:
        for chunk in stream:
            said.append(chunk.choices[0].delta.content or "")

    with pytest.raises(openai.APIError, match="broke off"):
        listen()
    assert "".join(said) == "The fake"
