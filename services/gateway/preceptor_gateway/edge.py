"""The outermost layer, plain ASGI: request id, body limit, the choice between hot path and API, log line, metrics."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence

import structlog
from fastapi import FastAPI
from preceptor_contracts.errors import PreceptorError
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from preceptor_gateway.hot import HotRoute
from preceptor_gateway.metrics import Metrics
from preceptor_gateway.privacy import log_fields, traceback_of
from preceptor_gateway.problems import BadMethod, BodyTooLarge, oops, response_of
from preceptor_gateway.telemetry.cells import NONE
from preceptor_gateway.telemetry.meter import RequestMeter

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
log = structlog.get_logger("gateway")


class Edge:
    """The whole gateway as one ASGI application.

    FastAPI's own layers cost ten times what a relayed chat does, so the hot routes go past them; everything else, and
    the OpenAPI document, is FastAPI's.

    Args:
        api: Every route but the hot ones.
        hot: The hot routes by path.
        metrics: The gateway's series.
        max_body_bytes: Largest request body.
        origins: Where browsers may call from; no CORS layer where there is none.
    """

    def __init__(
        self,
        api: FastAPI,
        hot: Mapping[str, HotRoute],
        *,
        metrics: Metrics,
        max_body_bytes: int,
        origins: Sequence[str] = (),
    ) -> None:
        self.api = api
        # Around hot routes and errors too: a browser shows its page nothing of an answer without these headers.
        self._outermost: ASGIApp = (
            CORSMiddleware(
                self._answer, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=["*"]
            )
            if origins
            else self._answer
        )
        self._hot = hot
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        await self._outermost(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.api(scope, receive, send)
            return
        offered, length = _headers(scope)
        request_id = offered if _REQUEST_ID.fullmatch(offered) else uuid.uuid4().hex
        id_header = (b"x-request-id", request_id.encode())
        scope["request_id"] = request_id
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], id_header, *scope.get("limit_headers", ())]
            await send(message)

        meter = scope["meter"] = self._metrics.begin(scope, request_id)
        try:
            self._check_size(length)
            await self._route(scope, self._limited(receive), send_with_id)
        except PreceptorError as error:
            scope["error_code"] = error.code
            # Where the status is sent, returning ends the connection. Raising would have the server log the words.
            if not status:
                await response_of(error, request_id)(scope, receive, send_with_id)
        except Exception as error:
            # Last resort at the edge: the client gets the one shape, the log gets the traceback.
            scope["error_code"] = "internal_error"
            fields = log_fields(scope)
            fields["exception"] = traceback_of(error, "prompt" in scope)
            log.error("unexpected", **fields)
            if not status:
                await response_of(oops(request_id), request_id)(scope, receive, send_with_id)
        finally:
            self._record(scope, meter, status)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        hot = self._hot.get(scope["path"])
        if hot is None:
            await self.api(scope, receive, send)
            return
        if scope["method"] != "POST":
            raise BadMethod(f"{scope['method']} {scope['path']!r}", "POST")
        scope["app"] = self.api
        await hot(scope, receive, send)

    def _check_size(self, size: int) -> None:
        if size > self._max_body_bytes:
            raise BodyTooLarge(f"The body holds {size} bytes.", hint=f"Send at most {self._max_body_bytes} bytes.")

    def _limited(self, receive: Receive) -> Receive:
        """Counts what arrives, for a client may declare no length."""
        counted = 0

        async def limited() -> Message:
            nonlocal counted
            message = await receive()
            counted += len(message.get("body", b""))
            self._check_size(counted)
            return message

        return limited

    def _record(self, scope: Scope, meter: RequestMeter, status: int) -> None:
        if "client_left" in scope:
            status = 499
        meter.done(status, scope.get("error_code", ""), getattr(scope.get("route"), "path", NONE))
        # No bodies, no headers: prompts are people's questions, headers hold keys.
        log.info(
            "request",
            method=scope["method"],
            status=status,
            ms=round(meter.seconds * 1000, 1),
            served=scope.get("served"),
            **log_fields(scope),
        )


def _headers(scope: Scope) -> tuple[str, int]:
    """The request id that a client offers, and the length that it declares."""
    offered, length = "", 0
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            offered = value.decode("latin-1")
        elif name == b"content-length" and value.isdigit():
            length = int(value)
    return offered, length
