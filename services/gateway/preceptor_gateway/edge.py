"""The outermost layer, plain ASGI so that streams pass untouched: request id, body limit, log line, metrics."""

from __future__ import annotations

import re
import uuid

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from preceptor_gateway.metrics import Metrics
from preceptor_gateway.problems import BodyTooLarge, GatewayError, response_of
from preceptor_gateway.telemetry.cells import NONE
from preceptor_gateway.telemetry.meter import RequestMeter

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
log = structlog.get_logger("gateway")


class Edge:
    """Wraps the whole application."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, max_body_bytes: int) -> None:
        self._app = app
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        offered = headers.get("x-request-id", "")
        request_id = offered if _REQUEST_ID.fullmatch(offered) else uuid.uuid4().hex
        scope["request_id"] = request_id
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        meter = scope["meter"] = self._metrics.begin(scope, request_id)
        try:
            self._check_size(int(declared) if (declared := headers.get("content-length", "")).isdigit() else 0)
            await self._app(scope, self._limited(receive), send_with_id)
        except BodyTooLarge as error:
            scope["error_code"] = error.code
            if not status:
                await response_of(error, request_id)(scope, receive, send_with_id)
        except Exception:
            # Last resort at the edge: the client gets the one shape, the log gets the traceback.
            log.exception("unexpected", path=scope["path"])
            scope["error_code"] = "internal_error"
            if status:
                raise
            oops = GatewayError(
                "The gateway failed in a way that it did not expect.",
                code="internal_error",
                hint=f"Look for request_id {request_id!r} in the gateway's log.",
            )
            oops.status = 500
            await response_of(oops, request_id)(scope, receive, send_with_id)
        finally:
            self._record(scope, meter, status)

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
        meter.done(status, scope.get("error_code", ""), getattr(scope.get("route"), "path", NONE))
        # No bodies, no headers: prompts are people's questions, headers hold keys.
        log.info(
            "request",
            method=scope["method"],
            path=scope["path"],
            status=status,
            ms=round(meter.seconds * 1000, 1),
            served=scope.get("served"),
        )
