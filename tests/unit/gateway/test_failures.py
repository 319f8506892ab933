"""What a client sees when the engine dies, dawdles or is not there yet, and what the engine sees when a client goes."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.engine import ANSWER
from tests.fakes.serving import free_port
from tests.stack import Process
from tests.unit.gateway.conftest import Stack, StackMaker

CHAT = {"model": "base", "messages": [{"role": "user", "content": "Hello?"}]}
PLAIN = {"model": "base", "prompt": "Hello", "max_tokens": 8}
TEXT = {"domain": "clinic", "prompt": "Hello?"}
MCQ = {"domain": "clinic", "question": "Which?", "choices": ["A) This.", "B) That."]}
RENDER = {"messages": [{"role": "user", "content": "Hello?"}]}


def eventually(claim: Callable[[], bool], within_s: float) -> bool:
    """Waits until it holds, or no longer than that."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if claim():
            return True
        time.sleep(0.01)
    return claim()


# --- the engine dies, or falls silent ---

FAKE_PROCESS = """
import sys, uvicorn
from tests.fakes.engine import FakeEngine
fake = FakeEngine(token_delay_s=0.1, answer=" ".join(["word"] * 600))
uvicorn.run(fake.app(), host="127.0.0.1", port=int(sys.argv[1]), log_level="error")
"""


class EngineProcess:
    """The fake as a process, so that it can be killed and stopped."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = Process([sys.executable, "-c", FAKE_PROCESS, str(self.port)], {}, folder / "fake.log")

    def start(self) -> None:
        self.process.start()
        self.process.wait_for(f"{self.url}/health", 30)

    def signal(self, how: signal.Signals) -> None:
        assert self.process.child is not None
        self.process.child.send_signal(how)


@pytest.fixture
def engine_process(tmp_path: Path) -> Iterator[EngineProcess]:
    one = EngineProcess(tmp_path)
    yield one
    one.process.end(signal.SIGKILL)


@pytest.mark.parametrize(
    ("how", "code"), [(signal.SIGKILL, "engine_down"), (signal.SIGSTOP, "engine_timeout")], ids=["killed", "stopped"]
)
@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/chat/completions", {**CHAT, "stream": True}), ("/generate", TEXT)],
    ids=["chat", "generate"],
)
def test_engine_that_dies_in_mid_stream_is_a_last_event_and_a_closed_stream(
    make_stack: StackMaker, engine_process: EngineProcess, how: signal.Signals, code: str, path: str, body: Any
) -> None:
    engine_process.start()
    stack = make_stack(ENGINE_URLS=engine_process.url, engine_timeout_s=1)
    lines = []
    died = 0.0
    with stack.use.stream("POST", path, json=body) as response:
        for line in response.iter_lines():
            if not line:
                continue
            lines.append(line)
            if len(lines) == 4:
                engine_process.signal(how)
                died = time.monotonic()
    # The block ended by itself: the stream was closed, whole, without an exception.
    assert time.monotonic() - died < 3
    assert len(lines) >= 5
    problem = json.loads(lines[-1].removeprefix("data: "))
    assert problem["error"]["code"] == code
    assert problem["request_id"] == response.headers["x-request-id"]
    assert "data: [DONE]" not in lines


def test_engine_that_dies_before_a_whole_answer_is_a_503(make_stack: StackMaker, engine_process: EngineProcess) -> None:
    engine_process.start()
    stack = make_stack(ENGINE_URLS=engine_process.url)
    assert stack.chat("base").status_code == 200
    engine_process.signal(signal.SIGKILL)
    started = time.monotonic()
    answer = stack.chat("base")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_down")
    assert time.monotonic() - started < 2


# --- the engine is not there yet ---


def test_engine_that_starts_slowly_is_a_503_with_retry_after_and_then_an_answer(
    make_stack: StackMaker, engine_process: EngineProcess
) -> None:
    stack = make_stack(ENGINE_URLS=engine_process.url)
    asked: list[tuple[str, Any]] = [
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", {**CHAT, "stream": True}),
        ("/v1/completions", PLAIN),
        ("/v1/embeddings", {"model": "base", "input": "a"}),
        ("/generate", TEXT),
        ("/submit_mcq", MCQ),
        ("/v1/domains/clinic/render", RENDER),
    ]
    for path, body in asked:
        answer = stack.use.post(path, json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_down"), path
        assert int(answer.headers["retry-after"]) > 0, path
    engine_process.start()
    assert eventually(lambda: stack.use.get("/health").status_code == 200, 10)
    assert stack.chat("base", max_tokens=3).status_code == 200


def test_health_tells_process_and_engine_apart(make_stack: StackMaker, engine_process: EngineProcess) -> None:
    stack = make_stack(ENGINE_URLS=engine_process.url)
    assert httpx.get(f"{stack.url}/").status_code == 200
    down = httpx.get(f"{stack.url}/health")
    assert (down.status_code, down.json()["status"], down.json()["engine"]) == (503, "degraded", "down")
    engine_process.start()
    assert eventually(lambda: httpx.get(f"{stack.url}/health").status_code == 200, 10)
    assert httpx.get(f"{stack.url}/health").json()["engine"].startswith("vLLM")
    engine_process.signal(signal.SIGKILL)
    assert eventually(lambda: httpx.get(f"{stack.url}/health").status_code == 503, 10)
    assert httpx.get(f"{stack.url}/").status_code == 200


def test_health_answers_though_the_engine_accepts_and_never_answers(make_stack: StackMaker) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as mute:
        stack = make_stack(ENGINE_URLS=f"http://127.0.0.1:{mute.getsockname()[1]}")
        started = time.monotonic()
        health = httpx.get(f"{stack.url}/health", timeout=20)
        assert time.monotonic() - started < 7
        assert (health.status_code, health.json()["engine"]) == (503, "down")
        started = time.monotonic()
        assert httpx.get(f"{stack.url}/").status_code == 200
        assert time.monotonic() - started < 1


# --- the client goes ---

STREAMED = [("/v1/chat/completions", {**CHAT, "stream": True}), ("/v1/completions", {**PLAIN, "stream": True})]
WHOLE = [("/v1/chat/completions", CHAT), ("/v1/completions", PLAIN)]


def hang_up(stack: Stack, path: str, body: object, *, after: bytes) -> None:
    """Sends a request by hand and closes the socket once `after` has arrived, or at once where it is empty."""
    content = json.dumps(body).encode()
    host, port = stack.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer use-key\r\ncontent-type: application/json\r\n"
        client.sendall(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
        assert eventually(lambda: stack.fake.running == 1, 5)
        seen = b""
        while after and after not in seen:
            seen += client.recv(65536)


def work_ended(stack: Stack) -> bool:
    return stack.fake.running == 0 and stack.fake.aborted == 1


@pytest.mark.parametrize(("path", "body"), [*STREAMED, ("/generate", TEXT)], ids=lambda value: str(value)[:24])
def test_client_that_leaves_before_the_head_of_a_stream(stack: Stack, path: str, body: object) -> None:
    stack.fake.head_s = 20
    hang_up(stack, path, body, after=b"")
    assert eventually(lambda: work_ended(stack), 1)


@pytest.mark.parametrize("head_s", [0.3, 0.31, 0.32])
def test_client_that_leaves_while_the_head_arrives_leaves_nothing_behind(stack: Stack, head_s: float) -> None:
    stack.fake.head_s = head_s
    stack.fake.token_delay_s = 20
    for _ in range(5):
        content = json.dumps(TEXT).encode()
        host, port = stack.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as client:
            head = "POST /generate HTTP/1.1\r\nhost: x\r\nauthorization: Bearer use-key\r\n"
            kind = "content-type: application/json\r\n"
            client.sendall(f"{head}{kind}content-length: {len(content)}\r\n\r\n".encode() + content)
            time.sleep(0.3)
    assert eventually(lambda: stack.fake.running == 0, 1)


@pytest.mark.parametrize(("path", "body"), [*STREAMED, ("/generate", TEXT)], ids=lambda value: str(value)[:24])
def test_client_that_leaves_before_the_first_byte_of_a_stream(stack: Stack, path: str, body: object) -> None:
    stack.fake.prefill_s = 20
    hang_up(stack, path, body, after=b"")
    assert eventually(lambda: work_ended(stack), 1)


@pytest.mark.parametrize(("path", "body"), [*STREAMED, ("/generate", TEXT)], ids=lambda value: str(value)[:24])
def test_client_that_leaves_after_the_first_byte_of_a_stream(stack: Stack, path: str, body: object) -> None:
    stack.fake.token_delay_s = 20
    hang_up(stack, path, body, after=b"data: ")
    assert eventually(lambda: work_ended(stack), 1)


@pytest.mark.parametrize(("path", "body"), [*WHOLE, ("/submit_mcq", MCQ)], ids=lambda value: str(value)[:24])
def test_client_that_leaves_before_a_whole_answer(stack: Stack, path: str, body: object) -> None:
    stack.fake.token_delay_s = 20
    hang_up(stack, path, body, after=b"")
    assert eventually(lambda: work_ended(stack), 1)


def test_client_that_left_is_counted_as_one(stack: Stack) -> None:
    stack.fake.token_delay_s = 20
    hang_up(stack, "/v1/chat/completions", CHAT, after=b"")

    def counted() -> bool:
        text = stack.use.get("/metrics").text
        return bool(
            re.search(r'^preceptor_requests_total{.*route="/v1/chat/completions",status="499"} 1.0$', text, re.M)
        )

    assert eventually(counted, 2)


def test_slow_client_of_a_long_stream_holds_the_engine_back(stack: Stack) -> None:
    pieces, size = 4000, 16_384
    stack.fake.answer = " ".join(["x" * size] * pieces)
    content = json.dumps({**CHAT, "stream": True}).encode()
    host, port = stack.url.removeprefix("http://").split(":")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.settimeout(30)
        client.connect((host, int(port)))
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer use-key\r\n"
        client.sendall(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
        assert eventually(lambda: stack.fake.sent_chunks > 10, 10)
        # It has come to rest: nothing moves although most is still to come.
        before = -1
        while before != stack.fake.sent_chunks:
            before = stack.fake.sent_chunks
            time.sleep(0.5)
        # What is under way sits in the kernel's buffers, a few MiB a socket, and in two queues of 256 KiB at most.
        assert before < pieces / 2
        assert stack.chat("clinic:base").status_code == 200
        seen = 0
        tail = b""
        while not tail.endswith(b"0\r\n\r\n"):
            data = client.recv(1 << 20)
            assert data
            seen += len(data)
            tail = (tail + data)[-64:]
    assert seen > pieces * size
    assert b"data: [DONE]" in tail


def test_answers_are_whole_when_the_answer_is_long(stack: Stack) -> None:
    stack.fake.answer = " ".join(["word"] * 20_000)
    assert stack.chat("base").json()["choices"][0]["message"]["content"] == stack.fake.answer
    said = [
        json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content", "")
        for line in stack.chat("base", stream=True).text.splitlines()
        if line.startswith("data: {")
    ]
    assert "".join(said) == stack.fake.answer
    assert ANSWER not in said


def test_a_failure_that_nobody_foresaw_has_the_one_shape(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a secret of the house")

    monkeypatch.setattr("preceptor_gateway.domains.service.DomainService.view", broken)
    answer = stack.use.get("/v1/domains")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert "secret" not in answer.text


def test_a_list_of_models_that_is_none_takes_the_engine_out(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    async def odd(*_: object) -> dict[str, object]:
        return {"data": None}

    assert stack.use.get("/health").status_code == 200
    monkeypatch.setattr("preceptor_gateway.engine.client.EngineClient._get", odd)
    assert eventually(lambda: stack.chat("base").status_code == 503, 5)
