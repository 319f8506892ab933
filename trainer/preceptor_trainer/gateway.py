"""The gateway over HTTP: what the trainer asks of it, with every failure turned into a sentence."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from types import TracebackType
from typing import Self, TypeVar

import httpx
from preceptor_contracts.errors import PreceptorError, PrerequisiteError
from preceptor_contracts.mcq import McqItem
from preceptor_contracts.messages import Message, wire
from preceptor_contracts.wire import (
    AdapterList,
    AdapterView,
    AliasView,
    Health,
    McqAnswer,
    ProblemBody,
    RenderedPrompt,
    ServedNameList,
)
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from preceptor_trainer.settings import TrainerSettings

ATTEMPTS = 5
"""Times that a request is sent while the gateway asks to come back later."""
_RETRIED = frozenset({429, 503, 504})
_PASSING = _RETRIED | {502}
"""Statuses that say: not now."""
_LONGEST_WAIT_S = 15.0
# A CPU engine with a full queue may take minutes to the last of several answers.
_TIMEOUT = httpx.Timeout(connect=5.0, read=300.0, write=30.0, pool=300.0)

Shape = TypeVar("Shape")


class GatewayFailure(PreceptorError):
    """The gateway refused, or answered something that it should not."""

    default_code = "gateway_failed"


class GatewayBusy(GatewayFailure):
    """It cannot answer now and may later: no engine is up, an adapter is being loaded, a limit is reached."""

    default_code = "gateway_busy"


class GatewayDown(PrerequisiteError):
    """Nobody answers at its address."""

    default_code = "gateway_down"


class _ChatMessage(BaseModel):
    content: str | None = None


class _ChatChoice(BaseModel):
    message: _ChatMessage


class _ChatAnswer(BaseModel):
    """The part of OpenAI's answer that an exam needs."""

    model_config = ConfigDict(extra="ignore")

    choices: tuple[_ChatChoice, ...]


class _TokenLogprob(BaseModel):
    model_config = ConfigDict(extra="ignore")

    logprob: float


class _ScoredChoice(BaseModel):
    model_config = ConfigDict(extra="ignore")

    index: int
    prompt_logprobs: tuple[dict[str, _TokenLogprob] | None, ...]


class _ScoredAnswer(BaseModel):
    """The part of a completion that says how likely its prompts were."""

    model_config = ConfigDict(extra="ignore")

    choices: tuple[_ScoredChoice, ...]


class Gateway:
    """One connection pool with the admin key; use it as an async context.

    Args:
        url: Where the gateway is.
        key: Bearer key with scope `admin`.
        transport: Replaces the network in tests.
    """

    def __init__(self, url: str, key: str, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        # A URL may hold a password, which no message may show.
        self._shown_url = str(httpx.URL(url).copy_with(userinfo=b"")).rstrip("/")
        self._client = httpx.AsyncClient(
            base_url=url.rstrip("/"),
            headers={"Authorization": f"Bearer {key}"},
            timeout=_TIMEOUT,
            transport=transport,
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        )

    @classmethod
    def of(cls, settings: TrainerSettings) -> Gateway:
        """Makes the client that the settings name."""
        return cls(str(settings.gateway_url), settings.admin_key())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def health(self) -> Health:
        """Asks what answers behind the gateway."""
        return await self._ask("GET", "/health", TypeAdapter(Health))

    async def glance(self) -> Health:
        """Asks the same once: that no engine is up is an answer, too."""
        try:
            response = await self._client.get("/health")
            return Health.model_validate_json(response.content)
        except httpx.TransportError as error:
            raise GatewayDown(
                f"The gateway at {self._shown_url} does not answer.", hint="Start the stack: make serve"
            ) from error
        except ValidationError as error:
            raise GatewayFailure(
                f"GET /health answered something unexpected: {response.text[:200]!r}.",
                hint="Run gateway and trainer of the same version.",
            ) from error

    async def render_messages(self, domain: str, messages: Sequence[Message]) -> RenderedPrompt:
        """Asks for the ids that the engine would get for a conversation."""
        return await self._render(domain, {"messages": wire(tuple(messages))})

    async def render_mcq(self, domain: str, item: McqItem) -> RenderedPrompt:
        """Asks for the ids that the engine would get for a multiple-choice item."""
        plain = McqItem(question=item.question, options=item.options, passage=item.passage)
        return await self._render(domain, {"mcq": plain.model_dump(mode="json")})

    async def served_names(self) -> tuple[str, ...]:
        """Asks for all that can be asked now."""
        listed = await self._ask("GET", "/v1/models", TypeAdapter(ServedNameList))
        return tuple(card.id for card in listed.data)

    async def register(self, adapter: str, *, pin: bool = True) -> AdapterView:
        """Has a published adapter loaded, its canary checked, and pinned: it must outlive an engine's restart."""
        body = {"adapter": adapter, "pin": pin}
        return await self._ask("POST", "/v1/adapters", TypeAdapter(AdapterView), body)

    async def unpin(self, adapter: str) -> AdapterView:
        """Lets go of an adapter that `register` had loaded: an alias keeps it from now on, or nothing does."""
        return await self._ask("DELETE", f"/v1/adapters/{adapter}/pin", TypeAdapter(AdapterView))

    async def adapters(self) -> AdapterList:
        """Lists the adapters that the gateway sees, with what it does with each."""
        return await self._ask("GET", "/v1/adapters", TypeAdapter(AdapterList))

    async def adapter(self, adapter: str) -> AdapterView:
        """Says what the gateway does with one adapter."""
        return await self._ask("GET", f"/v1/adapters/{adapter}", TypeAdapter(AdapterView))

    async def unload(self, adapter: str) -> AdapterView:
        """Takes an adapter out of every engine; refused where an alias points at it, or would after a rollback."""
        return await self._ask("DELETE", f"/v1/adapters/{adapter}", TypeAdapter(AdapterView))

    async def promote(self, domain: str, adapter: str, report: str) -> AliasView:
        """Points the domain's alias at an adapter."""
        body = {"adapter": adapter, "report": report}
        return await self._ask("POST", f"/v1/domains/{domain}/promote", TypeAdapter(AliasView), body)

    async def answer_mcq(self, served: str, item: McqItem) -> McqAnswer:
        """Asks a served name a multiple-choice question."""
        # Labels are written out: an option that begins like one ("I. ...") must not be read as one.
        choices = [f"{label}) {text}" for label, text in zip(item.labels, item.options, strict=True)]
        body = {"model": served, "text": item.passage, "question": item.question, "choices": choices}
        return await self._ask("POST", "/submit_mcq", TypeAdapter(McqAnswer), body)

    async def chat(self, served: str, question: str, *, max_tokens: int) -> str:
        """Asks a served name one question, greedily."""
        body = {
            "model": served,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": max_tokens,
        }
        answer = await self._ask("POST", "/v1/chat/completions", TypeAdapter(_ChatAnswer), body)
        if not answer.choices:
            raise GatewayFailure(f"The gateway answered without a choice for {served!r}.")
        return answer.choices[0].message.content or ""

    async def score(self, served: str, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Asks how likely raw prompts are, without the domain's prompt.

        Args:
            served: Whom to ask.
            prompts: Token ids of each, at least two.

        Returns:
            By prompt, the log-probability in nats of every token but the first.

        Raises:
            GatewayFailure: The answer lacks a token's log-probability, or one is no number.
        """
        # One token is made because the engine makes no fewer; nobody reads it.
        body = {
            "model": served,
            "prompt": [list(ids) for ids in prompts],
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": 0,
        }
        answer = await self._ask("POST", "/v1/completions", TypeAdapter(_ScoredAnswer), body)
        by_index = {choice.index: choice.prompt_logprobs for choice in answer.choices}
        try:
            return [_logprobs(by_index[at], ids) for at, ids in enumerate(prompts)]
        except (LookupError, TypeError, ValueError) as error:
            raise GatewayFailure(
                f"{served!r} answered without the log-probability of every prompt token.",
                code="logprobs_missing",
                hint="Does TRAINER_GATEWAY_URL lead to an engine that gives `prompt_logprobs`?",
            ) from error

    async def _render(self, domain: str, body: object) -> RenderedPrompt:
        return await self._ask("POST", f"/v1/domains/{domain}/render", TypeAdapter(RenderedPrompt), body)

    async def _ask(self, method: str, path: str, shape: TypeAdapter[Shape], body: object = None) -> Shape:
        response = await self._send(method, path, body)
        if response.is_error:
            raise _failure(response)
        try:
            return shape.validate_json(response.content)
        except ValidationError as error:
            raise GatewayFailure(
                f"{method} {path} answered something unexpected: {response.text[:200]!r}.",
                hint="Run gateway and trainer of the same version.",
            ) from error

    async def _send(self, method: str, path: str, body: object) -> httpx.Response:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                response = await self._client.request(method, path, json=body)
            except httpx.TimeoutException as error:
                raise GatewayBusy(
                    f"{method} {path} did not answer within {_TIMEOUT.read:.0f} s.",
                    code="gateway_timeout",
                    hint="Lower TRAINER_CONCURRENCY, or look at the engine's log.",
                ) from error
            except httpx.TransportError as error:
                raise GatewayDown(
                    f"The gateway at {self._shown_url} does not answer.", hint="Start the stack: make serve"
                ) from error
            if response.status_code not in _RETRIED or attempt == ATTEMPTS:
                return response
            await asyncio.sleep(_wait_s(response, attempt))
        raise AssertionError("the loop returns or raises on its last attempt")


def _wait_s(response: httpx.Response, attempt: int) -> float:
    """Reads Retry-After; without one, waits longer each time."""
    asked = retry_after_s(response)
    return min(float(2 ** (attempt - 1)), _LONGEST_WAIT_S) if asked is None else asked


def retry_after_s(response: httpx.Response) -> float | None:
    """Reads Retry-After in seconds, bounded; None without one, or where it is a date."""
    try:
        return max(0.0, min(float(response.headers.get("retry-after", "")), _LONGEST_WAIT_S))
    except ValueError:
        return None


def _failure(response: httpx.Response) -> PreceptorError:
    try:
        problem = ProblemBody.model_validate_json(response.content)
    except ValidationError:
        where = f"{response.request.method} {response.request.url.path}"
        return GatewayFailure(
            f"{where} answered status {response.status_code}: {response.text[:200]!r}.",
            hint="Is something else than Preceptor's gateway listening there? Check TRAINER_GATEWAY_URL.",
        )
    if response.status_code in {401, 403}:
        return PrerequisiteError(
            problem.error.message,
            code=problem.error.code,
            hint="Check that GATEWAY_ADMIN_KEY in .env is the gateway's, then restart the gateway.",
        )
    is_passing = response.status_code in _PASSING and problem.error.code != "adapter_failed"
    kind = GatewayBusy if is_passing else GatewayFailure
    return kind(problem.error.message, code=problem.error.code, hint=problem.hint)


def _logprobs(entries: Sequence[dict[str, _TokenLogprob] | None], ids: Sequence[int]) -> list[float]:
    if len(entries) != len(ids):
        raise ValueError("another number of tokens")
    found = [entry[str(token)].logprob for token, entry in zip(ids[1:], entries[1:], strict=True) if entry is not None]
    if len(found) != len(ids) - 1 or not all(map(math.isfinite, found)):
        raise ValueError("a token without a number")
    return found
