"""`python -m preceptor_ui.health`: exits 0 where the UI of this machine answers, 1 where it does not."""

from __future__ import annotations

import ipaddress
import sys

import httpx
from preceptor_contracts.errors import PreceptorError

from preceptor_ui.settings import Settings, load_settings

TIMEOUT_S = 3.0


def check(settings: Settings) -> str:
    """Returns what is wrong, or nothing."""
    url = health_url(settings)
    try:
        response = httpx.get(url, timeout=TIMEOUT_S, trust_env=False)
    except httpx.HTTPError as error:
        return f"{url} does not answer: {error}."
    return "" if response.is_success else f"{url} answers with status {response.status_code}."


def health_url(settings: Settings) -> str:
    """Where a process on this machine finds the UI, also when it listens on every address."""
    return f"http://{_reachable(settings.host)}:{settings.port}/health"


def main() -> int:
    """Runs the check."""
    try:
        problem = check(load_settings())
    except PreceptorError as error:
        problem = str(error)
    if problem:
        sys.stderr.write(f"{problem}\n")
    return 1 if problem else 0


def _reachable(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "[::1]"
    return host if address.version == 4 else f"[{host}]"


if __name__ == "__main__":
    sys.exit(main())
