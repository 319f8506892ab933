"""`preceptor-gateway keys create|list|revoke`: works on the database, whether or not the gateway runs.

Exit codes: 0 done, 1 stopped, 2 bad input or set-up.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from preceptor_contracts.errors import InvalidInput, PreceptorError, PrerequisiteError
from preceptor_contracts.frozen import describe, parse
from pydantic import TypeAdapter, ValidationError
from sqlalchemy.exc import SQLAlchemyError
from typer.exceptions import TyperException

from preceptor_gateway.keys.database import Database, reason_of
from preceptor_gateway.keys.service import create_key, revoke_key, view_of
from preceptor_gateway.keys.store import KeyStore
from preceptor_gateway.keys.wire import KeyRequest, Scope
from preceptor_gateway.settings import GatewaySettings

BAD_INPUT = 2
app = typer.Typer(
    name="preceptor-gateway",
    help="The gateway. Without a command it serves.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
keys = typer.Typer(help="Bearer keys.", no_args_is_help=True)
app.add_typer(keys, name="keys")

LimitOption = Annotated[int | None, typer.Option(help="0: no limit. Left out: the setting's default.")]


@app.callback()
def _root() -> None:
    """The gateway. Without a command it serves."""


@keys.command()
def create(
    name: Annotated[str, typer.Argument(help="Who or what it is for.")],
    admin: Annotated[bool, typer.Option("--admin", help="May administrate, too.")] = False,
    requests_per_minute: LimitOption = None,
    tokens_per_minute: LimitOption = None,
    concurrent_requests: LimitOption = None,
    expires_days: Annotated[float | None, typer.Option(help="Days until it ends; left out: never.")] = None,
) -> None:
    """Makes a key and shows it, this once."""
    try:
        ends = None if expires_days is None else datetime.now(UTC) + timedelta(days=expires_days)
    except (OverflowError, ValueError) as error:
        raise InvalidInput(f"--expires-days {expires_days!r} is out of range.") from error
    wanted = {
        "name": name,
        "scopes": [Scope.USE, Scope.ADMIN] if admin else [Scope.USE],
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "concurrent_requests": concurrent_requests,
        "expires_at": ends,
    }
    request = parse(TypeAdapter(KeyRequest), wanted, where="The key")
    with _store() as store:
        made = create_key(store, request)
    # The key alone on standard output, so that a script can take it.
    typer.echo(f"Made {made.stored.id} ({name}). Keep the key: it is not shown again.", err=True)
    typer.echo(made.key)


@keys.command("list")
def list_keys() -> None:
    """Lists every key, revoked ones too."""
    with _store() as store:
        _, stored = store.all()
    rows: list[tuple[str, ...]] = [
        ("ID", "NAME", "BEGINS", "SCOPES", "STATE", "CREATED", "LAST USED", "REQ/MIN", "TOK/MIN", "AT ONCE")
    ]
    for key in stored:
        view = view_of(key)
        limits = (view.requests_per_minute, view.tokens_per_minute, view.concurrent_requests)
        rows.append(
            (
                view.id,
                view.name,
                str(view.prefix),
                ",".join(view.scopes),
                view.state,
                _day(view.created_at),
                _day(view.last_used_at),
                *("default" if limit is None else str(limit or "none") for limit in limits),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@keys.command()
def revoke(key_id: Annotated[str, typer.Argument(help="As `keys list` shows it.")]) -> None:
    """Ends a key; a running gateway knows it within 5 seconds."""
    with _store() as store:
        stored = revoke_key(store, key_id)
    typer.echo(f"{stored.id} ({stored.name}) is revoked.", err=True)


def _day(moment: datetime | None) -> str:
    return "-" if moment is None else moment.strftime("%Y-%m-%d %H:%M")


@contextmanager
def _store() -> Iterator[KeyStore]:
    try:
        settings = GatewaySettings()
    except ValidationError as error:
        raise InvalidInput(
            f"A setting is wrong: {describe(error, of_settings=True)}.", hint="Mend it in .env."
        ) from error
    database = Database(settings.database_url.get_secret_value())
    try:
        database.prepare()
        yield KeyStore(database)
    except SQLAlchemyError as error:
        raise PrerequisiteError(f"The database {database.shown!r} failed: {reason_of(error)}.") from error
    finally:
        database.close()


def run(arguments: Sequence[str]) -> int:
    """Runs a command line; errors become a sentence and an exit code."""
    try:
        return int(app(args=list(arguments), standalone_mode=False) or 0)
    except TyperException as error:
        # Typer 0.29 keeps the class that names the option private; its method is there nevertheless.
        tell: Callable[[], str] = getattr(error, "format_message", error.__str__)
        sys.stderr.write(f"{tell()} See `preceptor-gateway --help`.\n")
    except PreceptorError as error:
        sys.stderr.write(f"{error}\n")
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("Stopped.\n")
        return 1
    return BAD_INPUT
