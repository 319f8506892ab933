"""The same trivial answer served by each ASGI server, and by a bare protocol as the floor: one process, one worker.

Run as `python -m bench.gateway.micro_apps <server> <port>`; `POST /` answers a fixed body, `POST /stream` 64 pieces.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import cast

import httptools
import uvloop
from starlette.types import Receive, Scope, Send

from bench.gateway.upstream import streamed_answer, whole_answer

WHOLE = whole_answer()
PIECES = [piece + b"\n\n" for piece in streamed_answer().split(b"\n\n") if piece]
_JSON = [(b"content-type", b"application/json"), (b"content-length", str(len(WHOLE)).encode())]
_EVENTS = [(b"content-type", b"text/event-stream")]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """A bare ASGI function: reads the body, answers."""
    if scope["type"] != "http":
        await _lifespan(receive, send)
        return
    while (await receive()).get("more_body"):
        pass
    if scope["path"] == "/stream":
        await send({"type": "http.response.start", "status": 200, "headers": _EVENTS})
        for piece in PIECES:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return
    await send({"type": "http.response.start", "status": 200, "headers": _JSON})
    await send({"type": "http.response.body", "body": WHOLE})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


class _Bare(asyncio.Protocol):
    """What a server cannot go below in Python: httptools parses, one write answers."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._url = url

    def on_message_complete(self) -> None:
        if self._url == b"/stream":
            self._transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            )
            for piece in PIECES:
                self._transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self._transport.write(b"0\r\n\r\n")
            return
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(WHOLE)
        self._transport.write(head + WHOLE)


def _bare(port: int) -> None:
    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(_Bare, "127.0.0.1", port)
        await server.serve_forever()

    uvloop.run(serve())


def _uvicorn(http: str, loop: str) -> Callable[[int], None]:
    def serve(port: int) -> None:
        import uvicorn

        uvicorn.run(app, port=port, http=http, loop=loop, access_log=False, log_level="warning")

    return serve


def _granian(port: int) -> None:
    from granian.constants import Interfaces, Loops
    from granian.server import Server

    server = Server(
        "bench.gateway.micro_apps:app",
        port=port,
        interface=Interfaces.ASGI,
        loop=Loops.uvloop,
        workers=1,
        runtime_threads=1,
        log_access=False,
        log_enabled=False,
    )
    server.serve()


SERVERS: dict[str, Callable[[int], None]] = {
    "bare protocol (httptools, uvloop)": _bare,
    "uvicorn (httptools, uvloop)": _uvicorn("httptools", "uvloop"),
    "uvicorn (httptools, asyncio)": _uvicorn("httptools", "asyncio"),
    "uvicorn (h11, asyncio)": _uvicorn("h11", "asyncio"),
    "granian (uvloop)": _granian,
}

if __name__ == "__main__":
    SERVERS[sys.argv[1]](int(sys.argv[2]))
