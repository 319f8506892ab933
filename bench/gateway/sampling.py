"""Where our gateway's time goes: py-spy looks at its stack from outside, and each look is booked to whoever owns it."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from bench.gateway.machine import BENCH_PYTHON, BenchFailed, tool

_RATE = 250
"""Looks a second: under 1 % of a core, in py-spy's own process on the load's core."""
_WAITING = re.compile(r"acquire_lock|cond_timedwait|epoll_p?wait")
"""In the innermost frames of a thread that waits for work."""
_OWNERS = (
    ("gc_collect", "Python: garbage collection"),
    ("preceptor_gateway/engine/", "ours: HTTP client"),
    ("preceptor_gateway/limits/", "ours: limits"),
    ("preceptor_gateway/keys/", "ours: keys"),
    ("preceptor_gateway/auth", "ours: keys"),
    ("preceptor_gateway/metrics", "ours: metrics"),
    ("preceptor_gateway/telemetry/", "ours: metrics"),
    ("preceptor_gateway/edge", "ours: edge (request id, log line, size)"),
    ("preceptor_gateway/domains/", "ours: domain and prompt"),
    ("preceptor_gateway/", "ours: relay of chat"),
    ("preceptor_contracts/", "ours: contracts"),
    ("uvicorn/", "ASGI server: uvicorn"),
    ("httptools", "HTTP parser: httptools"),
    ("(parser.c", "HTTP parser: httptools"),
    ("(llhttp.c", "HTTP parser: httptools"),
    ("uvloop", "event loop and sockets: uvloop"),
    ("(loop.c", "event loop and sockets: uvloop"),
    ("(stream.c", "event loop and sockets: uvloop"),
    ("(linux.c", "event loop and sockets: uvloop"),
    ("asyncio", "event loop: asyncio's tasks and timers"),
    ("fastapi/", "FastAPI and Starlette"),
    ("starlette/", "FastAPI and Starlette"),
    ("prometheus_client/", "metrics: prometheus_client"),
    ("structlog/", "log: structlog"),
    ("logging/", "log: structlog"),
    ("orjson", "JSON: orjson"),
    ("(limits/", "limits (library)"),
    ("opentelemetry/", "OpenTelemetry"),
    ("langchain_core/", "LangChain"),
)
OTHER = "Python and C library"


@contextlib.contextmanager
def recording(pid: int, raw: Path, seconds: float, core: int) -> Iterator[None]:
    """Samples a process while the block runs; the file holds folded stacks afterwards.

    Raises:
        BenchFailed: py-spy may not look.
    """
    spy = str(BENCH_PYTHON.with_name("py-spy"))
    options = ("--native", "--format", "raw", "--rate", str(_RATE), "--duration", str(max(1, round(seconds))))
    command = [tool("taskset"), "--cpu-list", str(core), spy, "record", *options, "--pid", str(pid)]
    child = subprocess.Popen(
        [*command, "--output", str(raw)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert child.stdout is not None
    first = child.stdout.readline()
    try:
        # The line says that it looks from now on; before, it reads symbols.
        yield
        said, _ = child.communicate(timeout=60)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    if child.returncode or not raw.is_file():
        last = ((first + said).strip().splitlines() or ["nothing"])[-1]
        raise BenchFailed(f"py-spy said {last!r}. It needs root, or kernel.yama.ptrace_scope=0.")


def owner(stack: list[str]) -> str:
    """Who a sample belongs to: the innermost frame that the table knows, a C library's being its caller's."""
    for frame in reversed(stack):
        for sign, name in _OWNERS:
            if sign in frame:
                return name
    return OTHER


def is_waiting(stack: list[str]) -> bool:
    """True where the thread had nothing to do."""
    return any(_WAITING.search(frame) for frame in stack[-3:])


def shares(folded: str) -> list[tuple[str, float]]:
    """Shares of the samples that saw work, by owner, largest first.

    Raises:
        BenchFailed: There are none.
    """
    counts: Counter[str] = Counter()
    for line in folded.splitlines():
        text, _, count = line.rpartition(" ")
        stack = text.split(";")
        if text and count.isdigit() and not is_waiting(stack):
            counts[owner(stack)] += int(count)
    total = counts.total()
    if not total:
        raise BenchFailed("py-spy saw no work in our gateway. Was it under load?")
    return [(name, count / total) for name, count in counts.most_common()]
