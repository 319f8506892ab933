"""Which adapters are wanted, which are ready, and which one each alias points at, over all engines."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence

import structlog
from preceptor_contracts.errors import ManifestInvalid, PreceptorError
from preceptor_contracts.manifest import Manifest
from preceptor_contracts.report import Verdict
from preceptor_contracts.served_names import adapter_domain
from preceptor_contracts.wire import AdapterRequest, AdapterState, AdapterView, AliasView, PromoteRequest
from preceptor_contracts.wire_aliases import AliasHistory, MoveKind

from preceptor_gateway.adapters.on_engine import FOLDER_GONE, AdaptersOnEngine
from preceptor_gateway.adapters.patience import all_but_slow
from preceptor_gateway.adapters.registry import Registry
from preceptor_gateway.adapters.verification import Verifier
from preceptor_gateway.adapters.views import together
from preceptor_gateway.engine import EngineClient, EnginePool
from preceptor_gateway.metrics import Metrics
from preceptor_gateway.problems import Conflict, NotFound, Unavailable
from preceptor_gateway.store import AliasStore

log = structlog.get_logger("adapters")


class AdapterService:
    """The registry on disk is the wish, each engine's own list is the fact."""

    def __init__(
        self, registry: Registry, verifier: Verifier, store: AliasStore, pool: EnginePool, metrics: Metrics
    ) -> None:
        self._registry = registry
        self._store = store
        self._pool = pool
        self.on = tuple(AdaptersOnEngine(one, pool, registry, verifier, store, metrics) for one in pool.engines)
        """One per engine."""
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """Held while the wish for an adapter changes. Each engine has locks of its own for the facts."""

    # --- hot path: memory only ---

    def promoted(self, domain: str) -> str | None:
        """The adapter that a domain's alias points at."""
        return self._store.alias(domain).promoted

    def is_ready(self, adapter: str) -> bool:
        """True where an engine in routing has it, and its canary passed there since the adapter was last missing."""
        return self._pool.has_ready(adapter)

    def ready(self, domain: str) -> list[str]:
        """Adapters of a domain that can be asked now, by name."""
        names = {name for one in self.on if not one.engine.is_out for name in one.engine.ready}
        return sorted(name for name in names if adapter_domain(name) == domain)

    def require_ready(self, adapter: str) -> Manifest:
        """Returns the manifest of an adapter that can be asked now.

        Raises:
            NotFound: No such adapter.
            Unavailable: No engine answers, or it is loading, or failed, or nobody asked to load it.
        """
        for one in self.on:
            if manifest := one.manifest(adapter):
                return manifest
        raise self._why_not(adapter)

    def _why_not(self, adapter: str) -> PreceptorError:
        wanted = adapter in self._store.wanted()
        if not wanted:
            self._registry.read(adapter)
        state, reason = self._stand(adapter)
        if state is AdapterState.FAILED:
            return Unavailable(f"{adapter!r} cannot be served: {reason}", code="adapter_failed")
        if all(one.engine.is_out for one in self.on):
            return self._pool.nobody(adapter)
        if state is AdapterState.LOADING or wanted:
            self.nudge()
            why = f" Last time: {reason}" if reason else ""
            return Unavailable(
                f"{adapter!r} is being loaded.{why}", code="adapter_loading", hint="Try again.", retry_after_s=2
            )
        return Unavailable(
            f"{adapter!r} is not loaded.",
            code="adapter_not_loaded",
            hint=f'POST /v1/adapters {{"adapter": "{adapter}"}} loads it (admin key).',
        )

    def require_known(self, adapter: str) -> None:
        """Raises `NotFound` where there is no such adapter on disk."""
        self._registry.require(adapter)

    def lost(self, adapter: str, engine: EngineClient) -> None:
        """Notes that an engine answered that it does not know an adapter."""
        next(one for one in self.on if one.engine.client is engine).lost(adapter)

    def nudge(self) -> None:
        """Has every engine looked at now."""
        for one in self.on:
            one.engine.nudge.set()

    # --- control path ---

    async def views(self) -> tuple[AdapterView, ...]:
        """Every adapter on disk as clients see it, and those that are wanted and gone."""
        return await asyncio.to_thread(self._views)

    def _views(self) -> tuple[AdapterView, ...]:
        on_disk = self._registry.names()
        return tuple(self._view(name) for name in [*on_disk, *sorted(self._store.wanted() - set(on_disk))])

    async def view(self, name: str) -> AdapterView:
        """One adapter as clients see it.

        Raises:
            NotFound: It is neither on disk nor wanted.
        """
        if name not in self._store.wanted():
            await asyncio.to_thread(self._registry.require, name)
        return await asyncio.to_thread(self._view, name)

    def _stand(self, name: str) -> tuple[AdapterState, str]:
        asked = [one.engine.name for one in self.on if not one.engine.is_out]
        return together({one.engine.name: one.view(name) for one in self.on}, asked)

    def _view(self, name: str) -> AdapterView:
        state, reason = self._stand(name)
        manifest, report = None, None
        try:
            manifest = self._registry.read(name).manifest
            report = self._registry.newest_report(name)
        except NotFound:
            state, reason = AdapterState.FAILED, FOLDER_GONE
        except PreceptorError as error:
            state, reason = AdapterState.FAILED, error.message
        domain = adapter_domain(name) or name
        return AdapterView(
            adapter=name,
            domain=domain,
            served=f"{domain}:{name}",
            state=state,
            reason=reason,
            engines={one.engine.name: one.view(name) for one in self.on},
            promoted=self.promoted(domain) == name,
            pinned=name in self._store.pinned,
            created_at=manifest.created_at if manifest else None,
            scoring=manifest.mcq_scoring if manifest else None,
            accuracy=report[1].adapter.accuracy if report else None,
            report=report[0] if report else None,
        )

    async def load(self, request: AdapterRequest) -> AdapterView:
        """Loads an adapter on every engine that is up; returns when its canary passed there."""
        name = request.adapter
        await asyncio.to_thread(self._registry.read, name)
        async with self._locks[name]:
            await self._make_ready(name)
            if request.pin:
                self._store.pin(name)
        return await self.view(name)

    async def pin(self, name: str) -> AdapterView:
        """Wants an adapter on every engine from now on; the reconciler loads it."""
        await asyncio.to_thread(self._registry.read, name)
        async with self._locks[name]:
            self._store.pin(name)
        self.nudge()
        return await self.view(name)

    async def unpin(self, name: str) -> AdapterView:
        """Wants an adapter no longer, unless an alias does. It stays where it is until that engine starts again."""
        async with self._locks[name]:
            found = await self.view(name)
            self._store.unpin(name)
        return found.model_copy(update={"pinned": False})

    async def unload(self, name: str) -> AdapterView:
        """Takes an adapter out of every engine, also one whose folder is gone."""
        async with self._locks[name]:
            if name not in self._store.wanted():
                await asyncio.to_thread(self._registry.require, name)
            alias = self._store.alias(adapter_domain(name) or name)
            if name in (alias.promoted, alias.previous):
                what = "promoted" if name == alias.promoted else "what a rollback would restore"
                raise Conflict(f"{name!r} is {what}.", code="adapter_promoted", hint="Promote another one first.")
            self._store.unpin(name)
            await all_but_slow([one.drop(name) for one in self.on], lambda: True)
        return await asyncio.to_thread(self._view, name)

    async def promote(self, domain: str, request: PromoteRequest, kind: MoveKind = MoveKind.PROMOTE) -> AliasView:
        """Moves an alias. The adapter is made ready first, so no request ever meets one that is not."""
        name = request.adapter
        adapter = await asyncio.to_thread(self._registry.read, name)
        if adapter.manifest.domain != domain:
            raise Conflict(f"{name!r} is of domain {adapter.manifest.domain!r}, not {domain!r}.", code="wrong_domain")
        await asyncio.to_thread(self._check_report, name, request)
        async with self._locks[name]:
            await self._make_ready(name)
            self._store.move(domain, name, request.report, kind)
        log.info("promoted", domain=domain, adapter=name, report=request.report, forced=request.force)
        return self.alias(domain)

    def point_at_nothing(self, domain: str) -> AliasView:
        """Moves an alias to nothing, so that the domain's base model answers; a rollback undoes it."""
        if self.promoted(domain):
            self._store.move(domain, None, None, MoveKind.SWITCH)
            log.info("switched to the base model", domain=domain)
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
        alias = self._store.alias(domain)
        if not alias.can_step_back:
            raise Conflict(f"Domain {domain!r} has nothing to roll back to.", code="no_previous")
        previous = alias.previous
        if previous is None:
            self._store.step_back(domain)
        else:
            async with self._locks[previous]:
                await self._make_ready(previous)
                if self._store.alias(domain) != alias:
                    raise Conflict(f"The alias {domain!r} was moved meanwhile.", code="alias_moved", hint="Look again.")
                self._store.step_back(domain)
        log.info("rolled back", domain=domain, adapter=previous)
        return self.alias(domain)

    def alias(self, domain: str) -> AliasView:
        """Where an alias points."""
        alias = self._store.alias(domain)
        return AliasView(domain=domain, promoted=alias.promoted, previous=alias.previous)

    def history(self, domain: str) -> AliasHistory:
        """What an alias pointed at, newest first."""
        return AliasHistory(domain=domain, data=self._store.alias(domain).past[::-1])

    def wanted_not_ready(self, domains: Sequence[str]) -> list[str]:
        """Promoted adapters that an engine in routing lacks, or all where an engine came back and was not settled."""
        promoted = {name for domain in domains if (name := self.promoted(domain))}
        up = [one for one in self.on if not one.engine.is_out]
        return sorted(
            name
            for name in promoted
            if not self.is_ready(name) or any(one.was_away or name not in one.engine.ready for one in up)
        )

    async def _make_ready(self, name: str) -> None:
        """Makes an adapter ready on every engine in routing; the caller holds its lock.

        Raises:
            PreceptorError: Why no engine can serve it.
        """
        asked = [one for one in self.on if not one.engine.is_out]
        if not asked:
            raise self._pool.nobody(name)
        errors = await all_but_slow([one.make_ready(name) for one in asked], lambda: self.is_ready(name))
        if not self.is_ready(name):
            # What is wrong with the adapter says more than which engine was away.
            errors.sort(key=lambda error: (not isinstance(error, ManifestInvalid), isinstance(error, Unavailable)))
            raise errors[0] if errors else self._why_not(name)
