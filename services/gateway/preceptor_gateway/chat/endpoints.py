"""`/v1/models` and `/v1/chat/completions`."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from preceptor_gateway.auth import USE
from preceptor_gateway.chat.service import parse_body
from preceptor_gateway.leaving import until_client_leaves
from preceptor_gateway.problems import NotFound, request_id_of
from preceptor_gateway.services import ServicesDep

router = APIRouter(prefix="/v1", tags=["openai"], dependencies=[USE])

_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["model", "messages"],
                    "properties": {
                        "model": {"type": "string", "example": "allergy"},
                        "messages": {"type": "array", "items": {"type": "object"}},
                        "stream": {"type": "boolean"},
                    },
                }
            }
        },
    }
}


def _card(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "preceptor"}


@router.get("/models")
async def list_served_names(services: ServicesDep) -> dict[str, Any]:
    """Lists the served names, in OpenAI's shape."""
    return {"object": "list", "data": [_card(name) for name in services.domains.served_names()]}


@router.get("/models/{name:path}")
async def get_served_name(name: str, services: ServicesDep) -> dict[str, Any]:
    """Shows one served name, in OpenAI's shape."""
    if name not in services.domains.served_names():
        raise NotFound(
            f"{name!r} is not a served name.",
            code="unknown_served_name",
            param="model",
            hint="GET /v1/models lists them.",
        )
    return _card(name)


@router.post("/chat/completions", openapi_extra=_BODY)
async def chat_completions(request: Request, services: ServicesDep) -> Response:
    """OpenAI chat completions, streamed or whole; fields that the gateway does not know pass through."""
    chat = services.chat.prepare(parse_body(await request.body()))
    request.scope["served"] = chat.target.served
    if not chat.stream:
        raw = await until_client_leaves(request, services.chat.whole(chat))
        return Response(raw, headers=chat.headers, media_type="application/json")
    stack = AsyncExitStack()
    reply = await services.chat.open(chat, stack)
    pieces = services.chat.pieces(chat, reply, stack, request_id_of(request))
    return StreamingResponse(pieces, headers=chat.headers, media_type=reply.content_type.decode("latin-1"))
