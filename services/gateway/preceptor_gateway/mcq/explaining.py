"""Why an option was chosen, told by the same adapter: a LangChain chain over our own relay.

Not langchain-openai's `ChatOpenAI`: it would bring a second HTTP client with its own retries, error classes and
connection pool per engine, where a runnable of twenty lines keeps the one mapping of failures (decision 3), the series
and the traces.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, cast

from langchain_core.prompt_values import PromptValue
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableGenerator
from preceptor_contracts.domains import Domain
from preceptor_contracts.mcq import McqItem
from preceptor_contracts.prompts import explain_template, explain_variables, require_mcq

from preceptor_gateway.domains.service import Target
from preceptor_gateway.engine.client import encode
from preceptor_gateway.events import read_events, text_of
from preceptor_gateway.problems import EngineRefused
from preceptor_gateway.relay import EngineCall, Relay

_ROLES = {"system": "system", "human": "user"}


class Explainer:
    """Keeps each domain's template, parsed once."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._prompts: dict[tuple[str, bool], ChatPromptTemplate] = {}

    async def pieces(
        self,
        target: Target,
        domain: Domain,
        item: McqItem,
        labels: tuple[str, ...],
        chosen: int,
        note_tokens: Callable[[int | None], None],
    ) -> AsyncGenerator[str, None]:
        """The explanation as it is written. Leaving early cancels the engine's work.

        Args:
            target: What answers.
            domain: Whose prompt is used.
            item: The question.
            labels: What its options are called.
            chosen: Position of the option to explain.
            note_tokens: Told in the end how many tokens prompt and explanation were.

        Raises:
            PreceptorError: While iterating, where the engine fails.
        """
        prompt = self._template(domain, with_passage=bool(item.passage))
        chain: Runnable[dict[str, str], str] = prompt | self._ask(target, domain, note_tokens)
        # LangChain promises an iterator and gives a generator; closing it is what ends the engine's work.
        stream = cast(AsyncGenerator[str, None], chain.astream(explain_variables(item, labels, chosen)))
        async with aclosing(stream):
            async for piece in stream:
                yield piece

    def _template(self, domain: Domain, *, with_passage: bool) -> ChatPromptTemplate:
        key = (domain.name, with_passage)
        if key not in self._prompts:
            self._prompts[key] = explain_prompt(domain, with_passage=with_passage)
        return self._prompts[key]

    def _ask(
        self, target: Target, domain: Domain, note_tokens: Callable[[int | None], None]
    ) -> Runnable[PromptValue, str]:
        """The chain's last link: messages in, pieces of the answer out."""

        async def ask(prompts: AsyncIterator[PromptValue]) -> AsyncIterator[str]:
            async for prompt in prompts:
                call = _call(target, domain, prompt)
                answer = await self._relay.start(call)
                try:
                    async for event in read_events(answer.chunks()):
                        if event and "error" in event:
                            raise EngineRefused(
                                "The engine broke off the explanation.", hint="The engine's log says more."
                            )
                        if event and (text := text_of(event)):
                            yield text
                finally:
                    answer.close()
                    note_tokens(answer.tokens(call.prompt_chars))

        return RunnableGenerator(ask, name="engine")


def explain_prompt(domain: Domain, *, with_passage: bool) -> ChatPromptTemplate:
    """The system message and the user's turn that asks why; it takes `explain_variables`."""
    body = explain_template(require_mcq(domain), with_passage=with_passage)
    return ChatPromptTemplate.from_messages([("system", domain.system), ("human", body)])


def _call(target: Target, domain: Domain, prompt: PromptValue) -> EngineCall:
    messages = [{"role": _ROLES[one.type], "content": str(one.content)} for one in prompt.to_messages()]
    body: dict[str, Any] = {
        "model": target.engine_name,
        "messages": messages,
        "max_tokens": domain.max_answer_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if target.stop_token_ids:
        body["stop_token_ids"] = list(target.stop_token_ids)
    return EngineCall(
        target,
        path="/v1/chat/completions",
        route="/v1/mcq",
        body=encode(body),
        stream=True,
        prompt_chars=sum(len(one["content"]) for one in messages),
        max_tokens=domain.max_answer_tokens,
    )
