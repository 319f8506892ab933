"""The format of a backup, and what writer and reader must agree on.

A tar.gz: `preceptor-backup.json`, by which it is known; files that are no volume's; `volumes/<name>/...`; and
`manifest.json` last, with the hash of every file. What has no manifest is not whole.
"""

from __future__ import annotations

from typing import TypedDict

FORMAT = 1
HEAD = "preceptor-backup.json"
MANIFEST = "manifest.json"
# Aliases before adapters: none may point at an adapter that was published after the adapters were read.
VOLUMES = ("gateway-data", "adapters", "base-models", "runs", "open-webui-data")
FURTHER = (".env", "postgres.sql")
CHUNK = 2**20


class Refused(Exception):
    """A sentence for the person who backs up or restores."""


class Size(TypedDict):
    """How much a volume holds."""

    files: int
    bytes: int


class Manifest(TypedDict):
    """`manifest.json`."""

    format: int
    made_at: str
    """UTC, ISO 8601."""
    volumes: dict[str, Size]
    """Those that held anything."""
    files: dict[str, str]
    """SHA-256 of every file, by its name in the archive."""
    links: dict[str, str]
    """Where every link points to."""
    dropped: list[str]
    """In the archive and not to be unpacked: they went away, or got shorter, while they were read."""
    remarks: list[str]
    """Sentences on what was left out."""
