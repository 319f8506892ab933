"""The engine makes way for a training that holds the lock, and comes back however that ends."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from preceptor_contracts.hand_off import away_lock, hand_off_lock, is_held
from preceptor_engine.supervise import open_requests

_CHILD = """
import os, signal, sys, time
marks, naughty = sys.argv[1], sys.argv[2:]
def note(what):
    with open(marks, "a") as stream:
        stream.write(f"{what} {os.getpid()}\\n")
def end(*_):
    note("drained")
    if not naughty:
        sys.exit(0)
signal.signal(signal.SIGTERM, end)
note("up")
while True:
    time.sleep(0.05)
"""
_SUPERVISOR = """
import sys
from pathlib import Path
from preceptor_engine import supervise
from preceptor_engine.launch import Launch
supervise.POLL_S = 0.05
adapters, child, marks, *rest = sys.argv[1:]
supervise.GRACE_S = 0.05
launch = Launch([sys.executable, "-c", Path(child).read_text(), marks, *rest], {})
busy = Path(marks).with_name("busy")
drain_s = 60 if busy.exists() else -9.5
count = lambda: (int(busy.read_text()) if busy.read_text() else None) if busy.exists() else 0
sys.exit(supervise.Supervisor(launch, Path(adapters), drain_s=drain_s, open_requests=count).run())
"""


class House:
    """A supervisor with a child that tells what happens to it."""

    def __init__(self, root: Path, *rest: str) -> None:
        self.lock, self.away, self.marks = hand_off_lock(root), away_lock(root), root / "marks"
        # The trainer makes both.
        self.away.touch()
        self.marks.touch()
        (root / "child.py").write_text(_CHILD)
        command = [sys.executable, "-c", _SUPERVISOR, root, root / "child.py", self.marks, *rest]
        self.process = subprocess.Popen([str(part) for part in command])

    def told(self) -> list[str]:
        return [line.split()[0] for line in self.marks.read_text().splitlines()]

    def pids(self) -> list[int]:
        return [int(line.split()[1]) for line in self.marks.read_text().splitlines() if line.startswith("up")]


@pytest.fixture
def houses(tmp_path: Path) -> Iterator[Callable[..., House]]:
    made: list[House] = []

    def make(*rest: str) -> House:
        made.append(House(tmp_path, *rest))
        return made[-1]

    yield make
    for house in made:
        house.process.kill()
        house.process.wait()
        for pid in house.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def until(wanted: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not wanted():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_lock_is_held_by_others_only_while_they_live(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    assert not is_held(lock)
    lock.touch()
    assert not is_held(lock)
    with lock.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert is_held(lock)
    assert not is_held(lock)


def test_the_engine_makes_way_and_comes_back_when_the_holder_is_killed(houses: Callable[..., House]) -> None:
    house = houses()
    until(lambda: house.told() == ["up"])
    code = f"import fcntl, time; s = open({str(house.lock)!r}, 'a'); fcntl.flock(s, fcntl.LOCK_EX); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code])
    until(lambda: house.told() == ["up", "drained"])
    until(lambda: not is_alive(house.pids()[0]))
    until(lambda: is_held(house.away))
    time.sleep(0.5)
    assert house.told() == ["up", "drained"]
    assert is_held(house.away)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    until(lambda: house.told() == ["up", "drained", "up"])
    assert not is_held(house.away)
    house.process.terminate()
    assert house.process.wait(20) == 0
    assert not is_alive(house.pids()[1])


@pytest.mark.parametrize("told", ["1", ""], ids=["one is open", "a busy engine is late with its series"])
def test_the_engine_ends_no_sooner_than_its_last_answer(
    houses: Callable[..., House], tmp_path: Path, told: str
) -> None:
    (tmp_path / "busy").write_text(told)
    house = houses()
    until(lambda: house.told() == ["up"])
    with house.lock.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        time.sleep(1)
        assert house.told() == ["up"]
        assert not is_held(house.away)
        (tmp_path / "busy").unlink()
        until(lambda: house.told() == ["up", "drained"])


def test_a_training_that_gives_up_meanwhile_ends_no_engine(houses: Callable[..., House], tmp_path: Path) -> None:
    (tmp_path / "busy").write_text("1")
    house = houses()
    until(lambda: house.told() == ["up"])
    with house.lock.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        time.sleep(0.5)
    time.sleep(0.5)
    assert house.told() == ["up"]
    assert house.process.poll() is None


def test_a_lock_that_cannot_be_looked_at_changes_nothing(houses: Callable[..., House]) -> None:
    house = houses()
    until(lambda: house.told() == ["up"])
    # A link to itself: ELOOP, to root too.
    house.lock.symlink_to(house.lock)
    time.sleep(0.5)
    assert house.told() == ["up"]
    assert house.process.poll() is None
    house.lock.unlink()
    with house.lock.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        until(lambda: house.told() == ["up", "drained"])


def test_requests_are_counted_by_vllms_own_series() -> None:
    text = b"""# HELP vllm:num_requests_running Number of requests.
vllm:num_requests_running{engine="0",model_name="base"} 2.0
vllm:num_requests_waiting{engine="0",model_name="base"} 1.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 1.0
"""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.handle_request).start()
        assert open_requests(server.server_port) == 3
    assert open_requests(server.server_port) == 0


def test_what_does_not_tell_its_requests_may_be_busy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with server.accept()[0] as one:
                one.recv(4096)
                one.sendall(b"no HTTP at all\r\n\r\n")

        threading.Thread(target=answer).start()
        assert open_requests(int(server.getsockname()[1])) is None


def test_an_engine_that_ends_by_itself_ends_the_container_with_an_error(houses: Callable[..., House]) -> None:
    house = houses()
    until(lambda: house.told() == ["up"])
    os.kill(house.pids()[0], signal.SIGKILL)
    assert house.process.wait(20) == 1


def test_an_engine_that_does_not_go_is_killed(houses: Callable[..., House]) -> None:
    house = houses("naughty")
    until(lambda: house.told() == ["up"])
    with house.lock.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        until(lambda: not is_alive(house.pids()[0]))
    until(lambda: house.told()[-1] == "up")
