"""One database by URL: opened, brought to this version's tables, and refused where a newer version wrote it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from preceptor_contracts.errors import PrerequisiteError
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

_WAIT_S = 10
"""How long one process waits for another that writes."""
MIGRATION_LOCK = 0x50726563
"""PostgreSQL's advisory lock of our migrations; any fixed number does."""


class Database:
    """A pool of connections to the gateway's database.

    Args:
        url: `sqlite:///<file>` or `postgresql+psycopg://...`.

    Raises:
        PrerequisiteError: The URL cannot be read.
    """

    def __init__(self, url: str) -> None:
        try:
            self._url = make_url(url)
            if "@" in (self._url.host or ""):
                # The end of a password: drivers would name it as a host that they do not find.
                raise ArgumentError("an '@' in a password is written %40")
            self._engine = _engine(self._url)
        except (ArgumentError, SQLAlchemyError, ImportError, ValueError):
            # Without its cause, whose words may hold the password.
            raise PrerequisiteError("GATEWAY_DATABASE_URL is not the URL of a database.", hint=_HINT) from None

    @property
    def shown(self) -> str:
        """The URL without its password and its query, which may hold one too."""
        return self._url.set(query={}).render_as_string(hide_password=True)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads."""
        with self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that writes; on SQLite it holds the one write lock from its beginning.

        A transaction that began by reading and then writes would fail at once where another one wrote meanwhile; one
        that begins as a writer waits its turn.
        """
        with self._engine.connect().execution_options(preceptor_write=True) as connection, connection.begin():
            yield connection

    def prepare(self) -> None:
        """Brings the tables to this version; safe where several processes do it at once.

        Raises:
            PrerequisiteError: The database cannot be reached, or was written by a newer version.
        """
        try:
            if self._url.get_backend_name() == "sqlite" and self._url.database:
                Path(self._url.database).parent.mkdir(parents=True, exist_ok=True)
            with self.write() as connection:
                if connection.dialect.name == "postgresql":
                    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
                self._migrate(connection)
        except (DBAPIError, OSError) as error:
            raise PrerequisiteError(
                f"The database {self.shown!r} cannot be used: {reason_of(error)}.", hint=_HINT
            ) from error

    def _migrate(self, connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", "preceptor_gateway.keys:migrations")
        config.attributes["connection"] = connection
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        found = MigrationContext.configure(connection).get_current_heads()
        if newer := [revision for revision in found if revision not in known]:
            raise PrerequisiteError(
                f"The database {self.shown!r} is at revision {newer[0]!r}, which this version of Preceptor does not "
                "know.",
                hint="A newer version wrote it: install that version, or restore a backup from before.",
            )
        command.upgrade(config, "head")

    def close(self) -> None:
        """Closes every connection."""
        self._engine.dispose()


_HINT = (
    "Set GATEWAY_DATABASE_URL to sqlite:///<file> or postgresql+psycopg://<user>:<password>@<host>/<database>, "
    "and see that it can be reached."
)


def prepare(url: str) -> None:
    """Brings a database to this version's tables and lets go of it.

    Raises:
        PrerequisiteError: It cannot be used.
    """
    database = Database(url)
    try:
        database.prepare()
    finally:
        database.close()


def reason_of(error: Exception) -> str:
    """The first line of what a driver says; what follows is SQL with its values."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0].rstrip(".")


def _engine(url: URL) -> Engine:
    backend = url.get_backend_name()
    if backend == "sqlite":
        engine = create_engine(url, connect_args={"timeout": _WAIT_S})
        _begin_explicitly(engine)
        return engine
    if backend == "postgresql":
        return create_engine(
            url,
            pool_pre_ping=True,  # after a restart of the database the first request must not fail
            pool_size=2,
            max_overflow=3,
            connect_args={
                "connect_timeout": _WAIT_S,
                "options": f"-c statement_timeout={_WAIT_S}s",
                # A connection whose packets are lost must not hold a revocation up until the kernel gives up.
                "tcp_user_timeout": _WAIT_S * 1000,
                "keepalives_idle": _WAIT_S,
                "keepalives_interval": 2,
                "keepalives_count": 3,
            },
        )
    raise ArgumentError(f"{backend!r} is no database of ours")


def _begin_explicitly(engine: Engine) -> None:
    """Takes transactions from Python's sqlite3, which begins none before reads and tables, and gives them to us."""

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        writes = connection.get_execution_options().get("preceptor_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
