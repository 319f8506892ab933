"""A client's chat request becomes the engine's: domain prompt in, adapter chosen, all other fields untouched."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import orjson
from preceptor_contracts.domains import SafetyRule
from preceptor_contracts.errors import PreceptorError

from preceptor_gateway.adapters.service import AdapterService
from preceptor_gateway.domains.service import DomainService, Target
from preceptor_gateway.engine import EngineReply
from preceptor_gateway.engine.client import EngineLostAdapter, encode
from preceptor_gateway.metrics import Metrics
from preceptor_gateway.problems import BadRequest, body_of

Json = dict[str, Any]

REFUSED = {
    "chat_template": "replaces the template that adapters were trained on",
    "chat_template_kwargs": "changes the template that adapters were trained on",
    "add_generation_prompt": "changes the template that adapters were trained on",
    "continue_final_message": "changes the template that adapters were trained on",
    "add_special_tokens": "changes the template that adapters were trained on",
    "documents": "changes the template that adapters were trained on",
    "truncate_prompt_tokens": "could cut the domain's prompt off",
    "truncation_side": "could cut the domain's prompt off",
    "mm_processor_kwargs": "reaches into the engine",
    "media_io_kwargs": "reaches into the engine",
    "mm_payload": "reaches into the engine",
    "ec_transfer_params": "reaches into the engine",
    "routed_experts_prompt_start": "reaches into the engine",
    "vllm_xargs": "reaches into the engine",
    "kv_transfer_params": "reaches into the engine",
    "priority": "would overtake other people's requests",
    "request_id": "is the gateway's to give; send the header x-request-id",
    "lora_request": 'picks an adapter past the gateway; use "model"',
    "stop_token_ids": 'is the adapter\'s own; use "stop" for words',
}
"""Fields that a client may not set, with the reason it is told."""

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Roles that a client may write; `developer` is the newer name of `system`, and joins the domain's prompt like it."""
_SYSTEM = frozenset({"system", "developer"})
_LOOKED_AT = 8_000
"""Characters at either end of a text that safety rules look at: patterns over a megabyte would stall every stream."""

_GUIDED = {"guided_choice": "choice", "guided_regex": "regex", "guided_json": "json", "guided_grammar": "grammar"}
"""vLLM ignores these silently since 0.12 (200, unconstrained text); they mean `structured_outputs`."""


@dataclass(frozen=True)
class EngineChat:
    """A request that is ready for the engine."""

    target: Target
    body: bytes
    stream: bool
    rules: tuple[SafetyRule, ...]
    choices: int = 1
    """How many answers the client asked for."""

    @property
    def headers(self) -> dict[str, str]:
        """Response headers that tell every client what answered and what was set off."""
        headers = {"x-preceptor-served": self.target.served}
        if self.target.adapter:
            headers["x-preceptor-adapter"] = self.target.adapter
        if self.rules:
            headers["x-preceptor-safety"] = quote(self.banner.strip())
        return headers

    @property
    def banner(self) -> str:
        """What must be read before the answer; empty where no rule was set off."""
        return "".join(f"{rule.message}\n\n" for rule in self.rules)


def parse_body(raw: bytes) -> Json:
    """Decodes a request body, once."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The body is not JSON: {error}.", code="invalid_json") from error
    if not isinstance(body, dict):
        raise BadRequest("The body is not a JSON object.", code="invalid_json")
    return body


def user_text(messages: list[Json]) -> str:
    """The words of the last user message; parts that are not text do not count."""
    for message in reversed(messages):
        if message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, list):
                return " ".join(part if isinstance(part, str) else _part_text(part) for part in content)
            return str(content or "")
    return ""


def _part_text(part: object) -> str:
    return str(part.get("text") or "") if isinstance(part, dict) else ""


def check_messages(body: Json) -> list[Json]:
    """Returns the messages of a request, or says what is wrong with them."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages must be a non-empty list.", code="invalid_field", param="messages")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise BadRequest(
                f"messages.{index} is not an object with a known role.",
                code="invalid_field",
                param=f"messages.{index}",
                hint=f"Roles are {', '.join(ROLES)}.",
            )
    if not user_text(messages).strip() and messages[-1]["role"] == "user":
        raise BadRequest(
            "The last user message is empty.", code="empty_message", param="messages", hint="Ask something."
        )
    return messages


def check_fields(body: Json) -> None:
    """Refuses fields that are not a client's to set, and translates the legacy ones."""
    if not isinstance(body.get("stream"), bool | None):
        raise BadRequest(
            f"stream must be true or false (got {body['stream']!r}).", code="invalid_field", param="stream"
        )
    for field, reason in REFUSED.items():
        if body.get(field) is not None:
            raise BadRequest(
                f"{field!r} is refused: it {reason}.", code="field_refused", param=field, hint="Leave it out."
            )
    guided = {_GUIDED[field]: body.pop(field) for field in _GUIDED if body.get(field) is not None}
    if guided:
        if len(guided) > 1 or body.get("structured_outputs") is not None:
            raise BadRequest(
                "Only one constraint can hold at a time.", code="field_refused", param="structured_outputs"
            )
        body["structured_outputs"] = guided


class ChatService:
    """Prepares requests and passes answers through."""

    def __init__(self, domains: DomainService, adapters: AdapterService, metrics: Metrics) -> None:
        self._domains = domains
        self._adapters = adapters
        self._metrics = metrics

    def prepare(self, body: Json, *, kind: str = "chat") -> EngineChat:
        """Turns a client's body into the engine's. Touches memory only.

        Raises:
            PreceptorError: The body is wrong, or names something that cannot be served.
        """
        served = body.get("model")
        if not isinstance(served, str) or not served:
            raise BadRequest(
                f"model must be a served name (got {served!r}).",
                code="invalid_field",
                param="model",
                hint="GET /v1/models lists the served names.",
            )
        messages = check_messages(body)
        check_fields(body)
        target = self._domains.resolve(served)
        rules: tuple[SafetyRule, ...] = ()
        if target.domain and target.prompt:
            text = user_text(messages)
            rules = target.domain.triggered(
                text if len(text) <= 2 * _LOOKED_AT else text[:_LOOKED_AT] + text[-_LOOKED_AT:]
            )
            extra = [_system_text(message) for message in messages if message["role"] in _SYSTEM]
            turns = [message for message in messages if message["role"] not in _SYSTEM]
            body["messages"] = [target.prompt.system(extra), *turns]
            if body.get("max_tokens") is None and body.get("max_completion_tokens") is None:
                body["max_tokens"] = target.domain.max_answer_tokens
            self._metrics.answers.labels(target.domain.name, target.adapter or "base", kind).inc()
            if rules:
                self._metrics.safety.labels(target.domain.name).inc()
        body["model"] = target.engine_name
        if target.stop_token_ids:
            body["stop_token_ids"] = list(target.stop_token_ids)
        return EngineChat(target, encode(body), body.get("stream") is True, rules, _count(body))

    async def open(self, chat: EngineChat, stack: AsyncExitStack) -> EngineReply:
        """Sends the request; returns when the engine's headers are there."""
        started = time.perf_counter()
        try:
            reply = await stack.enter_async_context(chat.target.engine.open("/v1/chat/completions", chat.body))
        except EngineLostAdapter:
            if chat.target.adapter:
                self._adapters.lost(chat.target.adapter, chat.target.engine)
            raise
        domain = chat.target.domain.name if chat.target.domain else "base"
        self._metrics.first_byte.labels(domain, chat.target.adapter or "base").observe(time.perf_counter() - started)
        return reply

    async def whole(self, chat: EngineChat) -> bytes:
        """The complete answer, the engine's bytes unless a safety message must come first."""
        async with AsyncExitStack() as stack:
            raw = await (await self.open(chat, stack)).read()
        if not chat.rules:
            return raw
        answer = orjson.loads(raw)
        for choice in answer["choices"]:
            choice["message"]["content"] = chat.banner + (choice["message"].get("content") or "")
        return orjson.dumps(answer)

    async def pieces(
        self, chat: EngineChat, reply: EngineReply, stack: AsyncExitStack, request_id: str
    ) -> AsyncIterator[bytes]:
        """The streamed answer, the engine's bytes as they arrive. Leaving early cancels the engine's work."""
        async with stack:
            if chat.rules:
                yield _first_chunk(chat)
            chunk = b"\n"
            try:
                async for chunk in reply.chunks():
                    yield chunk
            except PreceptorError as error:
                # The status is sent; the error can only be an event, behind whatever event broke off.
                gap = b"" if chunk.endswith(b"\n") else b"\n\n"
                yield gap + b"data: " + orjson.dumps(body_of(error, request_id).model_dump()) + b"\n\n"


def _count(body: Json) -> int:
    count = body.get("n")
    return min(count, 128) if isinstance(count, int) and count > 0 else 1


def _system_text(message: Json) -> str:
    content = message.get("content")
    if not isinstance(content, str):
        raise BadRequest("A system message must be text.", code="invalid_field", param="messages")
    return content


def _first_chunk(chat: EngineChat) -> bytes:
    delta = {"role": "assistant", "content": chat.banner}
    choices = [{"index": index, "delta": delta, "finish_reason": None} for index in range(chat.choices)]
    chunk = {
        "id": "chatcmpl-safety",
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": chat.target.engine_name,
        "choices": choices,
    }
    return b"data: " + orjson.dumps(chunk) + b"\n\n"
