"""A health check's exit code for whatever a port may do."""

from __future__ import annotations

import socket
import threading

import pytest
from preceptor_contracts.probing import exit_code

from tests.fakes.serving import free_port


def answering(answer: bytes | None) -> int:
    """A port that answers one connection with given bytes, or with silence."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener, listener.accept()[0] as one:
            one.recv(4096)
            if answer is None:
                one.recv(1)
            else:
                one.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return int(listener.getsockname()[1])


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 0),
        (b"HTTP/1.1 307 Temporary Redirect\r\nlocation: /docs\r\ncontent-length: 0\r\n\r\n", 1),
        (b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", 1),
        (b"no HTTP at all\r\n\r\n", 1),
        (b"", 1),
        (None, 1),
    ],
)
def test_only_an_answer_that_is_well_is_zero(answer: bytes | None, code: int) -> None:
    assert exit_code(answering(answer), "/", limit_s=0.5) == code


def test_nobody_listens() -> None:
    assert exit_code(free_port(), "/") == 1
