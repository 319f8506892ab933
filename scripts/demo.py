"""The story of `make demo`: train a specialist on the stack that honcho started, and show what it gained.

Runs as one of honcho's processes; with ONCE=1 its end ends the stack and its exit code is the story's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from preceptor_contracts.errors import PreceptorError, PrerequisiteError
from preceptor_contracts.manifest import MANIFEST, read_adapter, write_manifest
from preceptor_contracts.served_names import adapter_version
from preceptor_contracts.wire import Health
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

QUESTIONS = {
    "sql": "How many patients live in Leeds?",
    "allergy": "Which medicine comes first in anaphylaxis?",
}


class DemoSettings(BaseSettings):
    """What the story needs to know of the stack."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore", frozen=True)

    gateway_url: str = Field("http://127.0.0.1:8000", validation_alias="TRAINER_GATEWAY_URL")
    admin_key: SecretStr = Field(validation_alias="GATEWAY_ADMIN_KEY")
    adapters_dir: Path = Field(Path("data/adapters"), validation_alias="ADAPTERS_DIR")
    ui_port: int = Field(7860, validation_alias="UI_PORT")
    domain: str = Field("sql", validation_alias="DEMO_DOMAIN")
    trainer_arguments: str = Field("", validation_alias="DEMO_TRAINER_ARGUMENTS")
    """More arguments for `preceptor-trainer run`, e.g. `--max-steps 20`."""
    once: str = Field("", validation_alias="ONCE")


def say(text: str = "") -> None:
    """Prints a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def wait_until_well(client: httpx.Client, limit_s: float = 300) -> None:
    """Waits until the gateway reaches the engine. An adapter of an earlier day that fails must not stop the story.

    Raises:
        PrerequisiteError: It did not within `limit_s`.
    """
    started = time.monotonic()
    while time.monotonic() - started < limit_s:
        # The gateway itself may still be starting.
        with suppress(httpx.TransportError):
            if Health.model_validate_json(client.get("/health").content).engine != "down":
                say(f"The stack is up after {time.monotonic() - started:.0f} s.")
                return
        time.sleep(0.5)
    raise PrerequisiteError(
        f"The stack was not well within {limit_s:.0f} s.", hint="Read the engine's and the gateway's lines above."
    )


def ask(client: httpx.Client, served: str, question: str, **more: Any) -> str:
    """Asks over REST and returns the answer."""
    body = {"model": served, "messages": [{"role": "user", "content": question}], "temperature": 0, **more}
    answer = client.post("/v1/chat/completions", json=body)
    answer.raise_for_status()
    return str(answer.json()["choices"][0]["message"]["content"]).strip()


@contextmanager
def second_version(client: httpx.Client, settings: DemoSettings, promoted: str) -> Iterator[str]:
    """The same weights under a new name, so that a hot load and a move can be timed without a second training."""
    source = settings.adapters_dir / promoted
    name = f"{settings.domain}-v{adapter_version(promoted) + 1}-{promoted[-8:]}"
    target, partial = settings.adapters_dir / name, settings.adapters_dir / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, ignore=shutil.ignore_patterns(MANIFEST, "reports"))
    write_manifest(partial, read_adapter(source).manifest.model_copy(update={"adapter": name}))
    partial.rename(target)
    try:
        yield name
    finally:
        # Out of the alias and the engine before its folder goes, whatever happened in between.
        if client.get(f"/v1/domains/{settings.domain}").json().get("promoted") == name:
            client.post(f"/v1/domains/{settings.domain}/rollback")
        client.delete(f"/v1/adapters/{name}")
        shutil.rmtree(target)


def _milliseconds(client: httpx.Client, method: str, path: str, **more: Any) -> float:
    started = time.perf_counter()
    client.request(method, path, **more).raise_for_status()
    return (time.perf_counter() - started) * 1000


def time_moves(client: httpx.Client, settings: DemoSettings, promoted: str) -> None:
    """Times a hot load, then promote and rollback while the alias is being asked; counts requests that failed."""
    domain = settings.domain
    outcomes: list[int] = []
    stop = threading.Event()

    def keep_asking() -> None:
        with httpx.Client(base_url=client.base_url, headers=client.headers, timeout=60) as other:
            while not stop.is_set():
                body = {"model": domain, "messages": [{"role": "user", "content": "?"}], "max_tokens": 2}
                try:
                    outcomes.append(other.post("/v1/chat/completions", json=body).status_code)
                except httpx.TransportError:
                    outcomes.append(0)

    with second_version(client, settings, promoted) as name:
        started = time.perf_counter()
        _milliseconds(client, "POST", "/v1/adapters", json={"adapter": name})
        ask(client, f"{domain}:{name}", QUESTIONS.get(domain, "Hello?"), max_tokens=1)
        hot_load_s = time.perf_counter() - started
        asker = threading.Thread(target=keep_asking)
        asker.start()
        try:
            path = f"/v1/domains/{domain}"
            promote = _milliseconds(client, "POST", f"{path}/promote", json={"adapter": name, "force": True})
            time.sleep(0.5)
            rollback = _milliseconds(client, "POST", f"{path}/rollback")
            time.sleep(0.5)
        finally:
            stop.set()
            asker.join()
    failed = sum(status != 200 for status in outcomes)
    say(f"Hot load to first token {hot_load_s:.2f} s; promote {promote:.0f} ms; rollback {rollback:.0f} ms;")
    say(f"{len(outcomes)} requests to {domain!r} meanwhile, {failed} failed.")


def tell(settings: DemoSettings, client: httpx.Client) -> int:
    """Tells the story and returns its exit code: the trainer's."""
    started = time.monotonic()
    wait_until_well(client)
    command = [str(Path(sys.executable).with_name("preceptor-trainer")), "run", settings.domain]
    code = subprocess.run([*command, *settings.trainer_arguments.split()], check=False).returncode
    if code not in (0, 3):
        say(f"The trainer ended with exit code {code}.")
        return code
    promoted = client.get(f"/v1/domains/{settings.domain}").raise_for_status().json()["promoted"]
    question = QUESTIONS.get(settings.domain, "What can you do?")
    if promoted:
        time_moves(client, settings, promoted)
        say(f"\nAsked over REST: {question}")
        say(f"  {settings.domain + ':base':14} {' '.join(ask(client, settings.domain + ':base', question).split())}")
        say(f"  {settings.domain:14} {ask(client, settings.domain, question)}")
    say(f"\nThe story took {(time.monotonic() - started) / 60:.1f} minutes.")
    return code


def main() -> int:
    """Tells the story; without ONCE it then keeps the stack up until Ctrl-C."""
    settings = DemoSettings()
    headers = {"authorization": f"Bearer {settings.admin_key.get_secret_value()}"}
    try:
        with httpx.Client(base_url=settings.gateway_url, headers=headers, timeout=300) as client:
            code = tell(settings, client)
    except PreceptorError as error:
        say(str(error))
        code = 1
    except httpx.HTTPError as error:
        say(f"The story broke off: {error!r}. Read the gateway's lines above.")
        code = 1
    except OSError as error:
        say(f"The story broke off: {error}.")
        code = 1
    if settings.once in ("", "0"):
        say(f"The page stays at http://localhost:{settings.ui_port} until Ctrl-C.")
        while True:
            time.sleep(3600)
    return code


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
