"""The multiple-choice tab: form, sentences, bars, escaping."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.wire import McqAnswer, McqRequest
from preceptor_ui.catalogue import Catalogue
from preceptor_ui.client import GatewayFailure
from preceptor_ui.fragments import (
    Notice,
    alert,
    answer_markdown,
    domain_header,
    literal_markdown,
    mcq_result,
    safety_banner,
)
from preceptor_ui.multiple_choice import EMPTY_RESULT, EXAMPLE_OPTIONS, McqView, ask, read_form
from preceptor_ui.uncertainty import how_scored, how_sure, percent

EVIL = "<img src=x onerror=alert(1)>\"'&"


def answered(**changes: Any) -> McqAnswer:
    values: dict[str, Any] = {
        "answer": "B",
        "choice": "Grass",
        "probabilities": {"A": 0.11, "B": 0.82, "C": 0.07},
        "off_option_mass": 0.03,
        "margin": 0.71,
        "scoring": "letters",
        "served": "allergy",
        "adapter": "allergy-v1-1a2b3c4d",
        "domain": "allergy",
        "prompt_tokens": 10,
        "request_id": "r",
    }
    return McqAnswer.model_validate(values | changes)


class Fixed:
    """Answers every item with one thing."""

    def __init__(self, outcome: McqAnswer | GatewayFailure) -> None:
        self.outcome = outcome
        self.asked: list[McqRequest] = []

    async def answer(self, request: McqRequest) -> McqAnswer:
        self.asked.append(request)
        if isinstance(self.outcome, GatewayFailure):
            raise self.outcome
        return self.outcome


def press(gateway: Fixed, question: str = "Which?", options: str = "Tree\nGrass\nWeed") -> McqView:
    return asyncio.run(ask(gateway, Catalogue(), "allergy", " passage ", question, options))


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (0.004, "under 1 %"), (0.016, "2 %"), (0.82, "82 %"), (0.996, "over 99 %"), (1, "100 %")],
)
def test_percent_never_rounds_to_certainty(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("shares", "margin", "sentence"),
    [
        ({"A": 0.03, "B": 0.97}, 0.94, "Very sure: 97 % for B; the next best is A with 3 %."),
        ({"A": 0.11, "B": 0.82, "C": 0.07}, 0.71, "Fairly sure: 82 % for B; the next best is A with 11 %."),
        ({"A": 0.35, "B": 0.4, "C": 0.25}, 0.05, "Unsure: 40 % for B; the next best is A with 35 %."),
        ({"B": 1.0}, 1.0, "100 % for B."),
    ],
)
def test_how_sure(shares: dict[str, float], margin: float, sentence: str) -> None:
    assert how_sure(answered(probabilities=shares, margin=margin)) == sentence


def test_how_scored_tells_what_fell_off() -> None:
    assert "3 % of the probability fell on something that is no option." in how_scored(answered())
    assert how_scored(answered(off_option_mass=0.7)).endswith("so read them with care.")
    assert how_scored(answered(scoring="options", off_option_mass=0)).startswith("Scoring 'options'")


def test_form_becomes_a_request() -> None:
    request = read_form("allergy:base", " text ", " Which? ", "\n A) Tree \n\nB) Grass\n")
    expected = {"text": "text", "question": "Which?", "choices": ("A) Tree", "B) Grass"), "model": "allergy:base"}
    assert request.model_dump(exclude_none=True) == expected


@pytest.mark.parametrize(
    ("served", "question", "options", "message"),
    [
        (None, "Which?", "a\nb", "Nothing is chosen"),
        ("allergy", "  ", "a\nb", "question is empty"),
        ("allergy", "Which?", " \n ", "no options"),
    ],
)
def test_empty_fields_are_told_without_asking(served: str | None, question: str, options: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        read_form(served, "", question, options)


def test_answer_is_shown_in_words_with_bars() -> None:
    view = press(Fixed(answered(safety=["CALL 112"])))
    assert "Grass" in view.result
    assert view.result.count("<li") == 3
    assert "width:82.0%" in view.result
    assert "CALL 112" in view.safety


def test_refusal_is_shown_with_its_hint() -> None:
    refusal = GatewayFailure("label 'A' is used by 2 choices.", hint="Give every choice its own label.")
    gateway = Fixed(refusal)
    view = press(gateway, options="A) x\nA) y")
    assert view.notice == Notice("label 'A' is used by 2 choices.", "Give every choice its own label.")
    assert view.result == EMPTY_RESULT
    assert gateway.asked[0].choices == ("A) x", "A) y")


def test_single_option_is_for_the_gateway_to_judge() -> None:
    gateway = Fixed(answered())
    press(gateway, options="only")
    assert gateway.asked[0].choices == ("only",)


def test_example_is_a_proper_item() -> None:
    assert len(read_form("allergy", "", "q", EXAMPLE_OPTIONS).choices) == 4


def test_outside_text_is_escaped() -> None:
    answer = answered(
        answer=EVIL, choice=EVIL, probabilities={EVIL: 1.0}, served=EVIL, adapter=EVIL, disclaimer=EVIL, safety=[EVIL]
    )
    catalogue = Catalogue()
    pieces = [
        mcq_result(answer, (EVIL, "b"), None),
        mcq_result(answered(), (f"A) {EVIL}", f"B) {EVIL}"), None),
        alert(Notice(EVIL, EVIL)),
        safety_banner((EVIL,)),
        domain_header(catalogue, EVIL),
    ]
    for piece in pieces:
        assert "&lt;img" in piece
        assert "<img" not in piece


def test_nothing_to_say_shows_nothing() -> None:
    assert (alert(None), safety_banner(("",)), domain_header(Catalogue(), None)) == ("", "", "")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a < b & c", "a < b & c"),
        ("<script>x</script>", "&lt;script>x&lt;/script>"),
        ("&lt;", "&amp;lt;"),
        ("![p](http://example.org/x.png)", "[p](http://example.org/x.png)"),
        ("`<i>` and\n```\n<b>![x]\n```", "`<i>` and\n```\n<b>![x]\n```"),
        ("```\n<b> still open", "```\n<b> still open"),
    ],
)
def test_answers_cannot_bring_html_or_images(text: str, shown: str) -> None:
    assert answer_markdown(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("What is 3.5 - 2?", "What is 3.5 - 2?"),
        ("*a* <b> $x$", "&#42;a&#42; &#60;b> &#36;x&#36;"),
        ("1. a\n- b\n# c", "1&#46; a\n&#45; b\n&#35; c"),
        ("    code", "\u00a0\u00a0\u00a0\u00a0code"),
    ],
)
def test_questions_are_shown_letter_by_letter(text: str, shown: str) -> None:
    assert literal_markdown(text) == shown
