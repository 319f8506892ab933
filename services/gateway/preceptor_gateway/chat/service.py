"""A client's chat request becomes the engine's: domain prompt in, adapter chosen, all other fields untouched."""

from __future__ import annotations

from typing import Any

from preceptor_contracts.domains import SafetyRule

from preceptor_gateway.client_fields import answers, check_fields, max_tokens, served_name
from preceptor_gateway.domains.service import DomainService
from preceptor_gateway.engine.client import encode
from preceptor_gateway.limits.context import characters_of, check_message_count
from preceptor_gateway.metrics import Metrics
from preceptor_gateway.problems import BadRequest
from preceptor_gateway.relay import EngineCall

Json = dict[str, Any]
ROUTE = "/v1/chat/completions"

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Roles that a client may write; `developer` is the newer name of `system`, and joins the domain's prompt like it."""
_SYSTEM = frozenset({"system", "developer"})
_LOOKED_AT = 8_000
"""Characters at either end of a text that safety rules look at: patterns over a megabyte would stall every stream."""
_AFFINITY = 512
"""Characters of the first turn by which conversations are kept on one engine, whose prefix cache knows them."""


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


def check_messages(body: Json, most: int) -> list[Json]:
    """Returns the messages of a request, or says what is wrong with them."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages must be a non-empty list.", code="invalid_field", param="messages")
    check_message_count(len(messages), most)
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


class ChatService:
    """Prepares chat requests."""

    def __init__(self, domains: DomainService, metrics: Metrics, *, max_messages: int) -> None:
        self._domains = domains
        self._metrics = metrics
        self._max_messages = max_messages

    def prepare(self, body: Json, *, kind: str = "chat", route: str = ROUTE) -> EngineCall:
        """Turns a client's body into the engine's. Touches memory only.

        Raises:
            PreceptorError: The body is wrong, or names something that cannot be served.
        """
        served = served_name(body)
        messages = check_messages(body, self._max_messages)
        check_fields(body)
        target = self._domains.resolve(served, str(messages[0].get("content"))[:_AFFINITY].encode("utf-8", "replace"))
        rules: tuple[SafetyRule, ...] = ()
        if target.domain and target.prompt:
            rules = target.domain.triggered(_ends(user_text(messages)))
            extra = [_system_text(message) for message in messages if message["role"] in _SYSTEM]
            turns = [message for message in messages if message["role"] not in _SYSTEM] if extra else messages
            body["messages"] = [target.prompt.system(extra), *turns]
            if body.get("max_tokens") is None and body.get("max_completion_tokens") is None:
                body["max_tokens"] = target.domain.max_answer_tokens
            self._metrics.answers.labels(target.domain.name, target.adapter or "base", kind).inc()
            if rules:
                self._metrics.safety.labels(target.domain.name).inc()
        body["model"] = target.engine_name
        if target.stop_token_ids:
            body["stop_token_ids"] = list(target.stop_token_ids)
        raw = encode(body)
        return EngineCall(
            target=target,
            path=ROUTE,
            route=route,
            body=raw,
            stream=body.get("stream") is True,
            prompt_chars=characters_of(body["messages"]),
            max_tokens=max_tokens(body),
            choices=answers(body),
            rules=rules,
        )


def _ends(text: str) -> str:
    return text if len(text) <= 2 * _LOOKED_AT else text[:_LOOKED_AT] + text[-_LOOKED_AT:]


def _system_text(message: Json) -> str:
    content = message.get("content")
    if not isinstance(content, str):
        raise BadRequest("A system message must be text.", code="invalid_field", param="messages")
    return content
