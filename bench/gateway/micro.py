"""The parts measured apart: ASGI servers, HTTP clients, and what a request costs inside; writes `micro.md`."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from bench.gateway import micro_clients, micro_parts
from bench.gateway.load import press
from bench.gateway.machine import BENCH_PYTHON, OUR_PYTHON, ROOT, BenchFailed, Cores, free_port, tool
from bench.gateway.measure import Bench, Plan, say
from bench.gateway.processes import Command, running
from bench.gateway.report import table

_SERVERS = (
    "bare protocol (httptools, uvloop)",
    "uvicorn (httptools, uvloop)",
    "uvicorn (httptools, asyncio)",
    "uvicorn (h11, asyncio)",
    "granian (uvloop)",
)
_STREAMS = 8
"""Streams at once."""


class Served(NamedTuple):
    """A server under one kind of load."""

    rate: float
    cpu_us: float
    p50_us: float


def micro(plan: Plan, cores: Cores) -> str:
    """Measures every part, and returns the page."""
    seconds = 2.0 if plan.rounds > 1 else 1.0
    say("parts: servers, ")
    servers = [_server_row(name, cores, seconds) for name in _SERVERS]
    say("clients, ")
    clients = _clients(plan, cores, seconds)
    say("one request's parts\n")
    costs = micro_parts.all_parts(ROOT / "domains", seconds / 8)
    return (
        "\n\n".join(
            (
                "# What the parts of a request cost",
                "Written by `make bench-gateway`. Microseconds are processor time of the measured process alone, user "
                "and system: other work on the machine disturbs them less than it disturbs rates. What was kept, what "
                "lost, and why, stands in [docs/decisions](../../docs/decisions/README.md).",
                "## ASGI servers",
                "One bare ASGI function, a body of 700 bytes; a stream is 64 pieces, each sent by itself. "
                "granian answers in a thread of its own beside Python's.",
                table(
                    ("server", "us at c=1", "us at c=32", "requests/s at c=32", f"us a stream at c={_STREAMS}"), servers
                ),
                "## HTTP clients",
                "Against the fixed upstream, in a closed loop on uvloop.",
                table(("client", "us at c=1", "us at c=32", "requests/s at c=32"), clients),
                "## In this process, without a socket",
                table(("part", "way", "us"), [(one.part, one.way, f"{one.us:.2f}") for one in costs]),
            )
        )
        + "\n"
    )


def _server_row(name: str, cores: Cores, seconds: float) -> tuple[str, ...]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        body = folder / "body.json"
        body.write_bytes(micro_clients.BODY)
        port = free_port()
        arguments = [str(BENCH_PYTHON), "-m", "bench.gateway.micro_apps", name, str(port)]
        command = Command(arguments, {"PYTHONPATH": str(ROOT)}, ROOT, folder / "server.log", cores.proxy)
        base = f"http://127.0.0.1:{port}"
        with running(command, base + "/") as process:

            def load(path: str, concurrency: int) -> Served:
                press(base + path, body, concurrency=concurrency, seconds=1, core=cores.load)
                cpu = process.cpu_s()
                seen = press(base + path, body, concurrency=concurrency, seconds=seconds, core=cores.load)
                used = process.cpu_s() - cpu
                if not seen.requests or seen.errors:
                    raise BenchFailed(f"{name} failed {seen.errors} of {seen.requests} requests to {path}.")
                return Served(seen.rate, used / seen.requests * 1e6, seen.p50_ms * 1e3)

            one, many, streams = load("/", 1), load("/", 32), load("/stream", _STREAMS)
    return name, f"{one.cpu_us:.0f}", f"{many.cpu_us:.0f}", f"{many.rate:,.0f}", f"{streams.cpu_us:.0f}"


def _clients(plan: Plan, cores: Cores, seconds: float) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    with tempfile.TemporaryDirectory() as place, Bench(plan, Path(place), cores).upstream() as port:
        for name, client in micro_clients.CLIENTS.items():
            python = OUR_PYTHON if client.ours else BENCH_PYTHON
            found = []
            for concurrency in (1, 32):
                done = subprocess.run(
                    [
                        *(tool("taskset"), "--cpu-list", str(cores.proxy), str(python)),
                        *("-m", "bench.gateway.micro_clients", name, str(port), str(concurrency), str(seconds)),
                    ],
                    cwd=ROOT,
                    capture_output=True,
                    text=True,
                    timeout=60,
                    check=False,
                )
                if done.returncode:
                    raise BenchFailed(f"The client {name!r} failed: {done.stderr.strip().splitlines()[-1:]}")
                found.append(json.loads(done.stdout))
            one, many = found
            rows.append((name, f"{one['cpu_us']:.0f}", f"{many['cpu_us']:.0f}", f"{many['rate']:,.0f}"))
    return rows
