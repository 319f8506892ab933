"""The real stack: vLLM, gateway, and shortened domains so that an exam takes seconds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.fakes.serving import free_port
from tests.stack import ENGINE_KEY, REPO, Process, RealEngine, python_module

EXAM_QUESTIONS = 24
TRAINING_RECORDS = 96
TRAINER = str(Path(sys.executable).with_name("preceptor-trainer"))


@dataclass
class RealStack:
    """Where everything is."""

    engine: RealEngine
    gateway: Process
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
    """Copies a domain's prompts under another name, scored by letters, with the explanations that it refuses."""
    target.mkdir()
    text = (source / "domain.yaml").read_text()
    for old, new in (
        ("name: allergy", f"name: {target.name}"),
        ("scoring: options", "scoring: letters"),
        ("  explain: null\n", ""),
    ):
        assert old in text
        text = text.replace(old, new, 1)
    (target / "domain.yaml").write_text(text)


@pytest.fixture(scope="session")
def real_stack(real_engine: RealEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealStack]:
    root = tmp_path_factory.mktemp("stack")
    for name in ("sql", "allergy"):
        shorten(REPO / "domains" / name, root / "domains" / name)
    in_letters(REPO / "domains" / "allergy", root / "domains" / "letters")
    (root / "runs").mkdir()
    env = {
        "DOMAINS_DIR": str(root / "domains"),
        "ADAPTERS_DIR": str(root / "adapters"),
        "RUNS_DIR": str(root / "runs"),
        "GATEWAY_API_KEY": "use-key-for-tests",
        "GATEWAY_ADMIN_KEY": "admin-key-for-tests",
        "GATEWAY_RECONCILE_SECONDS": "0.5",
        "ENGINE_API_KEY": ENGINE_KEY,
    }
    with running_gateway(root / "gateway", env, [real_engine]) as stack:
        yield stack


@contextmanager
def running_gateway(data: Path, shared: dict[str, str], engines: list[RealEngine]) -> Iterator[RealStack]:
    """A gateway in front of engines, with a folder of its own for what it keeps."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = {
        **shared,
        "ENGINE_URLS": ",".join(engine.url for engine in engines),
        "GATEWAY_PORT": str(port),
        "GATEWAY_DATA_DIR": str(data),
        "GATEWAY_DATABASE_URL": f"sqlite:///{data / 'gateway.db'}",
        "TRAINER_GATEWAY_URL": url,
        "UI_GATEWAY_URL": url,
    }
    data.mkdir()
    gateway = python_module("preceptor_gateway", env, data / "gateway.log")
    gateway.start()
    try:
        gateway.wait_for(f"{url}/health", 60)
        with (
            httpx.Client(base_url=url, headers={"authorization": "Bearer use-key-for-tests"}, timeout=120) as use,
            httpx.Client(base_url=url, headers={"authorization": "Bearer admin-key-for-tests"}, timeout=120) as admin,
        ):
            folders = [Path(env[name]) for name in ("DOMAINS_DIR", "ADAPTERS_DIR", "RUNS_DIR")]
            yield RealStack(engines[0], gateway, url, use, admin, env, *folders)
    finally:
        gateway.end()


def trainer(stack: RealStack, *arguments: str, limit_s: float = 500) -> subprocess.CompletedProcess[str]:
    """Runs the trainer against a stack."""
    return subprocess.run(
        [TRAINER, *arguments],
        env={**os.environ, **stack.env},
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )


@pytest.fixture(scope="session")
def short_run(real_stack: RealStack) -> subprocess.CompletedProcess[str]:
    """Twelve steps on the shortened sql domain: enough to change the adapter, whatever its exam says."""
    return trainer(real_stack, "run", "sql", "--max-steps", "12")


def only_adapter(stack: RealStack, domain: str) -> str:
    """A domain's only adapter."""
    names = [view["adapter"] for view in stack.use.get("/v1/adapters").json()["data"] if view["domain"] == domain]
    assert len(names) == 1
    return str(names[0])
