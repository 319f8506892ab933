"""Runs vLLM as a child that makes way while somebody holds the hand-off lock.

A training on the engine's own GPU takes the lock (`flock`) for as long as it needs the memory. The kernel frees it when
its holder dies, however it dies, so nothing can leave the engine stopped. That vLLM is gone is told by a second lock.
"""

from __future__ import annotations

import fcntl
import http.client
import logging
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from preceptor_contracts.hand_off import away_lock, hand_off_lock, is_held

from preceptor_engine.launch import Launch

POLL_S = 0.5
"""Between two looks at the lock and at vLLM."""
GRACE_S = 1.0
"""What a gateway that watches the lock needs to send no more requests."""
END_S = 10.0
"""What vLLM needs to end once nothing is under way."""
log = logging.getLogger(__name__)


def open_requests(port: int) -> int | None:
    """Counts the requests that vLLM runs or has waiting, by its own series.

    Returns:
        0 where nobody listens; None where it does not tell: a busy vLLM is late with its series.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    except ConnectionRefusedError:
        return 0
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    counts = re.findall(r"^vllm:num_requests_(?:running|waiting)(?:{[^}]*})? (\S+)$", text, re.MULTILINE)
    return int(sum(map(float, counts)))


class Supervisor:
    """One vLLM process, there or not.

    Args:
        launch: How it is started.
        adapters: Folder of the two locks.
        drain_s: Seconds that answers under way get when it has to go.
        open_requests: Counts them; None where vLLM does not tell.
    """

    def __init__(
        self, launch: Launch, adapters: Path, *, drain_s: float, open_requests: Callable[[], int | None]
    ) -> None:
        self._launch = launch
        self._adapters = adapters
        self._drain_s = drain_s
        self._open_requests = open_requests
        self._child: subprocess.Popen[bytes] | None = None
        self._away: int | None = None
        self._end = threading.Event()
        self._is_wanted = False
        self._trouble = ""

    def run(self) -> int:
        """Serves until SIGTERM, or until vLLM ends by itself; returns the exit code to end with."""
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, lambda *_: self._end.set())
        try:
            while not self._end.is_set():
                code = self._look()
                if code is not None:
                    return code
                self._end.wait(POLL_S)
            return 0
        finally:
            self._stop()

    def _look(self) -> int | None:
        """Starts or stops vLLM as the lock wants it; the exit code where it ended by itself."""
        if self._gpu_is_wanted():
            self._make_way()
            return None
        self._say_back()
        if self._child is None:
            log.info("vLLM starts.")
            environment = {**os.environ, **self._launch.env}
            # A group of its own: vLLM has children, and all of them must be gone before the memory is.
            self._child = subprocess.Popen(self._launch.argv, env=environment, start_new_session=True)
            return None
        code = self._child.poll()
        if code is None:
            return None
        log.error("vLLM ended by itself with %d.", code)
        # Whoever started this process starts it again; 0 would look as if that was wanted.
        return code if code > 0 else 1

    def _gpu_is_wanted(self) -> bool:
        """What the lock says; what it said last where it cannot be looked at, which is told once."""
        trouble = ""
        try:
            self._is_wanted = is_held(hand_off_lock(self._adapters))
        except OSError as error:
            trouble = str(error)
        if trouble and trouble != self._trouble:
            log.error("The hand-off lock cannot be looked at: %s.", trouble)
        self._trouble = trouble
        return self._is_wanted

    def _make_way(self) -> None:
        if self._child is not None:
            log.info("A training wants the GPU; vLLM finishes what is under way and ends.")
            if not self._drain():
                log.info("The training is gone before that; vLLM goes on.")
                return
            self._stop()
        self._say_away()

    def _drain(self) -> bool:
        """Waits while answers are under way: told to end, vLLM 0.32 fails some of them and all that are new.

        Returns:
            False where the GPU is not wanted any more.
        """
        end = time.monotonic() + self._drain_s
        self._end.wait(GRACE_S)
        while self._gpu_is_wanted():
            if self._open_requests() == 0 or time.monotonic() > end or self._end.is_set():
                return True
            self._end.wait(POLL_S)
        return False

    def _say_away(self) -> None:
        if self._away is not None:
            return
        with suppress(OSError):
            handle = os.open(away_lock(self._adapters), os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                # The trainer looks at it in this moment: next time.
                os.close(handle)
            else:
                self._away = handle

    def _say_back(self) -> None:
        if self._away is not None:
            os.close(self._away)
            self._away = None

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.wait(self._drain_s + END_S)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
