"""Reads and writes keys. Blocking: the service calls it in a thread, the CLI directly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import Row, Select, insert, or_, select, update
from sqlalchemy.engine import Connection

from preceptor_gateway.keys.database import Database
from preceptor_gateway.keys.secret import digest, new_id, new_key, shown_prefix
from preceptor_gateway.keys.tables import ChangeRow, KeyRow


@dataclass(frozen=True)
class NewKey:
    """What a key is made of."""

    name: str
    scopes: frozenset[str]
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True)
class StoredKey:
    """A row, without the key."""

    id: str
    name: str
    hash: bytes
    prefix: str
    scopes: frozenset[str]
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrent_requests: int | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


class Made(NamedTuple):
    """A new key, the only time that it is seen."""

    key: str
    stored: StoredKey


class KeyStore:
    """The tables `keys` and `key_changes`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def changes(self) -> int:
        """The number that grows with every key made or revoked."""
        with self._database.read() as connection:
            return int(connection.execute(select(ChangeRow.number)).scalar_one())

    def all(self) -> tuple[int, tuple[StoredKey, ...]]:
        """The number of changes, and every key, oldest first."""
        with self._database.read() as connection:
            # The number first: a change that comes between is then seen at the next look, never missed.
            number = int(connection.execute(select(ChangeRow.number)).scalar_one())
            rows = connection.execute(_keys().order_by(KeyRow.created_at, KeyRow.id))
            return number, tuple(_read(row) for row in rows)

    def get(self, key_id: str) -> StoredKey | None:
        """One key, or none."""
        with self._database.read() as connection:
            return _one(connection, key_id)

    def create(self, wanted: NewKey) -> Made:
        """Makes a key and stores its hash."""
        key, key_id = new_key(), new_id()
        with self._database.write() as connection:
            connection.execute(
                insert(KeyRow).values(
                    id=key_id,
                    name=wanted.name,
                    hash=digest(key.encode()).hex(),
                    prefix=shown_prefix(key),
                    scopes=" ".join(sorted(wanted.scopes)),
                    requests_per_minute=wanted.requests_per_minute,
                    tokens_per_minute=wanted.tokens_per_minute,
                    concurrent_requests=wanted.concurrent_requests,
                    created_at=datetime.now(UTC),
                    expires_at=wanted.expires_at,
                )
            )
            _count_change(connection)
            stored = _one(connection, key_id)
        assert stored is not None  # written three lines up, in this transaction
        return Made(key, stored)

    def revoke(self, key_id: str) -> StoredKey | None:
        """Ends a key; its row stays. Doing it again changes nothing. None where there is no such key."""
        with self._database.write() as connection:
            ended = connection.execute(
                update(KeyRow)
                .where(KeyRow.id == key_id, KeyRow.revoked_at.is_(None))
                .values(revoked_at=datetime.now(UTC))
            )
            if ended.rowcount:
                _count_change(connection)
            return _one(connection, key_id)

    def mark_used(self, used: Mapping[str, float]) -> None:
        """Notes when keys were last used (seconds since 1970), never backwards. No change that others must hear of."""
        with self._database.write() as connection:
            for key_id, seconds in sorted(used.items()):  # sorted, so that two gateways never lock crosswise
                at = datetime.fromtimestamp(seconds, UTC)
                connection.execute(
                    update(KeyRow)
                    .where(KeyRow.id == key_id, or_(KeyRow.last_used_at.is_(None), KeyRow.last_used_at < at))
                    .values(last_used_at=at)
                )


_COLUMNS = KeyRow.__table__.columns


def _keys() -> Select[tuple[object, ...]]:
    return select(*_COLUMNS)


def _one(connection: Connection, key_id: str) -> StoredKey | None:
    row = connection.execute(_keys().where(KeyRow.id == key_id)).one_or_none()
    return None if row is None else _read(row)


def _read(row: Row[tuple[object, ...]]) -> StoredKey:
    fields = dict(row._mapping)
    return StoredKey(**{**fields, "hash": bytes.fromhex(fields["hash"]), "scopes": frozenset(fields["scopes"].split())})


def _count_change(connection: Connection) -> None:
    # In PostgreSQL this row's lock makes changes commit one after the other, so a number stands for all before it.
    connection.execute(update(ChangeRow).values(number=ChangeRow.number + 1))
