"""Three real optimizer steps on the run's own records: what time and memory a training takes on this machine."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset as Table
from peft import LoraConfig
from preceptor_contracts.errors import InvalidInput
from torch.utils.data import Sampler, SequentialSampler
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
from preceptor_trainer.train.answer_trainer import AnswerTrainer
from preceptor_trainer.train.training import load_base

if TYPE_CHECKING:
    from preceptor_trainer.tokens import TokenisedExample

STEPS = 3
"""The first on the longest records, which needs the most memory and warms up; then two on median ones, timed."""
_IGNORED = -100


class _InOrder(AnswerTrainer):
    """Takes the rows as they come."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:  # type: ignore[override]
        del train_dataset
        return SequentialSampler(self._lengths)


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


def probe(
    source: str,
    recipe: Recipe,
    device: str,
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    checkpointing: bool,
) -> Measured:
    """Trains three steps and throws the result away.

    Args:
        source: Folder or Hugging Face id of the weights.
        recipe: Resolved.
        device: `cpu` or `cuda`.
        dataset: The run's.
        tokenizer: The base model's.
        checkpointing: As the plan settled it.

    Raises:
        InvalidInput: The memory does not suffice.
    """
    silence_transformers()
    rows = probe_rows(dataset.tokenised, recipe.batch_size * recipe.accumulation)
    watch = _Stopwatch(device)
    try:
        with tempfile.TemporaryDirectory() as folder:
            trainer = _InOrder(
                model=_trainable(load_base(source, recipe, device), recipe),
                args=_arguments(folder, recipe, device, checkpointing),
                train_dataset=_table(rows),
                lengths=[row.length for row in rows],
                processing_class=tokenizer,
                peft_config=None if recipe.method == "full" else _lora(recipe),
                callbacks=[watch],
            )
            trainer.remove_callback(PrinterCallback)
            watch.seen = lambda: trainer.tokens_seen
            trainer.train()
    except (torch.OutOfMemoryError, MemoryError) as error:
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
        peak_bytes=int(torch.cuda.max_memory_allocated() if device == "cuda" else whole),
    )


def probe_rows(tokenised: tuple[TokenisedExample, ...], step: int) -> list[TokenisedExample]:
    """Picks the longest records for the first step and those around the median for the other two.

    Args:
        tokenised: The run's records.
        step: Records that one optimizer step takes.
    """
    ordered = sorted(tokenised, key=lambda example: -example.length)
    start = max(0, min(len(ordered) // 2 - step, len(ordered) - 2 * step))
    longest, median = ordered[:step], ordered[start : start + 2 * step]
    # Fewer records than three steps take are taken again.
    return [longest[at % len(longest)] for at in range(step)] + [median[at % len(median)] for at in range(2 * step)]


def _trainable(base: Any, recipe: Recipe) -> Any:
    # What training does too: trained weights are float32.
    return base.float() if recipe.method == "full" else base


def _lora(recipe: Recipe) -> LoraConfig:
    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,  # type: ignore[arg-type]  # PEFT says int and divides it by the rank
        lora_dropout=recipe.dropout,
        target_modules=list(recipe.target_modules),
        task_type="CAUSAL_LM",
    )


def _arguments(folder: str, recipe: Recipe, device: str, checkpointing: bool) -> SFTConfig:
    on_cuda = device == "cuda"
    return SFTConfig(
        output_dir=folder,
        max_steps=STEPS,
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.accumulation,
        learning_rate=recipe.learning_rate,
        bf16=recipe.dtype == "bfloat16",
        fp16=recipe.dtype == "float16",
        use_cpu=not on_cuda,
        gradient_checkpointing=checkpointing,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        save_strategy="no",
        logging_strategy="no",
        dataloader_pin_memory=on_cuda,
        disable_tqdm=True,
        report_to=[],
        seed=recipe.seed,
    )


def _table(rows: list[TokenisedExample]) -> Table:
    return Table.from_dict(
        {
            "input_ids": [[*row.prompt_ids, *row.answer_ids] for row in rows],
            "labels": [[*([_IGNORED] * len(row.prompt_ids)), *row.answer_ids] for row in rows],
        }
    )
