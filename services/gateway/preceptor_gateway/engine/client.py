"""HTTP client of one engine. Every upstream failure is mapped to ours here, once."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
from preceptor_contracts.messages import WireMessage

from preceptor_gateway.engine.http import HttpPool, NotReached, Reply, TooSilent, UpstreamError
from preceptor_gateway.problems import BadRequest, EngineRefused, EngineTimeout, NotFound, Unavailable

Json = dict[str, Any]
_CONTEXT = re.compile(r"context length|max_model_len|maximum model length|longer than the maximum", re.IGNORECASE)
_CONTROL_S = 5.0
"""Control calls must not hang for as long as an answer may take."""


class EngineLostAdapter(Unavailable):
    """The engine does not know an adapter that it had: it was restarted and the reconciler has not been there yet."""

    default_code = "adapter_reloading"


class EngineNotReached(Unavailable):
    """No byte of an answer arrived, so another engine may be asked instead."""

    default_code = "engine_down"


class EngineReply:
    """An engine's 200 whose body is still to come. `close` it in every case; early, that ends the engine's work."""

    def __init__(self, engine: EngineClient, reply: Reply) -> None:
        self._engine = engine
        self._reply: Reply | None = reply
        self.content_type = reply.headers.get(b"content-type", b"application/json")

    async def read(self) -> bytes:
        """Reads the rest of the body."""
        try:
            return await self._open_reply().read()
        except UpstreamError as error:
            raise _meaning(error) from error

    async def chunk(self) -> bytes:
        """The next bytes of the body as they arrive, untouched; empty at its end."""
        try:
            return await self._open_reply().chunk()
        except UpstreamError as error:
            raise _meaning(error) from error

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yields the body as it arrives, bytes untouched."""
        while data := await self.chunk():
            yield data

    def abort(self) -> None:
        """Ends the exchange from outside: whoever waits for bytes gets an error, the engine stops working."""
        if self._reply:
            self._reply.abort()

    def close(self) -> None:
        """Gives the connection back; a half-read one is dropped, which makes vLLM abort the request."""
        if self._reply:
            self._reply.close()
            self._reply = None
            self._engine.in_flight -= 1

    def _open_reply(self) -> Reply:
        assert self._reply is not None  # nobody reads what is closed
        return self._reply


def _meaning(error: UpstreamError) -> Exception:
    """What an upstream failure means to our client."""
    if isinstance(error, TooSilent):
        return EngineTimeout(
            "The engine did not answer in time.", hint="Ask for fewer tokens, or raise GATEWAY_ENGINE_TIMEOUT_S."
        )
    kind = EngineNotReached if isinstance(error, NotReached) else Unavailable
    return kind(
        "The engine does not answer." if kind is EngineNotReached else "The engine broke off in its answer.",
        code="engine_down",
        hint="It may be starting; try again. GET /health tells when it is back.",
        retry_after_s=5,
    )


class EngineClient:
    """Talks to one vLLM server."""

    def __init__(self, url: str, api_key: str, timeout_s: float) -> None:
        headers = {"content-type": "application/json"}
        if api_key:
            headers["authorization"] = f"Bearer {api_key}"
        self.url = url
        self.in_flight = 0
        """Requests that the engine works on for us now."""
        # Silence is limited, not length: a long answer may stream for minutes.
        self._http = HttpPool(url, headers, connect_s=_CONTROL_S, silence_s=timeout_s)
        self.context_tokens = 0
        """The longest context, prompt and answer; 0 until the engine was asked."""
        self._end_of_turn: int | None = None
        self._first_tokens: dict[str, int] = {}

    def forget(self) -> None:
        """Drops what was learnt of the engine's tokenizer; it may be another engine now."""
        self._end_of_turn = None
        self._first_tokens.clear()

    async def close(self) -> None:
        """Closes every connection."""
        await self._http.close()

    async def start(self, path: str, body: bytes, more: bytes = b"") -> EngineReply:
        """Posts and returns the reply when its head is there; `close` it.

        Args:
            path: The engine's route.
            body: JSON.
            more: Further header lines, each ended by CR LF.

        Raises:
            GatewayError: The engine is away, silent, or refuses.
        """
        return await self._start("POST", path, body, more, None)

    async def _start(self, method: str, path: str, body: bytes, more: bytes, silence_s: float | None) -> EngineReply:
        self.in_flight += 1
        try:
            reply = await self._http.exchange(method, path, body, more=more, silence_s=silence_s)
        except BaseException as error:
            self.in_flight -= 1
            if isinstance(error, UpstreamError):
                raise _meaning(error) from error
            raise
        answer = EngineReply(self, reply)
        if reply.status != 200:
            try:
                raw = await answer.read()
            finally:
                answer.close()
            raise _refusal(reply.status, raw)
        return answer

    @asynccontextmanager
    async def open(self, path: str, body: bytes) -> AsyncIterator[EngineReply]:
        """`start` as a block; leaving it early ends the engine's work."""
        reply = await self.start(path, body)
        try:
            yield reply
        finally:
            reply.close()

    async def post(self, path: str, body: Json) -> Json:
        """Posts and returns the decoded answer."""
        async with self.open(path, encode(body)) as reply:
            return _decode(await reply.read())

    async def names(self) -> frozenset[str]:
        """Names that the engine serves now: its own and every loaded adapter's."""
        listed = (await self._get("/v1/models")).get("data")
        if not isinstance(listed, list):
            raise EngineRefused("The engine's list of models is no list.")
        cards = [card for card in listed if isinstance(card, dict)]
        lengths = [length for card in cards if isinstance(length := card.get("max_model_len"), int)]
        self.context_tokens = max(lengths, default=0)
        return frozenset(str(card.get("id")) for card in cards)

    async def version(self) -> str:
        """The engine's version."""
        return str((await self._get("/version")).get("version", "of unknown version"))

    async def load(self, name: str, path: str) -> None:
        """Loads an adapter; one that is loaded already is fine. Never `load_inplace` (vllm#33791)."""
        try:
            async with self.open(
                "/v1/load_lora_adapter", orjson.dumps({"lora_name": name, "lora_path": path})
            ) as reply:
                await reply.read()
        except EngineLostAdapter as error:
            raise EngineRefused(
                f"The engine finds no adapter in {path!r}.",
                code="adapter_not_visible",
                hint="Engine and gateway must see the adapters folder at the same path.",
            ) from error
        except BadRequest as error:
            if "already been loaded" not in error.message:
                raise

    async def unload(self, name: str) -> None:
        """Drops an adapter's name; one that is not there is fine."""
        try:
            async with self.open("/v1/unload_lora_adapter", orjson.dumps({"lora_name": name})) as reply:
                await reply.read()
        except (EngineLostAdapter, BadRequest):
            return

    async def tokenize(self, messages: Sequence[WireMessage], *, answered: bool = False) -> tuple[int, ...]:
        """Token ids of a conversation by the engine's own chat template.

        Args:
            messages: The conversation.
            answered: False adds the generation prompt; True closes the last message, the assistant's.
        """
        body = {"messages": messages, "add_generation_prompt": not answered}
        return tuple((await self.post("/tokenize", body)).get("tokens", ()))

    async def first_token(self, answer: str) -> int:
        """The first token of an answer in its place behind the generation prompt; asked once per answer."""
        if answer not in self._first_tokens:
            asked: list[WireMessage] = [{"role": "user", "content": "?"}]
            prompt = await self.tokenize(asked)
            whole = await self.tokenize([*asked, {"role": "assistant", "content": answer}], answered=True)
            if whole[: len(prompt)] != prompt or len(whole) <= len(prompt):
                raise EngineRefused("The chat template writes a prompt differently once it is answered.")
            self._first_tokens[answer] = whole[len(prompt)]
        return self._first_tokens[answer]

    async def end_of_turn(self) -> int:
        """The token that ends an assistant's turn, found by asking the chat template; asked once."""
        if self._end_of_turn is None:
            turn = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
            closed = {"messages": turn, "add_generation_prompt": False}
            opened = {**closed, "continue_final_message": True}
            whole = (await self.post("/tokenize", closed))["tokens"]
            part = (await self.post("/tokenize", opened))["tokens"]
            if len(whole) <= len(part):
                raise EngineRefused("The chat template ends no assistant's turn.")
            self._end_of_turn = int(whole[len(part)])
        return self._end_of_turn

    async def _get(self, path: str) -> Json:
        reply = await self._start("GET", path, b"", b"", _CONTROL_S)
        try:
            return _decode(await reply.read())
        finally:
            reply.close()


def encode(body: Json) -> bytes:
    """Spells a body as JSON.

    Raises:
        BadRequest: A client's text that JSON cannot hold, or nesting beyond what orjson writes.
    """
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        raise BadRequest(f"The request cannot be written as JSON: {error}.", code="invalid_json") from error


def _decode(raw: bytes) -> Json:
    try:
        answer = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise EngineRefused("The engine answered something that is not JSON.") from error
    if not isinstance(answer, dict):
        raise EngineRefused("The engine answered something that is not a JSON object.")
    return answer


def _refusal(status: int, raw: bytes) -> Exception:
    """What an engine's error answer means to our client."""
    message = _message(raw) or f"The engine answered status {status}."
    if status == 404:
        if raw.strip() == b'{"detail":"Not Found"}':
            return NotFound(
                "The engine has no such route.",
                code="not_supported_by_engine",
                hint="The base model or the engine's version does not offer it.",
            )
        return EngineLostAdapter(
            "The adapter is not in the engine at this moment.",
            hint="It is being loaded again; try again.",
            retry_after_s=2,
        )
    if status in {400, 413, 422}:
        code = "context_length_exceeded" if _CONTEXT.search(message) else "engine_refused_request"
        return BadRequest(message, code=code, hint="Shorten the prompt." if code.startswith("context") else "")
    if status == 503:
        return Unavailable(message, code="engine_busy", hint="Try again.", retry_after_s=5)
    return EngineRefused(message, hint="The engine's log says more.")


def _message(raw: bytes) -> str:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return ""
    error = body.get("error", body) if isinstance(body, dict) else {}
    return str(error.get("message", "")) if isinstance(error, dict) else str(error)
