"""What a client may set in an OpenAI request: most fields pass, some are refused, legacy ones are translated."""

from __future__ import annotations

from typing import Any

import orjson

from preceptor_gateway.problems import BadRequest

Json = dict[str, Any]

_TEMPLATE = "changes the template that adapters were trained on"
_REACHES = "reaches into the engine"
_CUTS = "could cut the domain's prompt off"

REFUSED = {
    "chat_template": "replaces the template that adapters were trained on",
    "chat_template_kwargs": _TEMPLATE,
    "add_generation_prompt": _TEMPLATE,
    "continue_final_message": _TEMPLATE,
    "add_special_tokens": _TEMPLATE,
    "documents": _TEMPLATE,
    "truncate_prompt_tokens": _CUTS,
    "truncation_side": _CUTS,
    "mm_processor_kwargs": _REACHES,
    "media_io_kwargs": _REACHES,
    "mm_payload": _REACHES,
    "ec_transfer_params": _REACHES,
    "routed_experts_prompt_start": _REACHES,
    "vllm_xargs": _REACHES,
    "kv_transfer_params": _REACHES,
    "prompt_embeds": _REACHES,
    "priority": "would overtake other people's requests",
    "request_id": "is the gateway's to give; send the header x-request-id",
    "lora_request": 'picks an adapter past the gateway; use "model"',
    "stop_token_ids": 'is the adapter\'s own; use "stop" for words',
}
"""Fields that a client may not set, with the reason it is told."""

_GUIDED = {
    "guided_choice": "choice",
    "guided_regex": "regex",
    "guided_json": "json",
    "guided_grammar": "grammar",
}
"""vLLM ignores these silently since 0.12 (200, unconstrained text); they mean `structured_outputs`."""
_GUIDED_SETTINGS = {
    "guided_whitespace_pattern": "whitespace_pattern",
    "guided_decoding_backend": None,
}
"""Settings of the legacy fields; the backend is the engine's own choice now."""


def parse_body(raw: bytes) -> Json:
    """Decodes a request body, once."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The body is not JSON: {error}.", code="invalid_json") from error
    if not isinstance(body, dict):
        raise BadRequest("The body is not a JSON object.", code="invalid_json")
    return body


def served_name(body: Json) -> str:
    """The served name that a request asks."""
    served = body.get("model")
    if not isinstance(served, str) or not served:
        raise BadRequest(
            f"model must be a served name (got {served!r}).",
            code="invalid_field",
            param="model",
            hint="GET /v1/models lists the served names.",
        )
    return served


def check_fields(body: Json) -> None:
    """Refuses fields that are not a client's to set, and translates the legacy ones."""
    if not isinstance(body.get("stream"), bool | None):
        raise BadRequest(
            f"stream must be true or false (got {body['stream']!r}).", code="invalid_field", param="stream"
        )
    if refused := REFUSED.keys() & body.keys():
        for field in sorted(refused):
            if body[field] is not None:
                raise BadRequest(
                    f"{field!r} is refused: it {REFUSED[field]}.",
                    code="field_refused",
                    param=field,
                    hint="Leave it out.",
                )
    if any(field.startswith("guided_") for field in body):
        _translate_guided(body)


def _translate_guided(body: Json) -> None:
    constraints = {_GUIDED[field]: body.pop(field) for field in _GUIDED if body.get(field) is not None}
    options = {}
    for field, name in _GUIDED_SETTINGS.items():
        value = body.pop(field, None)
        if name and value is not None:
            options[name] = value
    if not constraints:
        return
    if len(constraints) > 1 or body.get("structured_outputs") is not None:
        raise BadRequest("Only one constraint can hold at a time.", code="field_refused", param="structured_outputs")
    body["structured_outputs"] = {**constraints, **options}


def max_tokens(body: Json) -> int:
    """The longest answer that a request asks for, in tokens; 0 where it does not say."""
    for field in ("max_completion_tokens", "max_tokens"):
        value = body.get(field)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0


def answers(body: Json) -> int:
    """How many answers a request asks for."""
    count = body.get("n")
    return min(count, 128) if isinstance(count, int) and count > 0 else 1
