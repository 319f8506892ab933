"""What the fake answers, spelled as vLLM 0.32 spells it: whole and streamed, chat and plain, logprobs and usage."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Json = dict[str, Any]
Logprobs = Callable[[Sequence[int]], Sequence[float]]
"""Log-probabilities of the next token behind a prefix, over the whole vocabulary."""
PLAIN_TOKENS = 16
"""Tokens of a plain completion whose request names no `max_tokens`."""
_T = TypeVar("_T")
_Some = Annotated[list[_T], Field(min_length=1)]
_Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class _StreamOptions(BaseModel):
    include_usage: bool | None = True


class _Asked(BaseModel):
    """Fields that both kinds of request share, as strict as vLLM's own classes are; the rest passes."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | list[str] | None = None
    structured_outputs: Json | None = None
    response_format: Json | None = None
    logprob_token_ids: list[int] | None = None
    prompt_logprobs: int | None = None


class ChatAsked(_Asked):
    """A chat request."""

    messages: list[Json]
    n: Annotated[int, Field(ge=1)] | None = 1
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = 0
    tools: list[Json] | None = None
    tool_choice: Any = None


class PlainAsked(_Asked):
    """A request for plain completions."""

    prompt: _Ids | _Some[_Ids] | Annotated[str, Field(min_length=1)] | _Some[str]
    echo: bool | None = False
    n: Annotated[int, Field(ge=1)] = 1
    max_tokens: Annotated[int, Field(ge=0)] | None = PLAIN_TOKENS
    logprobs: Annotated[int, Field(ge=-1)] | None = None

    @property
    def prompts(self) -> list[list[int]]:
        """Token ids of each prompt."""
        if isinstance(self.prompt, str):
            return [list(self.prompt.encode())]
        if all(isinstance(one, int) for one in self.prompt):
            return [list(self.prompt)]  # type: ignore[arg-type]  # all of them are ids
        return [list(one.encode()) if isinstance(one, str) else list(one) for one in self.prompt]  # type: ignore[arg-type]  # texts or lists of ids here


QUEUE_MS = 0.25
"""What the fake says of its queue, which it has not."""


class Usage(NamedTuple):
    """Token counts of an answer."""

    prompt: int
    completion: int
    cached: int | None

    def json(self) -> Json:
        """As vLLM writes it with `--enable-prompt-tokens-details`."""
        counts = {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        }
        return {**counts, "prompt_tokens_details": {"cached_tokens": self.cached}}

    def told(self, *, alone: bool) -> Json:
        """The answer's last fields, as vLLM writes them with `--enable-per-request-metrics`.

        Args:
            alone: One prompt and one choice; of several it tells no time.
        """
        return {"usage": self.json(), "metrics": {"queue_time_ms": QUEUE_MS} if alone else None}


def text_of(ids: Sequence[int]) -> str:
    """Detokenizes; the two specials are left out, as vLLM leaves them out."""
    return bytes(token for token in ids if token < 256).decode(errors="replace")


def instance(schema: Json) -> object:
    """The smallest value that a JSON schema of the common kind allows; what grammar-bound decoding ends in."""
    if "enum" in schema or "const" in schema:
        return schema["const"] if "const" in schema else schema["enum"][0]
    if "anyOf" in schema:
        return instance(schema["anyOf"][0])
    match schema.get("type"):
        case "object":
            return {name: instance(one) for name, one in schema.get("properties", {}).items()}
        case "array":
            return [instance(schema.get("items", {}))] * schema.get("minItems", 0)
        case "integer" | "number":
            return schema.get("minimum", 0)
        case "boolean":
            return False
        case _:
            return "a" * schema.get("minLength", 1)


def constrained(asked: ChatAsked, otherwise: str) -> str:
    """The answer's text: an instance where a constraint binds it."""
    wanted = asked.structured_outputs or {}
    schema = wanted.get("json")
    if asked.response_format and asked.response_format.get("type") == "json_schema":
        schema = asked.response_format["json_schema"]["schema"]
    if schema is not None:
        return json.dumps(instance(json.loads(schema) if isinstance(schema, str) else schema))
    return str(wanted["choice"][0]) if wanted.get("choice") else otherwise


class ChatAnswer:
    """One answer to a chat: every choice says the same.

    Args:
        asked: The request.
        text: What would be said without a limit.
        prompt: Token ids of the prompt.
        logprobs: The fake's distribution.
    """

    def __init__(self, asked: ChatAsked, text: str, prompt: Sequence[int], logprobs: Logprobs) -> None:
        limit = asked.max_completion_tokens or asked.max_tokens
        said = text.encode()
        self.asked = asked
        self.finish = "stop" if limit is None or limit > len(said) else "length"
        self.text = said[:limit].decode(errors="ignore")
        # The token that ends the turn counts.
        self.tokens = min(len(said) + 1, limit or len(said) + 1)
        self._prompt = tuple(prompt)
        self._logprobs = logprobs

    def _content_logprobs(self, start: int, text: str) -> Json | None:
        if not self.asked.logprobs:
            return None
        entries = []
        said = self.text.encode()
        for position in range(start, start + len(text.encode())):
            row = self._logprobs(self._prompt + tuple(said[:position]))
            top = sorted(range(len(row)), key=lambda token: -row[token])[: self.asked.top_logprobs or 0]
            entries.append(
                {**_entry(said[position], row), "top_logprobs": [_entry(token, row) for token in top]},
            )
        return {"content": entries}

    def whole(self) -> list[Json]:
        """Choices of an answer in one piece."""
        return [
            {
                "index": index,
                "message": {"role": "assistant", "content": self.text, "refusal": None, "tool_calls": []},
                "logprobs": self._content_logprobs(0, self.text),
                "finish_reason": self.finish,
                "stop_reason": None,
            }
            for index in range(self.asked.n or 1)
        ]

    def pieces(self) -> Iterator[list[Json]]:
        """Choices of each event of a stream: the role, the words, and why it ended."""
        count = range(self.asked.n or 1)
        first = {"role": "assistant", "content": ""}
        yield [{"index": i, "delta": first, "logprobs": None, "finish_reason": None} for i in count]
        start = 0
        for word in re.findall(r"\s*\S+|\s+", self.text):
            for index in count:
                logprobs = self._content_logprobs(start, word)
                yield [{"index": index, "delta": {"content": word}, "logprobs": logprobs, "finish_reason": None}]
            start += len(word.encode())
        for index in count:
            ended = {"finish_reason": self.finish, "stop_reason": None}
            yield [{"index": index, "delta": {"content": ""}, "logprobs": None, **ended}]


def _entry(token: int, row: Sequence[float]) -> Json:
    return {"token": text_of([token]), "logprob": row[token], "bytes": [token] if token < 256 else []}


class PlainAnswer:
    """The completion of one prompt, greedy, until the end token or the limit.

    Args:
        asked: The request.
        prompt: Token ids of the prompt.
        logprobs: The fake's distribution.
        end: The token that ends an answer.
    """

    def __init__(self, asked: PlainAsked, prompt: Sequence[int], logprobs: Logprobs, end: int) -> None:
        self.asked = asked
        self._prompt = tuple(prompt)
        self._row = logprobs
        limit = PLAIN_TOKENS if asked.max_tokens is None else asked.max_tokens
        ids: list[int] = []
        while len(ids) < limit and end not in ids:
            row = logprobs((*self._prompt, *ids))
            ids.append(max(range(len(row)), key=row.__getitem__))
        self.ids = tuple(ids)
        self.finish = "stop" if end in ids else "length"

    def _step(self, prefix: tuple[int, ...], token: int, count: int) -> dict[int, float]:
        """The token's log-probability, then those of the likeliest."""
        row = self._row(prefix)
        top = sorted(range(len(row)), key=lambda one: -row[one])[: len(row) if count < 0 else count]
        return {one: row[one] for one in (token, *top)}

    def _logprobs(self, ids: Sequence[int], steps: Sequence[dict[int, float] | None], offset: int = 0) -> Json:
        as_ids = (self.asked.model_extra or {}).get("return_tokens_as_token_ids")

        def spelled(token: int) -> str:
            return f"token_id:{token}" if as_ids else text_of([token])

        tokens = [spelled(token) for token in ids]
        offsets = [offset + sum(map(len, tokens[:position])) for position in range(len(tokens))]
        most = len(self._row(())) if self.asked.logprob_token_ids else (self.asked.logprobs or 0)
        return {
            "text_offset": offsets,
            "token_logprobs": [step and step[token] for token, step in zip(ids, steps, strict=True)],
            "tokens": tokens,
            "top_logprobs": [
                step and {spelled(token): value for at, (token, value) in enumerate(step.items()) if at <= most}
                for step in steps
            ],
        }

    def _said(self) -> list[dict[int, float] | None]:
        steps: list[dict[int, float] | None] = []
        for position, token in enumerate(self.ids):
            prefix = (*self._prompt, *self.ids[:position])
            if wanted := self.asked.logprob_token_ids:
                row = self._row(prefix)
                steps.append({one: row[one] for one in (token, *wanted)})
            else:
                steps.append(self._step(prefix, token, self.asked.logprobs or 0))
        return steps

    def _read(self, count: int) -> list[dict[int, float] | None]:
        """A step for each token of the prompt; nothing stands before the first."""
        steps = [self._step(self._prompt[:at], self._prompt[at], count) for at in range(1, len(self._prompt))]
        return [None, *steps]

    def whole(self, index: int) -> Json:
        """The choice of an answer in one piece."""
        echoed = self._prompt if self.asked.echo else ()
        choice: Json = {
            "index": index,
            "text": text_of((*echoed, *self.ids)),
            "logprobs": None,
            "finish_reason": self.finish,
            "stop_reason": None,
            "prompt_logprobs": None,
        }
        # vLLM reads the prompt's logprobs for an echo that asks for logprobs, and shows them twice.
        read = self.asked.prompt_logprobs
        if read is None and self.asked.echo:
            read = self.asked.logprobs
        if read is not None:
            choice["prompt_logprobs"] = [step and _ranked(step) for step in self._read(read)]
        if self.asked.logprobs is not None:
            steps = [*(self._read(self.asked.logprobs) if self.asked.echo else []), *self._said()]
            choice["logprobs"] = self._logprobs((*echoed, *self.ids), steps)
        return choice

    def pieces(self, index: int) -> Iterator[Json]:
        """The choices of a stream's events, a token each; an echo comes with the first."""
        offset = 0
        if not self.ids:
            yield self.whole(index)
        for position, token in enumerate(self.ids):
            ids, steps = [token], self._said()[position : position + 1]
            if self.asked.echo and position == 0:
                ids, steps = [*self._prompt, token], [*self._read(self.asked.logprobs or 0), *steps]
            choice: Json = {"index": index, "text": text_of(ids), "logprobs": None, "finish_reason": None}
            if self.asked.logprobs is not None:
                choice["logprobs"] = self._logprobs(ids, steps, offset)
                offset += sum(map(len, choice["logprobs"]["tokens"]))
            if position == len(self.ids) - 1:
                choice |= {"finish_reason": self.finish, "stop_reason": None}
            yield choice


def _ranked(step: dict[int, float]) -> Json:
    ranks = {token: 1 + sum(other > value for other in step.values()) for token, value in step.items()}
    return {
        str(token): {"logprob": value, "rank": ranks[token], "decoded_token": text_of([token])}
        for token, value in step.items()
    }
