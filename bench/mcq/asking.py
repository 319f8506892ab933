"""Our side, as a client: `/v1/mcq`, and free text parsed for a letter, which is what the SAT seed does."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import httpx
from preceptor_contracts.domains import Domain
from preceptor_contracts.mcq import Scoring
from preceptor_contracts.prompts import render_mcq, require_mcq

from bench.mcq.items import Item
from bench.mcq.load import GENERATED_TOKENS, PROMPTS_IN_FLIGHT

T = TypeVar("T")


class OptionScore(NamedTuple):
    """What the engine says of one option's text."""

    logprob: float
    """Sum over the text's tokens, without the end of turn."""
    tokens: int


class Answered(NamedTuple):
    """A scored item."""

    id: str
    chosen: int
    scores: tuple[OptionScore, ...]
    """One per option; empty where the route does not tell."""
    prompt_tokens: int
    cached_tokens: int


class Generated(NamedTuple):
    """A free-text answer."""

    id: str
    text: str
    chosen: int | None
    """None where the text holds no letter."""


async def by_submit_mcq(client: httpx.AsyncClient, domain: Domain, items: Sequence[Item]) -> list[Answered]:
    """Asks `/submit_mcq`, one item a request; it tells the choice but no log-probabilities."""
    several = require_mcq(domain).scoring is Scoring.OPTIONS
    most = max(len(item.mcq.options) for item in items) if several else 1
    return await in_flight(PROMPTS_IN_FLIGHT // most, [partial(_submit, client, domain, item) for item in items])


async def _submit(client: httpx.AsyncClient, domain: Domain, item: Item) -> Answered:
    body = {
        "model": f"{domain.name}:base",
        "text": item.mcq.passage,
        "question": item.mcq.question,
        "choices": [f"{label}) {text}" for label, text in zip(item.mcq.labels, item.mcq.options, strict=True)],
    }
    answer = await _post(client, "/submit_mcq", body)
    chosen = item.mcq.labels.index(answer["answer"])
    return Answered(item.id, chosen, (), answer["prompt_tokens"], answer["cached_tokens"] or 0)


async def by_v1_mcq(client: httpx.AsyncClient, domain: Domain, items: Sequence[Item]) -> list[Answered]:
    """Asks `/v1/mcq` for all items in one request; how many are in the engine at a time is the gateway's setting."""
    asked = [
        {
            "id": item.id,
            "passage": item.mcq.passage,
            "question": item.mcq.question,
            "options": [
                {"label": label, "text": text} for label, text in zip(item.mcq.labels, item.mcq.options, strict=True)
            ],
        }
        for item in items
    ]
    answer = await _post(client, "/v1/mcq", {"model": f"{domain.name}:base", "items": asked})
    return [_answered(item, result) for item, result in zip(items, answer["results"], strict=True)]


def _answered(item: Item, result: Mapping[str, Any]) -> Answered:
    if "error" in result:
        raise RuntimeError(f"/v1/mcq could not answer {item.id!r}: {result['error']}")
    return Answered(
        id=item.id,
        chosen=item.mcq.labels.index(result["best"]),
        scores=tuple(OptionScore(option["logprob"], option["tokens"]) for option in result["options"]),
        prompt_tokens=result["prompt_tokens"],
        cached_tokens=result["cached_tokens"] or 0,
    )


score: Callable[[httpx.AsyncClient, Domain, Sequence[Item]], Awaitable[list[Answered]]] = by_v1_mcq
"""The route that is measured."""


async def generate(client: httpx.AsyncClient, domain: Domain, item: Item) -> Generated:
    """Asks for free text with the very prompt of scoring `letters`, and looks for a letter in it."""
    user = render_mcq(domain, item.mcq)[-1]
    body = {
        "model": f"{domain.name}:base",
        "messages": [user.wire()],
        "temperature": 0,
        "max_tokens": GENERATED_TOKENS,
    }
    answer = await _post(client, "/v1/chat/completions", body)
    text = answer["choices"][0]["message"]["content"] or ""
    return Generated(item.id, text, first_letter(text, item.mcq.labels))


def first_letter(text: str, labels: Sequence[str]) -> int | None:
    """The index of the first label that stands alone in a text ("B", "(B)", "B) ..."), else None."""
    found = re.search(rf"(?<![A-Za-z'])([{''.join(labels)}])(?![A-Za-z'])", text)
    return labels.index(found[1]) if found else None


async def in_flight(limit: int, jobs: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """Runs jobs, at most `limit` at a time, and returns their results in order."""
    gate = asyncio.Semaphore(limit)

    async def run(job: Callable[[], Awaitable[T]]) -> T:
        async with gate:
            return await job()

    return list(await asyncio.gather(*(run(job) for job in jobs)))


async def _post(client: httpx.AsyncClient, path: str, body: Mapping[str, object]) -> dict[str, Any]:
    answer = await client.post(path, json=body)
    if answer.is_error:
        raise RuntimeError(f"{path} answered {answer.status_code}: {answer.text[:500]}")
    read: dict[str, Any] = answer.json()
    return read
