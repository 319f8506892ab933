"""What a real gateway process writes: ids, never keys, and no prompts unless LOG_PROMPTS says so."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from preceptor_gateway.keys.callers import Caller
from preceptor_gateway.keys.secret import new_key, without_keys
from preceptor_gateway.privacy import log_fields, note_prompt, traceback_of

from tests.fakes.engine import FakeEngine
from tests.fakes.serving import free_port, serve
from tests.stack import Process
from tests.unit.gateway.conftest import write_domain

SECRET = "tuberculosis in the family"
USE, ADMIN = "use-key-of-this-test", "admin-key-of-this-test"


@contextmanager
def gateway(folder: Path, **env: str) -> Iterator[tuple[httpx.Client, FakeEngine, Path]]:
    """A gateway as `make serve` starts it, with its log in a file."""
    fake = FakeEngine()
    write_domain(folder / "domains", "options")
    port = free_port()
    with serve(fake.app()) as engine_url:
        settings = {
            "GATEWAY_API_KEY": USE,
            "GATEWAY_ADMIN_KEY": ADMIN,
            "GATEWAY_PORT": str(port),
            "ENGINE_URLS": engine_url,
            "GATEWAY_DATA_DIR": str(folder / "gateway"),
            "GATEWAY_DATABASE_URL": f"sqlite:///{folder}/gateway/gateway.db",
            "DOMAINS_DIR": str(folder / "domains"),
            "ADAPTERS_DIR": str(folder / "adapters"),
            **env,
        }
        process = Process([sys.executable, "-m", "preceptor_gateway"], settings, folder / "gateway.log")
        process.start()
        try:
            process.wait_for(f"http://127.0.0.1:{port}/health", 40)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
                yield client, fake, process.log
        finally:
            process.end()


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def ask_in_every_way(client: httpx.Client, fake: FakeEngine, key: str) -> None:
    """Good and bad requests, all with the secret in them."""
    chat: dict[str, Any] = {"model": "clinic:base", "messages": [{"role": "user", "content": SECRET}]}
    item = {"domain": "clinic", "text": SECRET, "question": SECRET, "choices": [SECRET, "b"]}
    prompt = {"domain": "clinic", "prompt": SECRET}
    for who in (key, USE, ADMIN, "wrong" + key, key + SECRET.replace(" ", "")):
        head = bearer(who)
        client.post("/v1/chat/completions", json=chat, headers=head)
        client.post("/v1/chat/completions", json={**chat, "stream": True}, headers=head)
        client.post("/v1/chat/completions", json={**chat, "model": SECRET}, headers=head)
        client.post("/v1/chat/completions", json={**chat, "chat_template": SECRET}, headers=head)
        client.post("/v1/chat/completions", content=b'{"messages": "' + SECRET.encode(), headers=head)
        client.post("/submit_mcq", json=item, headers=head)
        client.post("/submit_mcq", json={**item, "choices": SECRET, "odd": key}, headers=head)
        client.post("/generate", json=prompt, headers=head)
        client.post("/generate", json={**prompt, "max_tokens": SECRET}, headers=head)
        client.post("/v1/domains/clinic/render", json={"messages": chat["messages"]}, headers=head)
        client.post("/v1/keys", json={"name": SECRET, "scopes": [key]}, headers=head)
        client.get(f"/v1/keys/{key}", params={"key": key, "q": SECRET}, headers=head)
        client.delete(f"/v1/keys/{key}", headers=head)
    for status in (400, 500):
        fake.fail_with = status
        client.post("/v1/chat/completions", json=chat, headers=bearer(key))
        client.post("/submit_mcq", json=item, headers=bearer(key))
    fake.fail_with, fake.drop_after = 0, 2
    client.post("/v1/chat/completions", json={**chat, "stream": True}, headers=bearer(key))
    fake.drop_after = -1
    client.post("/v1/chat/completions", content=b"a" * 2_000_000, headers=bearer(key))


def test_the_log_holds_no_key_and_no_prompt_and_says_who_asked(tmp_path: Path) -> None:
    with gateway(tmp_path, GATEWAY_LOG_LEVEL="debug") as (client, fake, log):
        made = client.post("/v1/keys", json={"name": "a"}, headers=bearer(ADMIN)).json()
        ask_in_every_way(client, fake, made["key"])
        last = {**bearer(made["key"]), "x-request-id": "asked-by-me"}
        assert client.get("/v1/models", headers=last).headers["x-request-id"] == "asked-by-me"
    text = log.read_text()
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    requests = [line for line in lines if line["event"] == "request"]
    assert len(requests) > 60
    assert all(line["request_id"] for line in requests)
    (mine,) = [line for line in requests if line["request_id"] == "asked-by-me"]
    assert (mine["key"], mine["path"], mine["status"]) == (made["id"], "/v1/models", 200)
    assert {line["key"] for line in requests} == {None, "env-use", "env-admin", made["id"]}
    for hidden in (made["key"], made["key"][-30:], USE, ADMIN, SECRET, SECRET.replace(" ", "")):
        assert hidden not in text


def test_prompts_are_logged_where_a_setting_says_so_and_keys_even_then_are_not(tmp_path: Path) -> None:
    with gateway(tmp_path, LOG_PROMPTS="true") as (client, _, log):
        made = client.post("/v1/keys", json={"name": "a"}, headers=bearer(ADMIN)).json()
        prompt = {"domain": "clinic", "prompt": f"{SECRET}; my key is {made['key']}"}
        client.post("/generate", json=prompt, headers=bearer(made["key"]))
    (line,) = [line for line in log.read_text().splitlines() if SECRET in line]
    assert json.loads(line)["path"] == "/generate"
    assert made["key"] not in log.read_text()


def test_a_key_in_a_text_is_blotted_out() -> None:
    key = new_key()
    assert without_keys(f"/v1/keys/{key}/x") == "/v1/keys/preceptor_***/x"
    assert without_keys("preceptor_gateway.app") == "preceptor_gateway.app"
    scope: dict[str, Any] = {"path": f"/{key}", "caller": Caller("key-1", "a", frozenset())}
    note_prompt(scope, b"secret", enabled=False)
    assert log_fields(scope) == {"path": "/preceptor_***", "key": "key-1"}
    note_prompt(scope, b"x" * 100_000, enabled=True)
    assert len(log_fields(scope)["prompt"]) == 16_384


def test_a_traceback_tells_where_and_not_what() -> None:
    def inner() -> None:
        try:
            raise KeyError(SECRET)
        except KeyError as error:
            raise ValueError(f"bad {SECRET}") from error

    with pytest.raises(ValueError, match=SECRET) as caught:
        inner()
    told = traceback_of(caught.value)
    assert SECRET not in told
    for part in ("builtins.ValueError", "builtins.KeyError", "in inner"):
        assert part in told
    assert SECRET in traceback_of(caught.value, with_messages=True)
