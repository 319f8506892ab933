"""What the gateway relies on of an engine. One suite, two backends: the fake, and vLLM on a CPU.

A red test here with a green fake means that vLLM moved, or that the fake lies.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.engine import BLOCK, FakeEngine
from tests.fakes.serving import serve
from tests.stack import RealEngine

TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is an allergy?"}]


@pytest.fixture(scope="module", params=["fake", "real"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    if request.param == "fake":
        with serve(FakeEngine().app()) as url, httpx.Client(base_url=url, timeout=30) as client:
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
