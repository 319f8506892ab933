"""The keys in memory: what `authenticate` asks on every request. No database, no lock, no await.

Keys are found by their SHA-256 in a dictionary. The time that a look-up takes may depend on the hash, and tells nothing
about the key: who wants to come closer to a stored hash would have to find inputs whose SHA-256 begins alike, and gains
no bit of the 256 random ones. The comparison of secrets that must be constant-time, byte by byte against a stored key,
is never made.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import NamedTuple

from pydantic import SecretStr

from preceptor_gateway.keys.callers import ADMIN_SCOPE, USE_SCOPE, Caller, Limits
from preceptor_gateway.keys.secret import digest
from preceptor_gateway.keys.store import StoredKey
from preceptor_gateway.problems import NotAuthenticated

ENV_USE, ENV_ADMIN = "env-use", "env-admin"
"""Ids of the two keys from .env."""
_HINT = "Send 'Authorization: Bearer <key>'; GATEWAY_API_KEY is in .env, an administrator makes more at /v1/keys."


class Entry(NamedTuple):
    """A key and when it ends."""

    caller: Caller
    expires: float | None = None
    """Seconds since 1970."""
    revoked: bool = False


class KeyRing:
    """Every key by its hash, the two from .env among them.

    Args:
        use: GATEWAY_API_KEY.
        admin: GATEWAY_ADMIN_KEY. It has no limits, so that whoever runs the gateway is never locked out.
        defaults: Limits of keys that name none, GATEWAY_API_KEY among them.
    """

    def __init__(self, use: SecretStr, admin: SecretStr, defaults: Limits) -> None:
        self.defaults = defaults
        both = frozenset({USE_SCOPE, ADMIN_SCOPE})
        self._env = {
            digest(use.get_secret_value().encode()): Entry(
                Caller(ENV_USE, "GATEWAY_API_KEY", frozenset({USE_SCOPE}), defaults, defaults.none)
            ),
            digest(admin.get_secret_value().encode()): Entry(Caller(ENV_ADMIN, "GATEWAY_ADMIN_KEY", both)),
        }
        self._entries = dict(self._env)
        self._used: dict[str, float] = {}

    def replace(self, keys: Iterable[StoredKey]) -> None:
        """Takes over what the database holds."""
        self._entries = {**{key.hash: self._entry(key) for key in keys}, **self._env}

    def put(self, key: StoredKey) -> None:
        """Takes over one key."""
        self._entries[key.hash] = self._entry(key)

    def authenticate(self, authorization: bytes | None) -> Caller:
        """Returns who sends this `Authorization` header.

        Raises:
            NotAuthenticated: There is no key, or it is unknown, revoked or expired.
        """
        scheme, _, key = (authorization or b"").partition(b" ")
        key = key.strip()
        if scheme.lower() != b"bearer" or not key:
            raise NotAuthenticated("The request carries no bearer key.", code="missing_api_key", hint=_HINT)
        entry = self._entries.get(digest(key))
        if entry is None:
            raise NotAuthenticated("The bearer key is not known.", hint=_HINT)
        now = time.time()
        if entry.revoked or (entry.expires is not None and entry.expires <= now):
            raise _ended(entry)
        self._used[entry.caller.key_id] = now
        return entry.caller

    def take_used(self) -> dict[str, float]:
        """When stored keys were last used, since the last time that this was asked."""
        used, self._used = self._used, {}
        return {key_id: at for key_id, at in used.items() if key_id not in (ENV_USE, ENV_ADMIN)}

    def env_callers(self) -> tuple[Caller, ...]:
        """The two keys from .env."""
        return tuple(entry.caller for entry in self._env.values())

    def _entry(self, key: StoredKey) -> Entry:
        limits = effective(key, self.defaults)
        caller = Caller(key.id, key.name, key.scopes, limits, limits.none)
        return Entry(caller, key.expires_at.timestamp() if key.expires_at else None, key.revoked_at is not None)


def effective(key: StoredKey, defaults: Limits) -> Limits:
    """A key's own limits, and the defaults where it names none."""

    def pick(own: int | None, default: int) -> int:
        return default if own is None else own

    return Limits(
        pick(key.requests_per_minute, defaults.requests_per_minute),
        pick(key.tokens_per_minute, defaults.tokens_per_minute),
        pick(key.concurrent_requests, defaults.concurrent_requests),
    )


def _ended(entry: Entry) -> NotAuthenticated:
    key_id, hint = entry.caller.key_id, "Ask an administrator for a new key."
    if entry.revoked:
        return NotAuthenticated(f"The bearer key {key_id!r} was revoked.", code="revoked_api_key", hint=hint)
    return NotAuthenticated(f"The bearer key {key_id!r} has expired.", code="expired_api_key", hint=hint)
