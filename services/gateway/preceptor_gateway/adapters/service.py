"""What the gateway wants the engine to hold, what is ready, and which adapter each alias points at."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass

import structlog
from preceptor_contracts.domains import Domain
from preceptor_contracts.errors import InvalidInput, ManifestInvalid, PreceptorError
from preceptor_contracts.manifest import AdapterFolder, Manifest, verify_files
from preceptor_contracts.report import Verdict
from preceptor_contracts.wire import AdapterState, AdapterView, AliasView, PromoteRequest

from preceptor_gateway.adapters.canary import CanaryFailed, check_canary
from preceptor_gateway.adapters.registry import Registry
from preceptor_gateway.engine import EngineClient
from preceptor_gateway.metrics import Metrics
from preceptor_gateway.problems import Conflict, GatewayError, Unavailable
from preceptor_gateway.store import AliasStore

log = structlog.get_logger("adapters")


@dataclass
class _Status:
    state: AdapterState = AdapterState.REGISTERED
    reason: str = ""
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
            raise Unavailable(
                f"{adapter!r} is being loaded.", code="adapter_loading", hint="Try again.", retry_after_s=2
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
        """Every adapter on disk as clients see it."""
        return tuple(self.view(name) for name in self._registry.names())

    def view(self, name: str) -> AdapterView:
        """One adapter as clients see it."""
        status = self._status[name]
        state, reason, manifest = status.state, status.reason, None
        try:
            manifest = self._registry.read(name).manifest
        except InvalidInput as error:
            state, reason = AdapterState.FAILED, error.message
        domain = manifest.domain if manifest else name.rsplit("-v", 1)[0]
        report = self._registry.newest_report(name)
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
        await self.ensure_ready(name)
        self._store.pin(name)
        return self.view(name)

    async def unload(self, name: str) -> AdapterView:
        """Takes an adapter out of the engine."""
        adapter = self._registry.read(name)
        if self.promoted(adapter.manifest.domain) == name:
            raise Conflict(
                f"{name!r} is promoted.", code="adapter_promoted", hint="Promote another one or roll back first."
            )
        self._store.unpin(name)
        async with self._locks[name]:
            self._set(name, AdapterState.REGISTERED, "")
            await self._engine.unload(name)
        return self.view(name)

    async def promote(self, domain: str, request: PromoteRequest) -> AliasView:
        """Moves an alias. The adapter is made ready first, so no request ever meets one that is not."""
        name = request.adapter
        adapter = self._registry.read(name)
        if adapter.manifest.domain != domain:
            raise Conflict(f"{name!r} is of domain {adapter.manifest.domain!r}, not {domain!r}.", code="wrong_domain")
        if not request.force:
            self._require_better(name, request.report)
        await self.ensure_ready(name)
        self._store.move(domain, name, request.report)
        log.info("promoted", domain=domain, adapter=name, report=request.report, forced=request.force)
        return self.alias(domain)

    def _require_better(self, name: str, file: str | None) -> None:
        if file is None:
            raise Conflict(
                f"The promotion of {name!r} names no report.",
                code="report_missing",
                hint='Name the report it rests on, or send "force": true.',
            )
        report = self._registry.report(name, file)
        if report.adapter.served.rpartition(":")[2] != name:
            raise Conflict(f"Report {file!r} is about {report.adapter.served!r}, not {name!r}.", code="wrong_report")
        if report.verdict is not Verdict.BETTER:
            raise Conflict(
                f"Report {file!r} does not call {name!r} better: {report.reason}",
                code="not_better",
                hint='Train a better one, or send "force": true.',
            )

    async def rollback(self, domain: str) -> AliasView:
        """Moves an alias one step back."""
        previous = self._store.alias(domain).previous
        if previous is None:
            raise Conflict(f"Domain {domain!r} has nothing to roll back to.", code="no_previous")
        await self.ensure_ready(previous)
        self._store.step_back(domain)
        log.info("rolled back", domain=domain, adapter=previous)
        return self.alias(domain)

    def alias(self, domain: str) -> AliasView:
        """Where an alias points."""
        alias = self._store.alias(domain)
        return AliasView(domain=domain, promoted=alias.promoted, previous=alias.previous)

    async def ensure_ready(self, name: str) -> None:
        """Verifies, loads and probes an adapter unless it is ready; concurrent callers share one attempt.

        Raises:
            PreceptorError: Why it cannot be served; its state is `failed` then, or `registered` where the engine is
                at fault and another try may help.
        """
        async with self._locks[name]:
            if self.is_ready(name):
                return
            self._set(name, AdapterState.LOADING, "")
            try:
                adapter = await asyncio.to_thread(self._verified, name)
                await self._engine.load(name, str(adapter.path))
                await check_canary(self._engine, adapter.manifest)
            except (ManifestInvalid, CanaryFailed) as error:
                self._metrics.adapter_loads.labels(name, "failed").inc()
                self._set(name, AdapterState.FAILED, error.message)
                log.warning("adapter failed", adapter=name, reason=error.message)
                raise
            except PreceptorError as error:
                self._metrics.adapter_loads.labels(name, "failed").inc()
                self._set(name, AdapterState.REGISTERED, error.message)
                raise
            except asyncio.CancelledError:
                # A client that hung up, or shutdown: nobody may find it loading for ever.
                self._set(name, AdapterState.REGISTERED, "Loading was interrupted.")
                raise
            self._metrics.adapter_loads.labels(name, "ready").inc()
            self._status[name].manifest = adapter.manifest
            self._set(name, AdapterState.READY, "")
            log.info("adapter ready", adapter=name)

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
        try:
            served = await self._engine.names()
        except GatewayError:
            self._metrics.engine_up.set(0)
            raise
        self._metrics.engine_up.set(1)
        for name in [name for name in self._status if self.is_ready(name) and name not in served]:
            self._set(name, AdapterState.REGISTERED, "The engine lost it.")
        on_disk = set(self._registry.names())
        for name in sorted(self._store.wanted()):
            state = self._status[name].state
            if name not in on_disk:
                self._set(name, AdapterState.FAILED, "Its folder is gone.")
            elif state is AdapterState.REGISTERED:
                try:
                    await self.ensure_ready(name)
                except PreceptorError as error:
                    # One bad adapter must not keep the others out.
                    log.warning("not reconciled", adapter=name, reason=error.message)

    def wanted_not_ready(self) -> list[str]:
        """Promoted adapters that cannot be asked now."""
        promoted = {name for domain in self._domains if (name := self.promoted(domain))}
        return sorted(name for name in promoted if not self.is_ready(name))

    def _set(self, name: str, state: AdapterState, reason: str) -> None:
        status = self._status[name]
        status.state, status.reason = state, reason
        domain = name.rsplit("-v", 1)[0]
        self._metrics.adapter_ready.labels(domain, name).set(state is AdapterState.READY)
