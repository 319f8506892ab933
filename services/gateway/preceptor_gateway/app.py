"""Composes the gateway. `create_app(settings)` reads no environment and opens no connection before the lifespan."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI
from preceptor_contracts.domains import Domain, load_domains
from preceptor_contracts.hand_off import hand_off_lock

from preceptor_gateway.adapters import endpoints as adapters
from preceptor_gateway.adapters.reconciler import reconcile_forever
from preceptor_gateway.adapters.registry import Registry
from preceptor_gateway.adapters.service import AdapterService
from preceptor_gateway.adapters.verification import Verifier
from preceptor_gateway.chat import endpoints as chat
from preceptor_gateway.chat.service import ChatService
from preceptor_gateway.completions import endpoints as completions
from preceptor_gateway.completions.service import CompletionService
from preceptor_gateway.domains import endpoints as domains
from preceptor_gateway.domains.service import DomainService
from preceptor_gateway.edge import Edge
from preceptor_gateway.engine import EngineClient, EnginePool
from preceptor_gateway.engine.hand_off import watch_hand_off
from preceptor_gateway.engine_urls import read_urls
from preceptor_gateway.generate import endpoints as generate
from preceptor_gateway.generate.service import GenerateService
from preceptor_gateway.health import endpoints as health
from preceptor_gateway.keys import endpoints as keys
from preceptor_gateway.keys.callers import Limits
from preceptor_gateway.keys.database import Database
from preceptor_gateway.keys.ring import KeyRing
from preceptor_gateway.keys.service import KeyService
from preceptor_gateway.limits.counters import open_counters
from preceptor_gateway.limits.limiter import Limiter
from preceptor_gateway.mcq import endpoints as mcq
from preceptor_gateway.mcq.service import McqService
from preceptor_gateway.metrics import Metrics
from preceptor_gateway.openapi import document
from preceptor_gateway.problems import install_handlers
from preceptor_gateway.relay import Relay
from preceptor_gateway.services import Services
from preceptor_gateway.settings import GatewaySettings
from preceptor_gateway.store import AliasStore
from preceptor_gateway.telemetry import langsmith
from preceptor_gateway.telemetry.switch import start_tracing


def _build(
    settings: GatewaySettings, metrics: Metrics, limiter: Limiter, known: dict[str, Domain], store: AliasStore
) -> Services:
    key, timeout_s = settings.engine_api_key.get_secret_value(), settings.engine_timeout_s
    engines = EnginePool([EngineClient(url, key, timeout_s) for url in read_urls(settings.engine_urls)], metrics)
    registry = Registry(settings.adapters_dir)
    adapter_service = AdapterService(registry, Verifier(registry, known), store, engines, metrics)
    domain_service = DomainService(known, adapter_service, engines, settings.default_domain)
    chat_service = ChatService(domain_service, metrics, max_messages=settings.max_messages)
    relay = Relay(adapter_service, engines)
    return Services(
        settings=settings,
        keys=_keys(settings),
        limiter=limiter,
        metrics=metrics,
        engines=engines,
        adapters=adapter_service,
        domains=domain_service,
        relay=relay,
        chat=chat_service,
        completions=CompletionService(domain_service),
        mcq=McqService(domain_service, adapter_service, relay, metrics, settings.batch_concurrency),
        generate=GenerateService(domain_service, chat_service, relay, settings.batch_concurrency),
    )


def _keys(settings: GatewaySettings) -> KeyService:
    defaults = Limits(settings.requests_per_minute, settings.tokens_per_minute, settings.concurrent_requests)
    ring = KeyRing(settings.api_key, settings.admin_key, defaults)
    return KeyService(Database(settings.database_url.get_secret_value()), ring)


def _limiter(settings: GatewaySettings, metrics: Metrics) -> Limiter:
    counters = open_counters(settings.limits_url.get_secret_value(), metrics.limits_alone.inc)
    return Limiter(counters, metrics.note_limit)


def create_app(settings: GatewaySettings) -> Edge:
    """Builds the application.

    Raises:
        PrerequisiteError: A key is missing, or the URL of the counts cannot be read.
        InvalidInput: A domain or the file of aliases is malformed.
    """
    settings.require_keys()
    metrics = Metrics()
    # Here and not in the lifespan, so that a wrong URL is a sentence and not a server that fails to start.
    limiter = _limiter(settings, metrics)
    known = {name: folder.domain for name, folder in load_domains(settings.domains_dir).items()}
    store = AliasStore(settings.data_dir / "aliases.json")
    metrics.watch_aliases(lambda: {name: store.alias(name).promoted for name in known})
    langsmith.configure(settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tracing = metrics.tracing = start_tracing(settings)
        services = _build(settings, metrics, limiter, known, store)
        app.state.services = services
        await services.keys.start()
        watches = [
            asyncio.create_task(services.keys.look_forever()),
            asyncio.create_task(reconcile_forever(services.adapters, settings.reconcile_seconds)),
        ]
        if settings.hand_off_engine:
            lock = hand_off_lock(settings.adapters_dir)
            watches.append(asyncio.create_task(watch_hand_off(services.engines, settings.hand_off_engine, lock)))
        try:
            yield
        finally:
            for watch in watches:
                watch.cancel()
            await asyncio.gather(*watches, return_exceptions=True)
            await services.keys.close()
            await services.limiter.close()
            await services.engines.close()
            if tracing:
                await tracing.close()

    app = FastAPI(title="Preceptor gateway", version="0.1.0", lifespan=lifespan)
    for feature in (chat, mcq, generate, adapters, domains, keys, health):
        app.include_router(feature.router)
    app.include_router(domains.seeds)
    install_handlers(app)
    app.openapi = lambda: document(app)  # type: ignore[method-assign]  # the way that FastAPI documents
    origins = [origin.strip() for origin in settings.cors_origins.split(",") if origin.strip()]
    hot = {route.path: route for route in (*chat.hot_routes, *completions.hot_routes)}
    return Edge(app, hot, metrics=metrics, max_body_bytes=settings.max_body_bytes, origins=origins)
