"""The real stack: vLLM, gateway, and shortened domains so that an exam takes seconds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.fakes.serving import free_port
from tests.stack import ENGINE_KEY, REPO, RealEngine, python_module

EXAM_QUESTIONS = 24
TRAINING_RECORDS = 96


@dataclass
class RealStack:
    """Where everything is."""

    engine: RealEngine
    url: str
    use: httpx.Client
    admin: httpx.Client
    env: dict[str, str]
    domains: Path
    adapters: Path
    runs: Path


def shorten(source: Path, target: Path) -> None:
    """Copies a domain with fewer rows."""
    shutil.copytree(source, target)
    for file, rows in (("train.jsonl", TRAINING_RECORDS), ("exam.jsonl", EXAM_QUESTIONS)):
        lines = (source / file).read_text().splitlines()[:rows]
        (target / file).write_text("\n".join(lines) + "\n")


def in_letters(source: Path, target: Path) -> None:
    """Copies a domain's prompts under another name, scored by letters."""
    target.mkdir()
    text = (source / "domain.yaml").read_text()
    (target / "domain.yaml").write_text(
        text.replace("name: allergy", f"name: {target.name}", 1).replace("scoring: options", "scoring: letters")
    )


@pytest.fixture(scope="session")
def real_stack(real_engine: RealEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealStack]:
    root = tmp_path_factory.mktemp("stack")
    for name in ("sql", "allergy"):
        shorten(REPO / "domains" / name, root / "domains" / name)
    in_letters(REPO / "domains" / "allergy", root / "domains" / "letters")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = {
        "DOMAINS_DIR": str(root / "domains"),
        "ADAPTERS_DIR": str(root / "adapters"),
        "RUNS_DIR": str(root / "runs"),
        "GATEWAY_DATA_DIR": str(root / "gateway"),
        "GATEWAY_PORT": str(port),
        "GATEWAY_API_KEY": "use-key-for-tests",
        "GATEWAY_ADMIN_KEY": "admin-key-for-tests",
        "ENGINE_URLS": real_engine.url,
        "GATEWAY_RECONCILE_SECONDS": "0.5",
        "ENGINE_API_KEY": ENGINE_KEY,
        "TRAINER_GATEWAY_URL": url,
        "UI_GATEWAY_URL": url,
    }
    (root / "runs").mkdir()
    gateway = python_module("preceptor_gateway", env, root / "gateway.log")
    gateway.start()
    try:
        gateway.wait_for(f"{url}/health", 60)
        with (
            httpx.Client(base_url=url, headers={"authorization": "Bearer use-key-for-tests"}, timeout=120) as use,
            httpx.Client(base_url=url, headers={"authorization": "Bearer admin-key-for-tests"}, timeout=120) as admin,
        ):
            yield RealStack(real_engine, url, use, admin, env, root / "domains", root / "adapters", root / "runs")
    finally:
        gateway.end()
