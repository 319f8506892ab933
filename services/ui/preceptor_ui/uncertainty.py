"""Probabilities as sentences for people. Pure; the multiple-choice tab shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from preceptor_contracts.mcq import Scoring
from preceptor_contracts.wire import McqAnswer

VERY_SURE = 0.9
"""Share for the best option from which an answer is called very sure."""
FAIRLY_SURE = 0.6
CLEAR_MARGIN = 0.25
"""Best share less the second best, below which no answer is called sure."""
MUCH_OFF = 0.5
"""Share off the options from which the reader is warned."""


class Ranked(NamedTuple):
    """An option's label and its share."""

    label: str
    share: float


def percent(share: float) -> str:
    """Writes a share as `82 %`; never rounds a possibility to none or to certainty."""
    if 0 < share < 0.01:
        return "under 1 %"
    if 0.99 < share < 1:
        return "over 99 %"
    return f"{round(share * 100)} %"


def ranked(probabilities: Mapping[str, float]) -> tuple[Ranked, ...]:
    """Sorts options from likely to unlikely; ties keep their order."""
    return tuple(sorted((Ranked(*pair) for pair in probabilities.items()), key=lambda option: -option.share))


def how_sure(answer: McqAnswer) -> str:
    """Says in one sentence how far the answer can be told from the next best."""
    others = [option for option in ranked(answer.probabilities) if option.label != answer.answer]
    best = answer.probabilities.get(answer.answer, 0.0)
    if not others:
        return f"{percent(best)} for {answer.answer}."
    following = others[0]
    rest = f"{percent(best)} for {answer.answer}; the next best is {following.label} with {percent(following.share)}."
    is_clear = answer.margin >= CLEAR_MARGIN
    if best >= VERY_SURE and is_clear:
        return f"Very sure: {rest}"
    if best >= FAIRLY_SURE and is_clear:
        return f"Fairly sure: {rest}"
    return f"Unsure: {rest}"


def how_scored(answer: McqAnswer) -> str:
    """Says in one sentence what the percentages are and what fell off the options."""
    off = percent(answer.off_option_mass)
    if answer.scoring is Scoring.OPTIONS:
        sentence = "Scoring 'options': each option's text was weighed as the answer, and the percentages compare them"
        return f"{sentence}; {off} fell outside the options." if answer.off_option_mass else f"{sentence}."
    sentence = (
        "Scoring 'letters': the percentages compare the option letters; "
        f"{off} of the probability fell on something that is no option"
    )
    return f"{sentence}, so read them with care." if answer.off_option_mass >= MUCH_OFF else f"{sentence}."
