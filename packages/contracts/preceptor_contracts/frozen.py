"""The base of every model that crosses a boundary, and the reader that turns bad input into sentences."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from preceptor_contracts.errors import InvalidInput


class Frozen(BaseModel):
    """Immutable, and refuses keys that it does not know; a field's docstring is its description in OpenAPI too."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


T = TypeVar("T")


class Line(NamedTuple):
    """One raw line of a JSONL file."""

    number: int
    """1-based line number."""
    value: Any


def describe(error: ValidationError, *, of_settings: bool = False) -> str:
    """Renders every problem of a validation as `field: what is wrong (got value)`, joined by `; `.

    Args:
        error: What pydantic found.
        of_settings: A value with an `@` is not shown, since it may be a URL with a password; nor is the whole input,
            which is the environment, keys included.
    """
    parts = []
    for problem in error.errors(include_url=False):
        field = ".".join(str(step) for step in problem["loc"]) or "(whole)"
        shown = repr(problem["input"]) if problem["type"] != "missing" else "nothing"
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        if of_settings and ("@" in shown or not problem["loc"]):
            shown = "a value that may hold a password"
        message = problem["msg"].removeprefix("Value error, ")
        parts.append(f"{field}: {message} (got {shown})")
    return "; ".join(parts)


def parse(kind: TypeAdapter[T], value: object, *, where: str, hint: str = "") -> T:
    """Validates `value`, or raises `InvalidInput` naming `where`, the field and the value."""
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        raise InvalidInput(f"{where}: {describe(error)}.", hint=hint) from error


def read_text(path: Path) -> str:
    """Reads UTF-8 text; a missing, unreadable or wrongly encoded file becomes `InvalidInput`."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InvalidInput(f"{path} does not exist.", code="file_missing") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read as UTF-8 text: {error}.") from error


def read_yaml(path: Path, kind: type[T]) -> T:
    """Reads one YAML document into `kind`; errors name the file and the field or the line."""
    try:
        value = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise InvalidInput(f"{path}{line}: not valid YAML: {getattr(error, 'problem', error)}.") from error
    return parse(TypeAdapter(kind), value, where=str(path))


def read_json(path: Path, kind: type[T]) -> T:
    """Reads one JSON document into `kind`; errors name the file and the field or the line."""
    try:
        value = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InvalidInput(f"{path} line {error.lineno}: not valid JSON: {error.msg}.") from error
    return parse(TypeAdapter(kind), value, where=str(path))


def read_lines(path: Path) -> Iterator[Line | InvalidInput]:
    """Yields each non-blank JSONL line decoded, or the error that it is, so that callers can report all of them."""
    for number, text in enumerate(read_text(path).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            yield Line(number, json.loads(text))
        except json.JSONDecodeError as error:
            yield InvalidInput(f"{path} line {number}: not valid JSON: {error.msg} at column {error.colno}.")
        except (ValueError, RecursionError) as error:  # an integer of thousands of digits, brackets without end
            yield InvalidInput(f"{path} line {number}: not valid JSON: {error}.")


def read_jsonl(path: Path, kind: TypeAdapter[T], *, shown: int = 10) -> tuple[T, ...]:
    """Reads a JSONL file strictly.

    Raises:
        InvalidInput: One error that lists up to `shown` bad lines, each with line and field, and counts the rest.
    """
    rows: list[T] = []
    problems: list[str] = []
    for line in read_lines(path):
        if isinstance(line, InvalidInput):
            problems.append(line.message)
            continue
        try:
            rows.append(parse(kind, line.value, where=f"{path} line {line.number}"))
        except InvalidInput as error:
            problems.append(error.message)
    if problems:
        more = f"\n... and {len(problems) - shown} more." if len(problems) > shown else ""
        raise InvalidInput(
            "\n".join(problems[:shown]) + more,
            code="invalid_rows",
            hint=f"Mend {len(problems)} line(s) of {path.name} and start again; nothing was written.",
        )
    if not rows:
        raise InvalidInput(f"{path} holds no rows.", hint="Add at least one JSON object per line.")
    return tuple(rows)
