"""The adapters folder as it is now. Read-only: the trainer writes it."""

from __future__ import annotations

from pathlib import Path

from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.frozen import read_json
from preceptor_contracts.manifest import MANIFEST, AdapterFolder, read_adapter
from preceptor_contracts.report import Report
from preceptor_contracts.served_names import adapter_domain, adapter_version

from preceptor_gateway.problems import NotFound


class Registry:
    """Finds adapters by name. No path ever comes from a client: names are matched against the folders there are."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._cache: dict[str, tuple[int, AdapterFolder | InvalidInput]] = {}

    def names(self) -> list[str]:
        """Whole adapters, oldest version first. Folders without a manifest are unfinished, and not adapters."""
        if not self._root.is_dir():
            return []
        found = [path.parent.name for path in self._root.glob(f"*/{MANIFEST}") if adapter_domain(path.parent.name)]
        return sorted(found, key=lambda name: (adapter_domain(name) or "", adapter_version(name), name))

    def require(self, name: str) -> None:
        """Raises `NotFound` where there is no such adapter."""
        if name not in self.names():
            raise NotFound(
                f"There is no adapter {name!r}.",
                code="unknown_adapter",
                param="adapter",
                hint="GET /v1/adapters lists them.",
            )

    def stamp(self, name: str) -> int:
        """When a manifest was written, in nanoseconds; 0 where there is none."""
        try:
            return (self._root / name / MANIFEST).stat().st_mtime_ns if name in self.names() else 0
        except OSError:
            return 0

    def read(self, name: str) -> AdapterFolder:
        """Reads an adapter's manifest, from memory while the file is the same.

        Raises:
            NotFound: No such adapter.
            ManifestInvalid: Its manifest is malformed.
        """
        self.require(name)
        stamp = self.stamp(name)
        known = self._cache.get(name)
        if known is None or known[0] != stamp:
            entry: AdapterFolder | InvalidInput
            try:
                entry = read_adapter((self._root / name).resolve())
            except InvalidInput as error:
                entry = error
            known = self._cache[name] = (stamp, entry)
        if isinstance(known[1], InvalidInput):
            raise known[1]
        return known[1]

    def newest_report(self, name: str) -> tuple[str, Report] | None:
        """The newest report of an adapter with its file name; unreadable ones do not count."""
        found = []
        for path in (self._root / name / "reports").glob("*.json"):
            try:
                found.append((path.name, read_json(path, Report)))
            except InvalidInput:
                continue
        return max(found, key=lambda pair: pair[1].created_at, default=None)

    def report(self, name: str, file: str) -> Report:
        """Reads one report of an adapter by file name.

        Raises:
            NotFound: No such report.
        """
        for path in (self._root / name / "reports").glob("*.json"):
            if path.name == file:
                return read_json(path, Report)
        raise NotFound(
            f"Adapter {name!r} has no report {file!r}.",
            code="unknown_report",
            param="report",
            hint="Evaluate it first.",
        )
