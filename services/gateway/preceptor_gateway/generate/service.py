"""The seeds' text routes: plain prompts become chat requests, the engine's answers become plain text."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import orjson
from preceptor_contracts.errors import PreceptorError
from preceptor_contracts.wire import GenerateRequest
from preceptor_contracts.wire_generate import (
    GenerateBatchAnswer,
    GenerateBatchRequest,
    GenerateFailure,
    GenerateResult,
    GenerateUsage,
)

from preceptor_gateway.batches import exact_name, run_each
from preceptor_gateway.chat.service import ChatService
from preceptor_gateway.domains.service import DomainService
from preceptor_gateway.events import DONE, read_events, text_of, write_event
from preceptor_gateway.problems import EngineRefused, body_of
from preceptor_gateway.relay import Relay, error_event


def chat_body(
    prompt: str, request: GenerateRequest | GenerateBatchRequest, served: str, *, stream: bool
) -> dict[str, Any]:
    """The chat request that a prompt stands for."""
    body: dict[str, Any] = {
        "model": served,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": request.temperature,
        "stream": stream,
    }
    if request.max_tokens is not None:
        body["max_tokens"] = request.max_tokens
    return body


async def retell(chunks: AsyncIterator[bytes], request_id: str) -> AsyncIterator[bytes]:
    """Turns OpenAI chunks into `data: {"text": ...}` events, ends with `data: [DONE]`; errors pass as they are."""
    try:
        async for event in read_events(chunks):
            if event is None:
                yield DONE
            elif "error" in event:
                yield write_event(event)
            elif text := text_of(event):
                yield write_event({"text": text})
    except PreceptorError as error:
        # The status is sent; the error can only be an event.
        yield error_event(error, request_id, b"\n")


class GenerateService:
    """Answers many prompts in one request."""

    def __init__(self, domains: DomainService, chat: ChatService, relay: Relay, at_a_time: int) -> None:
        self._domains = domains
        self._chat = chat
        self._relay = relay
        self._at_a_time = at_a_time

    async def answer_all(self, request: GenerateBatchRequest, request_id: str) -> GenerateBatchAnswer:
        """Answers every prompt; what fails on the engine's side is that prompt's error.

        Raises:
            PreceptorError: The request cannot be served, or every prompt failed in the same way.
        """
        served = self._domains.served_name(domain=request.domain, served=request.model)
        # Before the engine is bothered: what cannot be served is the whole request's error.
        exact = exact_name(self._domains.resolve(served))
        jobs = [partial(self._answer, prompt, request, exact) for prompt in request.prompts]
        done = await run_each(jobs, self._at_a_time)
        results = tuple(
            _failure(index, one) if isinstance(one, PreceptorError) else _result(index, one)
            for index, one in enumerate(done)
        )
        return GenerateBatchAnswer(results=results, served=served, request_id=request_id)

    async def _answer(self, prompt: str, request: GenerateBatchRequest, served: str) -> bytes:
        body = chat_body(prompt, request, served, stream=False)
        return await self._relay.whole(self._chat.prepare(body, kind="generate", route="/generate/batch"))


def _result(index: int, raw: bytes) -> GenerateResult:
    try:
        answer = orjson.loads(raw)
        choice, usage = answer["choices"][0], answer["usage"]
        return GenerateResult(
            index=index,
            text=choice["message"]["content"] or "",
            finish_reason=choice["finish_reason"],
            usage=GenerateUsage(
                prompt_tokens=usage["prompt_tokens"],
                completion_tokens=usage["completion_tokens"],
                cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
            ),
        )
    except (LookupError, TypeError, ValueError) as error:
        raise EngineRefused("The engine answered something that is no chat completion.") from error


def _failure(index: int, error: PreceptorError) -> GenerateFailure:
    told = body_of(error, "")
    return GenerateFailure(index=index, error=told.error, hint=told.hint)
