"""`/v1/adapters`: list, load, unload."""

from __future__ import annotations

from fastapi import APIRouter
from preceptor_contracts.wire import AdapterList, AdapterRequest, AdapterView

from preceptor_gateway.auth import ADMIN, USE
from preceptor_gateway.services import ServicesDep

router = APIRouter(prefix="/v1/adapters", tags=["adapters"])


@router.get("", dependencies=[USE])
async def list_adapters(services: ServicesDep) -> AdapterList:
    """Lists every whole adapter on disk with its state."""
    return AdapterList(data=services.adapters.views())


@router.post("", dependencies=[ADMIN])
async def load(request: AdapterRequest, services: ServicesDep) -> AdapterView:
    """Verifies, loads and probes an adapter; answers when it is ready."""
    return await services.adapters.load(request.adapter)


@router.delete("/{name}", dependencies=[ADMIN])
async def unload(name: str, services: ServicesDep) -> AdapterView:
    """Takes an adapter out of the engine; its folder stays."""
    return await services.adapters.unload(name)
