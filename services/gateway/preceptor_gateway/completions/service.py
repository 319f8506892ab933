"""A client's completion request becomes the engine's: the adapter is chosen, the prompt stays as it is.

Evaluation harnesses score with these: they apply the chat template themselves and send token ids.
"""

from __future__ import annotations

from typing import Any

from preceptor_gateway.client_fields import answers, check_fields, max_tokens, served_name
from preceptor_gateway.domains.service import DomainService
from preceptor_gateway.engine.client import encode
from preceptor_gateway.problems import BadRequest
from preceptor_gateway.relay import EngineCall

Json = dict[str, Any]
_AFFINITY = 512


class CompletionService:
    """Prepares completion requests."""

    def __init__(self, domains: DomainService) -> None:
        self._domains = domains

    def prepare(self, body: Json) -> EngineCall:
        """Turns a client's body into the engine's. Touches memory only.

        Raises:
            PreceptorError: The body is wrong, or names something that cannot be served.
        """
        served = served_name(body)
        prompt = body.get("prompt")
        if not _is_prompt(prompt):
            raise BadRequest(
                "prompt must be a text, a list of token ids, or a non-empty list of either.",
                code="invalid_field",
                param="prompt",
                hint="Send a chat to /v1/chat/completions.",
            )
        check_fields(body)
        target = self._domains.resolve(served, str(prompt)[:_AFFINITY].encode("utf-8", "replace"))
        body["model"] = target.engine_name
        if target.stop_token_ids:
            body["stop_token_ids"] = list(target.stop_token_ids)
        raw = encode(body)
        return EngineCall(
            target=target,
            path="/v1/completions",
            route="/v1/completions",
            body=raw,
            stream=body.get("stream") is True,
            prompt_chars=_characters(prompt),
            max_tokens=max_tokens(body),
            choices=answers(body),
        )

    def prepare_embeddings(self, body: Json) -> EngineCall:
        """Turns a client's request for embeddings into the engine's; most engines answer that they have none."""
        served = served_name(body)
        check_fields(body)
        target = self._domains.resolve(served)
        body["model"] = target.engine_name
        return EngineCall(target=target, path="/v1/embeddings", route="/v1/embeddings", body=encode(body), stream=False)


def _characters(prompt: Any) -> int:
    """About how many characters a prompt holds, for limits; four for each token id."""
    if isinstance(prompt, str):
        return len(prompt)
    return sum(_characters(one) if isinstance(one, str | list) else 4 for one in prompt)


def _is_prompt(prompt: object) -> bool:
    if isinstance(prompt, str):
        return bool(prompt)
    if not isinstance(prompt, list) or not prompt:
        return False
    return _are_ids(prompt) or all((one and isinstance(one, str)) or _are_ids(one) for one in prompt)


def _are_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(one) is int and one >= 0 for one in value)
