"""LangSmith: off unless the gateway's own settings turn it on, and without words unless those are wanted."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from preceptor_contracts.errors import PrerequisiteError
from preceptor_gateway.settings import GatewaySettings
from preceptor_gateway.telemetry import langsmith

from tests.fakes.otlp import Collector, collector

# A process of its own, because langsmith's switch is the process's; the guard against far hosts is put in by hand.
PROGRAM = """
import os, socket, sys, time
connect = socket.socket.connect
def near(self, address):
    assert address[0] == "127.0.0.1", address
    return connect(self, address)
socket.socket.connect = near
from preceptor_gateway.settings import GatewaySettings
from preceptor_gateway.telemetry import langsmith as ours
ours.configure(GatewaySettings(_env_file=None))
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.prompts import ChatPromptTemplate
from langsmith.utils import tracing_is_enabled
class Mirror(FakeListChatModel):
    # What a model is made of is sent too, so the answer must not stand in it.
    def _stream(self, *args, **more):
        for letter in reversed(self.responses[0]):
            yield ChatGenerationChunk(message=AIMessageChunk(content=letter * 9))
chain = ChatPromptTemplate.from_messages([("human", "{question}")]) | Mirror(responses=["zyx"])
began = time.monotonic()
assert "".join(piece.content for piece in chain.stream({"question": "S3cret"})).startswith("xxxxxxxxxy")
assert time.monotonic() - began < 2
if "--no-flush" in sys.argv:
    sys.stdout.flush()
    os._exit(0)
from langchain_core.tracers.langchain import wait_for_all_tracers
wait_for_all_tracers()
import langsmith
client = langsmith.run_trees._CLIENT
if client:
    client.flush()
print(bool(tracing_is_enabled()))
"""


def run(kept: Collector, *arguments: str, **environment: str) -> tuple[str, bytes]:
    """Runs a chain in such an environment; returns whether it was traced, and all that arrived."""
    kept.bodies.clear()
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("LANG", "OTEL", "LOG_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        env={**clean, "LANGSMITH_TRACING_SAMPLING_RATE": "1", **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), b"".join(unpacked(headers, body) for _, headers, body in kept.bodies)


def unpacked(headers: dict[str, str], body: bytes) -> bytes:
    coding = headers.get("content-encoding", "")
    if coding == "zstd":
        import zstandard

        return zstandard.ZstdDecompressor().decompressobj().decompress(body)
    assert coding == "", coding
    return body


@pytest.fixture
def kept() -> object:
    with collector() as one:
        yield one


def test_it_is_off_whatever_older_variables_and_profiles_say(kept: Collector) -> None:
    traced, sent = run(
        kept,
        LANGCHAIN_TRACING_V2="true",
        LANGSMITH_TRACING_V2="true",
        LANGCHAIN_API_KEY="k3y",
        LANGSMITH_API_KEY="k3y",
        LANGSMITH_ENDPOINT=kept.url,
        LANGCHAIN_ENDPOINT=kept.url,
    )
    assert (traced, sent, kept.bodies) == ("False", b"", [])


def test_it_sends_runs_without_words_when_turned_on(kept: Collector) -> None:
    on = {"LANGSMITH_TRACING": "true", "LANGSMITH_API_KEY": "k3y", "LANGSMITH_ENDPOINT": kept.url}
    traced, sent = run(kept, **on)
    assert traced == "True"
    assert b"RunnableSequence" in sent
    assert b"S3cret" not in sent
    assert b"xxxxxxxxx" not in sent


def test_it_sends_words_where_they_are_wanted(kept: Collector) -> None:
    on = {"LANGSMITH_TRACING": "true", "LANGSMITH_API_KEY": "k3y", "LANGSMITH_ENDPOINT": kept.url}
    _, sent = run(kept, **on, LOG_PROMPTS="true")
    assert b"S3cret" in sent
    assert b"xxxxxxxxx" in sent


def test_a_dead_langsmith_breaks_nothing(kept: Collector) -> None:
    dead = {"LANGSMITH_TRACING": "true", "LANGSMITH_API_KEY": "k3y", "LANGSMITH_ENDPOINT": "http://127.0.0.1:9"}
    assert run(kept, "--no-flush", **dead) == ("", b"")


def test_a_missing_key_is_told() -> None:
    with pytest.raises(PrerequisiteError, match="LANGSMITH_API_KEY is empty"):
        langsmith.configure(GatewaySettings(_env_file=None, LANGSMITH_TRACING=True))
