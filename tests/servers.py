"""PostgreSQL and Redis on loopback ports, in a folder of their own, for the time of a test session."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import redis

from tests.fakes.serving import free_port
from tests.prerequisites import require


def _binary(name: str) -> str | None:
    """Debian keeps PostgreSQL's out of the PATH, one folder a version."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


def _somebody() -> str | None:
    """Whom PostgreSQL runs as; it refuses root. None: as whoever runs the tests."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names)


def _wait(ready: Callable[[], object], child: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and child.poll() is None:
        try:
            ready()
            return
        except (psycopg.OperationalError, redis.RedisError):
            time.sleep(0.05)
    raise RuntimeError(f"The server did not start:\n{log.read_text(errors='replace')[-2000:]}")


@contextmanager
def running_postgres() -> Iterator[str]:
    """Yields `host:port` of a server that trusts the user `preceptor`."""
    initdb, postgres = _binary("initdb"), _binary("postgres")
    require(initdb and postgres, "PostgreSQL is not installed. Run `apt-get install postgresql`.")
    somebody = _somebody()
    # Not pytest's own folder: nobody but its owner may enter that one.
    folder = Path(tempfile.mkdtemp(prefix="preceptor-postgres-"))
    log = folder / "log"
    try:
        if somebody:
            shutil.chown(folder, somebody)
        with log.open("ab") as output:
            make = [str(initdb), "-D", f"{folder}/data", "-U", "preceptor", "-A", "trust", "-E", "UTF8", "--no-sync"]
            subprocess.run([*make, "--locale=C"], user=somebody, cwd=folder, stdout=output, stderr=output, check=True)
            port = free_port()
            serve = [str(postgres), "-D", f"{folder}/data", "-k", str(folder), "-h", "127.0.0.1", "-p", str(port), "-F"]
            child = subprocess.Popen(serve, user=somebody, cwd=folder, stdout=output, stderr=output)
        try:
            url = f"postgresql://preceptor@127.0.0.1:{port}/postgres"
            _wait(lambda: psycopg.connect(url, connect_timeout=2).close(), child, log)
            yield f"127.0.0.1:{port}"
        finally:
            child.send_signal(signal.SIGINT)  # SIGTERM waits for every client
            child.wait(20)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class RedisServer:
    """A Redis that a test may stop and start again."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._log = folder / "redis.log"
        self._folder = folder
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, empty."""
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        with self._log.open("ab") as output:
            self._child = subprocess.Popen(command, cwd=self._folder, stdout=output, stderr=output)
        with redis.Redis(port=self.port) as client:
            _wait(client.ping, self._child, self._log)

    def stop(self) -> None:
        """Ends it."""
        if self._child is not None:
            self._child.terminate()
            self._child.wait(10)
            self._child = None


@contextmanager
def running_redis(folder: Path) -> Iterator[RedisServer]:
    """A started Redis."""
    require(shutil.which("redis-server"), "Redis is not installed. Run `apt-get install redis-server`.")
    server = RedisServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
