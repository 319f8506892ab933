"""A small deterministic engine that speaks the part of vLLM's HTTP that the gateway uses, and fails on demand.

Tokens are UTF-8 bytes plus two specials; logprobs are a hash of served name, prefix and token, so that an adapter
answers differently from the base, always in the same way.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.fakes.answers import ChatAnswer, ChatAsked, PlainAnswer, PlainAsked, Usage, constrained

Json = dict[str, Any]
START, END, VOCABULARY = 256, 257, 258
MAX_MODEL_LEN = 2048
MAX_LOGPROBS = 20
"""vLLM's bound on how many of the likeliest tokens it tells."""
MAX_IDS = 128
"""vLLM's bound on `logprob_token_ids`."""
BLOCK = 32
"""Tokens of a block of the prefix cache, as we launch vLLM on a CPU."""
ANSWER = "The fake engine's answer."
Asked = TypeVar("Asked", ChatAsked, PlainAsked)


@lru_cache(maxsize=4096)
def distribution(name: str, prefix: tuple[int, ...]) -> tuple[float, ...]:
    """Log-probabilities over the vocabulary for the next token."""
    seed = hashlib.sha256(repr((name, prefix)).encode()).digest()
    raw = [((seed[i % 32] * 31 + seed[(i * 7) % 32] * 17 + i * 13) % 97) / 12 for i in range(VOCABULARY)]
    total = math.log(math.fsum(math.exp(value) for value in raw))
    return tuple(value - total for value in raw)


def template(
    messages: Sequence[Mapping[str, object]], *, generation_prompt: bool, continue_final: bool = False
) -> tuple[int, ...]:
    """SmolLM2's chat template, on bytes."""
    ids: list[int] = []
    for index, message in enumerate(messages):
        ids += [START, *f"{message['role']}\n{_words(message.get('content'))}".encode()]
        if not (continue_final and index == len(messages) - 1):
            ids += [END, *b"\n"]
    if generation_prompt:
        ids += [START, *b"assistant\n"]
    return tuple(ids)


def _words(content: object) -> str:
    """A message's text; parts that are text are joined by line feeds, as vLLM does for templates that take text."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise TypeError("content is neither text nor a list of parts")
    return "\n".join(part if isinstance(part, str) else str(part["text"]) for part in content)


@dataclass
class FakeEngine:
    """State and faults of one fake."""

    adapters: dict[str, str] = field(default_factory=dict)
    calls: list[tuple[str, Json]] = field(default_factory=list)
    aborted: int = 0
    """Streams whose client left before the end."""
    deaf_adapters: bool = False
    """Loads succeed and have no effect, as in vllm#34186."""
    answer: str = ANSWER
    """What it says where nothing binds it."""
    running: int = 0
    """Requests that it works on now: vLLM's `vllm:num_requests_running`."""
    sent_chunks: int = 0
    """Events of streams that it has got rid of."""
    fail_with: int = 0
    """Status that every completion answers; 0 means none."""
    token_delay_s: float = 0.0
    head_s: float = 0.0
    """How long a request for a stream waits for so much as a status: a busy vLLM tokenizes before it answers."""
    prefill_s: float = 0.0
    """How long a stream is silent before its first event."""
    models_delay_s: float = 0.0
    """How long the list of names travels."""
    drop_after: int = -1
    """Breaks a stream off after so many chunks."""
    die_after: int = -1
    """Answers so many completions, then breaks every connection."""
    answered: int = 0
    """Completions that `die_after` has counted."""
    together: int = 0
    """Completions being answered now."""
    most_together: int = 0
    blocks: set[tuple[str, tuple[int, ...]]] = field(default_factory=set)
    """The prefix cache: beginnings of prompts, whole blocks only, per served name."""

    def restart(self) -> None:
        """Forgets every adapter and the prefix cache, as a restarted vLLM does."""
        self.adapters.clear()
        self.blocks.clear()

    def _name(self, name: str) -> str:
        return "base" if self.deaf_adapters else name

    def logprobs(self, name: str, prefix: Sequence[int]) -> tuple[float, ...]:
        """What the fake would answer next."""
        return distribution(self._name(name), tuple(prefix))

    def cached(self, name: str, ids: Sequence[int], *, reads: bool = True) -> int:
        """Tokens of a prompt found in the prefix cache; the prompt's own blocks are there from now on.

        The last token is always computed. A request for prompt logprobs reads nothing, and still writes.
        """
        ends = range(BLOCK, len(ids) + 1, BLOCK)
        found = [end for end in ends if end < len(ids) and (name, tuple(ids[:end])) in self.blocks]
        self.blocks.update((name, tuple(ids[:end])) for end in ends)
        return max(found, default=0) if reads else 0

    # --- routes ---

    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                Route("/health", self._health),
                Route("/version", self._version),
                Route("/v1/models", self._models),
                Route("/tokenize", self._tokenize, methods=["POST"]),
                Route("/v1/load_lora_adapter", self._load, methods=["POST"]),
                Route("/v1/unload_lora_adapter", self._unload, methods=["POST"]),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/completions", self._completions, methods=["POST"]),
                Route("/metrics", self._metrics),
            ],
            exception_handlers={HTTPException: _no_route},
        )

    async def _metrics(self, request: Request) -> Response:
        series = f'vllm:num_requests_running{{engine="0",model_name="base"}} {float(self.running)}'
        return PlainTextResponse(f"# TYPE vllm:num_requests_running gauge\n{series}\n")

    async def _health(self, request: Request) -> Response:
        return Response()

    async def _version(self, request: Request) -> Response:
        return JSONResponse({"version": "fake"})

    async def _models(self, request: Request) -> Response:
        names = ("base", *self.adapters)
        await asyncio.sleep(self.models_delay_s)
        return JSONResponse({"object": "list", "data": [{"id": name} for name in names]})

    async def _read(self, request: Request) -> Json:
        body: Json = await request.json()
        self.calls.append((request.url.path, body))
        return body

    async def _tokenize(self, request: Request) -> Response:
        body = await self._read(request)
        if "messages" in body:
            ids = template(
                body["messages"],
                generation_prompt=body.get("add_generation_prompt", True),
                continue_final=body.get("continue_final_message", False),
            )
        else:
            ids = tuple(body["prompt"].encode())
        return JSONResponse({"count": len(ids), "max_model_len": MAX_MODEL_LEN, "tokens": ids})

    async def _load(self, request: Request) -> Response:
        body = await self._read(request)
        name = body["lora_name"]
        if name in self.adapters or name == "base":
            return _error(400, f"The lora adapter '{name}' has already been loaded. If you want to load ...")
        if not (Path(body["lora_path"]) / "adapter_config.json").is_file():
            return _error(404, f"Loading lora {name} failed: No adapter found for <path>")
        self.adapters[name] = body["lora_path"]
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: Request) -> Response:
        name = (await self._read(request))["lora_name"]
        if self.adapters.pop(name, None) is None:
            return _error(404, f"The lora adapter '{name}' cannot be found.")
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    def _refusal(self, body: Json, length: int) -> Response | None:
        self.answered += 1
        if 0 <= self.die_after < self.answered:
            return StreamingResponse(_broken(), headers={"content-length": "99"}, media_type="application/json")
        if self.fail_with:
            return _error(self.fail_with, "The fake was told to fail.")
        if body["model"] not in ("base", *self.adapters):
            return _error(404, f"The model `{body['model']}` does not exist. Valid aliases: base.")
        if len(body.get("logprob_token_ids") or ()) > MAX_IDS:
            return _error(
                400, f"Requested logprob_token_ids of length ..., which is greater than max allowed: {MAX_IDS}"
            )
        if length > MAX_MODEL_LEN:
            return _error(400, f"This model's maximum context length is {MAX_MODEL_LEN} tokens. However, ...")
        return None

    async def _asked(self, request: Request, kind: type[Asked]) -> Asked | Response:
        """The request, or a 400 as vLLM's own classes would answer it."""
        try:
            return kind.model_validate(await self._read(request))
        except ValidationError as error:
            return _error(400, f"{error.error_count()} validation error: {error.errors()[0]['msg']}")

    async def _chat(self, request: Request) -> Response:
        asked = await self._asked(request, ChatAsked)
        if isinstance(asked, Response):
            return asked
        name = asked.model or "base"
        try:
            prompt = template(asked.messages, generation_prompt=True)
        except (KeyError, TypeError) as error:
            return _error(400, f"A message cannot be read: {error}")
        room = asked.max_completion_tokens or asked.max_tokens or 0
        if refused := self._refusal(self.calls[-1][1], len(prompt) + room) or _greedy(asked):
            return refused
        answer = ChatAnswer(asked, constrained(asked, self.answer), prompt, lambda ids: self.logprobs(name, ids))
        head = {"id": f"chatcmpl-{self.answered}", "created": int(time.time()), "model": name}
        usage = Usage(len(prompt), answer.tokens * (asked.n or 1), self.cached(name, prompt))
        if asked.stream:
            events = ({"object": "chat.completion.chunk", **head, "choices": one} for one in answer.pieces())
            return await self._streamed(asked, head, events, usage, request)
        if await self._left(request):
            self.aborted += 1
            return Response(status_code=499)
        choices = answer.whole()
        if wanted := asked.logprob_token_ids:
            choices[0]["logprobs"] = {"content": [{"top_logprobs": self._top(name, prompt, wanted)}]}
        return JSONResponse(
            {"object": "chat.completion", **head, "choices": choices, **usage.told(alone=asked.n in (None, 1))}
        )

    async def _left(self, request: Request, wait_s: float | None = None) -> bool:
        """Waits as long as an answer takes; True where the client left meanwhile (vLLM aborts then too)."""
        until = time.monotonic() + (self.token_delay_s if wait_s is None else wait_s)
        self.together += 1
        self.running += 1
        self.most_together = max(self.most_together, self.together)
        try:
            while time.monotonic() < until:
                if await request.is_disconnected():
                    return True
                await asyncio.sleep(0.01)
            return False
        finally:
            self.together -= 1
            self.running -= 1

    def _top(self, name: str, prompt: tuple[int, ...], wanted: list[int]) -> list[Json]:
        logprobs = self.logprobs(name, prompt)
        sampled = max(range(VOCABULARY), key=lambda token: logprobs[token])
        return [{"token": f"token_id:{token}", "logprob": logprobs[token]} for token in (sampled, *wanted)]

    async def _streamed(
        self, asked: ChatAsked | PlainAsked, head: Json, events: Iterable[Json], usage: Usage, request: Request
    ) -> Response:
        if self.head_s and await self._left(request, self.head_s):
            self.aborted += 1
            return Response(status_code=499)
        alone = asked.n in (None, 1) and not (isinstance(asked, PlainAsked) and len(asked.prompts) > 1)
        last = {**head, "choices": [], **usage.told(alone=alone)}
        wanted = asked.stream_options and asked.stream_options.include_usage
        return StreamingResponse(self._stream(events, last if wanted else None), media_type="text/event-stream")

    async def _stream(self, events: Iterable[Json], last: Json | None) -> AsyncIterator[bytes]:
        done = False
        words = 0
        self.running += 1
        try:
            await asyncio.sleep(self.prefill_s)
            for event in events:
                if words == self.drop_after:
                    raise ConnectionResetError
                yield b"data: " + json.dumps({**event, "odd": "kept"}).encode() + b"\n\n"
                self.sent_chunks += 1
                # The role and the end cost no token.
                if any(choice.get("text") or choice.get("delta", {}).get("content") for choice in event["choices"]):
                    words += 1
                    await asyncio.sleep(self.token_delay_s)
            if last:
                yield b"data: " + json.dumps(last).encode() + b"\n\n"
            yield b"data: [DONE]\n\n"
            done = True
        finally:
            self.running -= 1
            self.aborted += not done

    async def _completions(self, request: Request) -> Response:
        asked = await self._asked(request, PlainAsked)
        if isinstance(asked, Response):
            return asked
        name, prompts = asked.model or "base", asked.prompts
        longest = max(map(len, prompts)) + (asked.max_tokens or 0)
        if refused := self._refusal(self.calls[-1][1], longest) or _greedy(asked) or _odd(asked):
            return refused
        if not asked.stream and await self._left(request):
            self.aborted += 1
            return Response(status_code=499)
        reads = asked.prompt_logprobs is None and not (asked.echo and asked.logprobs is not None)
        # Of several prompts vLLM tells the last one's share only.
        cached = [self.cached(name, ids, reads=reads) for ids in prompts][-1]
        answers = [PlainAnswer(asked, ids, lambda ids: self.logprobs(name, ids), END) for ids in prompts]
        numbered = list(enumerate(answer for answer in answers for _ in range(asked.n)))
        usage = Usage(sum(map(len, prompts)), sum(len(answer.ids) for _, answer in numbered), cached)
        head = {"id": f"cmpl-{self.answered}", "object": "text_completion", "created": int(time.time()), "model": name}
        if asked.stream:
            events = ({**head, "choices": [one]} for index, answer in numbered for one in answer.pieces(index))
            return await self._streamed(asked, head, events, usage, request)
        choices = [answer.whole(index) for index, answer in numbered]
        return JSONResponse({**head, "choices": choices, **usage.told(alone=len(numbered) == 1)})


async def _broken() -> AsyncIterator[bytes]:
    yield b"{"
    raise ConnectionResetError


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # registered for this type only
    return JSONResponse({"detail": error.detail}, error.status_code)


def _greedy(asked: ChatAsked | PlainAsked) -> Response | None:
    if asked.stream_options and not asked.stream:
        return _error(400, "Stream options can only be defined when `stream=True`.")
    if asked.temperature == 0 and (asked.n or 1) > 1:
        return _error(400, f"n must be 1 when using greedy sampling, got {asked.n}.")
    most = asked.top_logprobs if isinstance(asked, ChatAsked) else asked.logprobs
    if (most or 0) > MAX_LOGPROBS:
        return _error(400, f"Requested sample logprobs of {most}, which is greater than max allowed: {MAX_LOGPROBS}")
    return None


def _odd(asked: PlainAsked) -> Response | None:
    odd = [token for ids in asked.prompts for token in ids if token >= VOCABULARY]
    if odd:
        return _error(400, f"Token id {max(odd)} is out of vocabulary")
    if asked.max_tokens == 0 and not asked.echo:
        return _error(400, "max_tokens must be at least 1, got 0.")
    return None


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": "Error", "param": None, "code": status}}, status)
