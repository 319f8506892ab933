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
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

Json = dict[str, Any]
START, END, VOCABULARY = 256, 257, 258
MAX_MODEL_LEN = 2048
MAX_IDS = 128
"""vLLM's bound on `logprob_token_ids`."""
BLOCK = 32
"""Tokens of a block of the prefix cache, as we launch vLLM on a CPU."""
ANSWER = "The fake engine's answer."


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
        ids += [START, *f"{message['role']}\n{message['content']}".encode()]
        if not (continue_final and index == len(messages) - 1):
            ids += [END, *b"\n"]
    if generation_prompt:
        ids += [START, *b"assistant\n"]
    return tuple(ids)


@dataclass
class FakeEngine:
    """State and faults of one fake."""

    adapters: dict[str, str] = field(default_factory=dict)
    calls: list[tuple[str, Json]] = field(default_factory=list)
    aborted: int = 0
    """Streams whose client left before the end."""
    deaf_adapters: bool = False
    """Loads succeed and have no effect, as in vllm#34186."""
    fail_with: int = 0
    """Status that every completion answers; 0 means none."""
    token_delay_s: float = 0.0
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
            ]
        )

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

    async def _chat(self, request: Request) -> Response:
        body = await self._read(request)
        prompt = template(body["messages"], generation_prompt=True)
        if refused := self._refusal(body, len(prompt)):
            return refused
        if body.get("stream"):
            return StreamingResponse(self._stream(body, request), media_type="text/event-stream")
        if await self._left(request):
            self.aborted += 1
            return Response(status_code=499)
        choice: Json = {
            "index": 0,
            "message": {"role": "assistant", "content": ANSWER},
            "logprobs": None,
            "finish_reason": "stop",
        }
        if wanted := body.get("logprob_token_ids"):
            choice["logprobs"] = {"content": [{"top_logprobs": self._top(body["model"], prompt, wanted)}]}
        return JSONResponse(
            {
                "object": "chat.completion",
                "model": body["model"],
                "choices": [choice],
                "usage": _usage(len(prompt), 1, self.cached(body["model"], prompt)),
            }
        )

    async def _left(self, request: Request) -> bool:
        """Waits as long as an answer takes; True where the client left meanwhile (vLLM aborts then too)."""
        until = time.monotonic() + self.token_delay_s
        self.together += 1
        self.most_together = max(self.most_together, self.together)
        try:
            while time.monotonic() < until:
                if await request.is_disconnected():
                    return True
                await asyncio.sleep(0.01)
            return False
        finally:
            self.together -= 1

    def _top(self, name: str, prompt: tuple[int, ...], wanted: list[int]) -> list[Json]:
        logprobs = self.logprobs(name, prompt)
        sampled = max(range(VOCABULARY), key=lambda token: logprobs[token])
        return [{"token": f"token_id:{token}", "logprob": logprobs[token]} for token in (sampled, *wanted)]

    async def _stream(self, body: Json, request: Request) -> AsyncIterator[bytes]:
        done = False
        try:
            for index, word in enumerate(ANSWER.split(" ")):
                if index == self.drop_after:
                    raise ConnectionResetError
                delta = {"role": "assistant", "content": word if index == 0 else f" {word}"}
                chunk = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}], "odd": "kept"}
                yield b"data: " + json.dumps(chunk).encode() + b"\n\n"
                await asyncio.sleep(self.token_delay_s)
            yield b"data: [DONE]\n\n"
            done = True
        finally:
            self.aborted += not done

    async def _completions(self, request: Request) -> Response:
        body = await self._read(request)
        prompts = body["prompt"]
        if refused := self._refusal(body, max(map(len, prompts))):
            return refused
        if await self._left(request):
            self.aborted += 1
            return Response(status_code=499)
        reads = body.get("prompt_logprobs") is None
        # Of several prompts vLLM tells the last one's share only.
        cached = [self.cached(body["model"], ids, reads=reads) for ids in prompts][-1]
        choices = [self._completed(body, index, ids) for index, ids in enumerate(prompts)]
        return JSONResponse(
            {
                "object": "text_completion",
                "choices": choices,
                "usage": _usage(sum(map(len, prompts)), len(prompts), cached),
            }
        )

    def _completed(self, body: Json, index: int, ids: list[int]) -> Json:
        choice: Json = {"index": index, "text": "", "logprobs": None}
        if body.get("prompt_logprobs") is not None:
            choice["prompt_logprobs"] = self._prompt_logprobs(body["model"], ids)
        if wanted := body.get("logprob_token_ids"):
            top = self._top(body["model"], tuple(ids), wanted)
            choice["logprobs"] = {"top_logprobs": [{entry["token"]: entry["logprob"] for entry in top}]}
        return choice

    def _prompt_logprobs(self, name: str, ids: list[int]) -> list[Json | None]:
        entries: list[Json | None] = [None]
        for position in range(1, len(ids)):
            logprob = self.logprobs(name, ids[:position])[ids[position]]
            entries.append({str(ids[position]): {"logprob": logprob, "rank": 1, "decoded_token": ""}})
        return entries


async def _broken() -> AsyncIterator[bytes]:
    yield b"{"
    raise ConnectionResetError


def _usage(prompt: int, completion: int, cached: int) -> Json:
    details = {"cached_tokens": cached}
    return {"prompt_tokens": prompt, "completion_tokens": completion, "prompt_tokens_details": details}


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": "Error", "param": None, "code": status}}, status)
