"""`python -m preceptor_gateway`: serves until SIGTERM; with a command, does that."""

from __future__ import annotations

import gc
import logging
import signal
import sys

import orjson
import structlog
import uvicorn
from preceptor_contracts.errors import PreceptorError
from preceptor_contracts.frozen import describe
from pydantic import ValidationError

from preceptor_gateway.keys.database import prepare
from preceptor_gateway.settings import GatewaySettings, unknown_settings
from preceptor_gateway.telemetry.logs import add_request

log = structlog.get_logger("gateway")


def main() -> int:
    """Serves; returns 2 with a sentence where the settings do not allow it."""
    if sys.argv[1:]:
        from preceptor_gateway.keys.cli import run

        return run(sys.argv[1:])
    # Three seconds of imports that no command needs.
    from preceptor_gateway.app import create_app

    try:
        settings = GatewaySettings()
        _log_as_json(settings.log_level)
        for name in unknown_settings():
            log.warning("no such setting", name=name, hint="docs/configuration.md lists them.")
        prepare(settings.database_url.get_secret_value())
        app = create_app(settings)
    except ValidationError as error:
        sys.stderr.write(
            f"A setting is wrong: {describe(error, of_settings=True)}. Mend it in .env or the environment.\n"
        )
        return 2
    except PreceptorError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    # What start-up made stays for good. Out of the collector's sight, a full collection takes 7 ms, not 140.
    gc.collect()
    gc.freeze()
    # uvicorn drains on SIGTERM, then raises it again; without a handler of ours that would end the process by signal.
    signal.signal(signal.SIGTERM, lambda *_: None)
    # The edge writes the access line, with the request id, and asks for nothing that a proxy's headers say.
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=20,
    )
    return 0


def _log_as_json(level: str) -> None:
    structlog.configure(
        processors=[
            add_request,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(orjson.dumps),
        ],
        logger_factory=structlog.BytesLoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
    )


if __name__ == "__main__":
    sys.exit(main())
