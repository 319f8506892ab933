"""The real stack for one run: vLLM on a CPU, the gateway, and copies of the allergy domain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import yaml
from preceptor_contracts.domains import Domain, load_domain
from preceptor_contracts.mcq import Scoring

from bench.mcq.load import PROMPTS_IN_FLIGHT
from tests.fakes.serving import free_port
from tests.stack import ENGINE_KEY, REPO, python_module, running_engine

SOURCE = REPO / "domains/allergy"
TOKENIZER = REPO / "data/base-models/SmolLM2-135M-Instruct"
USE_KEY = "use-key-for-bench"


class Stack(NamedTuple):
    """Where everything is."""

    engine_url: str
    gateway_url: str
    domains: dict[str, Domain]

    def client(self) -> httpx.AsyncClient:
        """A client of the gateway that opens as many connections as it is asked for."""
        headers = {"authorization": f"Bearer {USE_KEY}"}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        return httpx.AsyncClient(base_url=self.gateway_url, headers=headers, timeout=300, limits=limits)


class Copy(NamedTuple):
    """A copy of the allergy domain with a beginning of its own."""

    name: str
    scoring: Scoring
    number: int
    """Stands in the first words of the system message: copies with other numbers share no block of the prefix cache.
    Four digits, so that every copy has as many tokens as the next."""


def write_copy(copy: Copy, folder: Path) -> Domain:
    """Writes the copy's `domain.yaml` under `folder` and reads it back."""
    text = yaml.safe_load((SOURCE / "domain.yaml").read_text())
    text["name"] = copy.name
    text["system"] = f"Session {copy.number}. {text['system']}"
    text["mcq"]["scoring"] = copy.scoring.value
    target = folder / copy.name
    target.mkdir(parents=True)
    (target / "domain.yaml").write_text(yaml.safe_dump(text, sort_keys=False))
    return load_domain(target).domain


@contextmanager
def running_stack(root: Path, copies: Sequence[Copy]) -> Iterator[Stack]:
    """Engine and gateway on free ports, their logs and data under `root`."""
    domains = {copy.name: write_copy(copy, root / "domains") for copy in copies}
    (root / "runs").mkdir()
    with running_engine(root) as engine:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        env = {
            "DOMAINS_DIR": str(root / "domains"),
            "ADAPTERS_DIR": str(root / "adapters"),
            "RUNS_DIR": str(root / "runs"),
            "GATEWAY_DATA_DIR": str(root / "gateway"),
            "GATEWAY_PORT": str(port),
            "GATEWAY_API_KEY": USE_KEY,
            "GATEWAY_ADMIN_KEY": "admin-key-for-bench",
            "ENGINE_URLS": engine.url,
            "GATEWAY_DEFAULT_DOMAIN": "",
            "GATEWAY_BATCH_CONCURRENCY": str(PROMPTS_IN_FLIGHT),
            "GATEWAY_LOG_LEVEL": "warning",
            "ENGINE_API_KEY": ENGINE_KEY,
        }
        gateway = python_module("preceptor_gateway", env, root / "gateway.log")
        gateway.start()
        try:
            gateway.wait_for(f"{url}/health", 60)
            yield Stack(engine.url, url, domains)
        finally:
            gateway.end()
