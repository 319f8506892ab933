"""Version numbers: each is given once, also when its adapter was archived, moved or deleted since."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Annotated

from preceptor_contracts.files import write_atomic
from preceptor_contracts.frozen import Frozen, read_json
from preceptor_contracts.served_names import DomainName, adapter_domain, adapter_version
from pydantic import Field

LEDGER = ".versions.json"
"""In the adapters folder; gateway and engine read folders with a manifest only, so they never see it."""
ARCHIVE = ".archive"
"""Folder of archives, inside the adapters folder: the two are backed up and counted together."""
ARCHIVE_SUFFIX = ".tar.gz"


class Ledger(Frozen):
    """`.versions.json`."""

    highest: dict[DomainName, Annotated[int, Field(ge=0)]] = {}
    """The newest version given, per domain."""


def claim_version(adapters: Path, domain: str) -> int:
    """Gives the next version of a domain; a lock keeps two publishing runs from getting the same one.

    A number whose publication fails is lost, which costs nothing.

    Args:
        adapters: Folder of all adapters; it exists.
        domain: Whose version.

    Raises:
        InvalidInput: The ledger was edited into something unreadable.
    """
    handle = os.open(adapters, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        path = adapters / LEDGER
        ledger = read_json(path, Ledger) if path.exists() else Ledger()
        version = max(ledger.highest.get(domain, 0), _highest_on_disk(adapters, domain)) + 1
        write_atomic(path, Ledger(highest={**ledger.highest, domain: version}).model_dump_json(indent=2) + "\n")
    finally:
        os.close(handle)
    return version


def archived_adapter(path: Path) -> str | None:
    """Returns the adapter that an archive's file name stands for: `<adapter>.tar.gz`, or `<adapter>.<n>.tar.gz`."""
    if not path.name.endswith(ARCHIVE_SUFFIX):
        return None
    name = path.name.removesuffix(ARCHIVE_SUFFIX).partition(".")[0]
    return name if adapter_domain(name) else None


def _highest_on_disk(adapters: Path, domain: str) -> int:
    """Counts what an older trainer published, and what a restored backup brought without its ledger."""
    names = [path.name.removeprefix(".").removesuffix(".partial") for path in adapters.iterdir() if path.is_dir()]
    archive = adapters / ARCHIVE
    names += [archived_adapter(path) or "" for path in archive.iterdir()] if archive.is_dir() else []
    return max((adapter_version(name) for name in names if adapter_domain(name) == domain), default=0)
