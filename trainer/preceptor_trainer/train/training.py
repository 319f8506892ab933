"""Stage train: LoRA or QLoRA by TRL's SFTTrainer, on answers only, resumable to the byte on one machine."""

from __future__ import annotations

import os
import resource
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset as Table
from peft import LoraConfig
from preceptor_contracts.errors import PreceptorError
from preceptor_contracts.files import sync_folder
from preceptor_contracts.frozen import Frozen
from preceptor_contracts.manifest import TrainMetrics
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    set_seed,
)
from trl.trainer.sft_config import SFTConfig

from preceptor_trainer.hardware import matrix_rate
from preceptor_trainer.plan.forecast import Plan
from preceptor_trainer.prepare.dataset import Dataset
from preceptor_trainer.quiet import silence_transformers
from preceptor_trainer.recipes import Recipe
from preceptor_trainer.runs import RunDir, Stage
from preceptor_trainer.terminal import Terminal
from preceptor_trainer.train.answer_trainer import AnswerTrainer
from preceptor_trainer.train.progress import Progress

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_IGNORED = -100


class Trained(Frozen):
    """What stage train found."""

    metrics: TrainMetrics
    matrix_share: float
    """4 x base parameters x computed tokens/s over `matrix_flops`."""
    computed_share: float
    """Share of the tokens that were computed; a domain's system message is computed once a batch on a CPU."""
    matrix_flops: float
    """Float32 matrix rate of this machine, FLOP/s: the better of a measurement before and one after training."""
    peak_memory_bytes: int


class _Resume(NamedTuple):
    """Where an interrupted training goes on."""

    checkpoint: Path | None
    tokens: int
    seconds: float


def train(run: RunDir, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, plan: Plan, terminal: Terminal) -> Trained:
    """Trains, from the last whole checkpoint where there is one, and leaves the weights in the run's `adapter/`.

    Raises:
        PreceptorError: The loss became NaN or infinite, or PEFT trains another number of parameters than planned.
    """
    silence_transformers()
    spec, recipe = run.spec, run.spec.recipe
    resume = _find_resume(run)
    set_seed(recipe.seed)
    trainer = AnswerTrainer(
        model=load_base(spec.base_source, recipe, spec.device),
        args=_arguments(run, plan),
        train_dataset=_rows(dataset),
        lengths=[example.length for example in dataset.tokenised],
        processing_class=tokenizer,
        peft_config=_lora(recipe),
    )
    trainable = _float32_adapter(trainer.model)
    if trainable != plan.trainable_parameters:
        raise PreceptorError(
            f"PEFT trains {trainable:,} parameters where the plan says {plan.trainable_parameters:,}.",
            hint="Run `preceptor-trainer plan` again with this version of the trainer.",
        )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    with terminal.progress("train", plan.steps) as tick:
        progress = Progress(
            run, tick, lambda: trainer.tokens_seen, tokens_before=resume.tokens, seconds_before=resume.seconds
        )
        trainer.add_callback(progress)
        trainer.train(resume_from_checkpoint=str(resume.checkpoint) if resume.checkpoint else None)
        seconds = progress.seconds
    _save_adapter(run, trainer.model)
    # A run that resumes at its last step computes nothing more.
    computed_share = trainer.tokens_computed / trainer.tokens_seen if trainer.tokens_seen else 1.0
    return _summary(run, plan, trainable, progress.tokens, seconds, computed_share)


def load_base(source: str, recipe: Recipe, device: str) -> Any:
    """Loads the base model's weights in the recipe's format: NF4 with double quantisation for QLoRA.

    Args:
        source: Folder or Hugging Face id.
        recipe: Resolved.
        device: `cpu` or `cuda`.
    """
    dtype = getattr(torch, recipe.dtype)
    quantisation = None
    if recipe.method == "qlora":
        quantisation = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return AutoModelForCausalLM.from_pretrained(
        source, dtype=dtype, quantization_config=quantisation, device_map={"": device}
    )


def _lora(recipe: Recipe) -> LoraConfig:
    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,  # type: ignore[arg-type]  # PEFT says int and divides it by the rank
        lora_dropout=recipe.dropout,
        target_modules=list(recipe.target_modules),
        task_type="CAUSAL_LM",
    )


def _arguments(run: RunDir, plan: Plan) -> SFTConfig:
    recipe, on_cuda = run.spec.recipe, run.spec.device == "cuda"
    return SFTConfig(
        output_dir=str(run.checkpoints),
        max_steps=plan.steps,
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.accumulation,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.scheduler,
        warmup_steps=round(recipe.warmup_share * plan.steps),
        bf16=recipe.dtype == "bfloat16",
        fp16=recipe.dtype == "float16",
        use_cpu=not on_cuda,
        # TRL's default is on; without it a CPU trains a fifth faster and small base models fit its memory anyway.
        gradient_checkpointing=on_cuda,
        # Rows come tokenised: TRL must neither render nor cut them.
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        save_strategy="steps",
        save_steps=recipe.checkpoint_every,
        save_total_limit=2,
        logging_steps=recipe.logging_steps,
        logging_first_step=True,
        # The default replaces NaN by the running mean, which would hide a broken training.
        logging_nan_inf_filter=False,
        dataloader_pin_memory=on_cuda,
        disable_tqdm=True,
        report_to=[],
        seed=recipe.seed,
    )


def _rows(dataset: Dataset) -> Table:
    return Table.from_dict(
        {
            "input_ids": [[*example.prompt_ids, *example.answer_ids] for example in dataset.tokenised],
            "labels": [[*([_IGNORED] * len(example.prompt_ids)), *example.answer_ids] for example in dataset.tokenised],
        }
    )


def _float32_adapter(adapted: Any) -> int:
    """Keeps LoRA's weights in float32 and counts them.

    TRL turns them to bfloat16 for QLoRA, which loses small updates, and float16's gradient scaler refuses them.
    """
    count = 0
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
            count += parameter.numel()
    return count


def _find_resume(run: RunDir) -> _Resume:
    """Finds the newest checkpoint that an event vouches for, and removes half-written newer ones."""
    vouched = {int(event.number("step")) for event in run.events(Stage.TRAIN, "checkpoint")}
    folders = {int(path.name.rpartition("-")[2]): path for path in run.checkpoints.glob("checkpoint-*")}
    for step in folders.keys() - vouched:
        shutil.rmtree(folders.pop(step))
    if not folders:
        return _Resume(None, 0, 0.0)
    step = max(folders)
    reached = [event for event in run.events(Stage.TRAIN, "progress") if event.number("step") == step]
    run.record(Stage.TRAIN, "resumed", step=step)
    if not reached:
        return _Resume(folders[step], 0, 0.0)
    return _Resume(folders[step], int(reached[-1].number("tokens")), reached[-1].number("seconds"))


def _save_adapter(run: RunDir, adapted: Any) -> None:
    partial = run.path / ".adapter.partial"
    shutil.rmtree(partial, ignore_errors=True)
    adapted.save_pretrained(str(partial))
    for path in partial.iterdir():
        if path.name not in {WEIGHTS, CONFIG}:
            path.unlink()
        else:
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    shutil.rmtree(run.adapter, ignore_errors=True)
    partial.rename(run.adapter)
    sync_folder(run.path)


def _summary(run: RunDir, plan: Plan, trainable: int, tokens: int, seconds: float, computed_share: float) -> Trained:
    losses = [event.number("loss") for event in run.events(Stage.TRAIN, "progress")]
    rate = tokens / seconds
    on_cuda = run.spec.device == "cuda"
    # A busy moment lowers a measurement and nothing raises it, so the better of before and after is the machine's.
    matrix_flops = max(plan.matrix_flops, matrix_rate(run.spec.device))
    # ru_maxrss is in KiB on Linux.
    peak = torch.cuda.max_memory_allocated() if on_cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Trained(
        metrics=TrainMetrics(
            steps=plan.steps,
            tokens=tokens,
            seconds=round(seconds, 3),
            tokens_per_second=round(rate, 2),
            trainable_parameters=trainable,
            first_loss=losses[0],
            final_loss=losses[-1],
        ),
        computed_share=round(computed_share, 4),
        matrix_share=round(4 * plan.base_parameters * rate * computed_share / matrix_flops, 4),
        matrix_flops=matrix_flops,
        peak_memory_bytes=int(peak),
    )
