"""`python -m preceptor_gateway.health.probe`: exit 0 where the gateway answers."""

from __future__ import annotations

import sys

from preceptor_contracts.probing import exit_code

from preceptor_gateway.settings import GatewaySettings

if __name__ == "__main__":
    # `/` needs no engine: a gateway without one is alive and says so.
    sys.exit(exit_code(GatewaySettings().port, "/"))
