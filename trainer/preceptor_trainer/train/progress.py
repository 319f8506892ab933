"""What the training loop tells: bar or lines for people, events for the run, an error where the loss breaks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from preceptor_contracts.errors import PreceptorError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from preceptor_trainer.runs import RunDir, Stage
from preceptor_trainer.terminal import Tick
from preceptor_trainer.train.checkpoints import strikes


class Progress(TrainerCallback):
    """Counts tokens and seconds across resumes and reports both.

    Args:
        run: Gets the events.
        tick: Shows progress to people.
        tokens_seen: Non-padding tokens since this process began.
        tokens_before: Non-padding tokens up to the checkpoint resumed from.
        seconds_before: Training time up to it.
        patience: Validation losses without a better one after which training ends; None: never.
    """

    def __init__(
        self,
        run: RunDir,
        tick: Tick,
        tokens_seen: Callable[[], int],
        *,
        tokens_before: int,
        seconds_before: float,
        patience: int | None = None,
    ) -> None:
        self._run = run
        self._tick = tick
        self._tokens_seen = tokens_seen
        self._tokens_before = tokens_before
        self._seconds_before = seconds_before
        self._patience = patience
        self._started = time.monotonic()
        self._first_step = 0
        self._note = ""

    @property
    def tokens(self) -> int:
        """Non-padding tokens of the whole run so far."""
        return self._tokens_before + self._tokens_seen()

    @property
    def seconds(self) -> float:
        """Training time of the whole run so far."""
        return self._seconds_before + time.monotonic() - self._started

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the clock."""
        self._started = time.monotonic()
        self._first_step = state.global_step
        self._tick(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Makes every step that may be saved log, so that its tokens and loss are known where a resume begins."""
        step = state.global_step
        validates = self._patience is not None and step % int(args.eval_steps or 1) == 0
        if validates or step % int(args.save_steps) == 0 or step >= state.max_steps:
            control.should_log = True
        else:
            self._tick(state.global_step, self._note)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Writes a progress event.

        Raises:
            PreceptorError: The loss is no number any more.
        """
        if not logs or "loss" not in logs:
            return
        loss, step = float(logs["loss"]), state.global_step
        if not math.isfinite(loss):
            self._run.record(Stage.TRAIN, "diverged", step=step)
            raise PreceptorError(
                f"The training loss became {loss!r} at step {step}; nothing was published.",
                code="loss_diverged",
                hint="Lower learning_rate in the recipe, or set dtype to float32.",
            )
        here = time.monotonic() - self._started
        rate = self._tokens_seen() / here if here > 0 else 0.0
        eta_s = (state.max_steps - step) * here / max(1, step - self._first_step)
        self._run.record(
            Stage.TRAIN,
            "progress",
            step=step,
            steps=state.max_steps,
            loss=round(loss, 5),
            learning_rate=float(logs.get("learning_rate", 0.0)),
            tokens=self.tokens,
            seconds=round(self.seconds, 3),
            tokens_per_second=round(rate, 1),
            eta_s=round(eta_s, 1),
        )
        self._note = f"loss {loss:.3f}  {rate:.0f} tokens/s"
        self._tick(step, self._note)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Writes a validation event, keeps the best weights, and ends a training that gets no better.

        All that it counts stands in the Trainer's state, which each checkpoint holds as it was then.
        """
        loss = (metrics or {})["eval_loss"]
        self._run.record(Stage.TRAIN, "validation", step=state.global_step, loss=round(loss, 5))
        self._note = f"validation loss {loss:.3f}"
        self._tick(state.global_step, self._note)
        if self._patience is None:
            return
        is_best = state.best_metric is None or loss < state.best_metric
        is_over = not is_best and strikes(state) >= self._patience
        # The Trainer names a checkpoint the best after this, and never rotates that one away.
        control.should_save = control.should_save or is_best or is_over
        control.should_training_stop = control.should_training_stop or is_over

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Vouches for a checkpoint: a folder without this event may be half-written."""
        self._run.record(Stage.TRAIN, "checkpoint", step=state.global_step)
