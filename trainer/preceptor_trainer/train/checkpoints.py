"""Checkpoints: whole, or not there; and where an interrupted training goes on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from preceptor_contracts.files import sync_folder
from safetensors import SafetensorError
from transformers import TrainerState

from preceptor_trainer.disk import not_written
from preceptor_trainer.runs import RunDir, Stage

_STATE = "trainer_state.json"
_TORCH_WRITES = ("inline_container", "iostream error")
"""What stands in torch's errors where a file cannot be written, whatever the reason; none names it."""


class Resume(NamedTuple):
    """Where an interrupted training goes on."""

    checkpoint: Path | None
    tokens: int
    seconds: float


def find_resume(run: RunDir) -> Resume:
    """Finds the newest checkpoint that an event vouches for, and removes half-written newer ones."""
    vouched = {int(event.number("step")) for event in run.events(Stage.TRAIN, "checkpoint")}
    folders = {int(path.name.rpartition("-")[2]): path for path in run.checkpoints.glob("checkpoint-*")}
    for step in folders.keys() - vouched:
        path = folders.pop(step)
        if run.writes:
            shutil.rmtree(path)
    if not folders:
        return Resume(None, 0, 0.0)
    step = max(folders)
    reached = [event for event in run.events(Stage.TRAIN, "progress") if event.number("step") == step]
    run.record(Stage.TRAIN, "resumed", step=step)
    if not reached:
        return Resume(folders[step], 0, 0.0)
    return Resume(folders[step], int(reached[-1].number("tokens")), reached[-1].number("seconds"))


def read_state(checkpoint: Path) -> TrainerState:
    """Reads where the training stood when a checkpoint was saved."""
    state: TrainerState = TrainerState.load_from_json(str(checkpoint / _STATE))
    return state


def strikes(state: TrainerState) -> int:
    """Counts the validation losses since the best one."""
    best = state.best_global_step or 0
    return sum("eval_loss" in entry and entry["step"] > best for entry in state.log_history)


@contextmanager
def whole_checkpoint(folder: Path) -> Iterator[None]:
    """Syncs what the block saves into `folder` in a run's checkpoints, or removes the folder where that fails.

    Raises:
        PreceptorError: It cannot be written.
    """
    try:
        yield
        for path in folder.iterdir():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        sync_folder(folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        # torch and safetensors tell of a full disk as errors of their own; what else torch raises is another matter.
        if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in _TORCH_WRITES):
            raise
        run_id = folder.parent.parent.name
        raise not_written(folder.name, error, f"resume {run_id}") from error
