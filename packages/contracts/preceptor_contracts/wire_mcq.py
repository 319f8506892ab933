"""HTTP shapes of `POST /v1/mcq`: up to 256 multiple-choice items in one request."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.frozen import Frozen
from preceptor_contracts.mcq import (
    MAX_OPTIONS,
    McqItem,
    Scoring,
    read_choices,
    require_count,
    require_distinct,
    require_own_labels,
)
from preceptor_contracts.messages import Text
from preceptor_contracts.report import Share
from preceptor_contracts.wire import Problem

MAX_ITEMS = 256


class Debias(StrEnum):
    """What is done against a liking for a place in the list of options."""

    NONE = "none"
    CYCLIC = "cyclic"
    """Every rotation of the options is asked and the probabilities are averaged."""


class McqOption(Frozen):
    """An option with the client's own label."""

    label: Annotated[Text, Field(max_length=40)]
    """Any word: "A", "ii", "Yes"."""
    text: Annotated[Text, Field(max_length=20_000)]
    """What it says."""

    @property
    def written(self) -> str:
        """The option as the client wrote it."""
        return self.text


class _WrittenOption(McqOption):
    """An option that came as one text, with or without a label in it."""

    as_text: str

    @property
    def written(self) -> str:
        return self.as_text


def _from_texts(value: object) -> object:
    """Turns a list of texts into options; whatever is neither that nor a list is left to pydantic to refuse."""
    if not isinstance(value, list | tuple):
        return value
    require_count(len(value), "options")
    are_texts = [isinstance(one, str) for one in value]
    if not any(are_texts):
        return value
    if not all(are_texts):
        raise InvalidInput(
            "options mixes texts and objects.", code="choices_mixed", hint='Send texts, or {"label", "text"} for all.'
        )
    read = read_choices(tuple(value), "options")
    return tuple(_WrittenOption(label=one.label, text=one.text, as_text=one.written) for one in read)


def _own_labels_and_texts(options: tuple[McqOption, ...]) -> tuple[McqOption, ...]:
    require_own_labels([option.label for option in options])
    require_distinct([option.text for option in options])
    return options


_TwoToTen = Field(min_length=2, max_length=MAX_OPTIONS)
Options = Annotated[
    tuple[McqOption, ...],
    BeforeValidator(
        _from_texts,
        json_schema_input_type=Annotated[list[Text], _TwoToTen] | Annotated[list[McqOption], _TwoToTen],
    ),
    AfterValidator(_own_labels_and_texts),
]


def _sayable(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"not text: {error.reason}") from error
    return value


class McqAsked(Frozen):
    """One item of a request."""

    id: Annotated[str, Field(max_length=200), AfterValidator(_sayable)] | None = None
    """The client's own; comes back with the answer."""
    passage: Annotated[str, AfterValidator(_sayable)] = ""
    """Text that the question is about; items that share one share the engine's prefix cache."""
    question: Text
    """The question."""
    options: Options
    """2 to 10 texts, with labels (`"A) ..."`) or without, or as many `{"label", "text"}`."""

    @property
    def item(self) -> McqItem:
        """The item as prompts are made of it; its labels are the layout's, for adapters were trained on those."""
        texts = tuple(option.text for option in self.options)
        return McqItem(question=self.question, options=texts, passage=self.passage.strip())


def _at_least_one(items: tuple[McqAsked, ...]) -> tuple[McqAsked, ...]:
    # Not `min_length`: pydantic counts the good items, so that one bad item would be told as "no items" too.
    if not items:
        raise ValueError(f"send 1 to {MAX_ITEMS} items")
    return items


class McqListRequest(Frozen):
    """`POST /v1/mcq`."""

    domain: str | None = None
    """Asks the domain's promoted adapter, or its base model where none is promoted."""
    model: str | None = None
    """An exact served name, in place of `domain`."""
    items: Annotated[
        tuple[McqAsked, ...],
        Field(max_length=MAX_ITEMS, json_schema_extra={"minItems": 1}),
        AfterValidator(_at_least_one),
    ]
    """1 to 256 of them."""
    debias: Debias = Debias.NONE
    """`cyclic` costs as many times as much as there are options."""
    abstain_below: Share | None = None
    """Where the best option's probability is below this, `answer` is null."""
    explain: bool = False
    """One item only: the answer, then an explanation, as server-sent events."""

    @field_validator("explain")
    @classmethod
    def _explains_one_item(cls, explain: bool, info: ValidationInfo) -> bool:
        if explain and len(info.data.get("items", ())) > 1:
            raise ValueError("only one item can be explained at a time")
        return explain


class OptionDetail(Frozen):
    """What was measured of one option, so that others can check the choice."""

    label: str
    """The client's, or A, B, ... where it gave none."""
    probability: Share
    """Share among the options."""
    logprob: float
    """Natural log. Scoring `options`: sum over the text's tokens, without the end of turn. Scoring `letters`: the
    label's as the first token; with cyclic debiasing, of its mean probability over the rotations."""
    end_logprob: float | None
    """Of the end of turn after the text; null for scoring `letters`."""
    tokens: int
    """Tokens of the text, without the end of turn; 1 for scoring `letters`."""


class McqResult(Frozen):
    """An item's answer."""

    index: int
    """Position in the request, from 0."""
    id: str | None
    """The client's own."""
    answer: str | None
    """Label of the chosen option; null where it abstained."""
    abstained: bool
    """The best option was below `abstain_below`."""
    best: str
    """Label of the most probable option, abstained or not."""
    choice: str | None
    """The chosen option as the client wrote it; null where it abstained."""
    probabilities: dict[str, Share]
    """By label; they add up to 1."""
    off_option_mass: Share
    """Probability that a free answer would have been none of the options."""
    margin: Share
    """Best probability less the second best."""
    scoring: Scoring
    """How the options were scored."""
    flip_rate: Share | None
    """With cyclic debiasing: share of rotations whose own choice differs from the averaged one. Null without."""
    options: tuple[OptionDetail, ...]
    """In the client's order."""
    prompt_tokens: int
    """Tokens of the prompt and, for scoring `options`, of the options; rotations add up."""
    cached_tokens: int | None
    """Of these, what the engine had in its prefix cache; null where it does not say."""
    safety: tuple[str, ...] = ()
    """Messages of the safety rules that the item set off."""


class McqFailure(Frozen):
    """An item that the engine could not answer; the others are not touched by it."""

    index: int
    """Position in the request, from 0."""
    id: str | None
    """The client's own."""
    error: Problem
    """What went wrong."""
    hint: str = ""
    """The way out."""


class McqUsage(Frozen):
    """Totals over all items that were answered."""

    prompt_tokens: int
    """Tokens that the engine was sent."""
    cached_tokens: int | None
    """Null where the engine does not say."""


class McqListAnswer(Frozen):
    """Answer to `POST /v1/mcq`."""

    results: tuple[McqResult | McqFailure, ...]
    """One per item, in order."""
    usage: McqUsage
    """Totals."""
    served: str
    """The served name that answered."""
    adapter: str | None
    """The adapter that answered; null for the base model."""
    domain: str
    """The domain whose prompt was used."""
    debias: Debias
    """As asked."""
    disclaimer: str = ""
    """The domain's."""
    request_id: str
    """As in the header `x-request-id`."""
