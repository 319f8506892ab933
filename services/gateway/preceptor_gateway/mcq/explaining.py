"""Why an option was chosen, told by the same adapter: a LangChain chain over our own engine client.

Not langchain-openai's `ChatOpenAI`: it would bring a second HTTP client with its own retries, error classes and
connection pool per engine, where a runnable of fifteen lines keeps the one mapping of failures (decision 3).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
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

_ROLES = {"system": "system", "human": "user"}


class Explainer:
    """Keeps each domain's template, parsed once."""

    def __init__(self) -> None:
        self._prompts: dict[tuple[str, bool], ChatPromptTemplate] = {}

    async def pieces(
        self, target: Target, domain: Domain, item: McqItem, labels: tuple[str, ...], chosen: int
    ) -> AsyncGenerator[str, None]:
        """The explanation as it is written. Leaving early cancels the engine's work.

        Raises:
            PreceptorError: While iterating, where the engine fails.
        """
        chain: Runnable[dict[str, str], str] = self.template(domain, with_passage=bool(item.passage)) | _ask(
            target, domain
        )
        # LangChain promises an iterator and gives a generator; closing it is what ends the engine's work.
        stream = cast(AsyncGenerator[str, None], chain.astream(explain_variables(item, labels, chosen)))
        async with aclosing(stream):
            async for piece in stream:
                yield piece

    def template(self, domain: Domain, *, with_passage: bool) -> ChatPromptTemplate:
        """The system message and the user's turn that asks why; it takes `explain_variables`."""
        key = (domain.name, with_passage)
        if key not in self._prompts:
            body = explain_template(require_mcq(domain), with_passage=with_passage)
            self._prompts[key] = ChatPromptTemplate.from_messages([("system", domain.system), ("human", body)])
        return self._prompts[key]


def _ask(target: Target, domain: Domain) -> Runnable[PromptValue, str]:
    """The chain's last link: messages in, pieces of the answer out."""

    async def ask(prompts: AsyncIterator[PromptValue]) -> AsyncIterator[str]:
        async for prompt in prompts:
            body: dict[str, Any] = {
                "model": target.engine_name,
                "messages": [{"role": _ROLES[one.type], "content": one.content} for one in prompt.to_messages()],
                "max_tokens": domain.max_answer_tokens,
                "temperature": 0,
                "stream": True,
            }
            if target.stop_token_ids:
                body["stop_token_ids"] = list(target.stop_token_ids)
            async with target.engine.open("/v1/chat/completions", encode(body)) as reply:
                async for event in read_events(reply.chunks()):
                    if event is None:
                        return
                    if "error" in event:
                        raise EngineRefused("The engine broke off the explanation.", hint="The engine's log says more.")
                    if text := text_of(event):
                        yield text

    return RunnableGenerator(ask, name="engine")
