"""The OpenAPI document: FastAPI's for its own routes, the hot routes added, and one error shape for all."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from preceptor_contracts.wire import ProblemBody

from preceptor_gateway.events import EVENT_STREAM

Json = dict[str, Any]

_SERVED: Json = {
    "type": "string",
    "minLength": 1,
    "description": "A served name: `base`, `<domain>`, `<domain>:base` or `<domain>:<adapter>`.",
    "examples": ["allergy:base"],
}
_SAMPLING: Json = {
    "stream": {"type": ["boolean", "null"], "description": "Server-sent events, ended by `data: [DONE]`."},
    "stream_options": {
        "type": ["object", "null"],
        "description": "`include_usage` adds an event with token counts.",
    },
    "max_tokens": {"type": ["integer", "null"], "minimum": 1, "description": "Longest answer."},
    "temperature": {
        "type": ["number", "null"],
        "minimum": 0,
        "maximum": 2,
        "description": "0 always takes the likeliest token; the engine's default is 1.",
    },
    "top_p": {
        "type": ["number", "null"],
        "exclusiveMinimum": 0,
        "maximum": 1,
        "description": "Sample from the likeliest tokens that have this share together.",
    },
    "n": {"type": ["integer", "null"], "minimum": 1, "maximum": 128, "description": "How many answers."},
    "stop": {
        "anyOf": [
            {"type": "string"},
            {"type": "array", "items": {"type": "string"}, "maxItems": 4},
            {"type": "null"},
        ],
        "description": "Words that end the answer; the adapter's own stop tokens hold besides.",
    },
    "seed": {"type": ["integer", "null"], "description": "The same seed samples the same answer."},
    "structured_outputs": {
        "type": ["object", "null"],
        "description": "vLLM's: `choice`, `regex`, `json` or `grammar` binds the answer.",
    },
}
_MESSAGE: Json = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"type": "string", "enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}, {"type": "null"}]},
    },
    "additionalProperties": True,
}
_CHAT: Json = {
    "type": "object",
    "required": ["model", "messages"],
    "properties": {
        "model": _SERVED,
        "messages": {
            "type": "array",
            "minItems": 1,
            "items": _MESSAGE,
            "description": "Each with `role` (`system`, `developer`, `user`, `assistant`, `tool`) and `content`.",
        },
        "tools": {
            "type": ["array", "null"],
            "items": {"type": "object"},
            "description": "Functions that may be called, where the engine was started to tell calls from text.",
        },
        "response_format": {"type": ["object", "null"], "description": "`json_schema` binds the answer to a schema."},
        "logprobs": {"type": ["boolean", "null"], "description": "Tell each token's log-probability."},
        **_SAMPLING,
    },
    "additionalProperties": True,
}
_IDS: Json = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
_COMPLETION: Json = {
    "type": "object",
    "required": ["model", "prompt"],
    "properties": {
        "model": _SERVED,
        "prompt": {
            "description": "Text or token ids, or a list of either. No domain prompt is added.",
            "anyOf": [
                {"type": "string", "minLength": 1},
                _IDS,
                {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}},
                {"type": "array", "minItems": 1, "items": _IDS},
            ],
        },
        "echo": {"type": ["boolean", "null"], "description": "Say the prompt again before the answer."},
        "logprobs": {
            "type": ["integer", "null"],
            "minimum": 0,
            "description": "Tell log-probabilities: of each token, and of so many likeliest ones.",
        },
        **_SAMPLING,
    },
    "additionalProperties": True,
}
_EMBEDDING: Json = {
    "type": "object",
    "required": ["model", "input"],
    "properties": {
        "model": _SERVED,
        "input": {
            "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
            "description": "What to embed.",
        },
    },
    "additionalProperties": True,
}
_USAGE: Json = {
    "type": ["object", "null"],
    "description": "`prompt_tokens`, `completion_tokens`, `total_tokens`, and what the engine adds.",
}


def _answer(kind: str, choice: str) -> Json:
    """The shape of a whole answer, as far as clients rely on it; the engine may add fields."""
    return {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["id", "object", "model", "choices"],
                "properties": {
                    "id": {"type": "string", "description": "The engine's name for this answer."},
                    "object": {"const": kind, "description": "OpenAI's word."},
                    "created": {"type": "integer", "description": "Seconds since 1970."},
                    "model": {"type": "string", "description": "The engine's name: the adapter's, or `base`."},
                    "choices": {"type": "array", "items": {"type": "object"}, "description": choice},
                    "usage": _USAGE,
                },
            }
        },
    }


_CHAT_ANSWER = {
    **_answer("chat.completion", "Each with `index`, `message`, `logprobs` and `finish_reason`."),
    **EVENT_STREAM,
}
_PLAIN_ANSWER = {
    **_answer("text_completion", "Each with `index`, `text`, `logprobs` and `finish_reason`."),
    **EVENT_STREAM,
}
_OBJECT: Json = {"application/json": {"schema": {"type": "object"}}}

_HOT = {
    "/v1/chat/completions": (
        "OpenAI chat completions, streamed or whole",
        "The domain's system message comes first. Fields that are not named here go to the engine as they are.",
        _CHAT,
        _CHAT_ANSWER,
    ),
    "/v1/completions": (
        "OpenAI completions of a raw prompt, streamed or whole",
        "No domain prompt is added. `echo` with `logprobs` scores the prompt, which is what evaluation harnesses ask.",
        _COMPLETION,
        _PLAIN_ANSWER,
    ),
    "/v1/embeddings": (
        "OpenAI embeddings, where the engine has them",
        "404 with code `not_supported_by_engine` where it has none.",
        _EMBEDDING,
        _OBJECT,
    ),
}
_PROBLEMS = {
    "400": "The request is wrong; nothing was done.",
    "401": "No key, or a wrong one.",
    "403": "The key lacks the scope.",
    "404": "What was asked for does not exist.",
    "405": "The route takes another method.",
    "409": "The state does not allow it.",
    "413": "The body is too large.",
    "429": "A limit of the key is reached; `retry-after` says how long to wait.",
    "502": "The engine answered an error that is not the client's.",
    "503": "Try again in a moment; `retry-after` says when.",
    "504": "The engine was silent for too long.",
}


_OF_KEYS = ("401", "403", "429")
"""Statuses that an open route never answers."""


def _problems() -> Json:
    shape = {"application/json": {"schema": {"$ref": "#/components/schemas/ProblemBody"}}}
    return {status: {"description": text, "content": shape} for status, text in _PROBLEMS.items()}


def _hot_operation(path: str) -> Json:
    summary, text, request, answer = _HOT[path]
    return {
        "tags": ["openai"],
        "summary": summary,
        "description": text,
        "operationId": path.strip("/").replace("/", "_"),
        "security": [{"HTTPBearer": []}],
        "requestBody": {"required": True, "content": {"application/json": {"schema": request}}},
        "responses": {"200": {"description": "The engine's answer, its bytes untouched.", "content": answer}},
    }


def document(api: FastAPI) -> Json:
    """Builds the OpenAPI document, once; `api.openapi` becomes this."""
    if api.openapi_schema is None:
        schema = get_openapi(title=api.title, version=api.version, description=api.description, routes=api.routes)
        schema["paths"] = {**{path: {"post": _hot_operation(path)} for path in _HOT}, **schema["paths"]}
        shapes = schema["components"]["schemas"]
        problem = ProblemBody.model_json_schema(ref_template="#/components/schemas/{model}")
        shapes |= problem.pop("$defs")
        shapes["ProblemBody"] = problem
        for operations in schema["paths"].values():
            for operation in operations.values():
                # Bad input is a 400 of our own shape, never FastAPI's 422.
                operation["responses"].pop("422", None)
                problems = _problems()
                if "security" not in operation:
                    for status in _OF_KEYS:
                        del problems[status]
                for response in operation["responses"].values():
                    if response["description"] == "Successful Response":
                        response["description"] = "Done."
                operation["responses"] = {**problems, **operation["responses"]}
                operation["responses"] = dict(sorted(operation["responses"].items()))
        for unused in ("HTTPValidationError", "ValidationError"):
            shapes.pop(unused, None)
        api.openapi_schema = schema
    return api.openapi_schema
