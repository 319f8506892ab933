"""Domain prompts by LangChain's `ChatPromptTemplate`; a property test holds them to contracts' own rendering."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.messages import BaseMessage
from langchain_core.prompts import ChatPromptTemplate
from preceptor_contracts.domains import Domain
from preceptor_contracts.mcq import McqItem
from preceptor_contracts.messages import WireMessage
from preceptor_contracts.prompts import mcq_template, mcq_variables, require_mcq

_ROLES = {"system": "system", "human": "user", "ai": "assistant"}


def _wire(message: BaseMessage) -> WireMessage:
    return {"role": _ROLES[message.type], "content": str(message.content)}


class DomainPrompt:
    """A domain's templates, parsed once."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        system = ChatPromptTemplate.from_messages([("system", domain.system)])
        # The system template takes no variables, so its text is formatted once and not per request.
        self._system = _wire(system.format_messages()[0])["content"]
        self._mcq: dict[bool, ChatPromptTemplate] = {}
        if domain.mcq is not None:
            for with_passage in (False, True):
                body = mcq_template(domain.mcq, domain.mcq.scoring, with_passage=with_passage)
                self._mcq[with_passage] = ChatPromptTemplate.from_messages([("system", domain.system), ("human", body)])

    def system(self, extra: Sequence[str]) -> WireMessage:
        """The system message: the domain's, then the client's own."""
        return {"role": "system", "content": "\n\n".join([self._system, *extra])}

    def mcq(self, item: McqItem) -> list[WireMessage]:
        """A multiple-choice item's messages.

        Raises:
            InvalidInput: The domain has no multiple choice.
        """
        layout = require_mcq(self._domain)
        template = self._mcq[bool(item.passage)]
        return [_wire(message) for message in template.format_messages(**mcq_variables(item, layout.scoring))]
