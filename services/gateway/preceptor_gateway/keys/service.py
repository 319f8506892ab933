"""Makes, lists and revokes keys, and keeps the ring in memory as the database says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

import structlog
from preceptor_contracts.errors import PreceptorError
from sqlalchemy.exc import SQLAlchemyError

from preceptor_gateway.keys.callers import USE_SCOPE, Caller
from preceptor_gateway.keys.database import Database, reason_of
from preceptor_gateway.keys.ring import ENV_ADMIN, ENV_USE, KeyRing
from preceptor_gateway.keys.secret import is_id, without_keys
from preceptor_gateway.keys.store import KeyStore, Made, NewKey, StoredKey
from preceptor_gateway.keys.wire import KeyRequest, KeyState, KeyView, NewKeyView, OwnKeyView, Scope
from preceptor_gateway.problems import BadRequest, Conflict, NotFound, Unavailable

LOOK_EVERY_S = 2.0
"""Pause between looks for changes that others made; docs promise 5 seconds."""
NOTE_EVERY = 15
"""Looks between two batches of `last_used_at`."""
T = TypeVar("T")
W = TypeVar("W", Made, StoredKey)
log = structlog.get_logger("keys")


class KeyService:
    """Writes go through the database to the ring; the hot path only asks the ring."""

    def __init__(self, database: Database, ring: KeyRing) -> None:
        self._database = database
        self._store = KeyStore(database)
        self.ring = ring
        self._number = -1
        # One at a time, or a list read before a revocation could be taken over after it, and bring the key back.
        self._lock = asyncio.Lock()

    async def start(self) -> None:
        """Brings the tables to this version and reads the keys.

        Raises:
            PrerequisiteError: The database cannot be used.
        """
        await asyncio.to_thread(self._database.prepare)
        await self.look()

    async def look(self) -> None:
        """Takes over what changed, if anything did."""
        async with self._lock:
            if await asyncio.to_thread(self._store.changes) != self._number:
                self._number, keys = await asyncio.to_thread(self._store.all)
                self.ring.replace(keys)

    async def look_forever(self, pause_s: float = LOOK_EVERY_S) -> None:
        """Looks again and again. While the database is away, the keys in memory hold."""
        looks, away = 0, False
        while True:
            await asyncio.sleep(pause_s)
            looks += 1
            try:
                await self.look()
                if looks % NOTE_EVERY == 0:
                    await self.note_used()
                if away:
                    log.info("the database of keys is back")
                away = False
            except SQLAlchemyError as error:
                if not away:
                    log.warning("the database of keys is away; the keys in memory hold", why=reason_of(error))
                away = True
            except Exception:
                # The edge of a worker loop: revocations hang on it, so an unforeseen failure is logged, and it goes on.
                log.exception("looking for changed keys failed")

    async def note_used(self) -> None:
        """Writes when keys were last used, all of them in one transaction."""
        if used := self.ring.take_used():
            await asyncio.to_thread(self._store.mark_used, used)

    async def close(self) -> None:
        """Writes what is left and closes the database."""
        try:
            await self.note_used()
        except SQLAlchemyError as error:
            log.warning("last use of keys was not written", why=reason_of(error))
        await asyncio.to_thread(self._database.close)

    async def create(self, request: KeyRequest) -> NewKeyView:
        """Makes a key; the answer is the only place where it ever stands.

        Raises:
            BadRequest: It would have expired already.
            Unavailable: The database is away.
        """
        made = await self._write(lambda: create_key(self._store, request))
        return NewKeyView(key=made.key, **view_of(made.stored).model_dump())

    async def revoke(self, key_id: str) -> KeyView:
        """Ends a key at once in this process, within seconds in others; requests under way are finished.

        Raises:
            Conflict: It is one of the two from .env.
            NotFound: There is no such key.
            Unavailable: The database is away.
        """
        if key_id in (ENV_USE, ENV_ADMIN):
            variable = "GATEWAY_API_KEY" if key_id == ENV_USE else "GATEWAY_ADMIN_KEY"
            raise Conflict(
                f"{key_id!r} is from .env and cannot be revoked here.",
                code="env_key",
                hint=f"Change {variable} in .env and restart the gateway.",
            )
        stored = await self._write(lambda: revoke_key(self._store, key_id))
        return view_of(stored)

    async def views(self) -> tuple[KeyView, ...]:
        """Every key."""
        _, keys = await self._read(self._store.all)
        return (*(_env_view(caller) for caller in self.ring.env_callers()), *(view_of(key) for key in keys))

    async def view(self, key_id: str) -> KeyView:
        """One key."""
        for caller in self.ring.env_callers():
            if caller.key_id == key_id:
                return _env_view(caller)
        stored = await self._read(lambda: self._store.get(key_id)) if is_id(key_id) else None
        if stored is None:
            raise unknown_key(key_id)
        return view_of(stored)

    async def _write(self, work: Callable[[], W]) -> W:
        async with self._lock:
            done = await self._read(work)
            self.ring.put(done.stored if isinstance(done, Made) else done)
            return done

    async def _read(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(work)
        except SQLAlchemyError as error:
            log.warning("the database of keys is away", why=reason_of(error))
            raise Unavailable(
                "The database of keys cannot be reached.",
                code="database_away",
                hint="Try again in a moment; keys that were known go on working.",
                retry_after_s=5,
            ) from error


def create_key(store: KeyStore, request: KeyRequest) -> Made:
    """Makes a key as a request wants it."""
    if request.expires_at is not None and request.expires_at <= datetime.now(UTC):
        raise BadRequest(
            f"expires_at is over: {request.expires_at.isoformat()!r}.",
            code="invalid_field",
            param="expires_at",
            hint="Name a moment in the future.",
        )
    scopes = {scope.value for scope in request.scopes} | {USE_SCOPE}
    return store.create(
        NewKey(
            name=request.name,
            scopes=frozenset(scopes),
            requests_per_minute=request.requests_per_minute,
            tokens_per_minute=request.tokens_per_minute,
            concurrent_requests=request.concurrent_requests,
            expires_at=request.expires_at,
        )
    )


def revoke_key(store: KeyStore, key_id: str) -> StoredKey:
    """Revokes a key, once or again."""
    stored = store.revoke(key_id) if is_id(key_id) else None
    if stored is None:
        raise unknown_key(key_id)
    return stored


def unknown_key(key_id: str) -> PreceptorError:
    """Says that there is no such key; a key sent in place of an id is not repeated."""
    return NotFound(
        f"There is no key {without_keys(key_id)!r}.", code="unknown_key", hint="GET /v1/keys lists the ids."
    )


def view_of(key: StoredKey) -> KeyView:
    """A stored key as administrators see it."""
    return KeyView(
        id=key.id,
        name=key.name,
        prefix=key.prefix,
        state=_state(key),
        scopes=_scopes(key.scopes),
        requests_per_minute=key.requests_per_minute,
        tokens_per_minute=key.tokens_per_minute,
        concurrent_requests=key.concurrent_requests,
        created_at=key.created_at,
        expires_at=key.expires_at,
        revoked_at=key.revoked_at,
        last_used_at=key.last_used_at,
    )


def own_view(caller: Caller) -> OwnKeyView:
    """What a caller's key may do."""
    return OwnKeyView(
        id=caller.key_id,
        name=caller.name,
        scopes=_scopes(caller.scopes),
        requests_per_minute=caller.limits.requests_per_minute,
        tokens_per_minute=caller.limits.tokens_per_minute,
        concurrent_requests=caller.limits.concurrent_requests,
    )


def _state(key: StoredKey) -> KeyState:
    if key.revoked_at is not None:
        return KeyState.REVOKED
    over = key.expires_at is not None and key.expires_at <= datetime.now(UTC)
    return KeyState.EXPIRED if over else KeyState.ACTIVE


def _scopes(scopes: frozenset[str]) -> tuple[Scope, ...]:
    return tuple(scope for scope in Scope if scope.value in scopes)


def _env_view(caller: Caller) -> KeyView:
    limits = caller.limits
    return KeyView(
        id=caller.key_id,
        name=caller.name,
        prefix=None,
        state=KeyState.ACTIVE,
        scopes=_scopes(caller.scopes),
        requests_per_minute=limits.requests_per_minute,
        tokens_per_minute=limits.tokens_per_minute,
        concurrent_requests=limits.concurrent_requests,
        created_at=None,
        expires_at=None,
        revoked_at=None,
        last_used_at=None,
    )
