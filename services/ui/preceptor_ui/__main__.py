"""`python -m preceptor_ui`: reads the settings and serves the pages until it is stopped."""

from __future__ import annotations

import sys

import uvicorn
from preceptor_contracts.errors import PreceptorError

from preceptor_ui.app import create_app
from preceptor_ui.settings import load_settings

DRAIN_S = 3
"""Seconds that open pages get when the UI is stopped; their event streams never end by themselves."""


def main() -> int:
    """Serves the pages."""
    try:
        settings = load_settings()
    except PreceptorError as error:
        sys.stderr.write(f"{error.message}\n{error.hint}\n")
        return 1
    sys.stdout.write(f"Preceptor UI: http://{settings.host}:{settings.port} (gateway {settings.gateway_url})\n")
    sys.stdout.flush()
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_level="warning",
        timeout_graceful_shutdown=DRAIN_S,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
