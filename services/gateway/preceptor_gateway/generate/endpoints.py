"""`POST /generate`: server-sent events of text. `POST /generate/batch`: many prompts, one JSON answer."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial

from fastapi import APIRouter, Request
from preceptor_contracts.wire import GenerateRequest
from preceptor_contracts.wire_generate import GenerateBatchAnswer, GenerateBatchRequest, GenerateResult
from starlette.responses import StreamingResponse

from preceptor_gateway.auth import USE
from preceptor_gateway.events import EVENT_STREAM
from preceptor_gateway.generate.service import chat_body, retell
from preceptor_gateway.leaving import EventStream, until_client_leaves
from preceptor_gateway.limits.gate import LIMITED, note_tokens
from preceptor_gateway.problems import request_id_of
from preceptor_gateway.services import ServicesDep

router = APIRouter(tags=["seeds"], dependencies=[USE])


@router.post(
    "/generate",
    dependencies=[LIMITED],
    response_class=StreamingResponse,
    responses={200: {"content": EVENT_STREAM}},
)
async def generate(body: GenerateRequest, request: Request, services: ServicesDep) -> StreamingResponse:
    """Answers one prompt as `data: {"text": ...}` events, then `data: [DONE]`."""
    served = services.domains.served_name(domain=body.domain, served=body.model)
    body_sent = chat_body(body.prompt, body, served, stream=True)
    call = services.chat.prepare(body_sent, kind="generate", route="/generate")
    request.scope["served"] = served
    held = AsyncExitStack()
    pieces = await until_client_leaves(request, services.relay.open(call, held, partial(note_tokens, request.scope)))
    headers = {name.decode(): value.decode() for name, value in call.headers}
    return EventStream(retell(pieces, request_id_of(request)), held, headers)


@router.post("/generate/batch", dependencies=[LIMITED])
async def generate_batch(body: GenerateBatchRequest, request: Request, services: ServicesDep) -> GenerateBatchAnswer:
    """Answers 1 to 256 prompts, in order; a prompt that the engine could not answer has an error in its place."""
    answer = await until_client_leaves(request, services.generate.answer_all(body, request_id_of(request)))
    request.scope["served"] = answer.served
    used = [one.usage for one in answer.results if isinstance(one, GenerateResult)]
    note_tokens(request.scope, sum(usage.prompt_tokens + usage.completion_tokens for usage in used))
    return answer
