"""What every ring shares: marks by folder, no network beyond loopback, and one real engine for a whole session."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.prerequisites import require
from tests.stack import ENGINE_BIN, RealEngine, running_engine

HERE = Path(__file__).parent
RINGS = {"unit": 60, "house": 300, "contract": 600, "integration": 1800, "e2e": 3600, "docker": 3600, "gpu": 1800}
"""Rings in the order they run, cheap ones first, with the seconds after which a test counts as hanging."""

# A busy machine is slow, and no example of ours is wrong for being slow.
settings.register_profile("preceptor", deadline=None)
settings.load_profile("preceptor")

# Before anything imports a Hugging Face library; child processes inherit it.
os.environ["HF_HUB_OFFLINE"] = "1"


def ring_of(path: Path) -> str:
    """Names the ring that a test file belongs to."""
    ring = path.relative_to(HERE).parts[0]
    if ring not in RINGS:
        raise pytest.UsageError(f"{path} is in no ring. Move it under one of: {', '.join(RINGS)}.")
    return ring


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = list(RINGS)
    rings = {item.nodeid: ring_of(item.path) for item in items}
    for item in items:
        ring = rings[item.nodeid]
        item.add_marker(ring)
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(RINGS[ring]))
    items.sort(key=lambda item: order.index(rings[item.nodeid]))


class NetworkBlocked(AssertionError):
    """A test reached for a machine other than this one."""


def refuse_far_hosts(host: object) -> None:
    """Lets names and addresses of this machine pass."""
    if host in (None, "", "localhost", b"localhost"):
        return
    text = host.decode() if isinstance(host, bytes) else str(host)
    try:
        address = ipaddress.ip_address(text.split("%")[0])
    except ValueError:
        pass
    else:
        if address.is_loopback or address.is_unspecified:
            return
    raise NetworkBlocked(f"A test reached for {text!r}; speak to this machine only, e.g. to tests/fakes.")


def guarded(connect: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `socket.connect` or `connect_ex`."""

    def checked(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            refuse_far_hosts(address[0])
        return connect(self, address)

    return checked


@pytest.fixture(scope="session", autouse=True)
def loopback_only() -> Iterator[None]:
    """Blocks this process's way out; the processes that tests start are told HF_HUB_OFFLINE."""
    look_up = socket.getaddrinfo

    def checked_look_up(host: Any, *more: Any, **named: Any) -> Any:
        refuse_far_hosts(host)
        return look_up(host, *more, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", checked_look_up)
        patch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
        patch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))
        yield


@pytest.fixture(scope="session")
def real_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEngine]:
    """Real vLLM with the embedded base model; started when the first test asks, ended with the session."""
    require(ENGINE_BIN.exists(), f"{ENGINE_BIN} is not there. Run `make setup`.")
    with running_engine(tmp_path_factory.mktemp("engine")) as engine:
        yield engine
