"""`POST /submit_mcq`: the SAT seed's route."""

from __future__ import annotations

from fastapi import APIRouter, Request
from preceptor_contracts.wire import McqAnswer, McqRequest

from preceptor_gateway.auth import USE
from preceptor_gateway.leaving import until_client_leaves
from preceptor_gateway.limits.gate import LIMITED, note_tokens
from preceptor_gateway.problems import request_id_of
from preceptor_gateway.services import ServicesDep

router = APIRouter(tags=["seeds"], dependencies=[USE])


@router.post("/submit_mcq", dependencies=[LIMITED])
async def submit_mcq(body: McqRequest, request: Request, services: ServicesDep) -> McqAnswer:
    """Answers a multiple-choice item with a probability per option and the mass that fell on none of them."""
    answer = await until_client_leaves(request, services.mcq.answer(body, request_id_of(request)))
    request.scope["served"] = answer.served
    note_tokens(request.scope, answer.prompt_tokens + 1)
    return answer
