"""What the Compose and Docker files promise, read without an engine; tests/docker/ runs them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.house.tree import ROOT, shown

DOCKERFILES = sorted([*ROOT.glob("services/**/Dockerfile"), *ROOT.glob("trainer/Dockerfile")])
PROFILES = {"arena", "monitoring", "scale", "tools", "train", "tunnel"}
PUBLISHED = {"gateway", "ui", "grafana", "open-webui"}
PUTS_BACK_OWNERS = {"volumes"}
"""Of files that belong to several services, for as long as a backup or a restore takes."""
WRITES_ITS_ROOT = {"open-webui"}
"""Its image keeps settings and caches beside its code."""
SECRET = re.compile(r"_(KEY|KEYS|PASSWORD|TOKEN)$")


class Loader(yaml.SafeLoader):
    """Reads Compose's own tags as what they hold."""


Loader.add_multi_constructor("!", lambda loader, tag, node: None)


def services(name: str = "docker-compose.yaml") -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.load((ROOT / name).read_text(), Loader)["services"]
    return found


SERVICES = services()
EVERY_SERVICE = pytest.mark.parametrize("name", SERVICES)


def test_the_stack_has_its_services_and_profiles() -> None:
    named = {"engine", "gateway", "ui", "trainer", "open-webui", "prometheus", "grafana", "loki", "postgres", "redis"}
    assert named | {"tunnel"} <= set(SERVICES)
    assert {profile for one in SERVICES.values() for profile in one.get("profiles", ())} == PROFILES
    assert set(services("compose.cpu.yaml")) <= set(SERVICES)


@EVERY_SERVICE
def test_a_service_can_do_no_more_than_it_needs(name: str) -> None:
    one = SERVICES[name]
    assert one["cap_drop"] == ["ALL"]
    assert bool(one.get("cap_add")) is (name in PUTS_BACK_OWNERS)
    assert one["security_opt"] == ["no-new-privileges:true"]
    assert one.get("read_only", False) is (name not in WRITES_ITS_ROOT)
    assert one["pids_limit"] > 0
    assert one["mem_limit"]
    assert one["logging"]["driver"] == "none" or one["logging"]["options"].keys() >= {"max-size", "max-file"}
    assert "privileged" not in one
    assert "container_name" not in one


@EVERY_SERVICE
def test_a_port_is_published_by_choice_and_on_loopback(name: str) -> None:
    ports = SERVICES[name].get("ports", [])
    assert bool(ports) is (name in PUBLISHED)
    assert all(re.match(r"\$\{PUBLISH_[A-Z_]+:-127\.0\.0\.1:\d+\}:\d+$", port) for port in ports)


@EVERY_SERVICE
def test_an_image_has_an_exact_tag_that_env_can_change(name: str) -> None:
    image = SERVICES[name]["image"]
    assert re.search(r":\$\{[A-Z_]+_TAG:-[^}]+\}$", image), image
    assert not image.endswith(":-latest}")


def test_what_the_engine_compiles_can_be_loaded_and_is_kept() -> None:
    """Triton's and torch's libraries: Docker mounts a tmpfs noexec, and vLLM's image has no home for our user."""
    one = SERVICES["engine"]
    assert one["tmpfs"] == ["/tmp:exec"]
    volumes = [mount.split(":")[1] for mount in one["volumes"] if not mount.endswith(":ro")]
    for variable in ("HOME", "TORCHINDUCTOR_CACHE_DIR", "VLLM_CACHE_ROOT"):
        assert any(one["environment"][variable].startswith(f"{volume}/") for volume in volumes), variable


def test_the_log_shipper_may_ask_what_it_asks_and_nothing_else() -> None:
    """Alloy's discovery.docker asks for networks at each refresh, and without them finds nothing."""
    words = SERVICES["docker-logs"]["command"]
    (allowed,) = (word.removeprefix("-allowGET=") for word in words if word.startswith("-allowGET="))
    one = "/v1.47/containers/0123456789abcdef"
    for path in ("/v1.47/containers/json?all=1", "/v1.47/networks", f"{one}/json", f"{one}/logs?follow=1&stdout=1"):
        assert re.fullmatch(allowed, path), path
    for path in ("/v1.47/secrets", f"{one}/archive?path=/", f"{one}/export", "/v1.47/images/json", "/info"):
        assert not re.fullmatch(allowed, path), path


@EVERY_SERVICE
def test_a_secret_has_no_default(name: str) -> None:
    environment = SERVICES[name].get("environment") or {}
    for variable, value in environment.items():
        if SECRET.search(variable):
            assert value is None or re.match(r"^\$\{[A-Z_]+(:\?[^}]*|:-)\}$", value), variable


@EVERY_SERVICE
def test_what_a_service_waits_for_is_healthy_and_not_in_another_profile(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        wanted = {"service_healthy", "service_completed_successfully"}
        assert how["condition"] in wanted or (name, other) == ("gateway", "engine")
        mine, its = set(SERVICES[name].get("profiles", ())), set(SERVICES[other].get("profiles", ()))
        assert how.get("required", True) is False or not its or mine & its


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=shown)
def test_hadolint_has_nothing_to_say(dockerfile: Path) -> None:
    tool = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [tool, "--failure-threshold", "warning", "--no-color", dockerfile], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=shown)
def test_an_image_runs_as_nobody_and_is_labelled(dockerfile: Path) -> None:
    text = dockerfile.read_text()
    final = text[text.rindex("FROM ${PYTHON_IMAGE}") :]
    assert re.findall(r"^USER (.+)$", final, re.MULTILINE) == ["10001:10001"]
    for label in ("title", "version", "revision", "licenses"):
        assert f"org.opencontainers.image.{label}" in final
    assert "curl" not in text
    assert "ADD " not in text


def test_every_dockerfile_was_found() -> None:
    assert len(DOCKERFILES) == 3


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_ports_are_published_through_the_front(name: str) -> None:
    """Docker takes the network whose name comes first: cut off another one, a container still answers."""
    assert sorted(SERVICES[name]["networks"])[0] == "front"
