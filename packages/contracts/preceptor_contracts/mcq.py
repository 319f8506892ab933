"""A multiple-choice item and how people write one."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.frozen import Frozen
from preceptor_contracts.messages import Text

MAX_OPTIONS = 10
LABELS = tuple(string.ascii_uppercase[:MAX_OPTIONS])


class Scoring(StrEnum):
    """How an option is chosen. The manifest or the domain says which; a request never does."""

    LETTERS = "letters"
    """One prefill; the label tokens' probabilities. For base models that bind letters (about 1.5B and up)."""
    OPTIONS = "options"
    """Each option's text scored as the answer, by mean log-probability a token. For small base models."""


def require_distinct(options: Sequence[str]) -> None:
    """Refuses options that are the same but for case and white space.

    Raises:
        ValueError: One stands there twice.
    """
    seen: set[str] = set()
    for option in options:
        folded = " ".join(option.casefold().split())
        if folded in seen:
            raise ValueError(f"option {option!r} stands there twice")
        seen.add(folded)


class McqItem(Frozen):
    """One question with 2 to 10 options; labels are positional (A, B, ...)."""

    question: Text
    """The question."""
    options: Annotated[tuple[Text, ...], Field(min_length=2, max_length=MAX_OPTIONS)]
    """2 to 10 texts without labels, no two the same."""
    passage: str = ""
    """Text that the question is about; may be empty."""

    @field_validator("options")
    @classmethod
    def _distinct(cls, options: tuple[str, ...]) -> tuple[str, ...]:
        require_distinct(options)
        return options

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels in use, one per option."""
        return LABELS[: len(self.options)]


class AnsweredMcq(McqItem):
    """An item whose right option is known."""

    answer: Annotated[int, Field(ge=0)]
    """0-based index of the right option."""

    @model_validator(mode="after")
    def _answer_exists(self) -> AnsweredMcq:
        if self.answer >= len(self.options):
            raise ValueError(f"answer {self.answer} is not the index of one of {len(self.options)} options")
        return self


# "A) text", "(b) text", "C. text", "D: text"; a bare letter followed by a word is text, not a label.
_LABELLED = re.compile(r"^\s*\(?(?P<label>[A-Za-z])\s*[).:]\s*(?P<text>.*)$", re.DOTALL)


class LabelledChoice(Frozen):
    """A choice as a client wrote it."""

    label: str
    text: str
    written: str


def require_count(count: int, field: str = "choices") -> None:
    """Refuses anything but 2 to 10 options.

    Raises:
        InvalidInput: Too few or too many.
    """
    if not 2 <= count <= MAX_OPTIONS:
        raise InvalidInput(
            f"{field} holds {count} entries.", code="choices_count", hint=f"Send 2 to {MAX_OPTIONS} {field}."
        )


def require_own_labels(labels: Sequence[str]) -> None:
    """Refuses a label that two options share.

    Raises:
        InvalidInput: A label is used twice.
    """
    for label in labels:
        if labels.count(label) > 1:
            raise InvalidInput(
                f"label {label!r} is used by {labels.count(label)} choices.",
                code="duplicate_label",
                hint="Give every choice its own label.",
            )


def read_choices(choices: tuple[str, ...], field: str = "choices") -> tuple[LabelledChoice, ...]:
    """Splits choices such as `"A) Paris"` into label and text; unlabelled ones get A, B, ... by position.

    Labels begin with A, so that a first choice such as "E. coli" is text.

    Raises:
        InvalidInput: Too few or too many, an empty text, a label used twice, or labelled and unlabelled ones mixed.
    """
    require_count(len(choices), field)
    matches = [_LABELLED.match(choice) for choice in choices]
    if matches[0] and matches[0]["label"].upper() != LABELS[0]:
        # "E. coli", "S. aureus": a list that does not begin with A has no labels.
        matches = [None] * len(choices)
    labelled = [match is not None for match in matches]
    if any(labelled) and not all(labelled):
        bare = choices[labelled.index(False)]
        raise InvalidInput(
            f"{field} mixes labelled and unlabelled entries; {bare!r} has no label.",
            code="choices_mixed",
            hint="Label all of them ('A) ...', 'B) ...') or none.",
        )
    read = []
    for position, (choice, match) in enumerate(zip(choices, matches, strict=True)):
        label = match["label"].upper() if match else LABELS[position]
        text = (match["text"] if match else choice).strip()
        if not text:
            raise InvalidInput(f"choice {choice!r} has no text.", code="choice_empty", hint="Give every choice a text.")
        read.append(LabelledChoice(label=label, text=text, written=choice))
    require_own_labels([choice.label for choice in read])
    return tuple(read)
