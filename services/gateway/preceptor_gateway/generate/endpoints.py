"""`POST /generate`: server-sent events of text."""

from __future__ import annotations

from contextlib import AsyncExitStack

from fastapi import APIRouter, Request
from preceptor_contracts.wire import GenerateRequest
from starlette.responses import StreamingResponse

from preceptor_gateway.auth import USE
from preceptor_gateway.generate.service import chat_body, retell
from preceptor_gateway.limits.gate import LIMITED
from preceptor_gateway.problems import request_id_of
from preceptor_gateway.services import ServicesDep

router = APIRouter(tags=["seeds"], dependencies=[USE])


@router.post("/generate", dependencies=[LIMITED])
async def generate(body: GenerateRequest, request: Request, services: ServicesDep) -> StreamingResponse:
    """Answers one prompt as `data: {"text": ...}` events, then `data: [DONE]`."""
    served = services.domains.served_name(domain=body.domain, served=body.model)
    call = services.chat.prepare(chat_body(body, served), kind="generate", route="/generate")
    request.scope["served"] = served
    pieces = await services.relay.open(call, AsyncExitStack())
    headers = {name.decode(): value.decode() for name, value in call.headers}
    told = retell(pieces, request_id_of(request))
    return StreamingResponse(told, headers=headers, media_type="text/event-stream")
