"""`GET /`, `GET /health`, `GET /metrics`: open, for probes and scrapers; they tell no secrets."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from preceptor_contracts.errors import PreceptorError
from preceptor_contracts.wire import Health
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from preceptor_gateway.services import ServicesDep

router = APIRouter(tags=["health"])


@router.get("/")
async def root(services: ServicesDep) -> dict[str, Any]:
    """Says what this is and where to go."""
    return {
        "name": "Preceptor gateway",
        "domains": sorted(services.domains.domains),
        "docs": "/docs",
        "health": "/health",
        "openai_base_url": "/v1",
    }


@router.get("/health", responses={503: {"model": Health}})
async def health(response: Response, services: ServicesDep) -> Health:
    """503 where the engine is down; 200 with status `degraded` where a promoted adapter is not ready."""
    try:
        engine = f"vLLM {await services.engine.version()}"
    except PreceptorError:
        engine = "down"
    waiting = services.adapters.wanted_not_ready()
    ready = sum(len(services.adapters.ready(name)) for name in services.domains.domains)
    # One broken adapter must not take the gateway, which serves all others, out of a balancer.
    response.status_code = 503 if engine == "down" else 200
    status = "degraded" if engine == "down" or waiting else "ok"
    return Health(status=status, engine=engine, domains=len(services.domains.domains), adapters_ready=ready)


@router.get("/metrics", response_class=Response)
async def metrics(services: ServicesDep) -> Response:
    """Prometheus's text format."""
    return Response(generate_latest(services.metrics.registry), media_type=CONTENT_TYPE_LATEST)
