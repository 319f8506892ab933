"""`ENGINE_URLS` read strictly, and the short names by which engines are shown."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

_PORTS = {"http": 80, "https": 443}


def read_urls(text: str) -> tuple[str, ...]:
    """Reads comma-separated URLs of engines.

    Raises:
        ValueError: There is none, one is malformed, or one stands there twice.
    """
    found: dict[str, str] = {}
    for part in (part.strip() for part in text.split(",")):
        if not part and text.strip():
            raise ValueError(f"{text!r} has an empty place between commas")
        url = _checked(part)
        name = short_name(url)
        if name in found:
            raise ValueError(f"engine {name!r} stands there twice")
        found[name] = url
    return tuple(found.values())


def short_name(url: str) -> str:
    """An engine's name in metrics, logs and answers: its host and port, which hold no secret."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{host}:{parts.port or _PORTS[parts.scheme]}"


def _checked(text: str) -> str:
    example = "write 'http://host:port'"
    if not text:
        raise ValueError(f"no engine is named; {example}")
    try:
        parts: SplitResult = urlsplit(text)
        has_port_or_none = parts.port is None or parts.port > 0
    except ValueError:
        has_port_or_none, parts = False, SplitResult("", "", "", "", "")
    is_plain = not (parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc or " " in text)
    if parts.scheme not in _PORTS or not parts.hostname or not has_port_or_none or not is_plain:
        # Not with its value: somebody may have written a password into it.
        shown = repr(text) if "@" not in text else "a URL with a user name"
        raise ValueError(f"{shown} is not the URL of an engine; {example}")
    return f"{parts.scheme}://{parts.netloc.lower()}"
