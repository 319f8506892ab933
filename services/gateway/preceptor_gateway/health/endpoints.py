"""`GET /`, `GET /health`, `GET /metrics`: open, for probes and scrapers; they tell no secrets."""

from __future__ import annotations

from fastapi import APIRouter, Response
from preceptor_contracts.wire import About, Health
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from preceptor_gateway.health.service import look_at_engines
from preceptor_gateway.services import ServicesDep

router = APIRouter(tags=["health"])


@router.get("/")
async def root(services: ServicesDep) -> About:
    """Says what this is and where to go."""
    return About(domains=tuple(sorted(services.domains.domains)))


@router.get("/health", responses={503: {"model": Health}})
async def health(response: Response, services: ServicesDep) -> Health:
    """503 where no engine answers; 200 with status `degraded` where one does not, or lacks a promoted adapter."""
    found = await look_at_engines(services.engines)
    names = services.domains.domains
    up = [one for one in found if one.up and not one.makes_way]
    # One broken adapter or engine must not take the gateway, which serves all others, out of a balancer.
    response.status_code = 200 if up else 503
    is_whole = len(up) == len(found) and not services.adapters.wanted_not_ready(tuple(names))
    return Health(
        status="ok" if is_whole else "degraded",
        engine=" and ".join(sorted({one.version for one in up})) or "down",
        domains=len(names),
        adapters_ready=sum(len(services.adapters.ready(name)) for name in names),
        engines=found,
    )


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(services: ServicesDep) -> Response:
    """Prometheus's text format."""
    return Response(generate_latest(services.metrics.registry), media_type=CONTENT_TYPE_LATEST)
