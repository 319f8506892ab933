"""A gateway in front of the fake engine, both on loopback ports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from preceptor_contracts.domains import Domain, load_domain
from preceptor_contracts.report import Verdict
from preceptor_gateway.app import create_app
from preceptor_gateway.settings import GatewaySettings
from pydantic import SecretStr

from tests.fakes.adapters import canary_for, write_adapter, write_report
from tests.fakes.engine import FakeEngine
from tests.fakes.serving import free_port, serve

V1, V2 = "clinic-v1-00000001", "clinic-v2-00000002"

DOMAIN = """
name: clinic
title: Clinic
description: A domain for tests.
system: "You are a clinic. {{braces}} stay."
mcq: {scoring: SCORING}
safety:
  - {name: emergency, message: "Call 112 first.", patterns: ["can'?t breathe"]}
disclaimer: Not advice.
recipe: any
grader: mcq
max_answer_tokens: 33
"""


def write_domain(root: Path, scoring: str) -> Domain:
    """Writes the test domain."""
    folder = root / "clinic"
    folder.mkdir(parents=True)
    (folder / "domain.yaml").write_text(DOMAIN.replace("SCORING", scoring))
    return load_domain(folder).domain


@dataclass
class EngineHost:
    """A fake engine in a server of its own, which can die and come back on the same port."""

    fake: FakeEngine = field(default_factory=FakeEngine)
    port: int = field(default_factory=free_port)
    _life: ExitStack = field(default_factory=ExitStack)

    @property
    def name(self) -> str:
        """As the gateway shows it."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        self._life.enter_context(serve(self.fake.app(), self.port))

    def kill(self) -> None:
        """Ends the server, connections and all; what comes back has no adapters."""
        self._life.close()
        self.fake.restart()


@dataclass
class Stack:
    """What a test may look at and break."""

    fake: FakeEngine
    domain: Domain
    root: Path
    url: str
    use: httpx.Client
    admin: httpx.Client
    stop: Callable[[], object]
    """Ends the gateway, as the end of the test would."""
    hosts: list[EngineHost] = field(default_factory=list)
    """Every engine of the test; `fake` is the first one's."""

    @property
    def adapters(self) -> Path:
        return self.root / "adapters"

    def add(self, name: str, verdict: Verdict | None = None, *, deaf: bool = False) -> str:
        """Puts an adapter on disk; returns the name of its report, if any."""
        canary = canary_for(self.fake, self.domain, name)
        folder = write_adapter(self.adapters, name, self.domain, canary)
        self.fake.deaf_adapters = deaf
        return write_report(folder, self.domain.name, verdict) if verdict else ""

    def load(self, name: str) -> httpx.Response:
        return self.admin.post("/v1/adapters", json={"adapter": name})

    def promote(self, name: str, **more: object) -> httpx.Response:
        return self.admin.post("/v1/domains/clinic/promote", json={"adapter": name, **more})

    def chat(self, model: str, content: str = "Hello?", **more: object) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": content}], **more}
        return self.use.post("/v1/chat/completions", json=body)

    def sent(self, path: str = "/v1/chat/completions") -> dict[str, object]:
        """The last body that the engine got on a path."""
        return [body for where, body in self.fake.calls if where == path][-1]


StackMaker = Callable[..., Stack]


@contextmanager
def stack_maker(root: Path) -> Iterator[StackMaker]:
    """Builds stacks; a second call on the same folders is a gateway restart."""
    with ExitStack() as exits:
        hosts: list[EngineHost] = []

        def make(scoring: str = "options", *, engines: int = 1, **settings: object) -> Stack:
            while len(hosts) < engines:
                hosts.append(EngineHost())
                hosts[-1].start()
                exits.callback(hosts[-1].kill)
            fake = hosts[0].fake
            domains = root / "domains"
            domain = load_domain(domains / "clinic").domain if domains.exists() else write_domain(domains, scoring)
            values: dict[str, object] = {
                "api_key": SecretStr("use-key"),
                "admin_key": SecretStr("admin-key"),
                "ENGINE_URLS": ",".join(f"http://{host.name}" for host in hosts),
                "DOMAINS_DIR": domains,
                "ADAPTERS_DIR": root / "adapters",
                "data_dir": root / "gateway",
                "reconcile_seconds": 0.05,
                "database_url": SecretStr(f"sqlite:///{root / 'gateway' / 'gateway.db'}"),
                **settings,
            }
            gateway = exits.enter_context(ExitStack())
            url = gateway.enter_context(serve(create_app(GatewaySettings(_env_file=None, **values))))  # type: ignore[arg-type]  # test values by name
            use, admin = [
                exits.enter_context(httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=10))
                for key in ("use-key", "admin-key")
            ]
            return Stack(fake, domain, root, url, use, admin, gateway.close, hosts)

        yield make


@pytest.fixture
def make_stack(tmp_path: Path) -> Iterator[StackMaker]:
    """Builds stacks for one test."""
    with stack_maker(tmp_path) as make:
        yield make


@pytest.fixture
def stack(make_stack: StackMaker) -> Stack:
    """A gateway with scoring `options`."""
    return make_stack()
