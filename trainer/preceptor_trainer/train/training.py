"""Stage train: adapters (LoRA, QLoRA, LoRA on 8 bits) or all weights, by TRL's SFTTrainer, on answers only.

Whatever stops it, it goes on from the last whole checkpoint as if nothing had happened: read `train` first.
"""

from __future__ import annotations

import math
import resource
from collections.abc import Sequence
from typing import NamedTuple

import torch
from datasets import Dataset as Table
from preceptor_contracts.errors import InvalidInput, PreceptorError
from preceptor_contracts.frozen import Frozen
from preceptor_contracts.manifest import TrainMetrics
from transformers import PreTrainedTokenizerBase, PrinterCallback, ProgressCallback, set_seed
from transformers.integrations.integration_utils import TensorBoardCallback

from preceptor_trainer.hardware import matrix_rate
from preceptor_trainer.plan.forecast import Plan, count_steps
from preceptor_trainer.prepare.dataset import Dataset
from preceptor_trainer.prepare.split import validation_rows
from preceptor_trainer.quiet import silence_transformers
from preceptor_trainer.ranks import is_sharded, rank, ranks
from preceptor_trainer.recipes import Recipe
from preceptor_trainer.runs import RunDir, Stage
from preceptor_trainer.terminal import Terminal
from preceptor_trainer.tokens import TokenisedExample
from preceptor_trainer.train import memory
from preceptor_trainer.train.answer_trainer import AnswerTrainer
from preceptor_trainer.train.arguments import TENSORBOARD, arguments, refuse_missing
from preceptor_trainer.train.batches import Division, Row, RowLoader, StepBatches, count_rows
from preceptor_trainer.train.checkpoints import Resume, find_resume, read_state, strikes
from preceptor_trainer.train.progress import Progress
from preceptor_trainer.train.weights import (
    CONFIG,
    WEIGHTS,
    Probe,
    float32_trainable,
    keep_adapter,
    keep_weights,
    load_base,
    lora,
)

__all__ = ["CONFIG", "WEIGHTS", "Ended", "Trained", "load_base", "take_part", "train"]


class Trained(Frozen):
    """What stage train found."""

    metrics: TrainMetrics
    matrix_share: float
    """FLOPs of the computed tokens (4 a base parameter, 6 where all are trained) over `matrix_flops`."""
    computed_share: float
    """Share of the tokens that were computed; a domain's system message is computed once a batch on a CPU."""
    matrix_flops: float
    """Float32 matrix rate of this machine, FLOP/s: the better of a measurement before and one after training."""
    peak_memory_bytes: int
    weights_step: int = 0
    """Step that the kept weights are of: the last, or the one with the best validation loss."""
    validation_loss: float | None = None
    """Of the kept weights; None where none was measured at that step."""
    stopped_early: bool = False
    """True where the validation loss no longer fell."""
    probe: Probe | None = None
    """After method `full`: what publishing compares the written weights with."""


class Split(NamedTuple):
    """A dataset's records, divided."""

    training: list[TokenisedExample]
    held_out: list[TokenisedExample]


class Ended(NamedTuple):
    """How an attempt went to its end."""

    trainable: int
    tokens: int
    seconds: float
    computed_share: float


def split(dataset: Dataset, recipe: Recipe) -> Split:
    """Takes the validation records out."""
    out = validation_rows([record.topic for record in dataset.records], recipe.validation_share, recipe.seed)
    return Split(
        [example for at, example in enumerate(dataset.tokenised) if at not in out],
        [example for at, example in enumerate(dataset.tokenised) if at in out],
    )


def train(
    run: RunDir,
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    plan: Plan,
    terminal: Terminal,
    *,
    reporters: Sequence[str] = (),
) -> Trained:
    """Trains, from the last whole checkpoint where there is one, and leaves the weights in the run.

    They lie in `adapter/`, or in `weights/` after method `full`.

    Raises:
        PreceptorError: As `take_part` does.
    """
    ended = take_part(run, dataset, tokenizer, plan, terminal, reporters=reporters)
    return _keep(run, split(dataset, run.spec.recipe), tokenizer, plan, ended)


def take_part(
    run: RunDir,
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    plan: Plan,
    terminal: Terminal,
    *,
    reporters: Sequence[str] = (),
) -> Ended:
    """Trains as one of the processes of `accelerate launch`, or alone; leaves the weights in a checkpoint.

    Where memory does not do, the batch is halved and the accumulation doubled, so that every step is still made of
    the same records.

    Raises:
        PrerequisiteError: A reporter is not installed.
        PreceptorError: The loss became NaN or infinite, a checkpoint cannot be written, memory does not do for one
            row, or what is trained is not what was planned.
    """
    silence_transformers()
    refuse_missing(reporters)
    recipe, parts = run.spec.recipe, split(dataset, run.spec.recipe)
    if recipe.method == "lora-8bit" and is_sharded():
        raise InvalidInput(
            "Method 'lora-8bit' cannot be sharded: FSDP divides no integers.",
            hint="Take --method qlora, or launch without FSDP.",
        )
    if recipe.patience is not None and not parts.held_out:
        raise InvalidInput(
            f"No record can be held out for the validation loss, which patience {recipe.patience} waits for: every "
            "topic keeps at least one to train on.",
            hint="Give topics more records each, or leave patience out of the recipe.",
        )
    steps = count_steps(count_rows([example.length for example in parts.training], recipe), recipe)
    if steps != plan.steps:
        raise PreceptorError(
            f"The records make {steps} steps where the plan says {plan.steps}.",
            hint="Start a new run with this version of the trainer.",
        )
    if run.spec.device == "cuda" and torch.cuda.device_count() > 1 and ranks() == 1:
        terminal.say(
            f"{torch.cuda.device_count()} GPUs are visible; this training uses the first. For all of them: "
            f"`accelerate launch -m preceptor_trainer resume {run.id}`."
        )
    size = memory.batch_size(run)
    ended = _attempt(run, parts, tokenizer, plan, terminal, reporters, size)
    while ended is None:
        size = _halve(run, terminal, size)
        ended = _attempt(run, parts, tokenizer, plan, terminal, reporters, size)
    if ranks() > 1:
        # The rest is one process's work, and must not wait for others that ended.
        torch.distributed.destroy_process_group()
    return ended


def _attempt(
    run: RunDir,
    parts: Split,
    tokenizer: PreTrainedTokenizerBase,
    plan: Plan,
    terminal: Terminal,
    reporters: Sequence[str],
    size: int,
) -> Ended | None:
    """Trains to the end with at most `size` rows a forward pass and process; None where memory did not do."""
    resume = find_resume(run)
    try:
        trainer = _trainer(run, parts, tokenizer, plan, reporters, size)
        trainable = float32_trainable(trainer.model)
        if trainable != plan.trainable_parameters:
            raise PreceptorError(
                f"{trainable:,} parameters would be trained where the plan says {plan.trainable_parameters:,}.",
                hint="Run `preceptor-trainer plan` again with this version of the trainer.",
            )
        with terminal.progress("train", plan.steps) as tick:
            progress = Progress(
                run,
                tick,
                lambda: trainer.tokens_seen,
                tokens_before=resume.tokens,
                seconds_before=resume.seconds,
                patience=run.spec.recipe.patience,
            )
            trainer.add_callback(progress)
            if not _is_over(resume, run.spec.recipe, plan):
                trainer.train(resume_from_checkpoint=str(resume.checkpoint) if resume.checkpoint else None)
    except (RuntimeError, MemoryError) as error:
        if not memory.is_out_of_memory(error):
            raise
        return None
    # A run that resumes at its last step computes nothing more.
    computed_share = trainer.tokens_computed / trainer.tokens_seen if trainer.tokens_seen else 1.0
    return Ended(trainable, progress.tokens, progress.seconds, computed_share)


def _trainer(
    run: RunDir, parts: Split, tokenizer: PreTrainedTokenizerBase, plan: Plan, reporters: Sequence[str], size: int
) -> AnswerTrainer:
    recipe = run.spec.recipe
    packed, pad_id = recipe.batching == "packed", int(tokenizer.pad_token_id or tokenizer.eos_token_id)
    division = Division.of(recipe.batch_size * recipe.accumulation, size, ranks())
    lengths = [example.length for example in parts.training]
    batches = StepBatches(lengths, recipe, size, rank=rank(), ranks=ranks())
    set_seed(recipe.seed)
    trainer = AnswerTrainer(
        model=load_base(run.spec.base_source, recipe, run.spec.device),
        args=arguments(
            run,
            plan,
            division,
            [name for name in reporters if name != TENSORBOARD],
            validates=bool(parts.held_out),
        ),
        batches=RowLoader(parts.training, batches, packed=packed, pad_id=pad_id),
        held_out=_held_out(parts.held_out, division.batch_size, pad_id) if parts.held_out else None,
        # TRL asks for tables and looks at their columns; the rows come from the loaders.
        train_dataset=_columns(parts.training),
        eval_dataset=_columns(parts.held_out) if parts.held_out else None,
        processing_class=tokenizer,
        peft_config=lora(recipe),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if TENSORBOARD in reporters and run.writes:
        from torch.utils.tensorboard import SummaryWriter

        trainer.add_callback(TensorBoardCallback(SummaryWriter(str(run.path / "logs"))))
    return trainer


def _held_out(examples: list[TokenisedExample], batch_size: int, pad_id: int) -> RowLoader:
    """Like lengths together; every process measures all of them, so that each knows the same loss."""
    order = sorted(range(len(examples)), key=lambda at: examples[at].length)
    batches: list[list[Row]] = [
        [(at,) for at in order[start : start + batch_size]] for start in range(0, len(order), batch_size)
    ]
    return RowLoader(examples, batches, packed=False, pad_id=pad_id)


def _columns(examples: list[TokenisedExample]) -> Table:
    return Table.from_dict(
        {
            "input_ids": [example.prompt_ids for example in examples],
            "labels": [example.answer_ids for example in examples],
        }
    )


def _is_over(resume: Resume, recipe: Recipe, plan: Plan) -> bool:
    """True where a kill came after the last step; the Trainer would do one more."""
    if resume.checkpoint is None:
        return False
    state = read_state(resume.checkpoint)
    return state.global_step >= plan.steps or (recipe.patience is not None and strikes(state) >= recipe.patience)


def _halve(run: RunDir, terminal: Terminal, size: int) -> int:
    """Halves the batch for the next attempt, says so, and returns its size.

    Halved is what this attempt had: where several processes ran out of memory, each says the same.
    """
    memory.free_memory()
    step_rows = run.spec.recipe.batch_size * run.spec.recipe.accumulation
    before = Division.of(step_rows, size, ranks())
    if before.batch_size == 1:
        raise memory.too_little(run)
    now = Division.of(step_rows, math.ceil(before.batch_size / 2), ranks())
    # Whichever process ran out of memory says so: the others wait for it until the launcher ends them.
    RunDir(run.path, run.spec).record(
        Stage.TRAIN, "out_of_memory", batch_size=now.batch_size, accumulation=now.accumulation
    )
    if ranks() > 1:
        raise PreceptorError(
            f"Out of memory with {before.batch_size} rows a forward pass.",
            code="out_of_memory",
            hint=f"Give the same command again: it goes on with {now.batch_size}.",
        )
    terminal.say(
        f"Out of memory with {before.batch_size} rows a forward pass: going on from the last checkpoint with "
        f"{now.batch_size}, and {now.accumulation} passes a step in place of {before.accumulation}."
    )
    return now.batch_size


def _keep(run: RunDir, parts: Split, tokenizer: PreTrainedTokenizerBase, plan: Plan, ended: Ended) -> Trained:
    """Keeps the best weights, or else the last, and sums up."""
    recipe = run.spec.recipe
    last = max(int(path.name.rpartition("-")[2]) for path in run.checkpoints.glob("checkpoint-*"))
    state = read_state(run.checkpoints / f"checkpoint-{last}")
    kept = (state.best_global_step if recipe.patience else None) or last
    checkpoint, probe = run.checkpoints / f"checkpoint-{kept}", None
    if run.writes and recipe.method == "full":
        probe = keep_weights(run, checkpoint, tokenizer, parts.training[0].prompt_ids)
    elif run.writes:
        keep_adapter(run, checkpoint)
    measured = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry and entry["step"] == kept]
    return _summary(run, plan, ended, last).model_copy(
        update={
            "weights_step": kept,
            "validation_loss": round(measured[-1], 5) if measured else None,
            "stopped_early": last < plan.steps,
            "probe": probe,
        }
    )


def _summary(run: RunDir, plan: Plan, ended: Ended, steps: int) -> Trained:
    losses = [event.number("loss") for event in run.events(Stage.TRAIN, "progress")]
    rate = ended.tokens / ended.seconds
    on_cuda = run.spec.device == "cuda"
    # A busy moment lowers a measurement and nothing raises it, so the better of before and after is the machine's.
    matrix_flops = max(plan.matrix_flops, matrix_rate(run.spec.device))
    # ru_maxrss is in KiB on Linux.
    peak = torch.cuda.max_memory_allocated() if on_cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    flops = (6 if run.spec.recipe.method == "full" else 4) * plan.base_parameters * rate * ended.computed_share
    return Trained(
        metrics=TrainMetrics(
            steps=steps,
            tokens=ended.tokens,
            seconds=round(ended.seconds, 3),
            tokens_per_second=round(rate, 2),
            trainable_parameters=ended.trainable,
            first_loss=losses[0],
            final_loss=losses[-1],
        ),
        computed_share=round(ended.computed_share, 4),
        matrix_share=round(flops / (matrix_flops * ranks()), 4),
        matrix_flops=matrix_flops,
        peak_memory_bytes=int(peak),
    )
