"""Open WebUI as docker-compose.yaml starts it, but from PyPI: its image cannot be had everywhere.

`python -m tests.docker.open_webui` makes its environment; the tests do so too.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from bench.environments import BenchEnvironment
from tests.fakes.serving import free_port
from tests.stack import REPO, Process

ENVIRONMENT = BenchEnvironment(REPO / ".venv-open-webui", REPO / "requirements/open-webui.txt")
"""Slim: without torch and local models (requirements/open-webui-excludes.txt)."""
START_S = 180
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::?(?P<sign>[-?])(?P<rest>[^}]*))?\}")


def compose_environment(service: str, values: Mapping[str, str]) -> dict[str, str]:
    """What docker-compose.yaml gives a service, with `values` as `.env` would.

    Raises:
        KeyError: A variable that must be set is not.
    """
    read = yaml.safe_load((REPO / "docker-compose.yaml").read_text())["services"][service]["environment"]

    def value(match: re.Match[str]) -> str:
        if given := values.get(match["name"]):
            return given
        if match["sign"] == "?":
            raise KeyError(match["name"])
        return match["rest"] or ""

    return {
        name: VARIABLE.sub(value, text) if text is not None else values[name]
        for name, text in read.items()
        if text is not None or name in values
    }


@dataclass
class Person:
    """Somebody with an account.

    Attributes:
        role: What Open WebUI made of them: admin, user or pending.
    """

    client: httpx.Client
    email: str
    password: str
    role: str

    def served_names(self) -> dict[str, dict[str, Any]]:
        """What the page lets this person choose from, by id; the arena's entry is among it."""
        listed = self.client.get("/api/models").raise_for_status().json()["data"]
        return {one["id"]: one for one in listed}

    def features(self) -> dict[str, Any]:
        """What the page is told to show."""
        return dict(self.client.get("/api/config").raise_for_status().json()["features"])

    def votes(self) -> list[dict[str, Any]]:
        """The export of an admin's page Evaluations."""
        return list(self.client.get("/api/v1/evaluations/feedbacks/all/export").raise_for_status().json())


@dataclass
class OpenWebUI:
    """One that runs."""

    url: str
    process: Process
    people: list[Person] = field(default_factory=list)

    def start(self) -> None:
        """Starts it, for the first time or again, and waits until it answers."""
        self.process.start()
        self.process.wait_for(f"{self.url}/health", START_S)

    def sign_up(self, name: str) -> Person:
        """Makes an account as the page of the first start does.

        Raises:
            httpx.HTTPStatusError: Sign-up is closed.
        """
        return self._join("/api/v1/auths/signup", name)

    def add(self, admin: Person, name: str) -> Person:
        """Makes an account as an admin does for somebody else."""
        return self._join("/api/v1/auths/add", name, role="user", by=admin)

    def _join(self, path: str, name: str, by: Person | None = None, **more: str) -> Person:
        body = {"name": name, "email": f"{name.lower()}@example.org", "password": secrets.token_urlsafe(16), **more}
        client = httpx.Client(base_url=self.url, timeout=60)
        person = Person(client, body["email"], body["password"], "")
        self.people.append(person)
        told = (by.client if by else client).post(path, json=body).raise_for_status().json()
        client.headers["authorization"] = f"Bearer {told['token']}"
        person.role = told["role"]
        return person


@contextmanager
def running_open_webui(folder: Path, gateway_url: str, values: Mapping[str, str]) -> Iterator[OpenWebUI]:
    """Starts Open WebUI with the environment of docker-compose.yaml; addresses and folders alone are others.

    Args:
        folder: Where its data and its log go.
        gateway_url: Stands in for `http://gateway:8000`.
        values: What `.env` would say, keys above all.
    """
    port = free_port()
    environment = {
        name: text.replace("http://gateway:8000", gateway_url)
        for name, text in compose_environment("open-webui", values).items()
    }
    # From outside it gets nothing: a developer's own OPENAI_API_KEY would change what is tested.
    own = {"PATH": os.environ["PATH"], "HOME": str(folder), "DATA_DIR": str(folder / "data"), "ENV": "prod"}
    (folder / "data").mkdir()
    command = [str(ENVIRONMENT.folder / "bin/open-webui"), "serve", "--host", "127.0.0.1", "--port", str(port)]
    given = [f"{name}={text}" for name, text in {**environment, **own}.items()]
    process = Process(["env", "-i", *given, *command], {}, folder / "open-webui.log")
    one = OpenWebUI(f"http://127.0.0.1:{port}", process)
    try:
        one.start()
        yield one
    finally:
        for person in one.people:
            person.client.close()
        process.end()


def prepared() -> bool:
    """Brings the environment up to date; False where no package registry can be reached."""
    try:
        ENVIRONMENT.make()
    except subprocess.CalledProcessError:
        return False
    return True


if __name__ == "__main__":
    ENVIRONMENT.make()
