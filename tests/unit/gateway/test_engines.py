"""Several engines behind one gateway: routing, and adapters on each."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from pathlib import Path

import pytest
from preceptor_contracts.domains import Domain
from preceptor_gateway.adapters import patience
from preceptor_gateway.adapters.on_engine import AdaptersOnEngine
from preceptor_gateway.adapters.registry import Registry
from preceptor_gateway.adapters.service import AdapterService
from preceptor_gateway.adapters.verification import Verifier
from preceptor_gateway.domains.service import DomainService
from preceptor_gateway.engine import EngineClient, EnginePool
from preceptor_gateway.engine.client import encode
from preceptor_gateway.metrics import Metrics
from preceptor_gateway.problems import EngineTimeout, GatewayError, Unavailable
from preceptor_gateway.settings import GatewaySettings
from preceptor_gateway.store import AliasStore
from pydantic import ValidationError

from tests.unit.gateway.conftest import V1, V2, EngineHost, Stack, StackMaker, write_domain
from tests.unit.gateway.test_adapters import eventually


def asked(host: EngineHost, served: str = V1) -> int:
    """Chat requests of users that an engine got; canaries ask otherwise."""
    paths = [body for path, body in host.fake.calls if path == "/v1/chat/completions"]
    return sum(body["model"] == served and body.get("max_tokens") == 33 for body in paths)


def view(stack: Stack, name: str = V1) -> dict[str, object]:
    found: dict[str, object] = stack.use.get(f"/v1/adapters/{name}").json()
    return found


def states(stack: Stack, name: str = V1) -> list[str]:
    """State on each engine, in the order of the engines."""
    engines = stack.use.get(f"/v1/adapters/{name}").json()["engines"]
    return [engines[host.name]["state"] for host in stack.hosts]


def ups(stack: Stack) -> list[bool]:
    return [one["up"] for one in stack.use.get("/health").json()["engines"]]


def serving(make_stack: StackMaker, engines: int = 2, **settings: object) -> Stack:
    """A stack with V1 promoted on every engine."""
    stack = make_stack(engines=engines, **settings)
    stack.add(V1)
    stack.promote(V1, force=True).raise_for_status()
    assert eventually(lambda: states(stack) == ["ready"] * engines)
    return stack


def test_a_promoted_adapter_is_on_every_engine_and_each_answers(make_stack: StackMaker) -> None:
    stack = serving(make_stack, 3)
    assert all(V1 in host.fake.adapters for host in stack.hosts)
    assert {stack.chat("clinic", f"Question {number}?").status_code for number in range(40)} == {200}
    assert all(asked(host) for host in stack.hosts)
    health = stack.use.get("/health").json()
    assert (health["status"], health["engine"]) == ("ok", "vLLM fake")
    assert [one["adapters_ready"] for one in health["engines"]] == [1, 1, 1]


def test_a_dead_engine_is_taken_out_and_brought_back_when_its_canaries_pass_again(make_stack: StackMaker) -> None:
    stack = serving(make_stack)
    dead, alive = stack.hosts
    dead.kill()
    assert eventually(lambda: ups(stack) == [False, True])
    assert stack.use.get("/health").status_code == 200
    assert stack.use.get("/health").json()["status"] == "degraded"
    assert states(stack) == ["registered", "ready"]
    assert view(stack)["state"] == "ready"
    assert {stack.chat("clinic").status_code for _ in range(10)} == {200}
    before, dead.fake.calls, dead.fake.token_delay_s = asked(alive), [], 0.3
    dead.start()
    # While it comes back without its adapters and is slow about its canary, nobody notices.
    seen = set()
    deadline = time.monotonic() + 10
    while asked(dead) == 0 and time.monotonic() < deadline:
        seen.add(stack.chat("clinic").status_code)
    assert seen == {200}
    assert asked(alive) > before
    paths = [path for path, body in dead.fake.calls if body.get("model") == V1 or "lora_name" in body]
    assert paths[:2] == ["/v1/load_lora_adapter", "/v1/chat/completions"]  # the canary
    assert eventually(lambda: stack.use.get("/health").json()["status"] == "ok")


def test_all_engines_down_is_a_503_with_retry_after(make_stack: StackMaker) -> None:
    stack = serving(make_stack)
    for host in stack.hosts:
        host.kill()
    assert eventually(lambda: ups(stack) == [False, False])
    for served in ("clinic", "clinic:base", "base"):
        answer = stack.chat(served)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_down")
        assert int(answer.headers["retry-after"]) > 0
    assert stack.load(V1).json()["error"]["code"] == "engine_down"
    health = stack.use.get("/health")
    assert (health.status_code, health.json()["engine"]) == (503, "down")


def test_an_engine_that_comes_back_as_another_gets_no_adapter_requests(make_stack: StackMaker) -> None:
    stack = serving(make_stack)
    other = stack.hosts[0]
    held = dict(other.fake.adapters)
    other.kill()
    assert eventually(lambda: ups(stack) == [False, True])
    # It lists the name, as if another gateway had loaded it, and answers like its base model.
    other.fake.adapters, other.fake.deaf_adapters, other.fake.calls = held, True, []
    other.start()
    assert eventually(lambda: states(stack) == ["failed", "ready"])
    assert {stack.chat("clinic").status_code for _ in range(8)} == {200}
    assert asked(other) == 0


def test_a_deaf_engine_is_not_asked_and_the_view_says_where_and_why(make_stack: StackMaker) -> None:
    stack = make_stack(engines=2)
    stack.add(V1)
    deaf = stack.hosts[1]
    deaf.fake.deaf_adapters = True
    answer = stack.load(V1).json()
    assert answer["state"] == "ready"
    assert answer["reason"].startswith(f"{deaf.name}: ")
    assert "does not answer as trained" in answer["reason"]
    assert states(stack) == ["ready", "failed"]
    assert {stack.chat(f"clinic:{V1}").status_code for _ in range(8)} == {200}
    assert asked(deaf) == 0


def test_an_adapter_that_fails_everywhere_has_failed(make_stack: StackMaker) -> None:
    stack = make_stack(engines=2)
    stack.add(V1)
    for host in stack.hosts:
        host.fake.deaf_adapters = True
    assert stack.load(V1).json()["error"]["code"] == "canary_failed"
    found = view(stack)
    assert found["state"] == "failed"
    # Both say the same, so no engine is named.
    assert str(found["reason"]).startswith(f"{V1!r} is loaded")


def test_a_slow_engine_delays_no_other(make_stack: StackMaker) -> None:
    stack = serving(make_stack)
    slow = stack.hosts[0]
    slow.fake.token_delay_s = 3.0
    for host in stack.hosts:
        host.fake.restart()
    assert eventually(lambda: states(stack)[0] != "ready")
    # Loaded again by both, and probed by the fast one.
    assert eventually(lambda: all(V1 in host.fake.adapters for host in stack.hosts) and states(stack)[1] == "ready", 2)
    assert states(stack)[0] == "loading"
    assert {stack.chat("clinic").status_code for _ in range(4)} == {200}
    assert asked(slow) == 0
    slow.fake.token_delay_s = 0.0
    assert eventually(lambda: states(stack)[0] == "ready")


def test_a_slow_load_keeps_nobody_from_noticing_that_the_engine_lost_another_adapter(make_stack: StackMaker) -> None:
    stack = serving(make_stack, 1)
    stack.add(V2)
    stack.fake.token_delay_s = 3.0
    stack.admin.put(f"/v1/adapters/{V2}/pin").raise_for_status()
    assert eventually(lambda: states(stack, V2) == ["loading"])
    del stack.fake.adapters[V1]
    assert eventually(lambda: states(stack) == ["registered"], 2)
    assert states(stack, V2) == ["loading"]
    stack.fake.token_delay_s = 0.0
    assert eventually(lambda: states(stack) + states(stack, V2) == ["ready", "ready"])


def test_promotion_does_not_wait_for_the_slowest_for_ever(
    make_stack: StackMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "PATIENCE_S", 0.3)
    stack = serving(make_stack)
    stack.add(V2)
    slow = stack.hosts[0]
    slow.fake.token_delay_s = 4.0
    started = time.monotonic()
    assert stack.promote(V2, force=True).json()["promoted"] == V2
    assert time.monotonic() - started < 2
    slow.fake.token_delay_s = 0.0
    assert {stack.chat("clinic").headers["x-preceptor-adapter"] for _ in range(4)} == {V2}
    assert eventually(lambda: states(stack, V2) == ["ready", "ready"])


def test_an_unload_reaches_an_engine_that_was_away(make_stack: StackMaker) -> None:
    stack = make_stack(engines=2)
    stack.add(V1)
    stack.load(V1).raise_for_status()
    away = stack.hosts[0]
    held = dict(away.fake.adapters)
    away.kill()
    assert eventually(lambda: ups(stack) == [False, True])
    assert stack.admin.delete(f"/v1/adapters/{V1}").json()["state"] == "registered"
    assert V1 not in stack.hosts[1].fake.adapters
    # It was cut off rather than dead, so it still has the adapter.
    away.fake.adapters = held
    away.start()
    assert eventually(lambda: V1 not in away.fake.adapters)
    assert stack.chat(f"clinic:{V1}").json()["error"]["code"] == "adapter_not_loaded"


@pytest.mark.parametrize("route", ["/submit_mcq", "/v1/mcq"])
@pytest.mark.parametrize("loss", ["dies", "loses its adapters"])
def test_multiple_choice_moves_to_the_other_engine(make_stack: StackMaker, route: str, loss: str) -> None:
    stack = serving(make_stack, reconcile_seconds=30)
    gone = stack.hosts[0]
    if loss == "dies":
        gone.kill()
    else:
        gone.fake.restart()
    for number in range(12):
        item = {"question": f"Question {number}?", "passage": f"Passage {number}."}
        single = {"text": item["passage"], "question": item["question"], "choices": ["Milk.", "Eggs."]}
        many = {"items": [{**item, "options": ["Milk.", "Eggs."]}]}
        answer = stack.use.post(route, json={"model": "clinic", **(many if route == "/v1/mcq" else single)})
        assert answer.status_code == 200, answer.text


def test_one_engine_that_lost_an_adapter_keeps_the_others_serving(make_stack: StackMaker) -> None:
    stack = serving(make_stack, reconcile_seconds=30)
    forgetful = stack.hosts[0]
    forgetful.fake.restart()
    # Whoever meets the loss is answered by the other engine.
    assert {stack.chat("clinic", f"Question {number}?").status_code for number in range(20)} == {200}
    assert eventually(lambda: V1 in forgetful.fake.adapters)


def test_an_engine_that_was_never_there_hinders_nobody(make_stack: StackMaker) -> None:
    first = make_stack()
    stack = make_stack(ENGINE_URLS=f"http://{first.hosts[0].name},http://127.0.0.1:9")
    stack.add(V1)
    stack.promote(V1, force=True).raise_for_status()
    assert {stack.chat("clinic").status_code for _ in range(4)} == {200}
    engines = stack.use.get(f"/v1/adapters/{V1}").json()["engines"]
    assert engines["127.0.0.1:9"] == {"state": "registered", "reason": "The engine does not answer."}


def test_metrics_tell_engines_apart(make_stack: StackMaker) -> None:
    stack = serving(make_stack)
    stack.add(V2)
    dead = stack.hosts[0]
    dead.kill()
    assert eventually(lambda: ups(stack) == [False, True])

    def series() -> dict[str, float]:
        lines = stack.use.get("/metrics").text.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"}

    def state_of(name: str, host: EngineHost) -> list[str]:
        wanted = f'adapter="{name}",domain="clinic",engine="{host.name}"'
        return [match[1] for key in series() if wanted in key and (match := re.search(r'state="(\w+)"', key))]

    assert eventually(lambda: state_of(V2, stack.hosts[1]) == ["registered"])
    assert series()[f'preceptor_engine_up{{engine="{dead.name}"}}'] == 0
    assert series()[f'preceptor_engine_up{{engine="{stack.hosts[1].name}"}}'] == 1
    assert [state_of(V1, host) for host in stack.hosts] == [["registered"], ["ready"]]


def test_wishes_that_change_while_engines_come_and_go_end_in_agreement(make_stack: StackMaker) -> None:
    stack = serving(make_stack, reconcile_seconds=0.01)
    stack.add(V2)
    stop = threading.Event()

    def shake() -> None:
        while not stop.is_set():
            stack.hosts[0].fake.restart()
            time.sleep(0.07)

    codes: list[int] = []

    def ask() -> None:
        while not stop.is_set():
            codes.append(stack.chat("clinic").status_code)

    threads = [threading.Thread(target=work) for work in (shake, ask)]
    for thread in threads:
        thread.start()
    for _ in range(6):
        stack.promote(V2, force=True).raise_for_status()
        stack.admin.delete(f"/v1/adapters/{V1}")
        stack.admin.post("/v1/domains/clinic/rollback").raise_for_status()
        stack.admin.delete(f"/v1/adapters/{V2}").raise_for_status()
    stop.set()
    for thread in threads:
        thread.join()
    # Only the moment in which an engine has forgotten and nobody knows: never another adapter, never a 500.
    assert set(codes) <= {200, 503}
    assert codes.count(200) > len(codes) / 2
    assert eventually(lambda: states(stack, V1) == ["ready", "ready"])
    assert eventually(lambda: not any(V2 in host.fake.adapters for host in stack.hosts))
    assert stack.chat("clinic").headers["x-preceptor-adapter"] == V1


@pytest.mark.parametrize("urls", ["http://a:1,http://a:1", "nonsense", ""])
def test_the_gateway_does_not_start_on_malformed_urls(urls: str) -> None:
    with pytest.raises(ValidationError, match="ENGINE_URLS"):
        GatewaySettings(_env_file=None, ENGINE_URLS=urls)


# --- without a gateway: what HTTP cannot show quickly ---


class Silent(EngineClient):
    """Does not answer in time, as often as told."""

    times = 0

    async def names(self) -> frozenset[str]:
        if self.times:
            self.times -= 1
            raise EngineTimeout("silent")
        return await super().names()


def on_one(client: EngineClient, root: Path, domain: Domain) -> tuple[AdaptersOnEngine, EnginePool]:
    pool, registry = EnginePool([client], Metrics()), Registry(root / "adapters")
    verifier, store = Verifier(registry, {domain.name: domain}), AliasStore(root / "aliases.json")
    return AdaptersOnEngine(pool.engines[0], pool, registry, verifier, store, Metrics()), pool


async def test_one_silent_look_is_a_busy_moment_and_two_are_an_outage(make_stack: StackMaker, tmp_path: Path) -> None:
    stack = make_stack()
    client = Silent(f"http://{stack.hosts[0].name}", "", 5)
    one, pool = on_one(client, tmp_path / "other", write_domain(tmp_path / "other", "options"))
    await one.look()
    for times, out in ((1, False), (2, True)):
        client.times = times
        for _ in range(times):
            with pytest.raises(GatewayError):
                await one.look()
        assert pool.engines[0].is_out is out
        await one.look()
        assert not pool.engines[0].is_out
    await pool.close()


async def test_a_request_in_flight_outlives_its_engine_being_taken_out(make_stack: StackMaker) -> None:
    stack = make_stack()
    stack.fake.token_delay_s = 0.05
    client = EngineClient(f"http://{stack.hosts[0].name}", "", 5)
    pool = EnginePool([client], Metrics())
    body = {"model": "base", "messages": [{"role": "user", "content": "?"}], "stream": True}
    async with pool.pick(None).open("/v1/chat/completions", encode(body)) as reply:
        assert client.in_flight == 1
        chunks = reply.chunks()
        text = await anext(chunks)
        pool.failed(client)
        with pytest.raises(Unavailable):
            pool.pick(None)
        text += b"".join([chunk async for chunk in chunks])
    assert text.endswith(b"data: [DONE]\n\n")
    assert client.in_flight == 0
    await pool.close()


async def test_a_target_moves_to_another_engine_once_and_only_there_is(make_stack: StackMaker, tmp_path: Path) -> None:
    stack = make_stack(engines=2)
    pool = EnginePool([EngineClient(f"http://{host.name}", "", 5) for host in stack.hosts], Metrics())
    folder = tmp_path / "other"
    known = {"clinic": write_domain(folder, "options")}
    registry = Registry(folder / "adapters")
    adapters = AdapterService(registry, Verifier(registry, known), AliasStore(folder / "a.json"), pool, Metrics())
    domains = DomainService(known, adapters, pool, "")
    target = domains.resolve("clinic:base", b"prefix")
    other = domains.elsewhere(target, b"prefix")
    assert other == target._replace(engine=next(one.client for one in pool.engines if not one.is_out))
    assert domains.elsewhere(other, b"prefix") is None
    await pool.close()


async def test_requests_are_counted_however_they_end(make_stack: StackMaker) -> None:
    stack = make_stack()
    client = EngineClient(f"http://{stack.hosts[0].name}", "", 5)
    body = {"model": "nobody", "messages": [{"role": "user", "content": "?"}]}
    with pytest.raises(Unavailable):
        await client.post("/v1/chat/completions", body)
    stack.fake.token_delay_s = 5
    task = asyncio.ensure_future(client.post("/v1/chat/completions", {**body, "model": "base"}))
    while client.in_flight == 0:
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert client.in_flight == 0
    await client.close()
