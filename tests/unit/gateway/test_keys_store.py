"""The tables of keys, the same suite on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from preceptor_contracts.errors import PrerequisiteError
from preceptor_gateway.keys.database import MIGRATION_LOCK, Database
from preceptor_gateway.keys.secret import digest
from preceptor_gateway.keys.store import KeyStore, NewKey
from preceptor_gateway.keys.tables import Base
from sqlalchemy import text

from tests.servers import running_postgres

USE = frozenset({"use"})


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with running_postgres() as address:
        yield address


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/new folder/gateway.db"
    address = request.getfixturevalue("postgres")
    name = f"t{time.monotonic_ns()}"
    with psycopg.connect(f"postgresql://preceptor@{address}/postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    return f"postgresql+psycopg://preceptor@{address}/{name}"


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    database = Database(url)
    database.prepare()
    yield database
    database.close()


@pytest.fixture
def store(database: Database) -> KeyStore:
    return KeyStore(database)


def test_a_key_comes_back_with_everything_but_the_key(store: KeyStore) -> None:
    ends = datetime(2031, 5, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    made = store.create(NewKey("café ✓", frozenset({"use", "admin"}), 60, 0, None, ends))
    found = store.get(made.stored.id)
    assert found == made.stored
    assert found is not None
    assert (found.name, sorted(found.scopes), found.expires_at) == ("café ✓", ["admin", "use"], ends)
    assert (found.requests_per_minute, found.tokens_per_minute, found.concurrent_requests) == (60, 0, None)
    assert abs(found.created_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert found.expires_at is not None
    assert found.expires_at.tzinfo is UTC
    assert found.hash == digest(made.key.encode())
    assert made.key.startswith(found.prefix)
    assert len(made.key) - len("preceptor_") == 64


def test_the_key_is_nowhere_in_the_database(store: KeyStore, database: Database, url: str) -> None:
    made = store.create(NewKey("a", USE))
    with database.read() as connection:
        rows = str(connection.execute(text("SELECT * FROM keys")).all())
    assert made.stored.id in rows
    assert made.key not in rows
    if url.startswith("sqlite"):
        assert made.key[-40:].encode() not in Path(url.removeprefix("sqlite:///")).read_bytes()


def test_keys_made_at_once_are_all_there(store: KeyStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda index: store.create(NewKey(f"n{index % 2}", USE)), range(24)))
    number, keys = store.all()
    assert number == 24
    assert {key.id for key in keys} == {one.stored.id for one in made}
    assert len({one.key for one in made}) == 24


def test_revoking_again_changes_nothing(store: KeyStore) -> None:
    key_id = store.create(NewKey("a", USE)).stored.id
    first = store.revoke(key_id)
    number = store.changes()
    assert first is not None
    assert first.revoked_at is not None
    assert store.revoke(key_id) == first
    assert store.changes() == number
    assert store.get(key_id) == first
    assert store.revoke("key-0000000000000000") is None


def test_a_key_revoked_twice_at_once_is_revoked_once(store: KeyStore) -> None:
    key_id = store.create(NewKey("a", USE)).stored.id
    before = store.changes()
    with ThreadPoolExecutor(6) as pool:
        ended = list(pool.map(lambda _: store.revoke(key_id), range(6)))
    assert len({one.revoked_at for one in ended if one}) == 1
    assert store.changes() == before + 1


def test_another_process_sees_that_something_changed(store: KeyStore, url: str) -> None:
    other = Database(url)
    before = KeyStore(other).changes()
    store.create(NewKey("a", USE))
    assert KeyStore(other).changes() == before + 1
    other.close()


def test_last_use_never_goes_back_and_is_no_change(store: KeyStore) -> None:
    key_id = store.create(NewKey("a", USE)).stored.id
    number = store.changes()
    now = time.time()
    store.mark_used({key_id: now, "key-of-nobody": now})
    store.mark_used({key_id: now - 100})
    found = store.get(key_id)
    assert found is not None
    assert found.last_used_at is not None
    assert abs(found.last_used_at.timestamp() - now) < 0.001
    assert store.changes() == number


def test_preparing_again_keeps_the_keys(store: KeyStore, url: str) -> None:
    made = store.create(NewKey("a", USE))
    again = Database(url)
    again.prepare()
    assert KeyStore(again).all()[1] == (made.stored,)
    again.close()


def test_tables_are_what_the_code_says(database: Database) -> None:
    with database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_a_newer_database_is_refused_and_left_alone(store: KeyStore, database: Database, url: str) -> None:
    store.create(NewKey("a", USE))
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    newer = Database(url)
    with pytest.raises(PrerequisiteError, match=r"revision '9999', which this version .* does not know\. A newer"):
        newer.prepare()
    newer.close()
    assert len(store.all()[1]) == 1


def test_processes_that_start_at_once_all_start(url: str) -> None:
    # Real processes: what must hold is a lock between them, not one in this one.
    code = f"from preceptor_gateway.keys.database import prepare; prepare({url!r})"
    command = [sys.executable, "-c", code]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)]
    ended = [(child.communicate(timeout=50), child.returncode) for child in running]
    assert [code for _, code in ended] == [0, 0, 0, 0], ended


def test_a_second_migration_waits_for_the_first(url: str) -> None:
    first, second = Database(url), Database(url)
    first.prepare()
    order: list[str] = []

    def prepare() -> None:
        second.prepare()
        order.append("second")

    thread = threading.Thread(target=prepare)
    with first.write() as connection:
        if url.startswith("postgresql"):
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
        thread.start()
        time.sleep(0.4)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]
    first.close()
    second.close()


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("nonsense", "GATEWAY_DATABASE_URL is not the URL"),
        ("mysql://a:geheim@h/d", "GATEWAY_DATABASE_URL is not the URL"),
        ("postgresql+psycopg://me:geheim@127.0.0.1:9/d", r"'postgresql\+psycopg://me:\*\*\*@127.0.0.1:9/d' cannot be"),
        (
            "postgresql+psycopg://127.0.0.1:9/d?user=me&password=geheim",
            r"'postgresql\+psycopg://127.0.0.1:9/d' cannot be",
        ),
        ("postgresql+psycopg://me:teil@geheim@127.0.0.1:9/d", "GATEWAY_DATABASE_URL is not the URL"),
        ("postgresql+psycopg://me:p@ss:geheim@127.0.0.1/d", "GATEWAY_DATABASE_URL is not the URL"),
        ("sqlite:////proc/nowhere/gateway.db", "cannot be used"),
    ],
)
def test_a_database_that_cannot_be_used_is_named_without_its_password(bad: str, said: str) -> None:
    with pytest.raises(PrerequisiteError, match=said) as caught:
        Database(bad).prepare()
    assert "geheim" not in str(caught.value)
    assert "GATEWAY_DATABASE_URL" in str(caught.value)
