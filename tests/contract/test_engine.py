"""What the gateway relies on of an engine. One suite, two backends: the fake, and vLLM on a CPU.

A red test here with a green fake means that vLLM moved, or that the fake lies.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.engine import BLOCK, FakeEngine
from tests.fakes.serving import serve
from tests.stack import RealEngine

TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is an allergy?"}]


FAKE = FakeEngine()


@pytest.fixture(scope="module", params=["fake", "real"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    if request.param == "fake":
        with serve(FAKE.app()) as url, httpx.Client(base_url=url, timeout=30) as client:
            yield client
        return
    real: RealEngine = request.getfixturevalue("real_engine")
    with real.client() as client:
        yield client


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, engine: httpx.Client, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter folder that the backend can load."""
    path = tmp_path_factory.mktemp("adapter")
    if engine.get("/version").json()["version"] == "fake":
        (path / "adapter_config.json").write_text("{}")
        return path
    return Path(request.getfixturevalue("noise_adapter"))


@pytest.fixture
def slow() -> Iterator[None]:
    """The fake takes its time over a word; vLLM does by itself."""
    FAKE.token_delay_s = 0.5
    yield
    FAKE.token_delay_s = 0.0


def tokenize(engine: httpx.Client, messages: list[dict[str, str]], **more: object) -> list[int]:
    answer = engine.post("/tokenize", json={"messages": messages, **more}).raise_for_status()
    tokens: list[int] = answer.json()["tokens"]
    return tokens


def first_logprobs(engine: httpx.Client, model: str, ids: list[int]) -> dict[str, float]:
    body = {
        "model": model,
        "messages": TURNS,
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": True,
        "logprob_token_ids": ids,
        "return_tokens_as_token_ids": True,
    }
    answer = engine.post("/v1/chat/completions", json=body).raise_for_status().json()
    entries = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return {entry["token"]: entry["logprob"] for entry in entries}


def test_the_base_is_served_under_our_name(engine: httpx.Client) -> None:
    assert "base" in [card["id"] for card in engine.get("/v1/models").json()["data"]]
    assert engine.get("/version").json()["version"]


def test_an_answered_conversation_begins_with_its_prompt(engine: httpx.Client) -> None:
    prompt = tokenize(engine, TURNS)
    answered = [*TURNS, {"role": "assistant", "content": "A reaction."}]
    whole = tokenize(engine, answered, add_generation_prompt=False)
    opened = tokenize(engine, answered, add_generation_prompt=False, continue_final_message=True)
    assert whole[: len(prompt)] == prompt
    assert whole[: len(opened)] == opened
    assert len(whole) > len(opened)


def test_bare_text_is_tokenized(engine: httpx.Client) -> None:
    answer = engine.post("/tokenize", json={"prompt": "A", "add_special_tokens": False}).json()
    assert len(answer["tokens"]) == 1


def test_logprob_token_ids_answers_each_with_its_honest_mass(engine: httpx.Client) -> None:
    ids = [65, 66, 67]
    found = first_logprobs(engine, "base", ids)
    assert {f"token_id:{token}" for token in ids} <= set(found)
    assert sum(math.exp(found[f"token_id:{token}"]) for token in ids) < 0.999


def test_prompt_logprobs_of_several_prompts_in_one_request(engine: httpx.Client) -> None:
    prompts = [tokenize(engine, TURNS), tokenize(engine, TURNS[1:])]
    body = {"model": "base", "prompt": prompts, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
    choices = engine.post("/v1/completions", json=body).raise_for_status().json()["choices"]
    for choice in choices:
        ids = prompts[choice["index"]]
        assert choice["prompt_logprobs"][0] is None
        for token, entry in zip(ids[1:], choice["prompt_logprobs"][1:], strict=True):
            assert entry[str(token)]["logprob"] <= 0


def long_turns(question: str, topic: str) -> list[dict[str, str]]:
    """A prompt of several blocks of the prefix cache, whatever the tokenizer."""
    passage = f"A passage about {topic}. " * 40
    return [TURNS[0], {"role": "user", "content": f"{passage}\n\n{question}"}]


def cached_tokens(answer: dict[str, Any]) -> int:
    found: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return found


def test_next_token_logprobs_of_several_prompts_are_their_prompt_logprobs(engine: httpx.Client) -> None:
    prompt = tokenize(engine, long_turns("What is it?", "pollen"))
    opened = [*long_turns("What is it?", "pollen"), {"role": "assistant", "content": "Dust of flowers."}]
    whole = tokenize(engine, opened, add_generation_prompt=False)
    answer = whole[len(prompt) :]
    beginnings = [prompt + answer[:position] for position in range(len(answer))]
    read = {
        "model": "base",
        "prompt": beginnings,
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": 1,
        "logprob_token_ids": sorted(set(answer)),
        "return_tokens_as_token_ids": True,
    }
    choices = engine.post("/v1/completions", json=read).raise_for_status().json()["choices"]
    steps = {choice["index"]: choice["logprobs"]["top_logprobs"][0] for choice in choices}
    scored = {"model": "base", "prompt": [whole], "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
    entries = engine.post("/v1/completions", json=scored).raise_for_status().json()["choices"][0]["prompt_logprobs"]
    for position, token in enumerate(answer):
        expected = entries[len(prompt) + position][str(token)]["logprob"]
        # A bf16 engine rounds logits of 16 and more to eighths, and rounds by the batch that they are in.
        assert steps[position][f"token_id:{token}"] == pytest.approx(expected, abs=0.3)


def test_at_most_128_token_ids_are_read_at_once(engine: httpx.Client) -> None:
    body = {"model": "base", "prompt": [[65, 66]], "max_tokens": 1, "logprobs": 1}
    assert engine.post("/v1/completions", json={**body, "logprob_token_ids": list(range(128))}).status_code == 200
    assert engine.post("/v1/completions", json={**body, "logprob_token_ids": list(range(129))}).status_code == 400


def test_a_shared_beginning_is_cached_in_whole_blocks_and_told(engine: httpx.Client) -> None:
    body = {"model": "base", "max_tokens": 1, "temperature": 0}
    first = engine.post("/v1/chat/completions", json={**body, "messages": long_turns("One?", "mites")}).json()
    second = engine.post("/v1/chat/completions", json={**body, "messages": long_turns("Two?", "mites")}).json()
    assert cached_tokens(second) > first["usage"]["prompt_tokens"] // 2
    assert cached_tokens(second) < second["usage"]["prompt_tokens"]
    assert cached_tokens(second) % BLOCK == 0


def test_prompts_that_arrive_together_share_their_beginning_without_a_warm_up(engine: httpx.Client) -> None:
    async def together() -> list[dict[str, Any]]:
        async with httpx.AsyncClient(base_url=engine.base_url, headers=engine.headers, timeout=120) as client:
            bodies = [
                {"model": "base", "max_tokens": 1, "temperature": 0, "messages": long_turns(f"{n}?", "feathers")}
                for n in range(6)
            ]
            replies = await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for body in bodies))
            return [reply.raise_for_status().json() for reply in replies]

    answers = asyncio.run(together())
    shared = [answer for answer in answers if cached_tokens(answer) > answer["usage"]["prompt_tokens"] // 2]
    assert len(shared) >= 5


def test_prompt_logprobs_read_no_cache(engine: httpx.Client) -> None:
    ids = tokenize(engine, long_turns("One?", "mould"))
    plain = {"model": "base", "prompt": [ids], "max_tokens": 1, "temperature": 0}
    scored = {**plain, "prompt_logprobs": 0}
    assert cached_tokens(engine.post("/v1/completions", json=scored).raise_for_status().json()) == 0
    assert cached_tokens(engine.post("/v1/completions", json=plain).raise_for_status().json()) > len(ids) // 2
    assert cached_tokens(engine.post("/v1/completions", json=scored).raise_for_status().json()) == 0


def events(engine: httpx.Client, path: str, body: dict[str, object]) -> list[dict[str, Any]]:
    """A stream's events, less the last line."""
    answer = engine.post(path, json={**body, "stream": True}).raise_for_status()
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_echo_with_logprobs_scores_the_prompt_as_evaluation_harnesses_ask(engine: httpx.Client) -> None:
    prompts = [tokenize(engine, TURNS), tokenize(engine, TURNS[1:])]
    body = {
        "model": "base",
        "prompt": prompts,
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    answer = engine.post("/v1/completions", json=body).raise_for_status().json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    for choice, ids in zip(answer["choices"], prompts, strict=True):
        found = choice["logprobs"]
        assert {len(column) for column in found.values()} == {len(ids) + 1}
        assert (found["token_logprobs"][0], found["top_logprobs"][0]) == (None, None)
        for token, logprob, top in list(
            zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True)
        )[1:]:
            # The token itself and the likeliest one, which may be the same, or spelled the same.
            assert 1 <= len(top) <= 2
            assert logprob <= max(top.values()) <= 0
            assert token in top
        assert choice["finish_reason"] == "length"
        assert len(choice["text"]) > 10
    usage = answer["usage"]
    assert usage["prompt_tokens"] == sum(map(len, prompts))
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_echoed_logprobs_are_the_prompt_logprobs(engine: httpx.Client) -> None:
    ids = tokenize(engine, TURNS)
    body = {"model": "base", "prompt": ids, "temperature": 0, "max_tokens": 1}
    echoed = engine.post("/v1/completions", json={**body, "echo": True, "logprobs": 1}).json()["choices"][0]
    read = engine.post("/v1/completions", json={**body, "prompt_logprobs": 0}).json()["choices"][0]["prompt_logprobs"]
    for token, logprob, entry in zip(ids[1:], echoed["logprobs"]["token_logprobs"][1:], read[1:], strict=False):
        assert logprob == pytest.approx(entry[str(token)]["logprob"], abs=0.3)


@pytest.mark.parametrize("prompt", ["Pollen is", ["Pollen is", "Mites are"], [65, 66], [[65, 66], [67, 65]]], ids=str)
def test_prompts_are_texts_or_token_ids_or_lists_of_either(engine: httpx.Client, prompt: object) -> None:
    body = {"model": "base", "prompt": prompt, "temperature": 0, "max_tokens": 3}
    whole = engine.post("/v1/completions", json=body).raise_for_status().json()["choices"]
    assert [choice["index"] for choice in whole] == (
        [0, 1] if isinstance(prompt, list) and len(prompt) > 1 and not isinstance(prompt[0], int) else [0]
    )
    told: dict[int, str] = {}
    for event in events(engine, "/v1/completions", body):
        for choice in event["choices"]:
            told[choice["index"]] = told.get(choice["index"], "") + choice["text"]
    assert told == {choice["index"]: choice["text"] for choice in whole}


def test_a_token_beyond_the_vocabulary_and_no_prompt_at_all_are_400(engine: httpx.Client) -> None:
    for prompt in ([10_000_000], [], None, "", [["a"]]):
        answer = engine.post("/v1/completions", json={"model": "base", "prompt": prompt, "max_tokens": 1})
        assert answer.status_code == 400, prompt
        assert answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_usage_comes_last_in_a_stream_that_asks_for_it(engine: httpx.Client, path: str) -> None:
    asked = {"messages": TURNS} if "chat" in path else {"prompt": "Pollen is"}
    body = {"model": "base", "max_tokens": 4, "temperature": 0, **asked}
    *told, last = events(engine, path, {**body, "stream_options": {"include_usage": True}})
    assert last["choices"] == []
    counts = last["usage"]
    assert counts["total_tokens"] == counts["prompt_tokens"] + counts["completion_tokens"]
    assert counts["completion_tokens"] == engine.post(path, json=body).json()["usage"]["completion_tokens"]
    assert [event for event in told if event.get("usage")] == []
    assert [event for event in events(engine, path, body) if event.get("usage")] == []
    refused = engine.post(path, json={**body, "stream_options": {"include_usage": True}})
    assert refused.status_code == 400


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_an_answer_tells_its_time_in_the_queue_unless_it_is_one_of_several(engine: httpx.Client, path: str) -> None:
    asked = {"messages": TURNS} if "chat" in path else {"prompt": "Pollen is"}
    body = {"model": "base", "max_tokens": 4, "temperature": 0, **asked}
    streamed = events(engine, path, {**body, "stream_options": {"include_usage": True}})[-1]
    for answer in (engine.post(path, json=body).json(), streamed):
        assert 0 <= answer["metrics"]["queue_time_ms"] < 10_000
    assert engine.post(path, json={**body, "n": 2, "temperature": 1}).json().get("metrics") is None


def test_a_chat_stream_tells_the_role_then_words_then_why_it_ended(engine: httpx.Client) -> None:
    body: dict[str, object] = {"model": "base", "messages": TURNS, "max_tokens": 5}
    told = events(engine, "/v1/chat/completions", body)
    assert {event["id"] for event in told} == {told[0]["id"]}
    first, last = told[0]["choices"][0], told[-1]["choices"][0]
    assert (first["delta"]["role"], first["delta"]["content"]) == ("assistant", "")
    assert (first["finish_reason"], last["finish_reason"]) == (None, "length")


def test_several_choices_whole_and_streamed(engine: httpx.Client) -> None:
    body: dict[str, object] = {"model": "base", "messages": TURNS, "max_tokens": 4, "n": 3, "seed": 1}
    whole = engine.post("/v1/chat/completions", json=body).raise_for_status().json()
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
    assert {choice["message"]["role"] for choice in whole["choices"]} == {"assistant"}
    told = events(engine, "/v1/chat/completions", body)
    ended = [choice["index"] for event in told for choice in event["choices"] if choice["finish_reason"]]
    assert sorted(ended) == [0, 1, 2]
    assert engine.post("/v1/chat/completions", json={**body, "temperature": 0}).status_code == 400


def test_chat_logprobs_of_each_token(engine: httpx.Client) -> None:
    body = {"model": "base", "messages": TURNS, "max_tokens": 3, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    choice = engine.post("/v1/chat/completions", json=body).raise_for_status().json()["choices"][0]
    entries = choice["logprobs"]["content"]
    assert len(entries) == 3
    for entry in entries:
        assert {"token", "logprob", "bytes", "top_logprobs"} <= set(entry)
        assert len(entry["top_logprobs"]) == 2
    assert choice["message"]["content"].startswith(entries[0]["token"])


SCHEMA = {
    "type": "object",
    "properties": {"severe": {"type": "boolean"}, "kind": {"type": "string", "enum": ["food", "pollen"]}},
    "required": ["severe", "kind"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "constraint",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "case", "schema": SCHEMA, "strict": True}}},
        {"structured_outputs": {"json": SCHEMA}},
    ],
    ids=["response_format", "structured_outputs"],
)
def test_a_schema_binds_the_answer(engine: httpx.Client, constraint: dict[str, object]) -> None:
    body = {"model": "base", "messages": TURNS, "max_tokens": 60, "temperature": 0, **constraint}
    choice = engine.post("/v1/chat/completions", json=body).raise_for_status().json()["choices"][0]
    case = json.loads(choice["message"]["content"])
    assert isinstance(case["severe"], bool)
    assert case["kind"] in ("food", "pollen")


def test_a_choice_binds_the_answer(engine: httpx.Client) -> None:
    body = {"model": "base", "messages": TURNS, "max_tokens": 20, "temperature": 0}
    bound = engine.post("/v1/chat/completions", json={**body, "structured_outputs": {"choice": ["yes", "no"]}})
    assert bound.json()["choices"][0]["message"]["content"] in ("yes", "no")


@pytest.mark.parametrize(
    "wrong",
    [
        {"n": 0},
        {"max_tokens": 0},
        {"max_tokens": "many"},
        {"temperature": -1},
        {"top_p": 2},
        {"messages": "Hello"},
        {"messages": [{"role": "user", "content": 5}]},
        {"seed": 2**70},
    ],
    ids=str,
)
def test_fields_of_a_wrong_kind_are_400(engine: httpx.Client, wrong: dict[str, object]) -> None:
    answer = engine.post("/v1/chat/completions", json={"model": "base", "messages": TURNS, "max_tokens": 1, **wrong})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_an_answer_that_can_not_fit_and_too_many_logprobs_are_400(engine: httpx.Client, path: str) -> None:
    asked = {"messages": TURNS} if "chat" in path else {"prompt": "Pollen is"}
    body = {"model": "base", "temperature": 0, **asked}
    long = engine.post(path, json={**body, "max_tokens": 100_000})
    assert long.status_code == 400
    # The gateway tells its client `context_length_exceeded` by these words.
    assert re.search("maximum context length|max_model_len", long.json()["error"]["message"])
    many = {"logprobs": True, "top_logprobs": 999} if "chat" in path else {"logprobs": 999}
    assert engine.post(path, json={**body, "max_tokens": 1, **many}).status_code == 400


def test_an_engine_without_embeddings_says_that_it_has_no_such_route(engine: httpx.Client) -> None:
    answer = engine.post("/v1/embeddings", json={"model": "base", "input": "a"})
    assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})


def running(engine: httpx.Client) -> float:
    """Requests that the engine says it works on."""
    lines = engine.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_running"))


def test_a_client_that_leaves_ends_the_work_within_a_second(engine: httpx.Client, slow: None) -> None:
    body = {"model": "base", "messages": TURNS, "max_tokens": 1500, "ignore_eos": True, "stream": True}
    with engine.stream("POST", "/v1/chat/completions", json=body) as response:
        chunks = response.iter_bytes()
        for _ in range(3):
            next(chunks)
        assert running(engine) == 1
    deadline = time.monotonic() + 1
    while running(engine) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert running(engine) == 0


def test_a_stream_ends_with_done(engine: httpx.Client) -> None:
    body = {"model": "base", "messages": TURNS, "max_tokens": 5, "stream": True}
    lines = [line for line in engine.post("/v1/chat/completions", json=body).text.splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    assert '"delta"' in lines[0]


def test_too_long_a_prompt_is_a_400_that_says_context_length(engine: httpx.Client) -> None:
    body = {"model": "base", "messages": [{"role": "user", "content": "a " * 4000}]}
    answer = engine.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert "maximum context length" in answer.json()["error"]["message"]


def test_unknown_name_is_a_404(engine: httpx.Client) -> None:
    assert engine.post("/v1/chat/completions", json={"model": "nope", "messages": TURNS}).status_code == 404


def test_adapter_life(engine: httpx.Client, folder: Path) -> None:
    name = "contract-v1-00000001"
    missing = engine.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(folder / "nope")})
    assert missing.status_code == 404
    load = {"lora_name": name, "lora_path": str(folder)}
    assert engine.post("/v1/load_lora_adapter", json=load).status_code == 200
    again = engine.post("/v1/load_lora_adapter", json=load)
    assert again.status_code == 400
    assert "already been loaded" in again.json()["error"]["message"]
    assert name in [card["id"] for card in engine.get("/v1/models").json()["data"]]
    ids = [65, 66, 67]
    base, adapter = first_logprobs(engine, "base", ids), first_logprobs(engine, name, ids)
    assert max(abs(base[f"token_id:{t}"] - adapter[f"token_id:{t}"]) for t in ids) > 0.05
    assert engine.post("/v1/unload_lora_adapter", json={"lora_name": name}).status_code == 200
    assert engine.post("/v1/unload_lora_adapter", json={"lora_name": name}).status_code == 404
    assert engine.post("/v1/chat/completions", json={"model": name, "messages": TURNS}).status_code == 404
