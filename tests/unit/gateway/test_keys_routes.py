"""`/v1/keys` over HTTP, and the command line beside a running gateway."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from preceptor_gateway.keys import cli

from tests.unit.gateway.conftest import Stack, StackMaker


def make(stack: Stack, **body: object) -> dict[str, Any]:
    answer = stack.admin.post("/v1/keys", json={"name": "a", **body})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def get(stack: Stack, key: str, path: str = "/v1/keys/self") -> httpx.Response:
    return httpx.get(f"{stack.url}{path}", headers={"authorization": f"Bearer {key}"})


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_a_key_is_shown_once_and_opens_what_its_scopes_say(stack: Stack) -> None:
    made = make(stack, name="  lab 3 ", requests_per_minute=50)
    assert (made["name"], made["scopes"], made["state"]) == ("lab 3", ["use"], "active")
    own = get(stack, made["key"])
    assert own.json() == {
        "id": made["id"],
        "name": "lab 3",
        "scopes": ["use"],
        "requests_per_minute": 50,
        "tokens_per_minute": 0,
        "concurrent_requests": 0,
    }
    assert get(stack, made["key"], "/v1/models").status_code == 200
    assert code(get(stack, made["key"], "/v1/keys")) == (403, "missing_scope")
    listed, shown = stack.admin.get("/v1/keys").text, stack.admin.get(f"/v1/keys/{made['id']}").text
    for text in (listed, shown):
        assert made["id"] in text
        assert made["key"] not in text
        assert '"hash"' not in text


def test_an_admin_key_makes_and_revokes_keys(stack: Stack) -> None:
    made = make(stack, scopes=["admin"])
    assert made["scopes"] == ["use", "admin"]
    with httpx.Client(base_url=stack.url, headers={"authorization": f"Bearer {made['key']}"}) as client:
        second = client.post("/v1/keys", json={"name": "b"})
        assert second.status_code == 201
        assert client.delete(f"/v1/keys/{made['id']}").json()["state"] == "revoked"
        assert code(client.get("/v1/keys")) == (401, "revoked_api_key")


def test_revoking_is_at_once_and_idempotent(stack: Stack) -> None:
    made = make(stack)
    first = stack.admin.delete(f"/v1/keys/{made['id']}")
    assert code(get(stack, made["key"])) == (401, "revoked_api_key")
    assert stack.admin.delete(f"/v1/keys/{made['id']}").json() == first.json()
    assert made["id"] in [key["id"] for key in stack.admin.get("/v1/keys").json()["data"]]


@pytest.mark.parametrize("key_id", ["key-0000000000000000", "nope", "key-%00", "..%2fself", "preceptor_" + "a" * 64])
def test_a_key_that_is_not_there(stack: Stack, key_id: str) -> None:
    for method in ("GET", "DELETE"):
        answer = stack.admin.request(method, f"/v1/keys/{key_id}")
        assert answer.status_code == 404
        assert "a" * 64 not in answer.text


def test_the_keys_from_env_are_listed_and_stay(stack: Stack) -> None:
    listed = stack.admin.get("/v1/keys").json()["data"]
    assert [(key["id"], key["scopes"], key["prefix"]) for key in listed] == [
        ("env-use", ["use"], None),
        ("env-admin", ["use", "admin"], None),
    ]
    assert stack.admin.get("/v1/keys/env-use").json() == listed[0]
    for key_id, variable in (("env-use", "GATEWAY_API_KEY"), ("env-admin", "GATEWAY_ADMIN_KEY")):
        answer = stack.admin.delete(f"/v1/keys/{key_id}")
        assert code(answer) == (409, "env_key")
        assert variable in answer.json()["hint"]
    assert stack.use.get("/v1/keys/self").json()["id"] == "env-use"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": " "}, "name"),
        ({"name": "a" * 65}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "a\u0000b"}, "name"),
        ({"name": "a", "scopes": []}, "scopes"),
        ({"name": "a", "scopes": ["root"]}, "scopes.0"),
        ({"name": "a", "requests_per_minute": -1}, "requests_per_minute"),
        ({"name": "a", "tokens_per_minute": 10**30}, "tokens_per_minute"),
        ({"name": "a", "expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"name": "a", "expires_at": "2030-01-01T00:00:00"}, "expires_at"),
        ({"name": "a", "expires_at": "9999-12-31T23:59:59-12:00"}, "expires_at"),
        ({"name": "a", "key": "mine"}, "key"),
    ],
)
def test_bad_wishes_are_told_by_field(stack: Stack, body: object, field: str) -> None:
    answer = stack.admin.post("/v1/keys", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
    assert len(stack.admin.get("/v1/keys").json()["data"]) == 2


def test_a_key_expires_in_a_running_gateway(stack: Stack) -> None:
    made = make(stack, expires_at=(datetime.now(UTC) + timedelta(seconds=1)).isoformat())
    assert get(stack, made["key"]).status_code == 200
    time.sleep(1.1)
    assert code(get(stack, made["key"])) == (401, "expired_api_key")
    assert stack.admin.get(f"/v1/keys/{made['id']}").json()["state"] == "expired"


def test_a_running_answer_is_finished_when_its_key_is_revoked(stack: Stack) -> None:
    made = make(stack)
    stack.fake.token_delay_s = 0.1
    headers = {"authorization": f"Bearer {made['key']}"}
    body = {"prompt": "Hi", "domain": "clinic"}
    with httpx.stream("POST", f"{stack.url}/generate", json=body, headers=headers) as answer:
        pieces = answer.iter_text()
        text = next(pieces)
        assert stack.admin.delete(f"/v1/keys/{made['id']}").status_code == 200
        text += "".join(pieces)
    assert text.endswith("data: [DONE]\n\n")
    assert code(httpx.post(f"{stack.url}/generate", json=body, headers=headers)) == (401, "revoked_api_key")


def test_keys_and_their_last_use_outlive_a_restart(make_stack: StackMaker) -> None:
    first = make_stack()
    made, other = make(first), make(first)
    assert get(first, made["key"]).status_code == 200
    first.stop()
    second = make_stack()
    assert second.admin.get(f"/v1/keys/{made['id']}").json()["last_used_at"] is not None
    assert second.admin.get(f"/v1/keys/{other['id']}").json()["last_used_at"] is None
    assert get(second, made["key"]).status_code == 200


def test_a_broken_database_is_503_for_administrators_and_nothing_for_askers(stack: Stack) -> None:
    made = make(stack)
    (stack.root / "gateway" / "gateway.db").write_bytes(b"not a database" * 1000)
    answer = stack.admin.get("/v1/keys")
    assert code(answer) == (503, "database_away")
    assert int(answer.headers["retry-after"]) > 0
    assert code(stack.admin.post("/v1/keys", json={"name": "b"})) == (503, "database_away")
    assert get(stack, made["key"]).status_code == 200


def run_cli(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = cli.run(arguments)
    said = capsys.readouterr()
    return status, said.out, said.err


def test_a_running_gateway_obeys_the_command_line_within_five_seconds(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GATEWAY_DATABASE_URL", f"sqlite:///{stack.root}/gateway/gateway.db")
    status, out, err = run_cli(capsys, "keys", "create", "from a shell", "--tokens-per-minute", "0")
    key, key_id = out.strip(), err.split()[1]
    assert status == 0
    assert out == f"{key}\n"

    def wait_for(wanted: int) -> None:
        deadline = time.monotonic() + 5
        while get(stack, key).status_code != wanted and time.monotonic() < deadline:
            time.sleep(0.05)
        assert get(stack, key).status_code == wanted

    wait_for(200)
    status, out, _ = run_cli(capsys, "keys", "list")
    assert status == 0
    assert key_id in out
    assert key not in out
    assert run_cli(capsys, "keys", "revoke", key_id)[0] == 0
    wait_for(401)
    assert run_cli(capsys, "keys", "revoke", key_id)[0] == 0
    assert "revoked" in run_cli(capsys, "keys", "list")[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("keys", "revoke", "nope"), "There is no key 'nope'."),
        (("keys", "create", "a", "--requests-per-minute", "-1"), "requests_per_minute"),
        (("keys", "create", "a", "--expires-days", "-1"), "expires_at is over"),
        (("keys", "create", "a", "--expires-days", "1e30"), "out of range"),
        (("keys", "create", "a\tb"), "name"),
        (("keys", "create"), "name"),
        (("keys", "bake"), "No such command"),
        (("bake",), "No such command"),
    ],
)
def test_the_command_line_says_what_is_wrong(
    arguments: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("GATEWAY_DATABASE_URL", f"sqlite:///{tmp_path}/gateway.db")
    status, out, err = run_cli(capsys, *arguments)
    assert (status, out) == (2, "")
    assert said in err


def test_the_module_takes_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "preceptor_gateway", "keys", "create", "a"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("preceptor_")
    assert (tmp_path / "data/gateway/gateway.db").is_file()
