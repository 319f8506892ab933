"""`/v1/models` and `/v1/chat/completions`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from preceptor_contracts.wire import ServedNameCard, ServedNameList

from preceptor_gateway.auth import USE
from preceptor_gateway.hot import HotRoute
from preceptor_gateway.problems import NotFound
from preceptor_gateway.relay import EngineCall
from preceptor_gateway.services import Services, ServicesDep

router = APIRouter(prefix="/v1", tags=["openai"], dependencies=[USE])


def _prepare(services: Services, body: dict[str, Any]) -> EngineCall:
    return services.chat.prepare(body)


hot_routes = [HotRoute("/v1/chat/completions", _prepare)]


@router.get("/models")
async def list_served_names(services: ServicesDep) -> ServedNameList:
    """Lists the served names, in OpenAI's shape."""
    return ServedNameList(data=tuple(ServedNameCard(id=name) for name in services.domains.served_names()))


@router.get("/models/{name:path}")
async def get_served_name(name: str, services: ServicesDep) -> ServedNameCard:
    """Shows one served name, in OpenAI's shape."""
    if name not in services.domains.served_names():
        raise NotFound(
            f"{name!r} is not a served name.",
            code="unknown_served_name",
            param="model",
            hint="GET /v1/models lists them.",
        )
    return ServedNameCard(id=name)
