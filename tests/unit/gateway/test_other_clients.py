"""Other people's clients besides the OpenAI SDK: LangChain's ChatOpenAI, and plain curl."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr

from tests.fakes.engine import ANSWER
from tests.prerequisites import require
from tests.unit.gateway.conftest import Stack

# --- LangChain ---


def chat_of(stack: Stack, **more: Any) -> ChatOpenAI:
    return ChatOpenAI(
        model="clinic:base", base_url=f"{stack.url}/v1", api_key=SecretStr("use-key"), max_retries=0, **more
    )


def test_langchain_invokes(stack: Stack) -> None:
    answer = chat_of(stack).invoke([SystemMessage("Be brief."), HumanMessage("Hello?")])
    assert isinstance(answer, AIMessage)
    assert answer.content == ANSWER
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == len(ANSWER) + 1
    assert stack.sent()["messages"] == [
        {"role": "system", "content": "You are a clinic. {braces} stay.\n\nBe brief."},
        {"role": "user", "content": "Hello?"},
    ]


def test_langchain_streams_pieces_and_usage(stack: Stack) -> None:
    pieces = list(chat_of(stack, stream_usage=True).stream("Hello?"))
    assert len([piece for piece in pieces if piece.content]) > 2
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece
    assert whole.content == ANSWER
    assert whole.usage_metadata is not None


async def test_langchain_streams_asynchronously(stack: Stack) -> None:
    assert "".join([str(piece.content) async for piece in chat_of(stack).astream("Hello?")]) == ANSWER


def test_langchain_batches(stack: Stack) -> None:
    answers = chat_of(stack).batch(["One?", "Two?", "Three?"])
    assert [answer.content for answer in answers] == [ANSWER] * 3
    asked = [body["messages"][-1]["content"] for path, body in stack.fake.calls if path == "/v1/chat/completions"]
    assert sorted(asked) == ["One?", "Three?", "Two?"]


class Case(BaseModel):
    """A case."""

    severe: bool
    allergens: list[str]


def test_langchain_gives_structured_output(stack: Stack) -> None:
    # Without a limit of its own the request has the domain's, of 33 tokens.
    answer = (
        chat_of(stack, max_completion_tokens=100).with_structured_output(Case, method="json_schema").invoke("Hello?")
    )
    assert answer == Case(severe=False, allergens=[])
    sent = stack.sent()["response_format"]
    assert isinstance(sent, dict)
    assert sent["type"] == "json_schema"


# --- curl ---


def curl(stack: Stack, path: str, body: object) -> list[str]:
    require(shutil.which("curl"), "curl is not there. Install it, e.g. `apt-get install curl`.")
    head = ["curl", "-sN", "--max-time", "20", f"{stack.url}{path}", "-H", "Authorization: Bearer use-key"]
    return [*head, "-H", "Content-Type: application/json", "-d", json.dumps(body)]


CHAT = {"model": "base", "stream": True, "messages": [{"role": "user", "content": "Hello?"}]}


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/chat/completions", CHAT), ("/generate", {"domain": "clinic", "prompt": "Hello?"})]
)
def test_curl_sees_each_piece_as_it_is_said(stack: Stack, path: str, body: object) -> None:
    stack.fake.token_delay_s = 0.3
    seen: list[tuple[float, str]] = []
    with subprocess.Popen(curl(stack, path, body), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        started = time.monotonic()
        seen = [(time.monotonic() - started, line.strip()) for line in process.stdout if line.strip()]
    assert process.returncode == 0
    words = [(at, line) for at, line in seen if "The" in line or "answer" in line]
    assert seen[-1][1] == "data: [DONE]"
    # Four words, 0.3 s after each: the first is there long before the last, whatever the machine's load.
    assert words[-1][0] - words[0][0] >= 0.6
    assert seen[-1][0] - words[0][0] >= 0.9


def test_curl_reads_a_whole_answer_and_an_error(stack: Stack) -> None:
    whole = subprocess.run(
        curl(stack, "/v1/chat/completions", {**CHAT, "stream": False}), capture_output=True, text=True, check=True
    )
    assert json.loads(whole.stdout)["choices"][0]["message"]["content"] == ANSWER
    wrong = subprocess.run(
        curl(stack, "/v1/chat/completions", {**CHAT, "model": "nope"}), capture_output=True, text=True, check=True
    )
    assert json.loads(wrong.stdout)["error"]["code"] == "unknown_served_name"
