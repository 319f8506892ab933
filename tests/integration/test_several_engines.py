"""Two real engines behind one gateway: an adapter is on both, and one that dies costs no answer."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
import pytest

from tests.integration.conftest import RealStack, only_adapter, running_gateway
from tests.stack import RealEngine, running_engine


@dataclass
class Pair:
    """A gateway in front of two engines; `second` may be killed, the first belongs to other tests too."""

    stack: RealStack
    second: RealEngine
    adapter: str


@pytest.fixture(scope="module")
def pair(
    real_stack: RealStack,
    short_run: subprocess.CompletedProcess[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Pair]:
    assert short_run.returncode in (0, 3), short_run.stdout + short_run.stderr
    root = tmp_path_factory.mktemp("pair")
    with (
        running_engine(root) as second,
        running_gateway(root / "gateway", real_stack.env, [real_stack.engine, second]) as stack,
    ):
        yield Pair(stack, second, only_adapter(stack, "sql"))


def until(wanted: Callable[[], bool], limit_s: float = 60) -> bool:
    deadline = time.monotonic() + limit_s
    while not wanted() and time.monotonic() < deadline:
        time.sleep(0.2)
    return wanted()


def states(pair: Pair) -> list[str]:
    engines = pair.stack.use.get(f"/v1/adapters/{pair.adapter}").json()["engines"]
    return sorted(one["state"] for one in engines.values())


def ask(pair: Pair, question: str) -> httpx.Response:
    body = {
        "model": f"sql:{pair.adapter}",
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 8,
    }
    # A client of its own: they are asked from several threads.
    return httpx.post(f"{pair.stack.url}/v1/chat/completions", json=body, headers=pair.stack.use.headers, timeout=120)


def ask_choice(pair: Pair, number: int) -> httpx.Response:
    item = {"question": f"What colour is a clear sky on day {number}?", "options": ["Blue.", "Green."]}
    body = {"model": "letters:base", "items": [item]}
    return httpx.post(f"{pair.stack.url}/v1/mcq", json=body, headers=pair.stack.use.headers, timeout=120)


def up(pair: Pair) -> list[bool]:
    return [one["up"] for one in pair.stack.use.get("/health").json()["engines"]]


def test_an_adapter_is_on_both_and_one_engine_that_dies_costs_no_answer(pair: Pair) -> None:
    pair.stack.admin.post("/v1/adapters", json={"adapter": pair.adapter}).raise_for_status()
    assert until(lambda: states(pair) == ["ready", "ready"]), states(pair)
    found: list[httpx.Response] = []
    killed = threading.Event()

    def one_client(name: int) -> None:
        for number in range(10):
            one = name * 10 + number
            found.append(ask_choice(pair, one) if one % 2 else ask(pair, f"How many patients are {one} years old?"))
            if len(found) > 12:
                killed.set()

    threads = [threading.Thread(target=one_client, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    assert killed.wait(100)
    pair.second.process.end(signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in found] == [200] * 40
    assert until(lambda: up(pair) == [True, False], 10)
    assert pair.stack.use.get("/health").status_code == 200
    pair.second.start()
    assert until(lambda: up(pair) == [True, True])
    assert until(lambda: states(pair) == ["ready", "ready"]), states(pair)
    assert ask(pair, "How many patients live in Leeds?").status_code == 200
