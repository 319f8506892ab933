"""`/v1/domains`: what there is, what the engine would get, and which adapter is promoted."""

from __future__ import annotations

from fastapi import APIRouter
from preceptor_contracts.wire import AliasView, DomainList, DomainView, PromoteRequest, RenderedPrompt, RenderRequest
from preceptor_contracts.wire_aliases import AliasHistory, SwitchAnswer, SwitchRequest

from preceptor_gateway.auth import ADMIN, USE
from preceptor_gateway.limits.gate import LIMITED
from preceptor_gateway.services import ServicesDep

router = APIRouter(prefix="/v1/domains", tags=["domains"])
seeds = APIRouter(tags=["seeds"])


@router.get("", dependencies=[USE])
async def list_domains(services: ServicesDep) -> DomainList:
    """Lists the domains."""
    return DomainList(data=tuple(services.domains.view(name) for name in services.domains.domains))


@router.get("/{name}", dependencies=[USE])
async def get_domain(name: str, services: ServicesDep) -> DomainView:
    """Shows one domain."""
    return services.domains.view(name)


@router.post("/{name}/render", dependencies=[USE, LIMITED])
async def render(name: str, request: RenderRequest, services: ServicesDep) -> RenderedPrompt:
    """Shows exactly what the engine would get, with token ids."""
    return await services.domains.render(name, request)


@router.post("/{name}/promote", dependencies=[ADMIN])
async def promote(name: str, request: PromoteRequest, services: ServicesDep) -> AliasView:
    """Points the domain's alias at an adapter; the report it rests on must say `better` unless forced."""
    services.domains.require(name)
    return await services.adapters.promote(name, request)


@router.post("/{name}/rollback", dependencies=[ADMIN])
async def rollback(name: str, services: ServicesDep) -> AliasView:
    """Points the domain's alias at the adapter before."""
    services.domains.require(name)
    return await services.adapters.rollback(name)


@router.get("/{name}/history", dependencies=[USE])
async def history(name: str, services: ServicesDep) -> AliasHistory:
    """Shows what the domain's alias pointed at, newest first."""
    services.domains.require(name)
    return services.adapters.history(name)


@seeds.post("/switch-adapter", dependencies=[ADMIN])
async def switch_adapter(request: SwitchRequest, services: ServicesDep) -> SwitchAnswer:
    """Chooses what answers for a domain, without a report: an adapter, or `base`."""
    return await services.domains.switch(request)
