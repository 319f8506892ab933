"""What the stack shows to the outside, and what its containers may do."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterable
from typing import Any

import pytest

from tests.docker.conftest import Trained
from tests.docker.stack import Stack, plain_environment

SECRETS = (
    "ENGINE_API_KEY",
    "GATEWAY_API_KEY",
    "GATEWAY_ADMIN_KEY",
    "POSTGRES_PASSWORD",
    "WEBUI_SECRET_KEY",
    "GRAFANA_ADMIN_PASSWORD",
)
KNOWS = {
    "engine": {"ENGINE_API_KEY"},
    "gateway": {"ENGINE_API_KEY", "GATEWAY_API_KEY", "GATEWAY_ADMIN_KEY", "POSTGRES_PASSWORD"},
    "ui": {"GATEWAY_API_KEY"},
    "postgres": {"POSTGRES_PASSWORD"},
}
"""Which service needs which secret; the gateway has the database's in its URL."""
PUBLISHED = {"gateway", "ui"}


def running(stack: Stack) -> dict[str, dict[str, Any]]:
    return {name: one for name, one in stack.containers().items() if one["State"]["Running"]}


def test_only_gateway_and_pages_are_published_and_on_loopback(stack: Stack) -> None:
    found = {
        name: {binding["HostIp"] for bindings in ports.values() for binding in bindings or []}
        for name, one in running(stack).items()
        if any((ports := one["NetworkSettings"]["Ports"]).values())
    }
    assert found == {name: {"127.0.0.1"} for name in PUBLISHED}
    assert not [one for one in running(stack).values() if one["HostConfig"]["NetworkMode"] == "host"]


def test_what_is_published_listens_on_one_address(stack: Stack) -> None:
    for url in (stack.gateway_url, stack.ui_url):
        port = int(url.rpartition(":")[2])
        socket.create_connection(("127.0.0.1", port), 3).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), 3)


def test_pages_and_databases_cannot_reach_the_engine(stack: Stack) -> None:
    probe = "import socket; socket.create_connection(('engine', 8001), 3)"
    assert stack.compose("exec", "--no-TTY", "ui", "python", "-c", probe, check=False).returncode != 0
    assert stack.compose("exec", "--no-TTY", "gateway", "python", "-c", probe, check=False).returncode == 0
    networks = {name: set(one["NetworkSettings"]["Networks"]) for name, one in running(stack).items()}
    assert networks["gateway"] & networks["engine"]
    for service in ("ui", "postgres", "redis"):
        assert networks[service].isdisjoint(networks["engine"]), service


def test_no_container_is_root_or_keeps_a_capability(stack: Stack) -> None:
    for name, one in running(stack).items():
        status = stack.compose("exec", "--no-TTY", name, "cat", "/proc/1/status").stdout
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert 0 not in {int(uid) for uid in fields["Uid"].split()}, name
        assert 0 not in {int(gid) for gid in fields["Gid"].split()}, name
        assert {fields[kind] for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}, name
        assert fields["NoNewPrivs"] == "1", name
        assert not one["HostConfig"]["Privileged"], name


def test_no_container_writes_its_root(stack: Stack) -> None:
    for name, one in running(stack).items():
        assert one["HostConfig"]["ReadonlyRootfs"], name
        options = next(
            line.split()[3]
            for line in stack.compose("exec", "--no-TTY", name, "cat", "/proc/self/mounts").stdout.splitlines()
            if line.split()[1] == "/"
        )
        assert "ro" in options.split(","), name


def test_every_container_has_limits_and_its_log_ends(stack: Stack) -> None:
    for name, one in running(stack).items():
        assert one["HostConfig"]["Memory"] > 0, name
        assert one["HostConfig"]["PidsLimit"] > 0, name
        assert one["HostConfig"]["LogConfig"]["Config"].keys() >= {"max-size", "max-file"}, name


def found_in(chunks: Iterable[bytes], words: dict[str, bytes]) -> set[str]:
    """Names of the words that stand in a stream, across the edges of its pieces too."""
    longest = max(len(word) for word in words.values())
    found: set[str] = set()
    kept = b""
    for chunk in chunks:
        text = kept + chunk
        found |= {name for name, word in words.items() if word in text}
        kept = text[-longest:]
    return found


def test_found_in_sees_a_word_across_pieces() -> None:
    assert found_in([b"..se", b"cret.."], {"A": b"secret", "B": b"other"}) == {"A"}


def secrets(stack: Stack) -> dict[str, bytes]:
    return {name: stack.settings[name].encode() for name in SECRETS}


def test_a_container_knows_only_its_own_secrets(stack: Stack) -> None:
    for name, one in stack.containers().items():
        assert found_in([json.dumps(one).encode()], secrets(stack)) == KNOWS.get(name, set()), name


def test_no_log_tells_a_secret(stack: Stack, trained: Trained) -> None:
    text = stack.compose("logs", "--no-color").stdout
    assert "Uvicorn" in text or "started" in text
    assert found_in([text.encode()], secrets(stack)) == set()
    assert found_in([trained.said.encode()], secrets(stack)) == set()


@pytest.mark.parametrize("service", ["engine", "gateway", "ui", "trainer"])
def test_no_image_layer_holds_a_secret(checkout: Stack, images: dict[str, str], service: str) -> None:
    # Stands in a layer and nowhere else: layers are read, and not packed.
    marker = b"opt/venv/bin/activate"
    with subprocess.Popen(
        ["docker", "save", images[service]], stdout=subprocess.PIPE, env=plain_environment()
    ) as saving:
        assert saving.stdout is not None
        stream = iter(lambda: saving.stdout.read(1 << 22) if saving.stdout else b"", b"")
        found = found_in(stream, {**secrets(checkout), "marker": marker})
    assert saving.returncode == 0
    assert found == {"marker"}
