"""Errors with a status, and the one shape in which every error leaves the gateway: OpenAI's envelope."""

from __future__ import annotations

import re

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from preceptor_contracts.errors import InvalidInput, PreceptorError
from preceptor_contracts.wire import Problem, ProblemBody
from starlette.exceptions import HTTPException
from starlette.responses import Response

_NOT_FOUND = frozenset({"unknown_served_name", "unknown_domain", "unknown_adapter"})
_VARIABLE = re.compile(r"\{\w+\}")
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "conflict_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    502: "engine_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


class GatewayError(PreceptorError):
    """An error that carries its HTTP status."""

    status = 400

    def __init__(
        self, message: str, *, code: str | None = None, hint: str = "", param: str | None = None, retry_after_s: int = 0
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.param = param
        self.retry_after_s = retry_after_s


class BadRequest(GatewayError):
    """The request is wrong; nothing was done."""

    default_code = "bad_request"


class NotAuthenticated(GatewayError):
    """No key, or a wrong one."""

    status = 401
    default_code = "invalid_api_key"


class NotPermitted(GatewayError):
    """The key lacks the scope."""

    status = 403
    default_code = "missing_scope"


class NotFound(GatewayError):
    """What was asked for does not exist."""

    status = 404
    default_code = "not_found"


class BadMethod(GatewayError):
    """The route takes other methods.

    Args:
        asked: The request's method and path.
        allowed: The methods that it takes.
    """

    status = 405
    default_code = "bad_method"

    def __init__(self, asked: str, allowed: str) -> None:
        super().__init__(f"{asked}: Method Not Allowed.", hint=f"It takes {allowed}.")
        self.allowed = allowed


class Conflict(GatewayError):
    """The request is right but the state does not allow it."""

    status = 409
    default_code = "conflict"


class BodyTooLarge(GatewayError):
    """The body exceeds the limit."""

    status = 413
    default_code = "body_too_large"


class ClientLeft(GatewayError):
    """The client hung up; nobody reads this answer, the log and the metrics do."""

    status = 499
    default_code = "client_left"


class EngineRefused(GatewayError):
    """The engine answered an error that is not the client's."""

    status = 502
    default_code = "engine_error"


class Unavailable(GatewayError):
    """Try again in a moment."""

    status = 503
    default_code = "unavailable"


class EngineTimeout(GatewayError):
    """The engine was silent for too long."""

    status = 504
    default_code = "engine_timeout"


def status_of(error: PreceptorError) -> int:
    """The HTTP status of any of our errors."""
    if isinstance(error, GatewayError):
        return error.status
    if error.code in _NOT_FOUND:
        return 404
    return 400 if isinstance(error, InvalidInput) else 500


def body_of(error: PreceptorError, request_id: str) -> ProblemBody:
    """Spells an error as OpenAI's envelope."""
    return ProblemBody(
        error=Problem(
            message=error.message,
            type=_TYPES.get(status_of(error), "api_error"),
            param=getattr(error, "param", None),
            code=error.code,
        ),
        hint=error.hint,
        request_id=request_id,
    )


def response_of(error: PreceptorError, request_id: str) -> Response:
    """Spells an error as a response, with Retry-After where waiting helps; the edge adds the request id's header."""
    headers = {}
    if isinstance(error, GatewayError) and error.retry_after_s:
        headers["retry-after"] = str(error.retry_after_s)
    if isinstance(error, NotAuthenticated):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, BadMethod):
        headers["allow"] = error.allowed
    headers |= {name.decode(): value.decode() for name, value in getattr(error, "headers", ())}
    body = orjson.dumps(body_of(error, request_id).model_dump())
    return Response(body, status_of(error), headers, media_type="application/json")


def request_id_of(request: Request) -> str:
    """The id that the edge gave this request."""
    return str(request.scope.get("request_id", ""))


def _allowed(request: Request, error: HTTPException) -> str:
    """Methods of all routes on this path; Starlette names those of the first alone."""
    path, paths = request.url.path, request.app.openapi()["paths"]
    matching = [path] if path in paths else [one for one in paths if re.fullmatch(_VARIABLE.sub("[^/]+", one), path)]
    methods = {method.upper() for one in matching for method in paths[one]}
    return ", ".join(sorted(methods)) or (error.headers or {}).get("Allow", "")


def oops(request_id: str) -> GatewayError:
    """What a client is told of a failure that nobody foresaw."""
    told = GatewayError(
        "The gateway failed in a way that it did not expect.",
        code="internal_error",
        hint=f"Look for request_id {request_id!r} in the gateway's log.",
    )
    told.status = 500
    return told


def install_handlers(app: FastAPI) -> None:
    """Makes every failure leave in the one shape."""

    def answer(request: Request, error: PreceptorError) -> Response:
        request.scope["error_code"] = error.code  # the edge counts it
        return response_of(error, request_id_of(request))

    async def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, PreceptorError)  # registered for this type only
        return answer(request, error)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # registered for this type only
        problems = error.errors()
        first = problems[0]
        if first["type"] == "json_invalid":
            why = first.get("ctx", {}).get("error", "it cannot be decoded")
            return answer(request, BadRequest(f"The body is not JSON: {why}.", code="invalid_json"))
        field = ".".join(str(step) for step in first["loc"] if step != "body") or "body"
        if isinstance(told := first.get("ctx", {}).get("error"), PreceptorError):
            # A shape's own check of a field: its code and hint, at its place.
            wrong = BadRequest(f"{field}: {told.message}", code=told.code, param=field, hint=told.hint)
            return answer(request, wrong)
        shown = repr(first.get("input"))
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        message = f"{field}: {first['msg'].removeprefix('Value error, ')} (got {shown})."
        more = f" {len(problems) - 1} more field(s) are wrong." if len(problems) > 1 else ""
        bad = BadRequest(message + more, code="invalid_field", param=field, hint="GET /docs shows the request's shape.")
        return answer(request, bad)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # registered for this type only
        if error.status_code == 404:
            lost: GatewayError = NotFound(
                f"There is no {request.url.path!r} here.", code="no_such_route", hint="GET /docs lists the routes."
            )
        elif isinstance(error.__cause__, PreceptorError):
            # FastAPI turns whatever goes wrong while it reads a typed body into a 400 of its own.
            return answer(request, error.__cause__)
        elif error.status_code == 405:
            lost = BadMethod(f"{request.method} {request.url.path!r}", _allowed(request, error))
        else:
            lost = BadRequest(f"{request.method} {request.url.path!r}: {error.detail}.", code="invalid_json")
            lost.status = error.status_code
        return answer(request, lost)

    async def unforeseen(request: Request, _error: Exception) -> Response:
        # Starlette raises the error again behind this answer, so that the edge logs it.
        return response_of(oops(request_id_of(request)), request_id_of(request))

    app.add_exception_handler(Exception, unforeseen)
    app.add_exception_handler(PreceptorError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
