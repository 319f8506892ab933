"""The gateway's own HTTP client against upstreams that answer, dawdle, lie and break off."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preceptor_gateway.engine.http import BrokenOff, HttpPool, NotReached, TooSilent

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


class Upstream:
    """Answers each request on a connection with the next scripted bytes; None closes the connection."""

    def __init__(self, *script: bytes | None, forever: bool = False) -> None:
        self.script = list(script)
        self.forever = forever
        self.connections = 0
        self.requests: list[bytes] = []
        self.left = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                answer = self.script[0] if self.forever else self.script.pop(0)
                if answer is None:
                    return
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, IndexError):
            self.left.set()
        finally:
            writer.close()


@asynccontextmanager
async def pool_to(handler: Handler, silence_s: float = 5) -> AsyncIterator[HttpPool]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pool = HttpPool(f"http://127.0.0.1:{port}/below/", {"x-key": "k"}, connect_s=2, silence_s=silence_s)
    try:
        yield pool
    finally:
        await pool.close()
        server.close()
        # The handlers see their clients go.
        await asyncio.sleep(0.02)


def sized(body: bytes) -> bytes:
    return OK + b"content-length: %d\r\n\r\n" % len(body) + body


def chunked(*pieces: bytes) -> bytes:
    return OK + b"transfer-encoding: chunked\r\n\r\n" + b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in [*pieces, b""])


async def ask(pool: HttpPool, body: bytes = b"{}") -> bytes:
    reply = await pool.exchange("POST", "/v1/x", body)
    try:
        return await reply.read()
    finally:
        reply.close()


async def test_sends_path_headers_and_body_and_keeps_the_connection() -> None:
    upstream = Upstream(sized(b"one"), chunked(b"t", b"wo"), sized(b""))
    async with pool_to(upstream) as pool:
        reply = await pool.exchange("POST", "/v1/x", b"body", more=b"traceparent: t\r\n")
        assert (reply.status, reply.headers[b"content-type"]) == (200, b"application/json")
        assert await reply.read() == b"one"
        reply.close()
        assert await ask(pool) == b"two"
        assert await ask(pool) == b""
    assert upstream.connections == 1
    assert upstream.requests[0].startswith(b"POST /below/v1/x HTTP/1.1\r\nhost: 127.0.0.1:")
    assert b"\r\nx-key: k\r\ntraceparent: t\r\ncontent-length: 4\r\n\r\nbody" in upstream.requests[0]


async def test_requests_at_once_have_connections_of_their_own() -> None:
    upstream = Upstream(sized(b"x"), forever=True)
    async with pool_to(upstream) as pool:
        assert await asyncio.gather(*(ask(pool) for _ in range(20))) == [b"x"] * 20
        assert upstream.connections <= 20


async def test_a_connection_that_the_upstream_closed_is_not_an_error() -> None:
    # The second request meets the closed socket, at whatever moment the closing is seen.
    upstream = Upstream(sized(b"one"), None, sized(b"two"))
    async with pool_to(upstream) as pool:
        assert await ask(pool) == b"one"
        assert await ask(pool) == b"two"
    assert upstream.connections == 2


async def test_connection_close_is_obeyed() -> None:
    upstream = Upstream(OK + b"connection: close\r\ncontent-length: 1\r\n\r\nx", forever=True)
    async with pool_to(upstream) as pool:
        assert [await ask(pool), await ask(pool)] == [b"x", b"x"]
    assert upstream.connections == 2


async def test_body_that_ends_with_the_connection_is_whole() -> None:
    async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + b"connection: close\r\n\r\nall of it")
        writer.close()

    async with pool_to(closing) as pool:
        assert await ask(pool) == b"all of it"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        pytest.param(b"", NotReached, id="closed-without-a-word"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-le", NotReached, id="half-a-head"),
        pytest.param(OK + b"content-length: 9\r\n\r\nhalf", BrokenOff, id="half-a-body"),
        pytest.param(OK + b"transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n", BrokenOff, id="half-a-stream"),
        pytest.param(b"SSH-2.0-OpenSSH\r\n\r\n", BrokenOff, id="not-http"),
    ],
)
async def test_broken_answers(answer: bytes, error: type[Exception]) -> None:
    async def breaking(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with pool_to(breaking) as pool:
        with pytest.raises(error):
            await ask(pool)


async def test_nobody_listens() -> None:
    pool = HttpPool("http://127.0.0.1:9", {}, connect_s=2, silence_s=2)
    with pytest.raises(NotReached):
        await pool.exchange("GET", "/", b"")


@pytest.mark.parametrize("answer", [b"", OK + b"content-length: 9\r\n\r\nhalf"], ids=["no-head", "half-a-body"])
async def test_silence_is_limited(answer: bytes) -> None:
    async with pool_to(Upstream(answer, forever=True), silence_s=0.2) as pool:
        with pytest.raises(TooSilent):
            await ask(pool)


async def test_a_side_that_takes_no_bytes_is_given_up_long_before_the_limit_of_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where a network fails without a word: the bytes of the request are acknowledged by nobody."""
    monkeypatch.setattr("preceptor_gateway.engine.http._GONE_AFTER_S", 1)

    given_up = asyncio.Event()

    async def reads_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # a StreamWriter's transport reads, too
        await given_up.wait()
        writer.transport.abort()

    async with pool_to(reads_nothing, silence_s=300) as pool, asyncio.timeout(60):
        with pytest.raises(NotReached):
            await ask(pool, bytes(64 << 20))
        given_up.set()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's names of the kernel's timers")
async def test_the_kernel_asks_an_upstream_that_thinks_for_long_whether_it_is_there() -> None:
    async with pool_to(Upstream(sized(b"1"))) as pool:
        reply = await pool.exchange("GET", "/")
        open_socket = reply._connection._transport.get_extra_info("socket")  # type: ignore[union-attr]
        assert open_socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        options = [socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_USER_TIMEOUT]
        assert [open_socket.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [4, 2, 10_000]
        await reply.read()
        reply.close()


async def test_closing_half_way_drops_the_connection() -> None:
    upstream = Upstream(OK + b"transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n")
    async with pool_to(upstream) as pool:
        reply = await pool.exchange("POST", "/v1/x", b"")
        assert await reply.chunk() == b"half"
        reply.close()
        await asyncio.wait_for(upstream.left.wait(), 2)


async def test_cancelling_a_wait_drops_the_connection() -> None:
    upstream = Upstream(b"")
    async with pool_to(upstream) as pool:
        task = asyncio.create_task(ask(pool))
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.wait_for(upstream.left.wait(), 2)


async def test_abort_from_outside_ends_the_wait() -> None:
    upstream = Upstream(OK + b"content-length: 9\r\n\r\nhalf")
    async with pool_to(upstream) as pool:
        reply = await pool.exchange("POST", "/v1/x", b"")
        asyncio.get_running_loop().call_later(0.05, reply.abort)
        with pytest.raises(BrokenOff):
            await reply.read()
        reply.close()
        await asyncio.wait_for(upstream.left.wait(), 2)


async def test_a_slow_reader_holds_the_upstream_back() -> None:
    size = 64 * 1024 * 1024
    written = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + b"content-length: %d\r\n\r\n" % size)
        piece = b"x" * 65536
        while written < size:
            writer.write(piece)
            await writer.drain()
            written += len(piece)
        writer.close()

    async with pool_to(flood) as pool:
        reply = await pool.exchange("POST", "/v1/x", b"")
        await asyncio.sleep(0.3)
        assert written < size / 2
        assert len(await reply.read()) == size
        reply.close()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.lists(st.integers(1, 30), min_size=1, max_size=8))
async def test_any_split_of_the_bytes_gives_the_same_body(pieces: list[bytes], cuts: list[int]) -> None:
    raw = chunked(*pieces)

    async def dribble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        rest, turn = raw, 0
        while rest:
            cut = cuts[turn % len(cuts)]
            writer.write(rest[:cut])
            await writer.drain()
            await asyncio.sleep(0)
            rest, turn = rest[cut:], turn + 1
        await reader.read()
        writer.close()

    async with pool_to(dribble) as pool:
        assert await ask(pool) == b"".join(pieces)
