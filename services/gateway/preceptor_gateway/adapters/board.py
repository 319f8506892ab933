"""Where each adapter stands on one engine, kept in step with routing and metrics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from preceptor_contracts.manifest import Manifest
from preceptor_contracts.served_names import adapter_domain
from preceptor_contracts.wire import AdapterState

from preceptor_gateway.engine import EnginePool, PooledEngine
from preceptor_gateway.metrics import Metrics


class Cause(StrEnum):
    """Why an adapter failed, which says what can heal it."""

    MANIFEST = "manifest"
    """Another manifest."""
    ENGINE = "engine"
    """Another engine: the canary failed or the load was refused."""
    FOLDER = "folder"
    """The folder's return."""


@dataclass
class Status:
    """Where one adapter stands on one engine."""

    state: AdapterState = AdapterState.REGISTERED
    reason: str = ""
    cause: Cause | None = None
    stamp: int = 0
    """The manifest's time of writing when it failed or became ready."""
    probed: bool = False
    """The engine held it when its canary failed."""
    manifest: Manifest | None = None
    """Kept from the moment of readiness, so that the hot path reads no file."""

    @property
    def is_ready(self) -> bool:
        """True where its canary passed."""
        return self.state is AdapterState.READY


class Board:
    """One engine's adapters. The one place where a state changes."""

    def __init__(self, engine: PooledEngine, pool: EnginePool, metrics: Metrics) -> None:
        self._engine = engine
        self._pool = pool
        self._metrics = metrics
        self._status: dict[str, Status] = {}

    def __getitem__(self, name: str) -> Status:
        return self._status.get(name) or Status()

    def names(self) -> tuple[str, ...]:
        """Adapters that have a status, in order."""
        return tuple(sorted(self._status))

    def set(self, name: str, state: AdapterState, reason: str) -> Status:
        """Moves an adapter to a state that is no failure."""
        status = self._status.setdefault(name, Status())
        before, status.state, status.reason, status.cause = status.state, state, reason, None
        self._show(name, before, state)
        return status

    def ready(self, name: str, manifest: Manifest, stamp: int) -> None:
        """Its canary passed."""
        status = self.set(name, AdapterState.READY, "")
        status.manifest, status.stamp = manifest, stamp
        self._metrics.adapter_loads.labels(name, "ready").inc()

    def fail(self, name: str, cause: Cause, reason: str, *, stamp: int = 0, probed: bool = False) -> None:
        """It cannot be served until its cause is gone."""
        status = self.set(name, AdapterState.FAILED, reason)
        status.cause, status.stamp, status.probed = cause, stamp, probed
        self._metrics.adapter_loads.labels(name, "failed").inc()

    def interrupted(self, name: str, reason: str) -> None:
        """Its load broke off; another try may help."""
        self.set(name, AdapterState.REGISTERED, reason)
        self._metrics.adapter_loads.labels(name, "interrupted").inc()

    def engine_went(self) -> None:
        """What comes back may be another process or another base model: every canary must pass again."""
        for name, status in self._status.items():
            if status.is_ready or status.cause is Cause.ENGINE:
                self.set(name, AdapterState.REGISTERED, status.reason)

    def show_registered(self, names: Iterable[str]) -> None:
        """Gives adapters that nothing was done with yet their status."""
        for name in names:
            if name not in self._status:
                self.set(name, AdapterState.REGISTERED, "")

    def engine_came(self) -> None:
        """What is ready there can be asked again."""
        for name, status in self._status.items():
            self._show(name, status.state, status.state)

    def forget(self, name: str) -> None:
        """Takes an adapter that is not there any more away, its series too."""
        status = self._status.pop(name, None)
        if status:
            self._engine.ready.discard(name)
            domain = adapter_domain(name) or name
            self._metrics.adapter_state.remove(domain, name, self._engine.name, status.state.value)
            if not any(name in one.ready for one in self._pool.engines):
                self._metrics.adapter_ready.remove(domain, name)
                self._metrics.forget(name)

    def _show(self, name: str, before: AdapterState, now: AdapterState) -> None:
        (self._engine.ready.add if now is AdapterState.READY else self._engine.ready.discard)(name)
        domain = adapter_domain(name) or name
        if before is not now:
            # One series an adapter and engine: what it is, not also what it is not.
            self._metrics.adapter_state.remove(domain, name, self._engine.name, before.value)
        self._metrics.adapter_state.labels(domain, name, self._engine.name, now.value).set(1)
        self._metrics.adapter_ready.labels(domain, name).set(self._pool.has_ready(name))
