"""`python -m bench.gateway`: sets up, measures, writes the report; `--quick` is a smoke of about a minute."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from bench.gateway.machine import ROOT, BenchFailed, cores, environment
from bench.gateway.measure import QUICK, Bench, Plan
from bench.gateway.micro import micro
from bench.gateway.prepare import prepare
from bench.gateway.processes import busy
from bench.gateway.report import report, rows
from bench.gateway.results import goals

HERE = Path(__file__).parent
QUICK_FOLDER = ROOT / "data/bench/gateway"
"""Where a smoke's report goes: it proves nothing, so it must not lie where the real one does."""


def main(argv: list[str] | None = None) -> int:
    """Returns 0 when it could measure, whatever came of it; 1 with a sentence when not."""
    parser = argparse.ArgumentParser(prog="make bench-gateway", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="one short round of the proxies, report under data/bench/gateway"
    )
    parser.add_argument("--only", choices=("proxies", "parts"), help="measure one half")
    arguments = parser.parse_args(argv)
    plan = QUICK if arguments.quick else Plan()
    target = QUICK_FOLDER if arguments.quick else HERE
    # SIGTERM must unwind as Ctrl-C does, or what was started would stay.
    signal.signal(signal.SIGTERM, _stop)
    try:
        with _alone():
            prepare()
            if arguments.only != "parts":
                _proxies(plan, target)
            if arguments.only == "parts" or (arguments.only is None and not arguments.quick):
                _write(target / "micro.md", micro(plan, cores()))
    except BenchFailed as failure:
        sys.stderr.write(f"\n{failure}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nStopped; everything that was started has ended. No report was written.\n")
        return 130
    return 0


def _proxies(plan: Plan, target: Path) -> None:
    facts, began = {**environment(), "cores in use by others, before": busy()}, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-gateway-") as place:
        results = Bench(plan, Path(place), cores()).run()
    facts["cores in use by others, after"] = busy()
    _write(target / "report.md", report(results, plan, facts, time.monotonic() - began))
    _write(target / "report.csv", rows(results))
    for goal in goals(results):
        sys.stdout.write(f"{goal.word}  {goal.measure}: {goal.reached}  (goal {goal.goal})\n")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)
    sys.stdout.write(f"{path.relative_to(ROOT)}\n")


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Two benches at once would measure each other."""
    place = ROOT / "data/bench/lock"
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BenchFailed("Another bench runs here. Wait for its end.") from None
        yield


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
