"""`python -m preceptor_ui`: reads the settings and serves the pages until it is stopped."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from contextlib import suppress

import uvicorn
from fastapi import FastAPI
from preceptor_contracts.errors import PreceptorError

from preceptor_ui.app import create_app
from preceptor_ui.settings import Settings, load_settings

DRAIN_S = 3
"""Seconds that open requests get when the UI is stopped."""


class PageServer(uvicorn.Server):
    """Ends the event streams of open pages first; they never end by themselves."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_level="warning",
            timeout_graceful_shutdown=DRAIN_S,
        )
        super().__init__(config)
        self._end_pages: Callable[[], None] = app.state.end_pages

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stops serving."""
        self._end_pages()
        await super().shutdown(sockets)


def main() -> int:
    """Serves the pages."""
    try:
        settings = load_settings()
    except PreceptorError as error:
        sys.stderr.write(f"{error.message}\n{error.hint}\n")
        return 1
    sys.stdout.write(f"Preceptor UI: http://{settings.host}:{settings.port} (gateway {settings.gateway_url})\n")
    sys.stdout.flush()
    server = PageServer(create_app(settings), settings)
    with suppress(KeyboardInterrupt):
        server.run()
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())
