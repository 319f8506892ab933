"""What the gateway wants the engine to hold, what is ready, and which adapter each alias points at."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from enum import StrEnum

import structlog
from preceptor_contracts.domains import Domain
from preceptor_contracts.errors import ManifestInvalid, PreceptorError
from preceptor_contracts.manifest import AdapterFolder, Manifest, verify_files
from preceptor_contracts.report import Verdict
from preceptor_contracts.served_names import adapter_domain
from preceptor_contracts.wire import AdapterState, AdapterView, AliasView, PromoteRequest

from preceptor_gateway.adapters.canary import CanaryFailed, check_canary
from preceptor_gateway.adapters.registry import Registry
from preceptor_gateway.engine import EngineClient
from preceptor_gateway.metrics import Metrics
from preceptor_gateway.problems import BadRequest, Conflict, GatewayError, Unavailable
from preceptor_gateway.store import AliasStore

log = structlog.get_logger("adapters")


class _Cause(StrEnum):
    """Why an adapter failed, which says what can heal it."""

    MANIFEST = "manifest"
    """Another manifest."""
    ENGINE = "engine"
    """Another engine: the canary failed or the load was refused."""
    FOLDER = "folder"
    """The folder's return."""


@dataclass
class _Status:
    state: AdapterState = AdapterState.REGISTERED
    reason: str = ""
    cause: _Cause | None = None
    stamp: int = 0
    """The manifest's time of writing when it failed."""
    probed: bool = False
    """The engine held it when its canary failed."""
    manifest: Manifest | None = None
    """Kept from the moment of readiness, so that the hot path reads no file."""


class AdapterService:
    """The registry on disk is the wish, the engine's own list is the fact."""

    def __init__(
        self, registry: Registry, store: AliasStore, engine: EngineClient, metrics: Metrics, domains: dict[str, Domain]
    ) -> None:
        self._registry = registry
        self._store = store
        self._engine = engine
        self._metrics = metrics
        self._domains = domains
        self._status: defaultdict[str, _Status] = defaultdict(_Status)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.nudge = asyncio.Event()
        """Set where the engine was seen to have lost an adapter; the reconciler waits on it."""
        self._engine_was_away = False

    # --- hot path: memory only ---

    def promoted(self, domain: str) -> str | None:
        """The adapter that a domain's alias points at."""
        return self._store.alias(domain).promoted

    def is_ready(self, adapter: str) -> bool:
        """True where the canary passed since the engine was last seen to have the adapter."""
        return adapter in self._status and self._status[adapter].state is AdapterState.READY

    def ready(self, domain: str) -> list[str]:
        """Ready adapters of a domain, by name."""
        return sorted(
            name
            for name, status in self._status.items()
            if status.state is AdapterState.READY and status.manifest and status.manifest.domain == domain
        )

    def require_ready(self, adapter: str) -> Manifest:
        """Returns a ready adapter's manifest.

        Raises:
            NotFound: No such adapter.
            Unavailable: It is loading, or failed, or nobody asked to load it.
        """
        status = self._status.get(adapter)
        if status and status.state is AdapterState.READY and status.manifest:
            return status.manifest
        self._registry.read(adapter)
        state = status.state if status else AdapterState.REGISTERED
        if state is AdapterState.FAILED and status:
            raise Unavailable(f"{adapter!r} cannot be served: {status.reason}", code="adapter_failed")
        if state is AdapterState.LOADING or adapter in self._store.wanted():
            self.nudge.set()
            why = f" Last time: {status.reason}" if status and status.reason else ""
            raise Unavailable(
                f"{adapter!r} is being loaded.{why}", code="adapter_loading", hint="Try again.", retry_after_s=2
            )
        raise Unavailable(
            f"{adapter!r} is not loaded.",
            code="adapter_not_loaded",
            hint=f'POST /v1/adapters {{"adapter": "{adapter}"}} loads it (admin key).',
        )

    def lost(self, adapter: str) -> None:
        """Notes that the engine answered that it does not know an adapter."""
        if self.is_ready(adapter):
            self._set(adapter, AdapterState.REGISTERED, "The engine lost it.")
        self.nudge.set()

    # --- control path ---

    def views(self) -> tuple[AdapterView, ...]:
        """Every adapter on disk as clients see it, and those that are wanted and gone."""
        on_disk = self._registry.names()
        return tuple(self.view(name) for name in [*on_disk, *sorted(self._store.wanted() - set(on_disk))])

    def view(self, name: str) -> AdapterView:
        """One adapter as clients see it."""
        status = self._status[name]
        state, reason, manifest, report = status.state, status.reason, None, None
        try:
            manifest = self._registry.read(name).manifest
            report = self._registry.newest_report(name)
        except PreceptorError as error:
            state, reason = AdapterState.FAILED, error.message
        domain = adapter_domain(name) or name
        return AdapterView(
            adapter=name,
            domain=domain,
            served=f"{domain}:{name}",
            state=state,
            reason=reason,
            promoted=self.promoted(domain) == name,
            pinned=name in self._store.pinned,
            created_at=manifest.created_at if manifest else None,
            scoring=manifest.mcq_scoring if manifest else None,
            accuracy=report[1].adapter.accuracy if report else None,
            report=report[0] if report else None,
        )

    async def load(self, name: str) -> AdapterView:
        """Loads an adapter and keeps it loaded; returns when its canary passed."""
        self._registry.read(name)
        async with self._locks[name]:
            await self._make_ready(name)
            self._store.pin(name)
        return self.view(name)

    async def unload(self, name: str) -> AdapterView:
        """Takes an adapter out of the engine, also one whose folder is gone."""
        if name not in self._store.wanted():
            self._registry.require(name)
        async with self._locks[name]:
            alias = self._store.alias(adapter_domain(name) or name)
            if name in (alias.promoted, alias.previous):
                what = "promoted" if name == alias.promoted else "what a rollback would restore"
                raise Conflict(f"{name!r} is {what}.", code="adapter_promoted", hint="Promote another one first.")
            self._store.unpin(name)
            self._set(name, AdapterState.REGISTERED, "")
            await self._engine.unload(name)
        return self.view(name)

    async def promote(self, domain: str, request: PromoteRequest) -> AliasView:
        """Moves an alias. The adapter is made ready first, so no request ever meets one that is not."""
        name = request.adapter
        adapter = self._registry.read(name)
        if adapter.manifest.domain != domain:
            raise Conflict(f"{name!r} is of domain {adapter.manifest.domain!r}, not {domain!r}.", code="wrong_domain")
        self._check_report(name, request)
        async with self._locks[name]:
            await self._make_ready(name)
            self._store.move(domain, name, request.report)
        log.info("promoted", domain=domain, adapter=name, report=request.report, forced=request.force)
        return self.alias(domain)

    def _check_report(self, name: str, request: PromoteRequest) -> None:
        force = 'Send "force": true to promote it all the same.'
        if request.report is None:
            if request.force:
                return
            raise Conflict(f"The promotion of {name!r} names no report.", code="report_missing", hint=force)
        report = self._registry.report(name, request.report)
        if report.adapter.served.rpartition(":")[2] != name:
            raise Conflict(
                f"Report {request.report!r} is about {report.adapter.served!r}, not {name!r}.", code="wrong_report"
            )
        if report.verdict is not Verdict.BETTER and not request.force:
            raise Conflict(
                f"Report {request.report!r} does not call {name!r} better: {report.reason}",
                code="not_better",
                hint=force,
            )

    async def rollback(self, domain: str) -> AliasView:
        """Moves an alias one step back."""
        previous = self._store.alias(domain).previous
        if previous is None:
            raise Conflict(f"Domain {domain!r} has nothing to roll back to.", code="no_previous")
        async with self._locks[previous]:
            await self._make_ready(previous)
            if self._store.alias(domain).previous != previous:
                raise Conflict(f"The alias {domain!r} was moved meanwhile.", code="alias_moved", hint="Look again.")
            self._store.step_back(domain)
        log.info("rolled back", domain=domain, adapter=previous)
        return self.alias(domain)

    def alias(self, domain: str) -> AliasView:
        """Where an alias points."""
        alias = self._store.alias(domain)
        return AliasView(domain=domain, promoted=alias.promoted, previous=alias.previous)

    async def _make_ready(self, name: str) -> None:
        """Verifies, loads and probes an adapter unless it is ready; the caller holds its lock.

        Raises:
            PreceptorError: Why it cannot be served; its state is `failed` then, or `registered` where another try
                may help.
        """
        if self.is_ready(name):
            return
        self._set(name, AdapterState.LOADING, self._status[name].reason)
        try:
            adapter = await asyncio.to_thread(self._verified, name)
            await self._engine.load(name, str(adapter.path))
            await check_canary(self._engine, adapter.manifest)
        except ManifestInvalid as error:
            self._fail(name, _Cause.MANIFEST, error.message)
            raise
        except (BadRequest, CanaryFailed) as error:
            self._fail(name, _Cause.ENGINE, error.message)
            self._status[name].probed = isinstance(error, CanaryFailed)
            raise
        except BaseException as error:
            # Whatever else happened, a client that hung up included: nobody may find it loading for ever.
            reason = error.message if isinstance(error, PreceptorError) else f"Loading was interrupted ({error!r})."
            self._metrics.adapter_loads.labels(name, "interrupted").inc()
            self._set(name, AdapterState.REGISTERED, reason)
            raise
        self._metrics.adapter_loads.labels(name, "ready").inc()
        self._status[name].manifest = adapter.manifest
        self._set(name, AdapterState.READY, "")
        log.info("adapter ready", adapter=name)

    def _fail(self, name: str, cause: _Cause, reason: str) -> None:
        self._set(name, AdapterState.FAILED, reason)
        self._status[name].cause, self._status[name].stamp = cause, self._registry.stamp(name)
        self._metrics.adapter_loads.labels(name, "failed").inc()
        log.warning("adapter failed", adapter=name, reason=reason)

    def _verified(self, name: str) -> AdapterFolder:
        adapter = self._registry.read(name)
        domain = self._domains.get(adapter.manifest.domain)
        if domain is None:
            raise ManifestInvalid(f"{name!r} is of domain {adapter.manifest.domain!r}, which is not here.")
        if domain.prompt_sha != adapter.manifest.prompt_sha:
            raise ManifestInvalid(
                f"{name!r} was trained under another prompt of domain {domain.name!r}.",
                hint="Train again, or restore the prompt in domain.yaml.",
            )
        verify_files(adapter)
        return adapter

    async def reconcile(self) -> None:
        """Closes the difference between wish and fact, once.

        Raises:
            GatewayError: The engine does not answer.
        """
        # Taken before asking: what becomes ready while the answer travels is not in it.
        ready_before = [name for name in self._status if self.is_ready(name)]
        try:
            served = await self._engine.names()
        except GatewayError:
            self._metrics.engine_up.set(0)
            self._engine_was_away = True
            raise
        self._metrics.engine_up.set(1)
        lost = [name for name in ready_before if name not in served and self.is_ready(name)]
        for name in lost:
            self._set(name, AdapterState.REGISTERED, "The engine lost it.")
        if lost or self._engine_was_away:
            # It may be another engine now, with another tokenizer.
            self._engine.forget()
        for name in sorted(self._store.wanted()):
            self._heal(name, served)
            if self._status[name].state is AdapterState.REGISTERED:
                await self._try(name)
        self._engine_was_away = False

    def _heal(self, name: str, served: frozenset[str]) -> None:
        """Gives a failed adapter another try where what made it fail has changed."""
        status = self._status[name]
        stamp = self._registry.stamp(name)
        if not stamp:
            self._set(name, AdapterState.FAILED, "Its folder is gone.")
            status.cause = _Cause.FOLDER
        elif status.state is AdapterState.FAILED and (
            status.cause is _Cause.FOLDER
            or (status.cause is _Cause.MANIFEST and stamp != status.stamp)
            # A refused load leaves no name behind, a failed canary does; its absence means a new engine.
            or (status.cause is _Cause.ENGINE and (self._engine_was_away or (status.probed and name not in served)))
        ):
            self._set(name, AdapterState.REGISTERED, status.reason)

    async def _try(self, name: str) -> None:
        async with self._locks[name]:
            if name not in self._store.wanted():
                return
            try:
                await self._make_ready(name)
            except Exception as error:
                # The edge of the worker loop: one bad adapter must not keep the others out.
                log.warning("not reconciled", adapter=name, reason=str(error), kind=type(error).__name__)

    def wanted_not_ready(self) -> list[str]:
        """Promoted adapters that cannot be asked now; after an outage, all until the engine was looked at again."""
        promoted = {name for domain in self._domains if (name := self.promoted(domain))}
        return sorted(name for name in promoted if self._engine_was_away or not self.is_ready(name))

    def _set(self, name: str, state: AdapterState, reason: str) -> None:
        status = self._status[name]
        status.state, status.reason = state, reason
        self._metrics.adapter_ready.labels(adapter_domain(name) or name, name).set(state is AdapterState.READY)
