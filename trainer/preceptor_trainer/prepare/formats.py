"""One row of any known format becomes a record. Start at `Converter.convert`.

Each row is recognised by its own columns, so a file may mix formats. Rows with `kind` are ours and are held to our
contract; of any other row the columns that are known are used, and the rest are named in the report.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.frozen import describe
from preceptor_contracts.mcq import LABELS, read_choices
from preceptor_contracts.records import RECORDS, Record
from pydantic import ValidationError

from preceptor_trainer.prepare.answers import Asked, Counting, find_answer, is_number, settle_counting
from preceptor_trainer.prepare.cleaning import HALF_PAIR

Cells = Mapping[str, object]
"""A row's values by `column_name`."""

DEFAULT_TOPIC = "general"
_ASKED = ("instruction", "prompt", "question", "query", "user", "input", "q")
_ANSWERED = ("completion", "response", "answer", "output", "assistant", "reply", "a")
_INPUT = ("input", "context")
_RIGHT = ("answer", "correct_answer", "correct_option", "correct", "answer_key", "answerkey", "answer_index")
_RIGHT_TOO = ("answer_idx", "label", "target", "solution", "cop")
_LISTED = ("options", "choices")
_TURNS = ("messages", "conversations", "conversation")
_ABOUT: dict[str, tuple[str, ...]] = {
    "id": ("id", "uid", "record_id", "question_id"),
    "topic": ("topic", "category", "subject", "skill"),
    "source": ("source", "reference"),
    "fact": ("fact",),
}
_MCQ_TOO: dict[str, tuple[str, ...]] = {
    "passage": ("passage", "context"),
    "explanation": ("explanation", "rationale", "exp"),
}
_LETTERED = re.compile(r"^(?:(?:option|choice|answer|op)_?)?([a-j])$")
_NUMBERED = re.compile(r"^(?:option|choice)_?(\d{1,2})$")
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
}
KNOWN_COLUMNS = frozenset(
    [*_ASKED, *_ANSWERED, *_INPUT, *_RIGHT, *_RIGHT_TOO, *_LISTED, *_TURNS, "kind", "option_a", "option_b", "b"]
    + [name for names in (*_ABOUT.values(), *_MCQ_TOO.values()) for name in names]
)
EXPECTED = (
    "question + answer; prompt + completion; instruction + output (and input); messages; conversations; "
    "question + options (or A, B, C, D) + answer; or our own records with kind"
)


class Converted(NamedTuple):
    """A record and how it was come by."""

    record: Record
    format: str
    unused: tuple[str, ...]
    """Columns that hold something and were not used."""


def column_name(name: object) -> str:
    """One spelling of a column's name: `Option A`, `option-a` and `OPTION_A` are one column."""
    return str(name).strip().casefold().replace(" ", "_").replace("-", "_")


class Converter:
    """Turns the rows of one file into records.

    Args:
        values: Reads the file's rows anew; called once, and only if an answer is a number.
    """

    def __init__(self, values: Callable[[], Iterator[object]]) -> None:
        self._values = values

    @cached_property
    def counting(self) -> Counting:
        """What numbers in the answer column mean."""

        def asked() -> Iterator[Asked]:
            for value in self._values():
                if not isinstance(value, dict) or "kind" in value:
                    continue
                try:
                    cells = _cells(value)
                    if not _has_options(cells):
                        continue
                    options, answer, _ = _choices(cells)
                except ValueError:
                    continue
                yield Asked(options, answer)

        return settle_counting(asked())

    def convert(self, value: object, number: int) -> Converted:
        """Turns a row into a record.

        Args:
            value: Normalised.
            number: Where the row stands; its id where it has none.

        Raises:
            ValueError: It cannot be one; the text names the field.
        """
        if not isinstance(value, dict):
            raise ValueError(f"a row must be an object with named fields, not {_kind_of(value)}")
        _refuse_half_pairs(value)
        if "kind" in value:
            given = {key: item for key, item in value.items() if item is not None and item != ""}
            return Converted(_validated(given), "records", ())
        cells = _cells(value)
        made, name, used = self._recognise(cells)
        for field, columns in _ABOUT.items():
            if column := _first(cells, columns):
                used |= {column}
                if not _is_nan(cells[column]):
                    made[field] = _text(cells, column)
        made.setdefault("topic", DEFAULT_TOPIC)
        made.setdefault("id", f"row-{number:06}")
        unused = sorted(column for column in cells.keys() - used if not _is_empty(cells[column]))
        return Converted(_validated(made), name, tuple(unused))

    def _recognise(self, cells: Cells) -> tuple[dict[str, object], str, set[str]]:
        """Finds a row's format: what it says of the record, the format's name, and the columns used."""
        for column in _TURNS:
            if not _is_empty(cells.get(column)):
                turns = _turns(cells[column], column)
                name = "messages" if column == "messages" else "sharegpt"
                system = [] if column == "messages" or _is_empty(cells.get("system")) else ["system"]
                begin = [{"role": "system", "content": _text(cells, "system")}] if system else []
                return {"kind": "chat", "messages": [*begin, *turns]}, name, {column, *system}
        if _has_options(cells):
            return self._multiple_choice(cells)
        asked, answered = _first(cells, _ASKED), _first(cells, _ANSWERED)
        if asked is None or answered is None:
            raise (
                _lacks("nothing that asks", cells, _ASKED) if asked is None else _lacks("no answer", cells, _ANSWERED)
            )
        if isinstance(cells[asked], list) or isinstance(cells[answered], list):
            turns = [*_turns(cells[asked], asked), *_turns(cells[answered], answered, role="assistant")]
            return {"kind": "chat", "messages": turns}, "messages", {asked, answered}
        if asked == "instruction":
            return _alpaca(cells, answered)
        made: dict[str, object] = {"kind": "prompt_completion", "completion": _text(cells, answered)}
        passage = _first(cells, _MCQ_TOO["passage"])
        made["prompt"] = f"{_text(cells, passage)}\n\n{_text(cells, asked)}" if passage else _text(cells, asked)
        return made, "prompt/completion", {asked, answered, *([passage] if passage else [])}

    def _multiple_choice(self, cells: Cells) -> tuple[dict[str, object], str, set[str]]:
        asked = _first(cells, _ASKED)
        if asked is None:
            raise _lacks("no question", cells, _ASKED)
        options, answer, used = _choices(cells)
        counting = self.counting if is_number(answer) else Counting.TEXT
        right = find_answer(Asked(options, answer), counting)
        made: dict[str, object] = {"kind": "mcq", "question": _text(cells, asked), "options": options, "answer": right}
        used |= {asked}
        for field, columns in _MCQ_TOO.items():
            if (column := _first(cells, columns)) and column not in used:
                made[field] = _text(cells, column)
                used |= {column}
        if cells.get("difficulty") in ("easy", "medium", "hard"):
            made["difficulty"] = cells["difficulty"]
            used |= {"difficulty"}
        return made, "multiple choice", used


def _alpaca(cells: Cells, answered: str) -> tuple[dict[str, object], str, set[str]]:
    made: dict[str, object] = {"kind": "instruction", "instruction": _text(cells, "instruction")}
    made["output"] = _text(cells, answered)
    used = {"instruction", answered}
    if column := _first(cells, _INPUT):
        made["input"] = _text(cells, column)
        used |= {column}
    return made, "alpaca", used


def _validated(given: Mapping[str, object]) -> Record:
    try:
        return RECORDS.validate_python(given)
    except ValidationError as error:
        raise ValueError(describe(error)) from error


def _cells(value: Mapping[str, object]) -> dict[str, object]:
    return {column_name(name): item for name, item in value.items()}


def _is_empty(value: object) -> bool:
    return value is None or value == "" or value == []


def _first(cells: Cells, names: Sequence[str]) -> str | None:
    """The first of some columns that holds something."""
    return next((name for name in names if not _is_empty(cells.get(name))), None)


def _lacks(what: str, cells: Cells, names: Sequence[str]) -> ValueError:
    if empty := next((name for name in names if name in cells), None):
        return ValueError(f"{empty}: empty")
    return ValueError(f"{what} in columns {_listed(cells)}; expected {EXPECTED}")


def _listed(cells: Cells) -> str:
    return ", ".join(repr(name) for name in list(cells)[:12]) or "(all empty)"


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _text(cells: Cells, column: str) -> str:
    try:
        return _plain(cells[column])
    except ValueError as error:
        raise ValueError(f"{column}: {error}") from None


def _plain(value: object) -> str:
    """A text or number as text."""
    if isinstance(value, str):
        if value.casefold() == "nan":
            raise ValueError("NaN, which is no value; fill the cell or take the row out")
        if not value:
            raise ValueError("empty")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"text is wanted, not {_kind_of(value)}")
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("NaN or infinite, which is no value; fill the cell or take the row out")
        return repr(int(value)) if value.is_integer() else repr(value)
    return repr(value)


def _kind_of(value: object) -> str:
    names = {"dict": "an object", "list": "a list", "bool": "true or false", "NoneType": "null", "str": "a text"}
    return names.get(type(value).__name__, f"a {type(value).__name__}")


def _unpacked(value: object, column: str) -> object:
    """A cell of CSV may hold JSON."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError as error:
            raise ValueError(f"{column}: begins like JSON, but is not: {error}") from error
    return value


def _turns(value: object, column: str, *, role: str = "user") -> list[dict[str, str]]:
    """Turns of a conversation, in OpenAI's spelling or ShareGPT's; a text alone is one turn of `role`."""
    value = _unpacked(value, column)
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list):
        raise ValueError(f"{column}: a list of turns is wanted, not {_kind_of(value)}")
    turns = []
    for at, turn in enumerate(value):
        if not isinstance(turn, dict):
            raise ValueError(f"{column}.{at}: a turn must be an object, not {_kind_of(turn)}")
        said = turn.get("role", turn.get("from"))
        if said not in _ROLES:
            raise ValueError(f"{column}.{at}: role {said!r} is not one of {', '.join(_ROLES)}")
        if turn.get("tool_calls") or turn.get("function_call"):
            raise ValueError(f"{column}.{at}: calls of tools cannot be trained on")
        turns.append({"role": _ROLES[said], "content": _said(turn, f"{column}.{at}")})
    return turns


def _said(turn: Mapping[str, object], place: str) -> str:
    name = next((name for name in ("content", "value", "text") if turn.get(name) is not None), None)
    if name is None:
        raise ValueError(f"{place}: nothing is said; expected content (or value)")
    value = turn[name]
    if isinstance(value, list):
        parts = [part.get("text") for part in value if isinstance(part, dict) and part.get("type") == "text"]
        texts = [text for text in parts if isinstance(text, str)]
        if len(texts) != len(value):
            raise ValueError(f"{place}.{name}: only parts of type text can be trained on")
        value = "\n".join(texts)
    return _text({f"{place}.{name}": value}, f"{place}.{name}")


def _has_options(cells: Cells) -> bool:
    return _first(cells, _LISTED) is not None or len(_option_columns(cells)) >= 2


def _option_columns(cells: Cells) -> list[str]:
    """Columns A, B, ... or option_1, option_2, ..., in order."""
    for pattern in (_LETTERED, _NUMBERED):
        found = {match[1]: name for name in cells if not _is_empty(cells[name]) and (match := pattern.match(name))}
        if len(found) >= 2:
            return [found[key] for key in sorted(found, key=lambda key: (len(key), key))]
    return []


def _choices(cells: Cells) -> tuple[list[str], str, set[str]]:
    """Options without their labels, what is said of the right one, and the columns used."""
    if listed := _first(cells, _LISTED):
        options, used = _listed_options(_unpacked(cells[listed], listed), listed), {listed}
    else:
        columns = _option_columns(cells)
        options, used = [_text(cells, column) for column in columns], set(columns)
        _refuse_gap(columns)
    right = _first(cells, (*_RIGHT, *_RIGHT_TOO))
    if right is None:
        raise _lacks("no answer", cells, (*_RIGHT, *_RIGHT_TOO))
    plain, answer = _without_labels(options), _text(cells, right)
    # "A) Paris" may be the answer as well as the option.
    return plain, plain[options.index(answer)] if answer in options else answer, used | {right}


def _refuse_gap(columns: Sequence[str]) -> None:
    letters = [match[1] for name in columns if (match := _LETTERED.match(name))]
    if letters and letters != [label.casefold() for label in LABELS[: len(letters)]]:
        raise ValueError(f"an option before {columns[-1]!r} is empty")


def _listed_options(value: object, column: str) -> list[str]:
    if isinstance(value, dict):
        # {"text": [...], "label": [...]}, or {"A": ..., "B": ...}.
        value = value["text"] if isinstance(value.get("text"), list) else [value[key] for key in sorted(value)]
    if isinstance(value, str):
        value = value.split("\n") if "\n" in value else value.split("|")
    if not isinstance(value, list):
        raise ValueError(f"{column}: a list of options is wanted, not {_kind_of(value)}")
    texts = [item.get("text") if isinstance(item, dict) else item for item in value]
    return [
        _text({f"{column}.{at}": item.strip() if isinstance(item, str) else item}, f"{column}.{at}")
        for at, item in enumerate(texts)
    ]


def _without_labels(options: list[str]) -> list[str]:
    """Takes off `A) `, `B) `, ... where every option has its own."""
    try:
        choices = read_choices(tuple(options))
    except InvalidInput:
        return options
    in_order = tuple(choice.label for choice in choices) == LABELS[: len(options)]
    return [choice.text for choice in choices] if in_order else options


def _refuse_half_pairs(value: object, place: str = "") -> None:
    if isinstance(value, str):
        if not value.isascii() and HALF_PAIR.search(value):
            raise ValueError(f"{place}: holds half a surrogate pair, which is no character")
    elif isinstance(value, list):
        for at, item in enumerate(value):
            _refuse_half_pairs(item, f"{place}.{at}" if place else str(at))
    elif isinstance(value, dict):
        for key, item in value.items():
            _refuse_half_pairs(key, "a column's name")
            _refuse_half_pairs(item, f"{place}.{key}" if place else str(key))
