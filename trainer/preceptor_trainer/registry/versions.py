"""Version numbers: each is given once, also when its adapter was archived, moved or deleted since."""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path
from typing import Annotated, NamedTuple

from preceptor_contracts.files import write_atomic
from preceptor_contracts.frozen import Frozen, read_json
from preceptor_contracts.served_names import DomainName, adapter_domain, adapter_version
from pydantic import Field

LEDGER = ".versions.json"
"""In the adapters folder; gateway and engine read folders with a manifest only, so they never see it."""
ARCHIVE = ".archive"
"""Folder of archives, inside the adapters folder: the two are backed up and counted together."""
ARCHIVE_SUFFIX = ".tar.gz"
_ARCHIVED = re.compile(r"([a-z0-9-]+)(?:\.([0-9]+))?\.tar\.gz")


class Ledger(Frozen):
    """`.versions.json`."""

    highest: dict[DomainName, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    """The newest version given, per domain."""


def claim_version(adapters: Path, domain: str) -> int:
    """Gives the next version of a domain, which nobody else gets.

    A number whose publication fails is lost, which costs nothing.

    Args:
        adapters: Folder of all adapters; it exists.
        domain: Whose version.

    Raises:
        InvalidInput: The ledger was edited into something unreadable.
    """
    return _count_up(adapters, domain, 1)


def remember_versions(adapters: Path, domain: str) -> None:
    """Writes the highest version on disk into the ledger, before one of them leaves; an older trainer kept none.

    Raises:
        InvalidInput: As for `claim_version`.
    """
    _count_up(adapters, domain, 0)


def _count_up(adapters: Path, domain: str, step: int) -> int:
    """Raises a domain's highest version under a lock: two publishing runs must not get the same one."""
    handle = os.open(adapters, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        path = adapters / LEDGER
        ledger = read_json(path, Ledger) if path.exists() else Ledger()
        version = max(ledger.highest.get(domain, 0), _highest_on_disk(adapters, domain)) + step
        write_atomic(path, Ledger(highest={**ledger.highest, domain: version}).model_dump_json(indent=2) + "\n")
    finally:
        os.close(handle)
    return version


class Archive(NamedTuple):
    """An archive on disk."""

    adapter: str
    number: int
    """1 for the first of this adapter; more where its reports grew in between."""
    path: Path


def archives_in(adapters: Path, adapter: str | None = None) -> list[Archive]:
    """Finds the archives of one adapter or of all, the newest of each last."""
    folder = adapters / ARCHIVE
    found = [_ARCHIVED.fullmatch(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    archives = [Archive(hit[1], int(hit[2] or 1), folder / hit[0]) for hit in found if hit and adapter_domain(hit[1])]
    return sorted(each for each in archives if adapter in (None, each.adapter))


def archive_place(adapters: Path, adapter: str) -> Path:
    """Returns where the next archive of an adapter goes."""
    number = max((each.number for each in archives_in(adapters, adapter)), default=0) + 1
    return adapters / ARCHIVE / f"{adapter}{'' if number == 1 else f'.{number}'}{ARCHIVE_SUFFIX}"


def _highest_on_disk(adapters: Path, domain: str) -> int:
    """Counts what an older trainer published, and what a restored backup brought without its ledger."""
    names = [path.name.removeprefix(".").removesuffix(".partial") for path in adapters.iterdir() if path.is_dir()]
    names += [archive.adapter for archive in archives_in(adapters)]
    return max((adapter_version(name) for name in names if adapter_domain(name) == domain), default=0)
