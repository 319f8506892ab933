"""`POST /submit_mcq`, the SAT seed's route, and `POST /v1/mcq`, ours."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

from fastapi import APIRouter, Request
from preceptor_contracts.errors import PreceptorError
from preceptor_contracts.wire import McqAnswer, McqRequest
from preceptor_contracts.wire_mcq import McqListAnswer, McqListRequest
from starlette.responses import StreamingResponse

from preceptor_gateway.auth import USE
from preceptor_gateway.events import DONE, EVENT_STREAM, write_event
from preceptor_gateway.leaving import until_client_leaves
from preceptor_gateway.limits.gate import LIMITED, note_tokens
from preceptor_gateway.mcq.service import McqService
from preceptor_gateway.problems import body_of, request_id_of
from preceptor_gateway.services import ServicesDep

router = APIRouter(dependencies=[USE])


@router.post("/submit_mcq", tags=["seeds"], dependencies=[LIMITED])
async def submit_mcq(body: McqRequest, request: Request, services: ServicesDep) -> McqAnswer:
    """Answers a multiple-choice item with a probability per option and the mass that fell on none of them."""
    answer = await until_client_leaves(request, services.mcq.answer(body, request_id_of(request)))
    request.scope["served"] = answer.served
    note_tokens(request.scope, answer.prompt_tokens + 1)
    return answer


@router.post(
    "/v1/mcq",
    tags=["mcq"],
    response_model=McqListAnswer,
    dependencies=[LIMITED],
    responses={200: {"content": EVENT_STREAM}},
)
async def answer_items(
    body: McqListRequest, request: Request, services: ServicesDep
) -> McqListAnswer | StreamingResponse:
    """Answers 1 to 256 items; with `explain`, one item as server-sent events: the answer, then why."""
    answer = await until_client_leaves(request, services.mcq.answer_all(body, request_id_of(request)))
    request.scope["served"] = answer.served
    note_tokens(request.scope, answer.usage.prompt_tokens)
    if not body.explain:
        return answer

    def note_explanation(tokens: int | None) -> None:
        note_tokens(request.scope, answer.usage.prompt_tokens + (tokens or 0))

    events = _explained(services.mcq, body, answer, note_explanation)
    return StreamingResponse(events, media_type="text/event-stream")


async def _explained(
    mcq: McqService, body: McqListRequest, answer: McqListAnswer, note_tokens: Callable[[int | None], None]
) -> AsyncIterator[bytes]:
    yield write_event({"answer": answer.model_dump(mode="json")})
    try:
        async with aclosing(mcq.explanation(body, answer, note_tokens)) as pieces:
            async for text in pieces:
                yield write_event({"text": text})
    except PreceptorError as error:
        # The status is sent; the error can only be an event.
        yield write_event(body_of(error, answer.request_id).model_dump())
    else:
        yield DONE
