"""Lets callers in by bearer key, and asks for scopes. The keys themselves are in `keys/`."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import HTTPConnection
from starlette.types import Scope

from preceptor_gateway.keys.callers import ADMIN_SCOPE, USE_SCOPE, Caller
from preceptor_gateway.keys.ring import KeyRing
from preceptor_gateway.problems import NotPermitted

# Only for OpenAPI's sake: the header is read once, in `authorize`.
_bearer = HTTPBearer(auto_error=False, description="A key with scope `use`; admin routes need `admin`.")
_Described = Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]


def authorize(ring: KeyRing, scope: Scope) -> Caller:
    """Lets a request in and notes who asks in `scope["caller"]`; plain, for the hot path.

    Raises:
        NotAuthenticated: There is no key, or it is unknown, revoked or expired.
        NotPermitted: The key lacks scope `use`.
    """
    header = None
    for name, value in scope["headers"]:
        if name == b"authorization":
            header = value
            break
    caller = ring.authenticate(header)
    scope["caller"] = caller
    if USE_SCOPE not in caller.scopes:
        raise _missing(caller, USE_SCOPE)
    return caller


async def require_use(connection: HTTPConnection, _described: _Described) -> Caller:
    """Lets a known key in."""
    return authorize(connection.app.state.services.keys.ring, connection.scope)


async def require_admin(caller: Annotated[Caller, Depends(require_use)]) -> Caller:
    """Lets a key with scope `admin` in."""
    if ADMIN_SCOPE not in caller.scopes:
        raise _missing(caller, ADMIN_SCOPE)
    return caller


def _missing(caller: Caller, scope: str) -> NotPermitted:
    return NotPermitted(
        f"This route needs a key with scope {scope!r}; {caller.key_id!r} has {sorted(caller.scopes)}.",
        hint="Use GATEWAY_ADMIN_KEY from .env, or have an administrator make you a key.",
    )


CallerDep = Annotated[Caller, Depends(require_use)]
USE = Depends(require_use)
ADMIN = Security(require_admin, scopes=[ADMIN_SCOPE])
"""Named in the OpenAPI document too; what it checks is in `require_admin`."""
