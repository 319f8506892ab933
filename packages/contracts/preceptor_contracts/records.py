"""Training records and exam questions: the rows of `train.jsonl` and `exam.jsonl`."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import Field, TypeAdapter, field_validator

from preceptor_contracts.domains import Domain
from preceptor_contracts.frozen import Frozen
from preceptor_contracts.mcq import AnsweredMcq
from preceptor_contracts.messages import Message, Text
from preceptor_contracts.prompts import mcq_candidates, render_chat, render_mcq


class _Row(Frozen):
    id: Text
    topic: Text
    """What the row is about; reports break results down by it."""
    fact: str = ""
    """Id of the fact that the row teaches or asks; may be empty."""
    source: str = ""
    """Public guidance that the fact was checked against; may be empty."""


class _McqRow(AnsweredMcq, _Row):
    explanation: str = ""
    """Why the answer is right and the others are not; shown to learners, never trained on."""
    difficulty: Literal["", "easy", "medium", "hard"] = ""


class ChatRecord(_Row):
    """A conversation that ends with the answer to learn."""

    kind: Literal["chat"]
    messages: Annotated[tuple[Message, ...], Field(min_length=2)]

    @field_validator("messages")
    @classmethod
    def _ends_with_an_answer(cls, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        if messages[-1].role != "assistant":
            raise ValueError(f"the last message must be the assistant's, not the {messages[-1].role}'s")
        if not any(message.role == "user" for message in messages):
            raise ValueError("there is no user message")
        return messages


class InstructionRecord(_Row):
    """Alpaca's shape."""

    kind: Literal["instruction"]
    instruction: Text
    input: str = ""
    output: Text


class PromptCompletionRecord(_Row):
    """A question and the exact answer."""

    kind: Literal["prompt_completion"]
    prompt: Text
    completion: Text
    shape: str = ""
    """For queries: the query with literals replaced by `?`; may be empty."""


class McqRecord(_McqRow):
    """A multiple-choice item with its right answer."""

    kind: Literal["mcq"]


Record = Annotated[ChatRecord | InstructionRecord | PromptCompletionRecord | McqRecord, Field(discriminator="kind")]
RECORDS: TypeAdapter[Record] = TypeAdapter(Record)


class _Question(_Row):
    group: Text
    """Reports give each group its own line, e.g. facts trained in other words against neighbouring facts."""


class McqQuestion(_McqRow, _Question):
    """An exam question graded by the option chosen."""

    kind: Literal["mcq"]


class SqlQuestion(_Question):
    """An exam question graded by executing the expected and the answered query."""

    kind: Literal["sql"]
    question: Text
    query: Text
    shape: str = ""


class ExactQuestion(_Question):
    """An exam question graded by the words of the answer: case, white space and a last full stop do not count."""

    kind: Literal["exact"]
    question: Text
    answer: Text
    accept: tuple[Text, ...] = ()
    """Other answers that are right."""


class Keypoint(Frozen):
    """A thing that an answer must say, or must not."""

    any_of: Annotated[tuple[Text, ...], Field(min_length=1)]
    """Wordings of which one suffices; compared by words, not by letters."""


class KeypointsQuestion(_Question):
    """An exam question graded by what the answer says: every point, and nothing of what is forbidden."""

    kind: Literal["keypoints"]
    question: Text
    points: Annotated[tuple[Keypoint, ...], Field(min_length=1)]
    forbidden: tuple[Text, ...] = ()
    """Wordings that make an answer wrong."""


class JudgeQuestion(_Question):
    """An exam question whose answers a language model compares with each other, in both orders."""

    kind: Literal["judge"]
    question: Text
    reference: str = ""
    """An answer known to be good, shown to the judge; may be empty."""
    criteria: str = ""
    """What the judge shall look at; may be empty."""


Question = Annotated[
    McqQuestion | SqlQuestion | ExactQuestion | KeypointsQuestion | JudgeQuestion, Field(discriminator="kind")
]
QUESTIONS: TypeAdapter[Question] = TypeAdapter(Question)


class Example(NamedTuple):
    """A record as training sees it."""

    prompt: tuple[Message, ...]
    """System first; the last turn is the user's."""
    answer: str


def to_example(domain: Domain, record: Record) -> Example:
    """Normalises any record to the messages that the gateway would send for it, and the answer to learn."""
    if isinstance(record, ChatRecord):
        return Example(render_chat(domain, record.messages[:-1]), record.messages[-1].content)
    if isinstance(record, McqRecord):
        return Example(render_mcq(domain, record), mcq_candidates(domain, record)[record.answer])
    if isinstance(record, InstructionRecord):
        asked = f"{record.instruction}\n\n{record.input}" if record.input.strip() else record.instruction
        return Example(render_chat(domain, [Message(role="user", content=asked)]), record.output)
    return Example(render_chat(domain, [Message(role="user", content=record.prompt)]), record.completion)


def question_prompt(domain: Domain, question: Question) -> tuple[Message, ...]:
    """The messages that an exam question is asked with."""
    if isinstance(question, McqQuestion):
        return render_mcq(domain, question)
    return render_chat(domain, [Message(role="user", content=question.question)])


def asked_text(row: Record | Question) -> str:
    """The words of the user's question, for leak and duplicate checks."""
    if isinstance(row, ChatRecord):
        return next(message.content for message in reversed(row.messages) if message.role == "user")
    if isinstance(row, InstructionRecord):
        return f"{row.instruction} {row.input}".strip()
    if isinstance(row, PromptCompletionRecord):
        return row.prompt
    return row.question
