"""The one renderer: a domain and an item become messages. Trainer and gateway must agree with it to the byte.

The tokenizer's own chat template turns these messages into token ids, in training and in the engine alike.
"""

from __future__ import annotations

from collections.abc import Sequence

from preceptor_contracts.domains import Domain, McqLayout
from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.mcq import McqItem, Scoring
from preceptor_contracts.messages import Message


def system_text(domain: Domain, extra: Sequence[str] = ()) -> str:
    """The system message: the domain's text, then any the client sent, never in its place."""
    return "\n\n".join([domain.system.format(), *extra])


def render_chat(domain: Domain, messages: Sequence[Message]) -> tuple[Message, ...]:
    """Puts the domain's system message before a conversation; client system messages join it."""
    extra = [message.content for message in messages if message.role == "system"]
    turns = [message for message in messages if message.role != "system"]
    return (Message(role="system", content=system_text(domain, extra)), *turns)


def option_lines(item: McqItem) -> str:
    """Labelled options, one a line: `A) ...`."""
    return "\n".join(f"{label}) {text}" for label, text in zip(item.labels, item.options, strict=True))


def mcq_template(layout: McqLayout, scoring: Scoring, *, with_passage: bool) -> str:
    """The user turn's template for one scoring."""
    body = layout.letters if scoring is Scoring.LETTERS else layout.options
    return (layout.passage if with_passage else "") + body


def mcq_variables(item: McqItem, scoring: Scoring) -> dict[str, str]:
    """The values that `mcq_template` takes for an item."""
    values = {"question": item.question}
    if item.passage:
        values["passage"] = item.passage
    if scoring is Scoring.LETTERS:
        values["options"] = option_lines(item)
    return values


def render_mcq(domain: Domain, item: McqItem) -> tuple[Message, ...]:
    """Renders an item as the domain's layout and scoring say: a system and a user message.

    Raises:
        InvalidInput: The domain has no multiple choice.
    """
    layout = require_mcq(domain)
    template = mcq_template(layout, layout.scoring, with_passage=bool(item.passage))
    user = template.format(**mcq_variables(item, layout.scoring))
    return (Message(role="system", content=system_text(domain)), Message(role="user", content=user))


def explain_template(layout: McqLayout, *, with_passage: bool) -> str:
    """The user turn's template for an explanation; it begins like the question did, so that the prefix is cached.

    Raises:
        InvalidInput: The domain gives no explanations.
    """
    if layout.explain is None:
        raise InvalidInput(
            "This domain explains no answers.", hint="Ask without `explain`, or set `mcq.explain` in its domain.yaml."
        )
    return (layout.passage if with_passage else "") + layout.explain


def explain_variables(item: McqItem, labels: Sequence[str], chosen: int) -> dict[str, str]:
    """The values that `explain_template` takes; explanations are read by the client, so they speak its labels."""
    lines = [f"{label}) {text}" for label, text in zip(labels, item.options, strict=True)]
    values = {"question": item.question, "options": "\n".join(lines), "answer": lines[chosen]}
    return {**values, "passage": item.passage} if item.passage else values


def mcq_candidates(domain: Domain, item: McqItem) -> tuple[str, ...]:
    """What the assistant may answer, one per option: labels or option texts."""
    return item.labels if require_mcq(domain).scoring is Scoring.LETTERS else item.options


def require_mcq(domain: Domain) -> McqLayout:
    """Returns the domain's layout or raises `InvalidInput`."""
    if domain.mcq is None:
        raise InvalidInput(
            f"Domain {domain.name!r} has no multiple choice.",
            code="no_mcq",
            hint="Add an `mcq` section to its domain.yaml, e.g. `mcq: {scoring: options}`.",
        )
    return domain.mcq
