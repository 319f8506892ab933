"""What one request counts, from its first byte to its last. The edge begins and ends it, features count calls in it."""

from __future__ import annotations

from bisect import bisect_left
from contextvars import ContextVar
from time import perf_counter
from typing import Protocol

from preceptor_gateway.telemetry.cells import NONE, Cells
from preceptor_gateway.telemetry.usage import Usage, find_stream_usage, find_usage

_CODES = 200
"""Error codes that one set of cells tells apart; all of ours are fewer. Past it they are one code, `other`."""


class CellSource(Protocol):
    """Where cells are: the gateway's `Metrics`."""

    unresolved: Cells

    def cells(self, route: str, domain: str, adapter: str) -> Cells:
        """The cells of a route, domain and adapter."""


class CallTrace(Protocol):
    """The spans of one call of the engine."""

    headers: bytes

    def first(self, at: float) -> None:
        """Notes the first piece."""

    def end(self, usage: Usage | None, chunks: int, code: str, answer: bytes) -> None:
        """Ends the span."""


class RequestTrace(Protocol):
    """The spans of one request; only where traces are on."""

    trace_id: str

    def call(self, meter: RequestMeter, cells: Cells, served: str, body: bytes, at: float) -> CallTrace:
        """Begins the span of a call of the engine."""

    def end(self, meter: RequestMeter, status: int, code: str, at: float) -> None:
        """Ends the request's span."""


class CallMeter:
    """One call of the engine within a request. `end` it in every case; `answered` and `tokens` end it too."""

    __slots__ = (
        "_before",
        "_cells",
        "_code",
        "_ended",
        "_gaps",
        "_last",
        "_meter",
        "_tail",
        "_trace",
        "chunks",
        "usage",
    )

    def __init__(self, meter: RequestMeter, cells: Cells, trace: CallTrace | None) -> None:
        self._meter = meter
        self._cells = cells
        self._gaps = cells.gaps
        self._trace = trace
        self._last = 0.0
        self._tail = self._before = b""
        self._ended = False
        self.chunks = 0
        """Events of the stream so far."""
        self.usage: Usage | None = None
        """What the engine told about this call, once it has ended."""

    @property
    def headers(self) -> bytes:
        """Header lines for the engine, each ended by CR LF; empty where traces are off."""
        return self._trace.headers if self._trace is not None else b""

    @property
    def completion_tokens(self) -> int:
        """Tokens of the answer: told by the engine, or one for each piece of a stream less its role and its end."""
        return self.usage.completion_tokens if self.usage is not None else max(self.chunks - 2, 0)

    def chunk(self, data: bytes) -> None:
        """Counts a piece of a stream as it arrives."""
        now = perf_counter()
        if self._last:
            gap = now - self._last
            gaps = self._gaps
            gaps.counts[bisect_left(gaps.bounds, gap)] += 1
            gaps.total += gap
        else:
            self._cells.first_token.observe(now - self._meter.started)
            if self._trace is not None:
                self._trace.first(now)
        self._last = now
        # An event ends in an empty line, and JSON within it holds no bare line break.
        self.chunks += data.count(b"\n\n")
        self._before, self._tail = self._tail, data

    def answered(self, raw: bytes) -> None:
        """Counts an answer that came as a whole, from its bytes."""
        self._close(find_usage(raw), "", raw)

    def tokens(self, usage: Usage | None) -> None:
        """Counts an answer whose usage the caller has decoded."""
        self._close(usage, "", b"")

    def end(self, code: str = "") -> None:
        """Ends the call: of a stream behind its last piece, with the error's code where there was one."""
        if not self._ended:
            usage = find_stream_usage(self._before + self._tail) if self._last else None
            self._close(usage, code, b"")

    def _close(self, usage: Usage | None, code: str, answer: bytes) -> None:
        if self._ended:
            return
        self._ended = True
        self.usage = usage
        cells = self._cells
        cells.chunks += self.chunks
        if usage is not None:
            cells.prompt_tokens += usage.prompt_tokens
            cells.cached_tokens += usage.cached_tokens
            cells.completion_tokens += usage.completion_tokens
            if usage.queue_s is not None:
                cells.engine_queue.observe(usage.queue_s)
        elif self._last or not code:
            cells.chunk_tokens += self.completion_tokens
            cells.unmetered += 1
        if code and self._last:
            # The status is sent; what fails before, the edge learns by the exception.
            self._meter.code = code
        if self._trace is not None:
            self._trace.end(usage, self.chunks, code, answer)


class RequestMeter:
    """One request. `done` ends it."""

    __slots__ = (
        "_asked",
        "_cells",
        "_metrics",
        "code",
        "limit",
        "read_at",
        "request_id",
        "route",
        "seconds",
        "started",
        "trace",
    )

    def __init__(self, metrics: CellSource, request_id: str) -> None:
        self._metrics = metrics
        self._cells = metrics.unresolved
        self._cells.in_flight += 1
        self.request_id = request_id
        self.trace: RequestTrace | None = None
        self.code = ""
        """Code of the error that the request ended in, where its status could not say so any more."""
        self.limit = ""
        """Which limit refused the request, if one did."""
        self._asked = False
        self.route = NONE
        """The route's template, once it is known."""
        self.read_at = 0.0
        self.seconds = 0.0
        """How long the request took; once it is done."""
        self.started = perf_counter()

    def read(self) -> None:
        """Notes that the body is there; from here to the call is the gateway's own work. Only traces show it."""
        self.read_at = perf_counter()

    def about(self, route: str, domain: str | None, adapter: str | None) -> Cells:
        """Notes whom the request asks; what goes wrong from here on is counted there. The first word holds.

        Args:
            route: The route's template, not the path.
            domain: A registered domain; None for the raw base model.
            adapter: A registered adapter; None for the base model.

        Returns:
            The cells of whom it asks now.
        """
        cells = self._metrics.cells(route, domain or "base", adapter or "base")
        if self._cells is self._metrics.unresolved:
            self._cells.in_flight -= 1
            cells.in_flight += 1
            self._cells = cells
            self.route = route
        return cells

    def call(
        self, route: str, domain: str | None, adapter: str | None, served: str = "", body: bytes = b""
    ) -> CallMeter:
        """Begins a call of the engine; to be called right before it is asked.

        Args:
            route: As in `about`.
            domain: As in `about`.
            adapter: As in `about`.
            served: The served name; for traces.
            body: What the engine gets; for traces.
        """
        now = perf_counter()
        cells = self.about(route, domain, adapter)
        if not self._asked:
            self._asked = True
            cells.queue.observe(now - self.started)
        trace = self.trace.call(self, cells, served, body, now) if self.trace is not None else None
        return CallMeter(self, cells, trace)

    def done(self, status: int, code: str = "", route: str = NONE) -> None:
        """Ends the request.

        Args:
            status: The HTTP status that was sent, or what the log says where none was.
            code: Our error's code; empty where all went well.
            route: The route's template, for a request that never asked an engine.
        """
        now = perf_counter()
        code = code or self.code
        cells = self._cells
        cells.in_flight -= 1
        if cells is self._metrics.unresolved:
            self.route = route
            cells = self._metrics.cells(route, NONE, NONE)
        cells.requests[status] = cells.requests.get(status, 0) + 1
        self.seconds = now - self.started
        cells.seconds.observe(self.seconds)
        if code or status >= 400:
            key = (status, code or "unknown")
            if key not in cells.errors and len(cells.errors) >= _CODES:
                key = (status, "other")
            cells.errors[key] = cells.errors.get(key, 0) + 1
            if status == 429:
                limit = self.limit or "other"
                cells.limited[limit] = cells.limited.get(limit, 0) + 1
        if self.trace is not None:
            self.trace.end(self, status, code, now)


CURRENT: ContextVar[RequestMeter | None] = ContextVar("request_meter", default=None)
"""The request that this task works on; log lines take its id from here."""
