"""Runs wrk: a closed loop of so many connections, and what came of it."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.gateway.contestants import KEY
from bench.gateway.machine import BenchFailed, tool

_SCRIPT = Path(__file__).with_name("wrk.lua")
_LINE = re.compile(r"^BENCH (.+)$", re.MULTILINE)
_FIELDS = ("requests", "us", "bytes", "status", "timeout", "socket", "p50", "p95", "p99", "max")
_PATIENCE_S = 30


@dataclass(frozen=True)
class Load:
    """What one run of wrk saw."""

    requests: int
    seconds: float
    bytes: int
    errors: int
    """Answers that were not 2xx, time-outs, and broken sockets."""
    p50_ms: float
    p95_ms: float
    p99_ms: float

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.requests / self.seconds if self.seconds else 0.0


def parse(output: str) -> Load:
    """Reads the line that `wrk.lua` writes.

    Raises:
        BenchFailed: There is no such line, or it lacks a field.
    """
    line = _LINE.search(output)
    if line is None:
        raise BenchFailed(f"wrk said nothing of use: {output[-400:]!r}")
    found = {name: int(value) for name, value in re.findall(r"(\w+)=(-?\d+)", line[1])}
    if missing := [name for name in _FIELDS if name not in found]:
        raise BenchFailed(f"wrk's summary lacks {missing}: {line[0]!r}")
    return Load(
        requests=found["requests"],
        seconds=found["us"] / 1e6,
        bytes=found["bytes"],
        errors=found["status"] + found["timeout"] + found["socket"],
        p50_ms=found["p50"] / 1e3,
        p95_ms=found["p95"] / 1e3,
        p99_ms=found["p99"] / 1e3,
    )


def press(url: str, body: Path, *, concurrency: int, seconds: float, core: int, limit: int = 0) -> Load:
    """Asks as fast as answers come.

    Args:
        url: Whom to ask.
        body: File with the request's body.
        concurrency: Connections, each with one request under way.
        seconds: How long.
        core: Where wrk runs.
        limit: Stops after so many answers, if that comes first.
    """
    whole = max(1, round(seconds))
    tuning = ("--threads", "1", "--connections", str(concurrency), "--duration", f"{whole}s", "--timeout", "30s")
    command = [tool("taskset"), "--cpu-list", str(core), tool("wrk"), *tuning, "--latency", "--script", str(_SCRIPT)]
    done = subprocess.run(
        [*command, url, "--", str(body), KEY, str(limit)],
        capture_output=True,
        text=True,
        timeout=whole + _PATIENCE_S,
        check=False,
    )
    return parse(done.stdout + done.stderr)
