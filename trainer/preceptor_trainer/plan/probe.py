"""Three real optimizer steps on the run's own records: what time and memory a training takes on this machine."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset as Table
from preceptor_contracts.errors import InvalidInput
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl.trainer.sft_config import SFTConfig

from preceptor_trainer.plan.forecast import Measured
from preceptor_trainer.prepare.dataset import Dataset
from preceptor_trainer.quiet import silence_transformers
from preceptor_trainer.recipes import Recipe
from preceptor_trainer.runs import RunSpec
from preceptor_trainer.train.answer_trainer import AnswerTrainer
from preceptor_trainer.train.arguments import on_one_device, optimizer_name
from preceptor_trainer.train.batches import Row, RowLoader, StepBatches
from preceptor_trainer.train.memory import is_out_of_memory
from preceptor_trainer.train.training import split
from preceptor_trainer.train.weights import float32_trainable, load_base, lora

STEPS = 3
"""The first on the longest records, which needs the most memory and warms up; then two on median ones, timed."""


class _Stopwatch(TrainerCallback):
    def __init__(self, device: str) -> None:
        self._device = device
        self._started = 0.0
        self.seconds: list[float] = []
        self.tokens: list[int] = []
        self.seen: Callable[[], int] = lambda: 0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._started = self._now()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.seconds.append(self._now() - self._started)
        self.tokens.append(self.seen() - sum(self.tokens))

    def _now(self) -> float:
        if self._device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def probe(spec: RunSpec, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, *, checkpointing: bool) -> Measured:
    """Trains three steps and throws the result away.

    Args:
        spec: Of the run whose training is measured.
        dataset: The run's.
        tokenizer: The base model's.
        checkpointing: As the plan settled it.

    Raises:
        InvalidInput: The memory does not suffice.
    """
    silence_transformers()
    recipe, examples = spec.recipe, split(dataset, spec.recipe).training
    packed, pad_id = recipe.batching == "packed", int(tokenizer.pad_token_id or tokenizer.eos_token_id)
    passes = probe_passes([example.length for example in examples], recipe)
    watch = _Stopwatch(spec.device)
    try:
        with tempfile.TemporaryDirectory() as folder:
            trainer = AnswerTrainer(
                model=load_base(spec.base_source, recipe, spec.device),
                args=_arguments(folder, recipe, spec.device, checkpointing),
                batches=RowLoader(examples, passes, packed=packed, pad_id=pad_id),
                # TRL asks for a table and looks at its columns; the rows come from the loader.
                train_dataset=Table.from_dict({"input_ids": [[0]], "labels": [[0]]}),
                processing_class=tokenizer,
                peft_config=lora(recipe),
                callbacks=[watch],
            )
            float32_trainable(trainer.model)
            trainer.remove_callback(PrinterCallback)
            watch.seen = lambda: trainer.tokens_seen
            trainer.train()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise InvalidInput(
            "The probe ran out of memory on a batch of the longest records.",
            code="memory_exceeded",
            hint="Lower batch_size in the recipe (and raise accumulation), or set gradient_checkpointing: on.",
        ) from error
    # ru_maxrss is in KiB on Linux.
    whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Measured(
        seconds=tuple(round(second, 4) for second in watch.seconds),
        tokens=tuple(watch.tokens),
        peak_bytes=int(torch.cuda.max_memory_allocated() if spec.device == "cuda" else whole),
    )


def probe_passes(lengths: Sequence[int], recipe: Recipe) -> list[list[Row]]:
    """Picks the rows of three steps: the longest records for the first, and those around the median for the others.

    Packed rows are all about as full, so those of the first steps do.

    Args:
        lengths: Tokens of each record.
        recipe: Says how many rows a step and a forward pass have.
    """
    step = recipe.batch_size * recipe.accumulation
    if recipe.batching == "packed":
        rows = [row for rows in StepBatches(lengths, recipe, recipe.batch_size).steps() for row in rows]
        picked = [rows[at % len(rows)] for at in range(STEPS * step)]
    else:
        ordered = sorted(range(len(lengths)), key=lambda at: -lengths[at])
        start = max(0, min(len(ordered) // 2 - step, len(ordered) - 2 * step))
        longest, median = ordered[:step], ordered[start : start + 2 * step]
        # Fewer records than three steps take are taken again.
        picked = [(longest[at % len(longest)],) for at in range(step)]
        picked += [(median[at % len(median)],) for at in range(2 * step)]
    return [picked[at : at + recipe.batch_size] for at in range(0, len(picked), recipe.batch_size)]


def _arguments(folder: str, recipe: Recipe, device: str, checkpointing: bool) -> SFTConfig:
    on_cuda = device == "cuda"
    made = SFTConfig(
        output_dir=folder,
        max_steps=STEPS,
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.accumulation,
        learning_rate=recipe.learning_rate,
        optim=optimizer_name(recipe, device),
        bf16=recipe.dtype == "bfloat16",
        fp16=recipe.dtype == "float16",
        use_cpu=not on_cuda,
        activation_checkpointing=checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        save_strategy="no",
        logging_strategy="no",
        dataloader_pin_memory=on_cuda,
        disable_tqdm=True,
        report_to=[],
        seed=recipe.seed,
    )
    return on_one_device(made)
