"""Fixtures of the UI's tests: a fake gateway on a loopback port, and settings that point at it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest
from preceptor_ui.settings import Settings

from tests.unit.ui.ui_fake_gateway import KEY, FakeGateway, Running


@pytest.fixture(scope="session")
def served_gateway() -> Iterator[FakeGateway]:
    """One server for the whole session; `fake` rewinds its script."""
    with Running(FakeGateway()) as gateway:
        yield gateway


@pytest.fixture
def fake(served_gateway: FakeGateway) -> FakeGateway:
    """The fake gateway with an empty script."""
    port = served_gateway.port
    served_gateway.__dict__.update(FakeGateway(port=port).__dict__)
    return served_gateway


@pytest.fixture
def settings_for() -> Callable[..., Settings]:
    """Builds settings for a gateway's address."""

    def build(url: str, *, key: str = KEY) -> Settings:
        return Settings.model_validate({"gateway_url": url, "gateway_api_key": key})

    return build


@pytest.fixture
def closed_url() -> str:
    """An address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"
