"""`python -m preceptor_gateway.health.probe`: exit 0 where the gateway answers; for images without curl."""

from __future__ import annotations

import http.client
import sys

from preceptor_gateway.settings import GatewaySettings


def main() -> int:
    """Asks `/`, which needs no engine: a gateway without one is alive and says so."""
    settings = GatewaySettings()
    connection = http.client.HTTPConnection("127.0.0.1", settings.port, timeout=3)
    try:
        connection.request("GET", "/")
        return 0 if connection.getresponse().status == 200 else 1
    except OSError:
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
