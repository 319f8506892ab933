"""HTTP clients that could carry the hot path, against the fixed upstream: CPU and wall time a request.

Run as `python -m bench.gateway.micro_clients <client> <port> <concurrency> <seconds>`; prints one JSON line.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple, cast

import httptools
import uvloop

PATH = "/v1/chat/completions"
BODY = json.dumps(
    {"model": "base", "messages": [{"role": "user", "content": "How many patients live in Leeds?"}], "temperature": 0}
).encode()
HEADERS = {"content-type": "application/json", "authorization": "Bearer sk-bench"}
Ask = Callable[[], Awaitable[bytes]]
Close = Callable[[], Awaitable[None]]


class _Connection(asyncio.Protocol):
    """One request at a time; httptools cuts the answer."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._done: asyncio.Future[bytes] | None = None
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Feeds the parser."""
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """Keeps a piece."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Hands the answer over."""
        done, self._done = self._done, None
        if done is not None and not done.done():
            done.set_result(b"".join(self._body))
        self._body = []
        self._parser = httptools.HttpResponseParser(self)

    def ask(self, request: bytes) -> asyncio.Future[bytes]:
        """Sends; the future holds the body."""
        self._done = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._done


async def raw(port: int) -> tuple[Ask, Close]:
    """A protocol of our own: a stack of idle connections, one write a request."""
    idle: deque[_Connection] = deque()
    head = f"POST {PATH} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
    loop = asyncio.get_running_loop()

    async def ask() -> bytes:
        if idle:
            connection = idle.pop()
        else:
            _, connection = await loop.create_connection(_Connection, "127.0.0.1", port)
        answer = await connection.ask(b"%bcontent-length: %d\r\n\r\n%b" % (head.encode(), len(BODY), BODY))
        idle.append(connection)
        return answer

    async def close() -> None:
        for connection in idle:
            connection.transport.close()

    return ask, close


async def by_our_pool(port: int) -> tuple[Ask, Close]:
    """What the gateway asks engines by."""
    from preceptor_gateway.engine.http import HttpPool

    pool = HttpPool(f"http://127.0.0.1:{port}", HEADERS, connect_s=5, silence_s=300)

    async def ask() -> bytes:
        reply = await pool.exchange("POST", PATH, BODY)
        try:
            return await reply.read()
        finally:
            reply.close()

    return ask, pool.close


async def by_aiohttp(port: int) -> tuple[Ask, Close]:
    """Aiohttp as the gateway had it."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=300)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=4)
    session = aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=HEADERS, timeout=timeout, connector=connector)

    async def ask() -> bytes:
        async with session.post(PATH, data=BODY) as response:
            return bytes(await response.read())

    return ask, session.close


async def by_aiohttp_lean(port: int) -> tuple[Ask, Close]:
    """Aiohttp with what can be turned off turned off: time-outs, cookies, default headers, a URL parsed once."""
    import aiohttp
    from yarl import URL

    url = URL(f"http://127.0.0.1:{port}{PATH}")
    session = aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=None),
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("accept", "accept-encoding", "user-agent"),
        auto_decompress=False,
    )

    async def ask() -> bytes:
        async with session.post(url, data=BODY, headers=HEADERS, allow_redirects=False) as response:
            return bytes(await response.read())

    return ask, session.close


async def by_httpx(port: int) -> tuple[Ask, Close]:
    """Httpx as it comes."""
    import httpx

    client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=HEADERS, limits=httpx.Limits())

    async def ask() -> bytes:
        return (await client.post(PATH, content=BODY)).content

    return ask, client.aclose


class Client(NamedTuple):
    """A client, and the environment that has it."""

    make: Callable[[int], Awaitable[tuple[Ask, Close]]]
    ours: bool
    """True for `.venv`, False for `.venv-bench`."""


CLIENTS = {
    "raw protocol (httptools), the floor": Client(raw, True),
    "the gateway's own": Client(by_our_pool, True),
    "aiohttp, all that can be turned off turned off": Client(by_aiohttp_lean, False),
    "aiohttp": Client(by_aiohttp, False),
    "httpx": Client(by_httpx, True),
}


async def measure(client: str, port: int, concurrency: int, seconds: float) -> dict[str, float]:
    """Asks in a closed loop; CPU is this process's alone."""
    ask, close = await CLIENTS[client].make(port)
    await asyncio.gather(*(ask() for _ in range(concurrency)))
    taken: list[float] = []
    end = time.perf_counter() + seconds

    async def one() -> None:
        now = time.perf_counter()
        while now < end:
            answer = await ask()
            assert answer.startswith(b"{")
            before, now = now, time.perf_counter()
            taken.append(now - before)

    cpu, began = time.process_time(), time.perf_counter()
    await asyncio.gather(*(one() for _ in range(concurrency)))
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    await close()
    taken.sort()
    return {"rate": len(taken) / wall, "cpu_us": cpu / len(taken) * 1e6, "p50_us": taken[len(taken) // 2] * 1e6}


if __name__ == "__main__":
    found = uvloop.run(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
    sys.stdout.write(json.dumps(found) + "\n")
