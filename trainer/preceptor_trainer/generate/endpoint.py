"""The generator: any OpenAI-compatible endpoint through LangChain, its failures turned into sentences.

LangChain takes a second to import, so this module is imported when there is something to ask.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Literal, NamedTuple, get_args

import langsmith
import openai
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_openai import ChatOpenAI
from preceptor_contracts.errors import PreceptorError, PrerequisiteError
from preceptor_contracts.messages import Message, wire
from pydantic import BaseModel, JsonValue, SecretStr, ValidationError

from preceptor_trainer.generate.prompting import Schema

Method = Literal["json_schema", "function_calling", "json_mode"]
METHODS: tuple[Method, ...] = get_args(Method)
"""Ways to ask for structured output, best first; an endpoint that refuses one is asked in the next."""
RETRIES = 4
"""Times that a request is sent again after 429, 5xx, silence or a broken connection; the client waits between them, as
Retry-After says up to two minutes."""
_SHOWN = 200
_TOO_LONG = re.compile(r"context.{0,8}(length|window)|longest context|too long|too many tokens", re.IGNORECASE)
_KEY_WRONG = re.compile(r"api.?key", re.IGNORECASE)
_SETTINGS = "TRAINER_GENERATOR_URL and TRAINER_GENERATOR_NAME"
# What LangChain and openai's client raise on an answer that is no chat completion: they do not check it.
_NO_COMPLETION = (ValueError, LookupError, TypeError, AttributeError, openai.APIResponseValidationError)


class GeneratorFailure(PreceptorError):
    """The endpoint cannot go on; what was answered before is kept."""

    default_code = "generator_failed"


class Target(NamedTuple):
    """Whom to ask, and how hard."""

    url: str
    host: str
    served: str
    key: SecretStr | None
    requests_per_minute: float
    """0: no limit."""
    timeout_s: float
    max_tokens: int | None
    """Longest answer; None leaves it to the endpoint."""


class Reply(NamedTuple):
    """What came back."""

    items: tuple[JsonValue, ...] = ()
    failure: str = ""
    """Why the answer cannot be used; empty where it can."""
    worth_repeating: bool = True
    """Whether another try may end better."""
    prompt_tokens: int = 0
    answer_tokens: int = 0


class _Answer(BaseModel):
    records: list[JsonValue]


class Endpoint:
    """One served name behind one URL; make it with `connect`."""

    def __init__(self, chat: ChatOpenAI, target: Target, method: Method, *, has_answered: bool) -> None:
        self._chat = chat
        self._target = target
        self.method: Method = method
        """How structured output is asked for; falls when the endpoint refuses."""
        self._has_answered = has_answered
        """A request that fails is then the request's fault and not the endpoint's."""

    async def ask(self, messages: Sequence[Message], schema: Schema) -> Reply:
        """Sends one request, again where the endpoint was busy.

        Raises:
            PreceptorError: No further request would be answered either.
        """
        sent = wire(tuple(messages))
        while True:
            method = self.method
            try:
                reply = await self._send(method, sent, schema)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                # Requests under way together may all be refused: only the first moves on, for all of them.
                if self.method == method:
                    if hopeless := self._hopeless(error):
                        return hopeless
                    self.method = METHODS[METHODS.index(method) + 1]
                continue
            except openai.APITimeoutError as error:
                return self._unless_first(f"no answer within {self._target.timeout_s:g} s", error, repeat=False)
            except openai.APIConnectionError as error:
                raise GeneratorFailure(
                    f"The endpoint at {self._target.host} does not answer.",
                    code="generator_down",
                    hint="Check TRAINER_GENERATOR_URL, then run the same command again: nothing is asked twice.",
                ) from error
            except openai.APIStatusError as error:
                raise self._refused(error) from error
            except _NO_COMPLETION as error:
                return self._unless_first("the answer was no chat completion", error, repeat=True)
            self._has_answered = True
            return reply

    async def _send(self, method: Method, messages: Sequence[object], schema: Schema) -> Reply:
        # OpenAI guarantees the schema only where it is told to be strict; with tools, others refuse the word.
        strict = True if method == "json_schema" else None
        asked = self._chat.with_structured_output(dict(schema), method=method, include_raw=True, strict=strict)
        try:
            answer = await asked.ainvoke(list(messages))  # type: ignore[arg-type] # OpenAI's own spelling is taken too
        except openai.LengthFinishReasonError as error:
            return _cut_off(*_used(error.completion))
        except openai.ContentFilterFinishReasonError as error:
            used = _used(error.completion) if error.completion else (0, 0)
            return Reply((), "stopped by the endpoint's content filter", False, *used)
        if not isinstance(answer, dict) or not isinstance(answer["raw"], AIMessage):
            raise TypeError("LangChain gave neither message nor parsed answer")
        return _read(answer["raw"], answer["parsed"])

    def _hopeless(self, error: openai.APIStatusError) -> Reply | None:
        """Tells a bad request that another way of asking may mend (None) from one that it cannot."""
        told = self._told(error)
        if isinstance(error, ContextOverflowError) or _TOO_LONG.search(told):
            return Reply(failure=f"too long for the endpoint: {told}", worth_repeating=False)
        if _KEY_WRONG.search(told):
            raise self._key_wrong() from error
        if self._has_answered:
            return Reply(failure=f"refused: {told}", worth_repeating=False)
        if self.method == METHODS[-1]:
            raise GeneratorFailure(
                f"The endpoint at {self._target.host} refuses the request: {told}.",
                hint=f"Check {_SETTINGS}.",
            ) from error
        return None

    def _unless_first(self, failure: str, error: Exception, *, repeat: bool) -> Reply:
        """A failure of one request, or of all where none was ever answered."""
        if self._has_answered:
            return Reply(failure=failure, worth_repeating=repeat)
        raise GeneratorFailure(
            f"The endpoint at {self._target.host} cannot be used: {failure}.",
            hint=f"Check {_SETTINGS}; the URL of an OpenAI-compatible API mostly ends in /v1.",
        ) from error

    def _refused(self, error: openai.APIStatusError) -> PreceptorError:
        status = error.status_code
        if status in {401, 403}:
            return self._key_wrong()
        if status == 404:
            return PrerequisiteError(
                f"The endpoint at {self._target.host} does not know the served name {self._target.served!r}, or the "
                f"path: {self._told(error)}.",
                hint=f"Check {_SETTINGS}; the URL of an OpenAI-compatible API mostly ends in /v1.",
            )
        busy = f"after {RETRIES + 1} tries" if status == 429 or status >= 500 else "and was not asked again"
        return GeneratorFailure(
            f"The endpoint at {self._target.host} answered status {status} {busy}: {self._told(error)}.",
            hint="Run the same command again later: nothing is asked twice. --requests-per-minute asks more slowly.",
        )

    def _key_wrong(self) -> PrerequisiteError:
        return PrerequisiteError(
            f"The endpoint at {self._target.host} does not take the key.",
            code="generator_key",
            hint="Set TRAINER_GENERATOR_API_KEY, in .env or the environment, to a key of that endpoint.",
        )

    def _told(self, error: openai.APIStatusError) -> str:
        """What the endpoint says, shortened; some repeat the key that they were sent."""
        text = " ".join(error.message.split())
        key = self._target.key.get_secret_value() if self._target.key else ""
        return repr((text.replace(key, "***") if key else text)[:_SHOWN])


def _read(message: AIMessage, parsed: object) -> Reply:
    usage = message.usage_metadata
    used = (usage["input_tokens"], usage["output_tokens"]) if usage else (0, 0)
    if refusal := message.additional_kwargs.get("refusal"):
        return Reply((), f"refused: {str(refusal)[:_SHOWN]!r}", True, *used)
    reason = message.response_metadata.get("finish_reason")
    if reason == "length":
        return _cut_off(*used)
    if reason == "content_filter":
        return Reply((), "stopped by the endpoint's content filter", False, *used)
    try:
        items = _Answer.model_validate(parsed).records
    except ValidationError:
        text = " ".join(str(message.content).split())
        said = f"not of the shape asked for: {text[:_SHOWN]!r}" if text else "empty"
        return Reply((), f"the answer was {said}", True, *used)
    return Reply(tuple(items), "" if items else "the answer held no records", True, *used)


def _cut_off(prompt_tokens: int, answer_tokens: int) -> Reply:
    failure = "cut off by the limit on tokens: lower --count, or raise --max-tokens"
    return Reply((), failure, True, prompt_tokens, answer_tokens)


def _used(completion: openai.types.chat.ChatCompletion) -> tuple[int, int]:
    usage = completion.usage
    return (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)


@asynccontextmanager
async def connect(
    target: Target, method: Method = METHODS[0], *, has_answered: bool = False
) -> AsyncIterator[Endpoint]:
    """Opens the endpoint.

    Args:
        target: Whom to ask.
        method: How an earlier run found that this endpoint wants to be asked.
        has_answered: Whether it answered an earlier run.
    """
    # Documents must not leave for LangSmith because of something that somebody once set for another program.
    langsmith.configure(enabled=False, client=None)
    limiter = _limiter(target.requests_per_minute) if target.requests_per_minute else None
    # A client of our own: LangChain's is kept for the whole process and outlives the event loop that it belongs to.
    async with openai.DefaultAsyncHttpxClient(timeout=target.timeout_s) as client:
        with _without_openai_variables():
            chat = ChatOpenAI(
                base_url=target.url,
                # Never None: the key would be taken from OPENAI_API_KEY and sent to whatever endpoint this is.
                api_key=target.key or SecretStr("none"),
                model=target.served,
                timeout=target.timeout_s,
                max_retries=RETRIES,
                max_completion_tokens=target.max_tokens,
                rate_limiter=limiter,
                use_responses_api=False,
                http_async_client=client,
            )
        yield Endpoint(chat, target, method, has_answered=has_answered)


def _limiter(requests_per_minute: float) -> InMemoryRateLimiter:
    limiter = InMemoryRateLimiter(requests_per_second=requests_per_minute / 60, max_bucket_size=1)
    # It begins empty, and the first request would wait as long as if another had just been sent.
    limiter.available_tokens = 1.0
    return limiter


@contextmanager
def _without_openai_variables() -> Iterator[None]:
    """Hides `OPENAI_...` while the client is made: it would send organisation and further headers of theirs along."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("OPENAI_")}
    try:
        yield
    finally:
        os.environ.update(hidden)
