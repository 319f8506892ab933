"""Prometheus, as a stand-in from Debian's package, scrapes the stack by the configuration that is shipped."""

from __future__ import annotations

import json
from typing import Any

from tests.docker.conftest import QUESTION, STAND_IN, Trained
from tests.docker.figures import Figures
from tests.docker.stack import Stack, docker, wait_until
from tests.stack import REPO

IMAGE = f"prom/prometheus:{STAND_IN}"


def ask(stack: Stack, path: str) -> Any:
    """Asks Prometheus from within: it publishes no port."""
    script = f"import urllib.request as r; print(r.urlopen('http://prometheus:9090/api/v1/{path}').read().decode())"
    done = stack.compose("exec", "--no-TTY", "gateway", "python", "-c", script)
    return json.loads(done.stdout)["data"]


def test_prometheus_sees_gateway_and_engine_and_knows_the_alerts(
    stack: Stack, trained: Trained, figures: Figures
) -> None:
    if not docker("images", "--quiet", IMAGE).strip():
        docker("build", "--quiet", "--tag", IMAGE, str(REPO / "tests/docker/stand_ins/prometheus"))
    stack.compose("--profile", "monitoring", "up", "--detach", "--no-deps", "prometheus")
    try:
        assert stack.ask("library", QUESTION).status_code == 200

        def is_up() -> bool:
            active = ask(stack, "targets?state=active")["activeTargets"]
            health = {one["labels"]["job"]: one["health"] for one in active}
            return {health.get(job) for job in ("preceptor-gateway", "preceptor-engine")} == {"up"}

        wait_until(is_up, 60, "both targets")
        found = ask(stack, "query?query=preceptor_requests_total")["result"]
        assert any(one["metric"]["adapter"] == trained.adapter for one in found)
        (group,) = ask(stack, "rules?type=alert")["groups"]
        assert len(group["rules"]) >= 8
        assert {rule["health"] for rule in group["rules"]} <= {"ok", "unknown"}
    finally:
        stack.compose("--profile", "monitoring", "rm", "--stop", "--force", "prometheus")
