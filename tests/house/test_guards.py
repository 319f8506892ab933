import asyncio
import os
import socket

import pytest

# Set aside by RFC 5737 for examples: nobody is there, should the guard ever fail.
NOBODY = "192.0.2.1"


def test_a_test_cannot_connect_elsewhere() -> None:
    with socket.socket() as connection, pytest.raises(AssertionError, match=NOBODY):
        connection.connect((NOBODY, 80))


async def test_the_event_loop_cannot_either() -> None:
    with pytest.raises(AssertionError, match=NOBODY):
        await asyncio.open_connection(NOBODY, 80)


def test_names_are_not_looked_up_elsewhere() -> None:
    with pytest.raises(AssertionError, match=r"example\.org"):
        socket.getaddrinfo("example.org", 80)


def test_hugging_face_is_offline() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
