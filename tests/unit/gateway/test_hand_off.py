"""An engine that makes way for a training gets no requests, and finishes those that it has."""

from __future__ import annotations

import fcntl
import time

import pytest
from preceptor_contracts.frozen import describe
from preceptor_contracts.hand_off import hand_off_lock
from preceptor_gateway.settings import GatewaySettings
from pydantic import ValidationError

from tests.unit.gateway.conftest import V1, Stack, StackMaker
from tests.unit.gateway.test_adapters import eventually
from tests.unit.gateway.test_engines import serving, states

QUESTION = {"model": "clinic", "messages": [{"role": "user", "content": "Hello?"}]}


def handing_off(make_stack: StackMaker, engines: int) -> Stack:
    """A gateway that knows which of its engines makes way: the first."""
    before = serving(make_stack, engines=engines)
    before.stop()
    stack = make_stack(engines=engines, hand_off_engine=f"http://{before.hosts[0].name}")
    assert eventually(lambda: states(stack) == ["ready"] * engines)
    return stack


def test_the_only_engine_makes_way_and_requests_are_told_so(make_stack: StackMaker) -> None:
    stack = handing_off(make_stack, engines=1)
    lock = hand_off_lock(stack.adapters)
    with lock.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert eventually(lambda: stack.use.get("/health").json()["engines"][0]["makes_way"])
        health = stack.use.get("/health")
        assert health.status_code == 503
        assert health.json()["engines"][0]["up"]
        asked = len(stack.fake.calls)
        refused = stack.use.post("/v1/chat/completions", json=QUESTION)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_handed_off")
        assert refused.headers["retry-after"] == "30"
        assert not [path for path, _ in stack.fake.calls[asked:] if path == "/v1/chat/completions"]
        assert "GPU" in stack.use.get(f"/v1/adapters/{V1}").json()["engines"][stack.hosts[0].name]["reason"]
    assert eventually(lambda: stack.use.post("/v1/chat/completions", json=QUESTION).status_code == 200)


def test_another_engine_serves_meanwhile(make_stack: StackMaker) -> None:
    stack = handing_off(make_stack, engines=2)
    with hand_off_lock(stack.adapters).open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert eventually(lambda: stack.use.get("/health").json()["engines"][0]["makes_way"])
        before = len(stack.hosts[0].fake.calls)
        # Twelve prompts: one in two would have its home there.
        asked = [
            {**QUESTION, "messages": [{"role": "user", "content": f"{number} {'Hello? ' * 200}"}]}
            for number in range(12)
        ]
        assert {stack.use.post("/v1/chat/completions", json=one).status_code for one in asked} == {200}
        assert not [path for path, _ in stack.hosts[0].fake.calls[before:] if path == "/v1/chat/completions"]


def test_a_lock_that_cannot_be_looked_at_stops_no_watch(make_stack: StackMaker) -> None:
    stack = handing_off(make_stack, engines=1)
    lock = hand_off_lock(stack.adapters)
    # A link to itself: ELOOP, to root too.
    lock.symlink_to(lock)
    time.sleep(0.6)
    assert stack.use.post("/v1/chat/completions", json=QUESTION).status_code == 200
    lock.unlink()
    with lock.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert eventually(lambda: stack.use.get("/health").json()["engines"][0]["makes_way"])


def settings(**more: str) -> GatewaySettings:
    return GatewaySettings(_env_file=None, **more)  # type: ignore[arg-type]  # any value by name


def test_an_engine_that_is_none_of_its_own_is_refused_and_no_key_is_shown() -> None:
    for wrong in (
        "http://elsewhere:8001",
        "http://me:hunter2@gpu1:8001",
        "http://127.0.0.1:8001,http://127.0.0.1:8001",
    ):
        with pytest.raises(ValidationError) as caught:
            settings(hand_off_engine=wrong, api_key="use-secret", admin_key="admin-secret")
        told = describe(caught.value, of_settings=True)
        assert "hand_off_engine" in told
        assert "secret" not in told
        assert "hunter2" not in told


def test_an_engine_is_the_same_however_its_url_is_spelt() -> None:
    one = settings(ENGINE_URLS="http://GPU1:8001/,http://gpu2:8001", hand_off_engine="http://gpu1:8001/")
    assert one.hand_off_engine == "http://gpu1:8001"
