"""A container's health check by Python alone: no image of ours has curl."""

from __future__ import annotations

import http.client
from http import HTTPStatus


def exit_code(port: int, path: str, *, method: str = "GET", limit_s: float = 3) -> int:
    """Asks a server on loopback; 0 where it answers 200 within `limit_s` seconds, else 1."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=limit_s)
    try:
        connection.request(method, path)
        return 0 if connection.getresponse().status == HTTPStatus.OK else 1
    except (OSError, http.client.HTTPException):
        return 1
    finally:
        connection.close()
