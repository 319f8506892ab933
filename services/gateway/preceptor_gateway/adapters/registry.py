"""The adapters folder as it is now. Read-only: the trainer writes it."""

from __future__ import annotations

from pathlib import Path

from preceptor_contracts.errors import InvalidInput, ManifestInvalid
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
        self._reports: dict[Path, tuple[int, Report | None]] = {}

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

    def stamps(self) -> dict[str, int]:
        """When each whole adapter's manifest was written, in nanoseconds. Touches the disk: call it in a thread."""
        return {name: stamp for name in self.names() if (stamp := self._written(name))}

    def stamp(self, name: str) -> int:
        """When a manifest was written, in nanoseconds; 0 where there is none."""
        return self._written(name) if name in self.names() else 0

    def _written(self, name: str) -> int:
        try:
            return (self._root / name / MANIFEST).stat().st_mtime_ns
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
                entry = read_adapter(self._own_folder(name))
            except InvalidInput as error:
                entry = error
            known = self._cache[name] = (stamp, entry)
        if isinstance(known[1], InvalidInput):
            raise known[1]
        return known[1]

    def _own_folder(self, name: str) -> Path:
        """The folder with every link resolved: the engine is told paths inside the adapters folder only."""
        path = (self._root / name).resolve()
        if path != self._root.resolve() / name:
            raise ManifestInvalid(
                f"{name!r} is a link to another folder.", hint="Copy the adapter into the adapters folder."
            )
        return path

    def newest_report(self, name: str) -> tuple[str, Report] | None:
        """The newest report of an adapter with its file name; unreadable ones do not count."""
        paths = (self._root / name / "reports").glob("*.json")
        found = [(path.name, report) for path in paths if (report := self._readable(path))]
        return max(found, key=lambda pair: pair[1].created_at, default=None)

    def _readable(self, path: Path) -> Report | None:
        """A report, from memory while the file is the same; None where it cannot be read."""
        try:
            stamp = path.stat().st_mtime_ns
            if (known := self._reports.get(path)) is None or known[0] != stamp:
                known = self._reports[path] = (stamp, read_json(path, Report))
        except OSError:
            return None
        except InvalidInput:
            known = self._reports[path] = (stamp, None)
        return known[1]

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
