"""What the gateway relies on of an engine. One suite, two backends: the fake, and vLLM on a CPU.

A red test here with a green fake means that vLLM moved, or that the fake lies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.fakes.engine import FakeEngine
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
