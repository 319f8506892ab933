"""`/v1/adapters`: list, load, pin, unload."""

from __future__ import annotations

from fastapi import APIRouter
from preceptor_contracts.wire import AdapterList, AdapterRequest, AdapterView

from preceptor_gateway.auth import ADMIN, USE
from preceptor_gateway.services import ServicesDep

router = APIRouter(prefix="/v1/adapters", tags=["adapters"])


@router.get("", dependencies=[USE])
async def list_adapters(services: ServicesDep) -> AdapterList:
    """Lists every whole adapter on disk with its state."""
    return AdapterList(data=await services.adapters.views())


@router.get("/{name}", dependencies=[USE])
async def get_adapter(name: str, services: ServicesDep) -> AdapterView:
    """Shows one adapter, and where it stands on each engine."""
    return await services.adapters.view(name)


@router.post("", dependencies=[ADMIN])
async def load(request: AdapterRequest, services: ServicesDep) -> AdapterView:
    """Verifies, loads and probes an adapter on every engine; answers when it is ready. Pins it unless told not to."""
    return await services.adapters.load(request)


@router.put("/{name}/pin", dependencies=[ADMIN])
async def pin(name: str, services: ServicesDep) -> AdapterView:
    """Has an adapter loaded whenever an engine starts; answers at once."""
    return await services.adapters.pin(name)


@router.delete("/{name}/pin", dependencies=[ADMIN])
async def unpin(name: str, services: ServicesDep) -> AdapterView:
    """Takes the pin away; the adapter stays loaded until the engine starts again."""
    return await services.adapters.unpin(name)


@router.delete("/{name}", dependencies=[ADMIN])
async def unload(name: str, services: ServicesDep) -> AdapterView:
    """Takes an adapter out of every engine, and its pin away; its folder stays."""
    return await services.adapters.unload(name)
