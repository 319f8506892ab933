"""Composes the gateway. `create_app(settings)` reads no environment and opens no connection before the lifespan."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI
from preceptor_contracts.domains import Domain, load_domains
from starlette.middleware.cors import CORSMiddleware

from preceptor_gateway.adapters import endpoints as adapters
from preceptor_gateway.adapters.reconciler import reconcile_forever
from preceptor_gateway.adapters.registry import Registry
from preceptor_gateway.adapters.service import AdapterService
from preceptor_gateway.auth import Keys
from preceptor_gateway.chat import endpoints as chat
from preceptor_gateway.chat.service import ChatService
from preceptor_gateway.completions import endpoints as completions
from preceptor_gateway.completions.service import CompletionService
from preceptor_gateway.domains import endpoints as domains
from preceptor_gateway.domains.service import DomainService
from preceptor_gateway.edge import Edge
from preceptor_gateway.engine import EngineClient
from preceptor_gateway.generate import endpoints as generate
from preceptor_gateway.health import endpoints as health
from preceptor_gateway.mcq import endpoints as mcq
from preceptor_gateway.mcq.service import McqService
from preceptor_gateway.metrics import Metrics
from preceptor_gateway.problems import install_handlers
from preceptor_gateway.relay import Relay
from preceptor_gateway.services import Services
from preceptor_gateway.settings import GatewaySettings
from preceptor_gateway.store import AliasStore


def _build(settings: GatewaySettings, metrics: Metrics, known: dict[str, Domain], store: AliasStore) -> Services:
    engine = EngineClient(
        settings.engine_url, settings.engine_api_key.get_secret_value(), timeout_s=settings.engine_timeout_s
    )
    adapter_service = AdapterService(Registry(settings.adapters_dir), store, engine, metrics, known)
    domain_service = DomainService(known, adapter_service, engine, settings.default_domain)
    return Services(
        settings=settings,
        keys=Keys(settings.api_key, settings.admin_key),
        metrics=metrics,
        engine=engine,
        adapters=adapter_service,
        domains=domain_service,
        relay=Relay(adapter_service, metrics),
        chat=ChatService(domain_service, metrics, max_messages=256),
        completions=CompletionService(domain_service),
        mcq=McqService(domain_service, adapter_service, metrics),
    )


def create_app(settings: GatewaySettings) -> FastAPI:
    """Builds the application.

    Raises:
        PrerequisiteError: A key is missing.
        InvalidInput: A domain or the file of aliases is malformed.
    """
    settings.require_keys()
    metrics = Metrics()
    known = {name: folder.domain for name, folder in load_domains(settings.domains_dir).items()}
    store = AliasStore(settings.data_dir / "aliases.json")

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        services = _build(settings, metrics, known, store)
        app.state.services = services
        reconciler = asyncio.create_task(reconcile_forever(services.adapters, settings.reconcile_seconds))
        try:
            yield
        finally:
            reconciler.cancel()
            await asyncio.gather(reconciler, return_exceptions=True)
            await services.engine.close()

    app = FastAPI(title="Preceptor gateway", version="0.1.0", lifespan=lifespan)
    # First in the router, for they are asked most.
    app.router.routes[:0] = [*chat.hot_routes, *completions.hot_routes]
    for feature in (chat, mcq, generate, adapters, domains, health):
        app.include_router(feature.router)
    install_handlers(app)
    origins = [origin.strip() for origin in settings.cors_origins.split(",") if origin.strip()]
    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(Edge, metrics=metrics, max_body_bytes=settings.max_body_bytes)
    return app
