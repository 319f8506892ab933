"""A small client for what wrk cannot see of a stream: the first byte's time, the events, and the payload's hash.

Run as `python -m bench.gateway.stream_client <host> <port> <path> <body file> <key> <concurrency> <seconds>`, for every
contestant alike; prints one JSON line. The payload is what stands in the chunks, their framing taken off.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import cast

import httptools
import uvloop


class _Stream(asyncio.Protocol):
    """One connection; one stream at a time."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._done: asyncio.Future[bytes] | None = None
        self._payload: list[bytes] = []
        self._sent = 0.0
        self.first_s = 0.0
        """Seconds from the request to the first byte of the payload."""
        self.pieces = 0
        """Chunks in which the payload came."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        """Fails the stream that was under way."""
        if self._done is not None and not self._done.done():
            self._done.set_exception(ConnectionError("The connection broke off in a stream."))

    def data_received(self, data: bytes) -> None:
        """Feeds the parser."""
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """Notes the time of the first piece."""
        if not self._payload:
            self.first_s = time.perf_counter() - self._sent
        self._payload.append(body)

    def on_message_complete(self) -> None:
        """Hands the payload over."""
        status = self._parser.get_status_code()
        done, payload = self._done, b"".join(self._payload)
        self.pieces = len(self._payload)
        self._done, self._payload, self._parser = None, [], httptools.HttpResponseParser(self)
        if done is not None and not done.done():
            if status == 200:
                done.set_result(payload)
            else:
                done.set_exception(ConnectionError(f"Status {status}: {payload[:200]!r}"))

    def ask(self, request: bytes) -> asyncio.Future[bytes]:
        """Sends a request; the future holds the payload."""
        self._done = asyncio.get_running_loop().create_future()
        self._sent = time.perf_counter()
        self.transport.write(request)
        return self._done


async def measure(host: str, port: int, request: bytes, concurrency: int, seconds: float) -> dict[str, object]:
    """Streams in a closed loop for so many seconds."""
    loop = asyncio.get_running_loop()
    firsts: list[float] = []
    hashes: dict[str, int] = {}
    pieces: list[int] = []
    sample = b""
    end = time.perf_counter() + seconds

    async def one() -> None:
        nonlocal sample
        _, stream = await loop.create_connection(_Stream, host, port)
        try:
            while True:
                sample = await stream.ask(request)
                firsts.append(stream.first_s)
                pieces.append(stream.pieces)
                name = hashlib.sha256(sample).hexdigest()
                hashes[name] = hashes.get(name, 0) + 1
                if time.perf_counter() >= end:
                    return
        finally:
            stream.transport.close()

    await asyncio.gather(*(one() for _ in range(concurrency)))
    # The first request of each connection opens others' connections upstream; it is a stream like all others.
    firsts.sort()
    return {
        "streams": len(firsts),
        "first_p50_ms": firsts[len(firsts) // 2] * 1e3,
        "first_p95_ms": firsts[min(len(firsts) - 1, len(firsts) * 95 // 100)] * 1e3,
        "hashes": hashes,
        "events": sample.count(b"data: ") - sample.count(b"data: [DONE]"),
        "bytes": len(sample),
        "pieces": sum(pieces) / len(pieces),
    }


def request_of(host: str, port: int, path: str, body: bytes, key: str) -> bytes:
    """The request's bytes."""
    head = f"POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\n"
    return f"{head}authorization: Bearer {key}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


if __name__ == "__main__":
    host, port, path, body, key, concurrency, seconds = sys.argv[1:]
    asked = request_of(host, int(port), path, Path(body).read_bytes(), key)
    found = uvloop.run(measure(host, int(port), asked, int(concurrency), float(seconds)))
    sys.stdout.write(json.dumps(found) + "\n")
