"""The gateway over HTTP. Every failure leaves here as a `GatewayFailure`: a sentence and what to do about it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import unquote

import httpx
from preceptor_contracts.errors import PreceptorError
from preceptor_contracts.messages import Message, wire
from preceptor_contracts.wire import DomainList, McqAnswer, McqRequest
from pydantic import BaseModel, ValidationError

from preceptor_ui.catalogue import Catalogue
from preceptor_ui.settings import Settings

SAFETY_HEADER = "x-preceptor-safety"
# A CPU engine may take this long to its first token; afterwards it is the longest silence between two tokens.
SILENCE_S = 180.0
TIMEOUT = httpx.Timeout(connect=5.0, read=SILENCE_S, write=30.0, pool=30.0)

_HINTS = {
    401: "Check that GATEWAY_API_KEY in .env is the gateway's, then restart the UI.",
    403: "Use a key with scope 'use'.",
    404: "Press Refresh: the list of served names may have changed.",
    413: "Shorten the text, or press Clear and start anew.",
    429: "Wait a moment, then send it again.",
    502: "Wait a moment, then send it again.",
    503: "The engine may still be starting; wait a moment, then send it again.",
    504: "Send it again, or ask for something shorter.",
}


class GatewayFailure(PreceptorError):
    """The gateway refused, could not, or was not there."""

    default_code = "gateway_failed"


@dataclass(frozen=True)
class Piece:
    """A part of a streamed answer."""

    text: str = ""
    safety: str = ""
    """Message of the safety rules that fired; comes at most once and first."""
    is_cut: bool = False
    """True where the answer ended at its length limit."""


class _ServedModel(BaseModel):
    id: str


class _ServedModels(BaseModel):
    data: tuple[_ServedModel, ...]


class _ErrorObject(BaseModel):
    message: str
    code: str | int | None = None


class _ErrorBody(BaseModel):
    """Reads `wire.ProblemBody` and the engine's own errors, which have neither hint nor request id."""

    error: _ErrorObject
    hint: str = ""


class _Delta(BaseModel):
    content: str | None = None


class _ChunkChoice(BaseModel):
    delta: _Delta = _Delta()
    finish_reason: str | None = None


class _Chunk(BaseModel):
    choices: tuple[_ChunkChoice, ...] = ()


Body = TypeVar("Body", bound=BaseModel)


class Gateway:
    """Asks the gateway; made once per process, closed by the app's lifespan."""

    def __init__(self, settings: Settings) -> None:
        self.url = str(settings.gateway_url).rstrip("/")
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {settings.gateway_api_key.get_secret_value()}"},
            timeout=TIMEOUT,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
            # The gateway is a neighbour; a proxy of the environment must not see the key.
            trust_env=False,
        )

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def catalogue(self) -> Catalogue:
        """Lists served names and domains.

        Raises:
            GatewayFailure: The gateway refused or is not there.
        """
        served = await self._ask("GET", "/v1/models", _ServedModels)
        domains = await self._ask("GET", "/v1/domains", DomainList)
        return Catalogue(served=tuple(entry.id for entry in served.data), domains=domains.data)

    async def answer(self, request: McqRequest) -> McqAnswer:
        """Answers one multiple-choice item.

        Raises:
            GatewayFailure: The gateway refused or is not there.
        """
        return await self._ask("POST", "/submit_mcq", McqAnswer, body=request.model_dump(mode="json"))

    async def stream(self, served: str, messages: tuple[Message, ...]) -> AsyncGenerator[Piece, None]:
        """Streams an answer; closing the generator ends the request, which cancels it in the gateway.

        Raises:
            GatewayFailure: The gateway refused, is not there, or broke off.
        """
        body = {"model": served, "messages": wire(messages), "stream": True}
        async with self._told(), self._http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.is_error:
                await response.aread()
            self._check(response)
            if safety := unquote(response.headers.get(SAFETY_HEADER, "")):
                yield Piece(safety=safety)
            is_whole = False
            async for data in _events(response.aiter_lines()):
                if data == "[DONE]":
                    return
                choice = self._chunk_choice(data)
                is_cut = choice.finish_reason == "length"
                is_whole = is_whole or choice.finish_reason is not None
                if choice.delta.content or is_cut:
                    yield Piece(text=choice.delta.content or "", is_cut=is_cut)
            if not is_whole:
                raise GatewayFailure(
                    "The answer broke off before its end.", code="stream_broken", hint="Send the question again."
                )

    async def _ask(self, method: str, path: str, kind: type[Body], *, body: object = None) -> Body:
        async with self._told():
            response = await self._http.request(method, path, json=body)
            self._check(response)
            return self._read(kind, response.text)

    @asynccontextmanager
    async def _told(self) -> AsyncIterator[None]:
        """Maps httpx's failures; the one place that does."""
        try:
            yield
        except httpx.ConnectError as error:
            raise GatewayFailure(
                f"The gateway at {self.url!r} cannot be reached.",
                code="gateway_down",
                hint="Start it (make demo, or docker compose up), then try again.",
            ) from error
        except httpx.TimeoutException as error:
            raise GatewayFailure(
                f"The gateway at {self.url!r} did not answer in time.",
                code="gateway_timeout",
                hint="The machine may be busy; try again in a moment.",
            ) from error
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise GatewayFailure(
                f"The connection to the gateway at {self.url!r} broke off.",
                code="stream_broken",
                hint="Try again; if it happens again, read the gateway's log.",
            ) from error

    def _check(self, response: httpx.Response) -> None:
        """Raises unless the response is a success whose body is worth reading."""
        if response.is_success:
            return
        hint = _HINTS.get(response.status_code, "")
        try:
            problem = _ErrorBody.model_validate_json(response.text)
        except (ValidationError, httpx.ResponseNotRead):
            raise GatewayFailure(
                f"{self.url!r} answered with status {response.status_code} and no explanation.",
                code="unreadable_answer",
                hint=hint or "Check that UI_GATEWAY_URL points at the gateway.",
            ) from None
        raise _failure(problem, hint)

    def _read(self, kind: type[Body], text: str) -> Body:
        try:
            return kind.model_validate_json(text)
        except ValidationError as error:
            raise GatewayFailure(
                f"{self.url!r} answered with something that this UI cannot read.",
                code="unreadable_answer",
                hint="Check that UI_GATEWAY_URL points at the gateway, and that both are of one version.",
            ) from error

    def _chunk_choice(self, data: str) -> _ChunkChoice:
        try:
            problem = _ErrorBody.model_validate_json(data)
        except ValidationError:
            choices = self._read(_Chunk, data).choices
            return choices[0] if choices else _ChunkChoice()
        raise _failure(problem, "Send the question again.")


def _failure(problem: _ErrorBody, hint: str) -> GatewayFailure:
    code = problem.error.code
    return GatewayFailure(
        problem.error.message,
        code=str(code) if code else GatewayFailure.default_code,
        hint=problem.hint or hint,
    )


async def _events(lines: AsyncIterator[str]) -> AsyncIterator[str]:
    """Yields the payload of each server-sent event; a payload may stretch over several `data:` lines."""
    payload: list[str] = []
    async for line in lines:
        if line.startswith("data:"):
            payload.append(line[5:].removeprefix(" "))
        elif not line and payload:
            yield "\n".join(payload)
            payload = []
    if payload:
        yield "\n".join(payload)
