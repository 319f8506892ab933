"""`python -m bench.gain`: trains every domain with every seed, has them examined as served, writes the report.

Nothing is done twice: runs stay in `data/bench/gain`, one a domain, a seed and a state of the domain's files.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from preceptor_contracts.frozen import read_json
from preceptor_contracts.report import Report
from preceptor_trainer.gateway import Gateway
from preceptor_trainer.runs import RunDir, Stage
from preceptor_trainer.train.training import Trained

from bench import machine
from bench.gain.report import write_report
from bench.gain.results import Gained, mean_and_spread, summarise
from tests.fakes.serving import free_port
from tests.stack import ENGINE_KEY, REPO, python_module, running_engine

KEPT = REPO / "data/bench/gain"
RECIPE = "smollm2-135m-cpu"
SEEDS = (7, 8, 9)
_ADMIN = "admin-key-for-bench"


class Task(NamedTuple):
    """A domain and a seed."""

    domain: str
    seed: int

    @property
    def note(self) -> Path:
        """Names the run that did it; a changed domain or recipe is another task."""
        files = [REPO / "domains" / self.domain / name for name in ("domain.yaml", "train.jsonl", "exam.jsonl")]
        files.append(REPO / "trainer/recipes" / f"{RECIPE}.yaml")
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
        return KEPT / f"{self.domain}-{self.seed}-{digest[:12]}.json"


def say(text: str) -> None:
    """Prints at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _environment(gateway_url: str) -> dict[str, str]:
    return {
        "DOMAINS_DIR": str(REPO / "domains"),
        "ADAPTERS_DIR": str(KEPT / "adapters"),
        "RUNS_DIR": str(KEPT / "runs"),
        "BASE_MODEL": "embedded",
        "TRAINER_GATEWAY_URL": gateway_url,
        "GATEWAY_ADMIN_KEY": _ADMIN,
    }


def _trainer(arguments: Sequence[str], environment: dict[str, str], allowed: Sequence[int]) -> None:
    command = [sys.executable, "-m", "preceptor_trainer", *arguments]
    done = subprocess.run(command, cwd=REPO, env={**os.environ, **environment}, check=False)
    if done.returncode not in allowed:
        raise SystemExit(f"preceptor-trainer {' '.join(arguments)} ended with {done.returncode}.")


def train(task: Task) -> RunDir:
    """Trains one seed, or goes on with one that was cut off."""
    environment = _environment("http://127.0.0.1:9")
    runs = KEPT / "runs"
    if task.note.is_file():
        run = RunDir.open(runs, json.loads(task.note.read_text())["run"])
        if not run.is_done(Stage.TRAIN):
            raise SystemExit(f"{task.note.name} names run {run.id}, which was not trained; remove the note.")
        return run
    before = {path.name for path in runs.glob("[!.]*")}
    arguments = ["train", task.domain, "--recipe", RECIPE, "--seed", str(task.seed)]
    _trainer(arguments, environment, (0,))
    (name,) = {path.name for path in runs.glob("[!.]*")} - before
    task.note.write_text(json.dumps({"run": name}))
    return RunDir.open(runs, name)


def examine(run: RunDir, gateway_url: str) -> None:
    """Publishes and examines a trained run, and lets its adapter go again."""
    if run.is_done(Stage.EVALUATE):
        return
    _trainer(["resume", run.id, "--no-promote"], _environment(gateway_url), (0, 3))
    adapter = str(run.events(Stage.PUBLISH, "done")[-1].model_dump()["result"]["adapter"])

    async def unpin() -> None:
        async with Gateway(gateway_url, _ADMIN) as gateway:
            await gateway.unpin(adapter)

    asyncio.run(unpin())


@contextmanager
def running_stack(root: Path) -> Iterator[str]:
    """Engine and gateway on free ports; yields the gateway's URL."""
    (KEPT / "adapters").mkdir(parents=True, exist_ok=True)
    with running_engine(root) as engine:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        env = {
            **_environment(url),
            "GATEWAY_DATA_DIR": str(root / "gateway"),
            "GATEWAY_DATABASE_URL": f"sqlite:///{root}/gateway.db",
            "GATEWAY_PORT": str(port),
            "GATEWAY_API_KEY": "use-key-for-bench",
            "ENGINE_URLS": engine.url,
            "GATEWAY_DEFAULT_DOMAIN": "",
            "GATEWAY_LOG_LEVEL": "warning",
            "ENGINE_API_KEY": ENGINE_KEY,
        }
        gateway = python_module("preceptor_gateway", env, root / "gateway.log")
        gateway.start()
        try:
            gateway.wait_for(f"{url}/health", 60)
            yield url
        finally:
            gateway.end()


def _gained(task: Task, run: RunDir) -> Gained:
    metrics = run.result(Stage.TRAIN, Trained).metrics
    report = read_json(run.path / "report.json", Report)
    return Gained(task.domain, task.seed, run.id, run.spec.dataset.records, metrics.seconds, metrics.final_loss, report)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.gain", description=__doc__)
    shipped = sorted(path.parent.name for path in (REPO / "domains").glob("*/domain.yaml"))
    parser.add_argument("--domains", nargs="+", default=shipped, choices=shipped)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--train-only", action="store_true", help="examine another time")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder for the report")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    (KEPT / "runs").mkdir(parents=True, exist_ok=True)
    began, load = time.monotonic(), machine.load_per_core()
    # Seeds outermost: a bench that is cut off has every domain once rather than one domain thrice.
    tasks = [Task(domain, seed) for seed in arguments.seeds for domain in arguments.domains]
    runs = [(task, train(task)) for task in tasks]
    if arguments.train_only:
        return
    with tempfile.TemporaryDirectory(prefix="preceptor-bench-gain-") as folder:
        if not all(run.is_done(Stage.EVALUATE) for _, run in runs):
            with running_stack(Path(folder)) as url:
                for _, run in runs:
                    examine(run, url)
    gained = sorted((_gained(task, run) for task, run in runs), key=lambda one: (one.domain, one.seed))
    facts = {
        "processor": machine.processor(),
        "load a core before the start": machine.load_words(load),
        "engine": gained[0].report.engine,
        "commit": machine.commit(),
        "seconds in this part": f"{time.monotonic() - began:.0f}",
    }
    write_report(arguments.out, gained, facts)
    for one in summarise(gained):
        say(f"{one.domain}: base {mean_and_spread(one.base)}, adapter {mean_and_spread(one.adapter)}")


if __name__ == "__main__":
    main()
