"""A small HTTP/1.1 client for one upstream, made for the hot path: httptools on an asyncio protocol, keep-alive.

What it leaves out on purpose: redirects, cookies, compression, proxies. Decision 7 has the figures against aiohttp.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
import time
from collections import deque
from typing import cast
from urllib.parse import urlsplit

import httptools

_IDLE_S = 4.0
"""Shorter than vLLM's keep-alive of 5 s, or a request now and then meets a closed socket."""
_HIGH_WATER = 256 * 1024
"""Bytes that may wait for a slow reader before the socket is no longer read."""
_ASK_AFTER_S, _ASK_EVERY_S, _GONE_AFTER_S = 4, 2, 10
"""A model may think for minutes in silence, so the kernel asks the other machine whether it is still there."""


class UpstreamError(Exception):
    """The upstream could not be reached, or broke off."""


class NotReached(UpstreamError):
    """No byte of an answer arrived: another upstream may be asked instead."""


class BrokenOff(UpstreamError):
    """The connection ended in the middle of an answer."""


class TooSilent(UpstreamError):
    """Nothing arrived for longer than the limit."""


def _notice_a_dead_network(made: socket.socket) -> None:
    """Has the kernel end a connection whose other side acknowledges nothing, where no reset ever arrives."""
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _ASK_AFTER_S)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _ASK_EVERY_S)
        # Bounds both the unanswered questions and the bytes of a request that nobody takes.
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _GONE_AFTER_S * 1000)


class _Connection(asyncio.Protocol):
    """One socket; carries one exchange at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, silence_s: float) -> None:
        self._loop = loop
        self._silence_s = silence_s
        self._waiter: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self.lost = False
        self.idle_since = 0.0
        self.begin()

    def begin(self) -> None:
        """Forgets the exchange before."""
        self._parser = httptools.HttpResponseParser(self)
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.pieces: deque[bytes] = deque()
        self._waiting_bytes = 0
        self.complete = False
        self._keep_alive = False
        self.error: UpstreamError | None = None

    # --- asyncio's side ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        _notice_a_dead_network(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(BrokenOff(f"The answer is not HTTP: {error}."))
            self.abort()
            return
        if self._waiting_bytes > _HIGH_WATER and not self._paused and self._transport:
            self._transport.pause_reading()
            self._paused = True
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        if self.complete:
            return
        delimited = b"content-length" in self.headers or b"transfer-encoding" in self.headers
        if self.status and not delimited and error is None:
            self.complete = True
            self._wake()
        else:
            self._fail(BrokenOff("The connection broke off.") if self.status else NotReached("The connection closed."))

    # --- httptools' side ---

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self.pieces.append(body)
        self._waiting_bytes += len(body)

    def on_message_complete(self) -> None:
        self.complete = True
        # The parser knows only now; it begins the next message at once.
        self._keep_alive = self._parser.should_keep_alive()

    # --- the exchange's side ---

    def send(self, head: bytes, body: bytes) -> None:
        """Writes a request."""
        assert self._transport is not None  # connection_made came first
        self._transport.write(head + body)

    def take(self) -> bytes:
        """What arrived and was not taken yet."""
        if not self.pieces:
            return b""
        data = self.pieces.popleft() if len(self.pieces) == 1 else b"".join(self.pieces)
        self.pieces.clear()
        self._waiting_bytes = 0
        if self._paused and self._transport and not self.lost:
            self._transport.resume_reading()
            self._paused = False
        return data

    async def news(self) -> None:
        """Waits until something changed.

        Raises:
            UpstreamError: The connection failed, or was silent for too long.
        """
        if self.error:
            raise self.error
        self._waiter = self._loop.create_future()
        timer = self._loop.call_later(self._silence_s, self._too_silent)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None

    def reusable(self, now: float) -> bool:
        """True where another exchange may follow."""
        return not self.lost and now - self.idle_since < _IDLE_S

    @property
    def keeps(self) -> bool:
        """True where the answer is whole and the upstream keeps the connection."""
        return self.complete and not self.lost and not self._paused and self._keep_alive

    def abort(self) -> None:
        """Drops the connection at once, which makes vLLM end the request's work."""
        self.lost = True
        if self._transport:
            self._transport.abort()

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: UpstreamError) -> None:
        self.error = self.error or error
        if self._waiter and not self._waiter.done():
            self._waiter.set_exception(self.error)

    def _too_silent(self) -> None:
        self._fail(TooSilent(f"Nothing arrived for {self._silence_s:g} s."))
        self.abort()


class Reply:
    """An answer whose head has arrived. `close` it in every case; half-read, that drops the connection."""

    def __init__(self, pool: HttpPool, connection: _Connection) -> None:
        self._pool = pool
        self._connection = connection
        self.status = connection.status
        self.headers = connection.headers

    async def chunk(self) -> bytes:
        """The next bytes of the body as they arrive; empty at its end."""
        connection = self._connection
        while not connection.pieces:
            if connection.complete:
                return b""
            await connection.news()
        return connection.take()

    async def read(self) -> bytes:
        """The rest of the body."""
        connection = self._connection
        taken = []
        while not connection.complete:
            taken.append(connection.take())
            await connection.news()
        taken.append(connection.take())
        return taken[0] if len(taken) == 1 else b"".join(taken)

    def abort(self) -> None:
        """Drops the connection from outside; whoever waits for bytes gets `BrokenOff`."""
        self._connection._fail(BrokenOff("Given up."))
        self._connection.abort()

    def close(self) -> None:
        """Gives the connection back, or drops it where the answer is not whole."""
        self._pool.give_back(self._connection)


class HttpPool:
    """Keep-alive connections to one upstream; as many as there are requests at once."""

    def __init__(self, url: str, headers: dict[str, str], *, connect_s: float, silence_s: float) -> None:
        parts = urlsplit(url)
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._ssl else 80)
        self._root = parts.path.rstrip("/")
        self._connect_s = connect_s
        self._silence_s = silence_s
        self._idle: list[_Connection] = []
        lines = {"host": parts.netloc.rpartition("@")[2], **headers}
        self._head = "".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode("latin-1")
        self._heads: dict[tuple[str, str], bytes] = {}

    async def exchange(
        self, method: str, path: str, body: bytes = b"", *, more: bytes = b"", silence_s: float | None = None
    ) -> Reply:
        """Sends a request and returns when the answer's head is there.

        Args:
            method: The verb.
            path: Below the upstream's URL; the caller's own, never a client's.
            body: Its bytes.
            more: Further header lines, each ended by CR LF.
            silence_s: Longest silence, in seconds, where the pool's own is not meant.

        Raises:
            UpstreamError: No answer.
        """
        head = self._heads.get((method, path))
        if head is None:
            head = self._heads[method, path] = f"{method} {self._root}{path} HTTP/1.1\r\n".encode() + self._head
        head = b"%b%bcontent-length: %d\r\n\r\n" % (head, more, len(body))
        silence_s = self._silence_s if silence_s is None else silence_s
        while True:
            connection, used = await self._connection(silence_s)
            try:
                connection.send(head, body)
                while not connection.status:
                    await connection.news()
                return Reply(self, connection)
            except NotReached:
                # A kept connection that the upstream closed just now says nothing about the upstream.
                if not used:
                    raise
            except BaseException:
                connection.abort()
                raise

    async def _connection(self, silence_s: float) -> tuple[_Connection, bool]:
        now = time.monotonic()
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable(now):
                connection.begin()
                connection._silence_s = silence_s
                return connection, True
            connection.abort()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_s):
                _, connection = await loop.create_connection(
                    lambda: _Connection(loop, silence_s), self._host, self._port, ssl=self._ssl
                )
        except TimeoutError as error:
            raise NotReached(f"No connection within {self._connect_s:g} s.") from error
        except OSError as error:
            raise NotReached(f"No connection: {error.strerror or error}.") from error
        return connection, False

    def give_back(self, connection: _Connection) -> None:
        """Keeps a connection whose answer was whole, drops any other."""
        if connection.keeps:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
        else:
            connection.abort()

    async def close(self) -> None:
        """Drops every idle connection."""
        for connection in self._idle:
            connection.abort()
        self._idle.clear()
        # One turn of the loop, so that the transports are closed when it ends.
        await asyncio.sleep(0)
