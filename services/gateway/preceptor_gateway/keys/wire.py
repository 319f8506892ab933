"""HTTP shapes of `/v1/keys`."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

from preceptor_contracts.frozen import Frozen
from pydantic import AfterValidator, AwareDatetime, Field, StringConstraints

_MOST = 1_000_000_000

Limit = Annotated[int, Field(ge=0, le=_MOST)]
"""A limit; 0 is none."""


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it may hold no control characters")
    return text


def _to_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("it is out of range") from error


KeyName = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=64), AfterValidator(_printable)
]
Moment = Annotated[AwareDatetime, AfterValidator(_to_utc)]


class Scope(StrEnum):
    """What a key may do."""

    USE = "use"
    ADMIN = "admin"


class KeyState(StrEnum):
    """Whether a key is let in."""

    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"


class KeyRequest(Frozen):
    """`POST /v1/keys`."""

    name: KeyName
    """Who or what it is for; need not be the only one of its name."""
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1, max_length=2)] = (Scope.USE,)
    """`admin` brings `use` along."""
    requests_per_minute: Limit | None = None
    """Null: GATEWAY_REQUESTS_PER_MINUTE. 0: no limit."""
    tokens_per_minute: Limit | None = None
    """Null: GATEWAY_TOKENS_PER_MINUTE. 0: no limit."""
    concurrent_requests: Limit | None = None
    """Null: GATEWAY_CONCURRENT_REQUESTS. 0: no limit."""
    expires_at: Moment | None = None
    """With a time zone, in the future; null: never."""


class KeyView(Frozen):
    """A key as administrators see it: never the key, never its hash."""

    id: str
    """Names the key in routes and logs."""
    name: str
    """Who or what it is for."""
    prefix: str | None
    """The key's first characters; null for the two keys from .env."""
    state: KeyState
    """Whether it is let in."""
    scopes: tuple[Scope, ...]
    """What it may do."""
    requests_per_minute: int | None
    """Its own limit; 0 is none, null the setting's."""
    tokens_per_minute: int | None
    """Its own limit; 0 is none, null the setting's."""
    concurrent_requests: int | None
    """Its own limit; 0 is none, null the setting's."""
    created_at: datetime | None
    """Null for the two keys from .env."""
    expires_at: datetime | None
    """Null: never."""
    revoked_at: datetime | None
    """Null: it was not."""
    last_used_at: datetime | None
    """Up to half a minute late; null for the two keys from .env."""


class NewKeyView(KeyView):
    """Answer to `POST /v1/keys`: the only time that the key is shown."""

    key: str
    """The key. Only its hash is kept."""


class KeyList(Frozen):
    """`GET /v1/keys`, oldest first, the two from .env before all."""

    data: tuple[KeyView, ...]
    """Oldest first."""


class OwnKeyView(Frozen):
    """`GET /v1/keys/self`: what the caller's key may do. 0 is no limit."""

    id: str
    """Names the key in routes and logs."""
    name: str
    """Who or what it is for."""
    scopes: tuple[Scope, ...]
    """What it may do."""
    requests_per_minute: int
    """The limit that holds; 0 is none."""
    tokens_per_minute: int
    """The limit that holds; 0 is none."""
    concurrent_requests: int
    """The limit that holds; 0 is none."""
