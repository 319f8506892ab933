"""Served names: what a client may write in `model`. One place that reads and writes them."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import StringConstraints

from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.frozen import Frozen

RAW_BASE = "base"
"""Served name of the base model without any domain prompt; also the engine's own name for it."""

_DOMAIN = r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*"
DomainName = Annotated[str, StringConstraints(pattern=rf"^{_DOMAIN}$", max_length=40)]
"""Lower-case words joined by `-`; the folder's name under `domains/`."""
AdapterName = Annotated[str, StringConstraints(pattern=rf"^{_DOMAIN}-v[0-9]+-[0-9a-f]{{8}}$", max_length=64)]
"""`<domain>-v<number>-<8 hex digits>`; the folder's name under `adapters/` and the engine's name for it."""

_ADAPTER = re.compile(rf"^(?P<domain>{_DOMAIN})-v(?P<version>[0-9]+)-(?P<digest>[0-9a-f]{{8}})$")


class ServedName(Frozen):
    """A parsed served name."""

    domain: str | None
    """None for the raw base model."""
    adapter: str | None = None
    """An exact adapter version; None for the promoted one."""
    is_base: bool = False
    """True where no adapter is wanted."""

    def __str__(self) -> str:
        if self.domain is None:
            return RAW_BASE
        suffix = RAW_BASE if self.is_base else self.adapter
        return f"{self.domain}:{suffix}" if suffix else self.domain


def parse_served_name(text: str) -> ServedName:
    """Reads `base`, `<domain>`, `<domain>:base` or `<domain>:<adapter>`.

    Raises:
        InvalidInput: Any other spelling; `code` is `unknown_served_name`.
    """
    if text == RAW_BASE:
        return ServedName(domain=None, is_base=True)
    domain, colon, rest = text.partition(":")
    if re.fullmatch(_DOMAIN, domain):
        if not colon:
            return ServedName(domain=domain)
        if rest == RAW_BASE:
            return ServedName(domain=domain, is_base=True)
        if adapter_domain(rest) == domain:
            return ServedName(domain=domain, adapter=rest)
    raise InvalidInput(
        f"{text!r} is not a served name.", code="unknown_served_name", hint="GET /v1/models lists the served names."
    )


def adapter_domain(name: str) -> str | None:
    """Returns the domain that an adapter's name starts with, or None where it is not an adapter's name."""
    match = _ADAPTER.match(name)
    return match["domain"] if match and match.end() == len(name) else None


def adapter_version(name: str) -> int:
    """Returns the number after `-v`; raises `InvalidInput` where `name` is not an adapter's name."""
    match = _ADAPTER.fullmatch(name)
    if match is None:
        raise InvalidInput(f"{name!r} is not an adapter's name.", hint="Names look like 'allergy-v3-1a2b3c4d'.")
    return int(match["version"])
