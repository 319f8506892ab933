"""The plan: rounds over the contestants, each started anew and alone, then our memory and our profile."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.gateway import sampling, upstream
from bench.gateway.contestants import CONTESTANTS, KEY, OURS, PATH, Contestant, by_name, prove
from bench.gateway.load import Load, press
from bench.gateway.machine import OUR_PYTHON, ROOT, BenchFailed, Cores, free_port, tool
from bench.gateway.processes import Command, Running, running
from bench.gateway.results import GOAL_CONCURRENCY, STEADY_REQUESTS, Death, Memory, Point, Results, Steady, Streams


@dataclass(frozen=True)
class Plan:
    """How long and how often."""

    rounds: int = 3
    concurrencies: tuple[int, ...] = (1, 16, 32, 64)
    stream_concurrencies: tuple[int, ...] = (1, 32)
    point_s: float = 5
    """Of whole answers."""
    stream_s: float = 3
    warm_up_s: float = 1
    first_s: float = 1.5
    """Of the stream client."""
    steady_warm: int = 5_000
    steady: int = STEADY_REQUESTS
    profile_s: float = 8


QUICK = Plan(1, (1, 32), (32,), point_s=1, stream_s=1, first_s=0.5, steady_warm=1_000, steady=3_000, profile_s=2)
_LEAST_RATE = 1_000
"""Requests/s on which the time of a counted run rests: wrk goes on sleeping when its count is reached."""
_SETTLE_S, _LOOK_S = 10.0, 0.2
_STARTS = 3
_FEW, _LONGER = 3, 4
"""A run with fewer answers than 3 a connection is done again, 4 times as long; one with none, 16 times."""


class Bench:
    """One run of everything.

    Args:
        plan: How long and how often.
        folder: For configurations, logs and bodies; its owner removes it.
        cores: Who runs where.
    """

    def __init__(self, plan: Plan, folder: Path, cores: Cores) -> None:
        self.plan = plan
        self._folder = folder
        self._cores = cores
        self._engine_port = free_port()
        self.results = Results()

    def run(self) -> Results:
        """Measures everybody."""
        with self.upstream():
            for round_ in range(1, self.plan.rounds + 1):
                for contestant in CONTESTANTS:
                    say(f"round {round_} of {self.plan.rounds}, {contestant.name}: ")
                    self._round(round_, contestant)
                    say("\n")
            say(f"{self.plan.steady:,} requests in a row, then profiles: ")
            with self._serving(by_name(OURS)) as (base, process):
                assert process is not None
                self._steady(base, process)
                self._profiles(base, process)
            say("\n")
        return self.results

    @contextlib.contextmanager
    def upstream(self) -> Iterator[int]:
        """Serves the fixed answers; yields the port."""
        folder = self._folder / "upstream"
        folder.mkdir()
        arguments = upstream.command(folder, self._engine_port)
        command = Command(arguments, {}, folder, folder / "nginx.log", self._cores.load)
        with running(command, f"http://127.0.0.1:{self._engine_port}/health"):
            yield self._engine_port

    @contextlib.contextmanager
    def _serving(self, contestant: Contestant) -> Iterator[tuple[str, Running | None]]:
        if contestant.command is None:
            base = f"http://127.0.0.1:{self._engine_port}"
            prove(contestant, base)
            yield base, None
            return
        port = free_port()
        base = f"http://127.0.0.1:{port}"
        # A folder per start: nobody begins with what an earlier round left behind.
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        command = contestant.command(folder, port, self._engine_port, self._cores.proxy)
        with running(command, base + contestant.health) as process:
            prove(contestant, base)
            yield base, process

    def _round(self, round_: int, contestant: Contestant) -> None:
        """Measures a contestant. One that dies of itself is noted, and begins its round anew."""
        for starts_left in reversed(range(_STARTS)):
            with self._serving(contestant) as (base, process):
                try:
                    self._measure(round_, contestant, base, process)
                except BenchFailed:
                    if process is None or process.ended_with is None or not starts_left:
                        raise
                    self.results.drop(round_, contestant.name)
                    self.results.deaths.append(Death(round_, contestant.name, process.ended_with))
                    say("died ")
                else:
                    return

    def _measure(self, round_: int, contestant: Contestant, base: str, process: Running | None) -> None:
        plan = self.plan
        self._press(base, contestant, stream=False, concurrency=plan.concurrencies[-1], seconds=2 * plan.warm_up_s)
        started = process.rss_mib() if process else 0.0
        cpu_ms = 0.0
        whole = [(False, concurrency, plan.point_s) for concurrency in plan.concurrencies]
        streams = [(True, concurrency, plan.stream_s) for concurrency in plan.stream_concurrencies]
        for stream, concurrency, seconds in (*whole, *streams):
            self._press(base, contestant, stream=stream, concurrency=concurrency, seconds=plan.warm_up_s)
            load, cpu_s = self._point(
                base, contestant, process, stream=stream, concurrency=concurrency, seconds=seconds
            )
            if not stream and concurrency == GOAL_CONCURRENCY:
                cpu_ms = cpu_s / load.requests * 1e3
            self.results.points.append(Point(round_, contestant.name, stream, concurrency, load))
            say("." if not load.errors else "!")
        for concurrency in plan.stream_concurrencies:
            settle(process)
            self.results.streams.append(self._first_bytes(round_, contestant, base, concurrency))
        if process:
            process.check()
            self.results.memory.append(Memory(round_, contestant.name, started, process.rss_mib(), cpu_ms))

    def _point(
        self,
        base: str,
        contestant: Contestant,
        process: Running | None,
        *,
        stream: bool,
        concurrency: int,
        seconds: float,
    ) -> tuple[Load, float]:
        """One point of the report, and the processor time that it took."""
        for enough, factor in ((_FEW * concurrency, 1), (1, _LONGER), (1, _LONGER**2)):
            length = factor * seconds
            settle(process)
            cpu_s = process.cpu_s() if process else 0.0
            load = self._press(base, contestant, stream=stream, concurrency=concurrency, seconds=length)
            # Too slow for so short a run: requests that are under way when it ends are not counted.
            if load.requests >= enough:
                break
        if not load.requests:
            raise BenchFailed(f"{contestant.name} answered nothing in {length:.0f} s. Is the machine busy?")
        return load, process.cpu_s() - cpu_s if process else 0.0

    def _press(
        self, base: str, contestant: Contestant, *, stream: bool, concurrency: int, seconds: float, limit: int = 0
    ) -> Load:
        body = self._body(contestant, stream=stream)
        return press(base + PATH, body, concurrency=concurrency, seconds=seconds, core=self._cores.load, limit=limit)

    def _body(self, contestant: Contestant, *, stream: bool) -> Path:
        body = self._folder / f"body-{contestant.served.replace(':', '-')}-{'stream' if stream else 'whole'}.json"
        body.write_bytes(contestant.body(stream=stream))
        return body

    def _first_bytes(self, round_: int, contestant: Contestant, base: str, concurrency: int) -> Streams:
        port = base.rpartition(":")[2]
        body = self._body(contestant, stream=True)
        done = subprocess.run(
            [
                *(tool("taskset"), "--cpu-list", str(self._cores.load)),
                *(str(OUR_PYTHON), "-m", "bench.gateway.stream_client"),
                *("127.0.0.1", port, PATH, str(body), KEY, str(concurrency), str(self.plan.first_s)),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode:
            raise BenchFailed(f"{contestant.name} broke a stream off: {done.stderr.strip().splitlines()[-1:]}")
        found = json.loads(done.stdout)
        hashes = tuple(sorted(found.pop("hashes")))
        return Streams(round=round_, contestant=contestant.name, concurrency=concurrency, hashes=hashes, **found)

    def _steady(self, base: str, process: Running) -> None:
        """Asks so often that a leak would show; the warm-up fills pools and caches first."""
        ours, plan = by_name(OURS), self.plan
        started = process.rss_mib()
        rss, loads = [], []
        for count in (plan.steady_warm, plan.steady):
            loads.append(
                self._press(
                    base, ours, stream=False, concurrency=GOAL_CONCURRENCY, seconds=count / _LEAST_RATE, limit=count
                )
            )
            rss.append(process.rss_mib())
        self.results.steady = Steady(
            started_mib=started,
            warm_mib=rss[0],
            ended_mib=rss[1],
            warm_requests=loads[0].requests,
            requests=loads[1].requests,
            errors=sum(load.errors for load in loads),
        )

    def _profiles(self, base: str, process: Running) -> None:
        ours = by_name(OURS)
        for title, stream in (("whole answers", False), ("streams", True)):
            raw = self._folder / f"profile-{stream}.txt"
            with sampling.recording(process.pid, raw, self.plan.profile_s, self._cores.load):
                self._press(base, ours, stream=stream, concurrency=GOAL_CONCURRENCY, seconds=self.plan.profile_s + 1)
            self.results.profiles[title] = sampling.shares(raw.read_text())


def settle(process: Running | None) -> None:
    """Waits until a process rests: a run of wrk that ends leaves a slow proxy with requests that nobody waits for."""
    if process is None:
        return
    deadline = time.monotonic() + _SETTLE_S
    cpu = process.cpu_s()
    while time.monotonic() < deadline:
        time.sleep(_LOOK_S)
        before, cpu = cpu, process.cpu_s()
        if cpu - before <= _LOOK_S / 5:
            return


def say(text: str) -> None:
    """Prints at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
