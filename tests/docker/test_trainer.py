"""`docker compose run --rm trainer`, one command from a CSV to a promoted adapter."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from tests.docker.conftest import Trained
from tests.docker.figures import Figures
from tests.docker.stack import Stack

FIRST_ANSWER_S = 10


def events(stack: Stack, run: str) -> list[dict[str, Any]]:
    """A run's events, read as the trainer sees them."""
    path = f"/var/lib/preceptor/runs/{run}/events.jsonl"
    script = f"import sys; sys.stdout.write(open({path!r}).read())"
    done = stack.compose("run", "--rm", "--no-TTY", "--no-deps", "--entrypoint", "python3", "trainer", "-c", script)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_adapter_is_promoted_and_the_table_says_why(trained: Trained) -> None:
    assert f"Promoted {trained.adapter}" in trained.said
    assert "n = 24" in trained.said


def test_the_adapter_answers_soon_after_the_last_step(stack: Stack, trained: Trained, figures: Figures) -> None:
    run = next(word for word in trained.said.split() if word.startswith("library-2")).rstrip(":.")
    last_step = [one["time"] for one in events(stack, run) if one["event"] == "progress"][-1]
    seconds = trained.first_answer - datetime.fromisoformat(last_step).timestamp()
    figures.note(
        "Trainer",
        "last training step to the first answer of the new adapter",
        f"{seconds:.1f} s",
        f"< {FIRST_ANSWER_S} s",
    )
    assert seconds > 0


def test_a_mistake_is_told_in_a_sentence(started: Stack) -> None:
    for words, told in (
        (("nothing-of-that-name",), "nothing-of-that-name"),
        (("library", "--data", "/data/none.csv"), "/data/none.csv"),
    ):
        done = started.trainer(*words, check=False)
        assert done.returncode == 2
        assert told in done.stderr
        assert "Traceback" not in done.stderr
