"""Bearer keys with scopes `use` and `admin`."""

from __future__ import annotations

import hashlib
import hmac
from typing import Annotated

from fastapi import Depends, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr
from starlette.requests import HTTPConnection
from starlette.types import Scope

from preceptor_gateway.problems import NotAuthenticated, NotPermitted

_HINT = "Send 'Authorization: Bearer <GATEWAY_API_KEY>'; the key is in .env."
_bearer = HTTPBearer(auto_error=False, description="GATEWAY_API_KEY, or GATEWAY_ADMIN_KEY for admin routes.")


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


class Keys:
    """Knows the keys by hash only, and compares in constant time."""

    def __init__(self, use: SecretStr, admin: SecretStr) -> None:
        self._use = _digest(use.get_secret_value())
        self._admin = _digest(admin.get_secret_value())

    def scopes(self, token: str) -> frozenset[str]:
        """Returns the scopes of a key; empty where it is unknown."""
        offered = _digest(token)
        if hmac.compare_digest(offered, self._admin):
            return frozenset({"use", "admin"})
        return frozenset({"use"}) if hmac.compare_digest(offered, self._use) else frozenset()

    def require_use(self, scope: Scope) -> None:
        """Lets a request with a known key pass, without FastAPI's machinery."""
        for name, value in scope["headers"]:
            if name == b"authorization":
                kind, _, token = value.decode("latin-1").partition(" ")
                if kind.lower() == "bearer" and self.scopes(token.strip()):
                    return
                raise NotAuthenticated("The bearer key is not known.", hint=_HINT)
        raise NotAuthenticated("The request carries no bearer key.", code="missing_api_key", hint=_HINT)


Credentials = Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]


async def require_use(connection: HTTPConnection, credentials: Credentials) -> frozenset[str]:
    """Lets a known key in."""
    if credentials is None:
        raise NotAuthenticated("The request carries no bearer key.", code="missing_api_key", hint=_HINT)
    keys: Keys = connection.app.state.services.keys
    scopes = keys.scopes(credentials.credentials)
    if not scopes:
        raise NotAuthenticated("The bearer key is not known.", hint=_HINT)
    return scopes


async def require_admin(scopes: Annotated[frozenset[str], Depends(require_use)]) -> None:
    """Lets a key with scope `admin` in."""
    if "admin" not in scopes:
        raise NotPermitted("This route needs a key with scope 'admin'.", hint="Use GATEWAY_ADMIN_KEY from .env.")


USE = Depends(require_use)
ADMIN = Depends(require_admin)
