"""LangChain and contracts render the same messages, whatever people type."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from preceptor_contracts.domains import Domain, McqLayout
from preceptor_contracts.mcq import McqItem, Scoring
from preceptor_contracts.messages import Message, wire
from preceptor_contracts.prompts import explain_template, explain_variables, render_chat, render_mcq, system_text
from preceptor_gateway.domains.prompts import DomainPrompt
from preceptor_gateway.mcq.explaining import explain_prompt

_text = st.text(min_size=1, max_size=60).filter(lambda text: bool(text.strip())) | st.sampled_from(
    [r"\frac{a}{b} $x^2$", "{question}", "{{x}}", "$HOME %s {0} {", "😀 ﷽ \u202e", '{"json": [1]}', "a\n\nb\t"]
)
_items = st.builds(
    McqItem,
    question=_text,
    passage=st.just("") | _text,
    options=st.lists(_text, min_size=2, max_size=10, unique_by=lambda text: " ".join(text.casefold().split())),
)


def domain(scoring: Scoring) -> Domain:
    return Domain(
        name="any",
        title="t",
        description="d",
        system="Answer {{briefly}} in LaTeX \\alpha $1.",
        mcq=McqLayout(scoring=scoring, passage="Text: {passage}\n", letters="{{q}} {question}\n{options}\n="),
        recipe="any",
        grader="mcq",
    )


@pytest.mark.parametrize("scoring", list(Scoring))
@given(item=_items)
def test_mcq_renderings_agree(scoring: Scoring, item: McqItem) -> None:
    one = domain(scoring)
    assert DomainPrompt(one).mcq(item) == wire(render_mcq(one, item))


@given(item=_items, chosen=st.integers(0, 9))
def test_explanations_agree(item: McqItem, chosen: int) -> None:
    one = domain(Scoring.LETTERS)
    assert one.mcq is not None
    template = explain_prompt(one, with_passage=bool(item.passage))
    variables = explain_variables(item, item.labels, chosen % len(item.options))
    theirs = [str(message.content) for message in template.format_messages(**variables)]
    body = explain_template(one.mcq, with_passage=bool(item.passage))
    assert theirs == [system_text(one), body.format(**variables)]


@given(contents=st.lists(_text, min_size=1, max_size=4), system=st.none() | _text)
def test_chat_renderings_agree(contents: list[str], system: str | None) -> None:
    one = domain(Scoring.LETTERS)
    turns = [Message(role="user" if i % 2 == 0 else "assistant", content=text) for i, text in enumerate(contents)]
    client = [Message(role="system", content=system)] if system else []
    theirs = [DomainPrompt(one).system([system] if system else []), *wire(tuple(turns))]
    assert theirs == wire(render_chat(one, [*client, *turns]))
