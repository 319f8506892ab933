"""One GPU for training and serving: the engine makes way and comes back, here on a CPU by the same code."""

from __future__ import annotations

import time

from tests.docker.conftest import QUESTION, Trained
from tests.docker.figures import Figures
from tests.docker.stack import Load, Stack, docker, wait_until

NAME = "preceptor-test-hand-off"
TRAIN = (
    *("run", "--rm", "--no-TTY", "--name", NAME, "trainer"),
    *("train", "library", "--data", "/data/mine.csv", "--hand-off"),
)


def engine_runs(stack: Stack) -> bool:
    """Tells whether vLLM itself runs in the engine's container."""
    return "api_server" in stack.compose("top", "engine").stdout


def test_the_engine_makes_way_and_comes_back_with_its_adapters(
    stack: Stack, trained: Trained, figures: Figures
) -> None:
    load = Load(lambda client: stack.ask("library", QUESTION, client), stack.client)
    with load.running(2):
        training = stack.begin(*TRAIN, "--max-steps", "6")
        wait_until(lambda: not engine_runs(stack), 120, "an engine that made way")
        said, _ = training.communicate(timeout=400)
    assert training.returncode == 0, said
    assert "has made way" in said
    assert set(load.outcomes()) <= {"200", "503"}
    assert load.outcomes()["503"] > 0
    assert all(retry for _, outcome, retry in load.seen if outcome == "503")
    response = stack.ask("library", QUESTION)
    assert response.headers["x-preceptor-adapter"] == trained.adapter
    assert response.json()["choices"][0]["message"]["content"] == trained.answer
    figures.note("Hand-off", "6 steps with `--hand-off`", f"{load.outage_s():.0f} s without an answer")


def test_a_training_that_is_killed_gives_the_gpu_back(stack: Stack, trained: Trained) -> None:
    training = stack.begin(*TRAIN)
    wait_until(lambda: not engine_runs(stack), 120, "an engine that made way")
    time.sleep(3)
    docker("kill", NAME)
    training.communicate(timeout=60)
    assert training.returncode != 0
    wait_until(lambda: stack.ask("library", QUESTION).status_code == 200, 240, "the promoted adapter")
    assert stack.ask("library", QUESTION).json()["choices"][0]["message"]["content"] == trained.answer
