"""Whether an adapter's folder is what was trained, for this installation. Hashes in a thread, and remembers it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from preceptor_contracts.domains import Domain
from preceptor_contracts.errors import ManifestInvalid
from preceptor_contracts.manifest import AdapterFolder, verify_files

from preceptor_gateway.adapters.registry import Registry

WEIGHTS = "adapter_model.safetensors"
_Fingerprint = tuple[tuple[str, int, int, int], ...]


class Verifier:
    """Checks folders before an engine hears of them."""

    def __init__(self, registry: Registry, domains: Mapping[str, Domain]) -> None:
        self._registry = registry
        self._domains = domains
        self._known: dict[str, _Fingerprint] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def verified(self, name: str) -> AdapterFolder:
        """Returns an adapter that may be loaded.

        The manifest's own rules (parity certificate, name, shape) are checked where it is read. Files are hashed once:
        again only where a name, size or time of one changed.

        Raises:
            NotFound: No such adapter.
            ManifestInvalid: It is not whole, was altered, holds a pickle or a link, or is not of this installation.
        """
        # Several engines load an adapter at the same time; one of them hashes, the others wait for it.
        async with self._locks[name]:
            return await asyncio.to_thread(self._verified, name)

    def _verified(self, name: str) -> AdapterFolder:
        adapter = self._registry.read(name)
        self._check_domain(adapter)
        if WEIGHTS not in adapter.manifest.files:
            raise ManifestInvalid(f"{name!r} has no {WEIGHTS!r}.", hint="Train again; only safetensors are served.")
        found = _fingerprint(adapter.path)
        if self._known.get(name) != found:
            self._known.pop(name, None)
            verify_files(adapter)
            self._known[name] = found
        return adapter

    def _check_domain(self, adapter: AdapterFolder) -> None:
        name, manifest = adapter.manifest.adapter, adapter.manifest
        domain = self._domains.get(manifest.domain)
        if domain is None:
            raise ManifestInvalid(f"{name!r} is of domain {manifest.domain!r}, which is not here.")
        if domain.prompt_sha != manifest.prompt_sha:
            raise ManifestInvalid(
                f"{name!r} was trained under another prompt of domain {domain.name!r}.",
                hint="Train again, or restore the prompt in domain.yaml.",
            )


def _fingerprint(folder: Path) -> _Fingerprint:
    """Every file but the reports, which come later and are no part of what is hashed."""
    found = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if inside.parts[0] != "reports":
            status = path.lstat()
            # The time of the last change of the inode cannot be set back, unlike that of the content.
            found.append((inside.as_posix(), status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return tuple(found)
