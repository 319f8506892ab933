"""A collector that takes OTLP over HTTP and keeps the spans; it also plays LangSmith, which takes anything."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass
class Collector:
    """What arrived."""

    url: str = ""
    bodies: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    """Path, headers and body of every post."""

    @property
    def resource(self) -> dict[str, Any]:
        """Attributes of the process that sent the first spans."""
        return _values(self._decoded()[0].resource_spans[0].resource.attributes)

    @property
    def spans(self) -> list[Any]:
        """Every span, oldest first."""
        found = [
            span
            for request in self._decoded()
            for group in request.resource_spans
            for scope in group.scope_spans
            for span in scope.spans
        ]
        return sorted(found, key=lambda span: span.start_time_unix_nano)

    def _decoded(self) -> list[Any]:
        sent = [body for path, _, body in self.bodies if path == "/v1/traces"]
        return [ExportTraceServiceRequest.FromString(body) for body in sent]


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


def attributes(span: Any) -> dict[str, Any]:
    """A span's attributes."""
    return _values(span.attributes)


@contextmanager
def collector() -> Iterator[Collector]:
    """Listens on a loopback port."""
    kept = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            kept.bodies.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            self._answer()

        do_PATCH = do_POST

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            self.send_response(200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kept.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield kept
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
