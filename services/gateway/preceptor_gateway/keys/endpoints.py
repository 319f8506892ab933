"""`/v1/keys`: make, list, show, revoke."""

from __future__ import annotations

from fastapi import APIRouter

from preceptor_gateway.auth import ADMIN, CallerDep
from preceptor_gateway.keys.service import own_view
from preceptor_gateway.keys.wire import KeyList, KeyRequest, KeyView, NewKeyView, OwnKeyView
from preceptor_gateway.services import ServicesDep

router = APIRouter(prefix="/v1/keys", tags=["keys"])


@router.post("", dependencies=[ADMIN], status_code=201)
async def create_key(request: KeyRequest, services: ServicesDep) -> NewKeyView:
    """Makes a key. The answer is the only time that it is shown."""
    return await services.keys.create(request)


@router.get("", dependencies=[ADMIN])
async def list_keys(services: ServicesDep) -> KeyList:
    """Lists every key, revoked ones too; never the key or its hash."""
    return KeyList(data=await services.keys.views())


@router.get("/self")
async def show_own_key(caller: CallerDep) -> OwnKeyView:
    """Shows what the caller's key may do."""
    return own_view(caller)


@router.get("/{key_id}", dependencies=[ADMIN])
async def show_key(key_id: str, services: ServicesDep) -> KeyView:
    """Shows one key."""
    return await services.keys.view(key_id)


@router.delete("/{key_id}", dependencies=[ADMIN])
async def revoke_key(key_id: str, services: ServicesDep) -> KeyView:
    """Revokes a key; doing it again changes nothing. Its row stays, and requests under way are finished."""
    return await services.keys.revoke(key_id)
