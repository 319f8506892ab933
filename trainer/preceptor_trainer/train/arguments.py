"""A recipe in the words of transformers: what the Trainer is asked to do, with a reason for each setting."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from preceptor_contracts.errors import PrerequisiteError
from trl.trainer.sft_config import SFTConfig

from preceptor_trainer.plan.forecast import Plan
from preceptor_trainer.recipes import Recipe
from preceptor_trainer.runs import RunDir
from preceptor_trainer.train.batches import Division

TENSORBOARD = "tensorboard"
_OPTIMIZERS = {
    "adamw": "adamw_torch_fused",
    "paged-adamw-32bit": "paged_adamw_32bit",
    "paged-adamw-8bit": "paged_adamw_8bit",
}


def optimizer_name(recipe: Recipe, device: str) -> str:
    """Settles `auto`: paged AdamW where base weights are quantised on a CUDA device, as QLoRA's paper has it."""
    if recipe.optimizer != "auto":
        return _OPTIMIZERS[recipe.optimizer]
    return _OPTIMIZERS["paged-adamw-32bit" if recipe.is_quantised and device == "cuda" else "adamw"]


def arguments(run: RunDir, plan: Plan, division: Division, reporters: Sequence[str], *, validates: bool) -> SFTConfig:
    """Makes the Trainer's arguments.

    Args:
        run: Whose recipe and device.
        plan: Says how many steps, and whether activations are recomputed.
        division: Of a step over forward passes.
        reporters: Where metrics go, beside the events; TensorBoard is not among them, it gets a folder of its own.
        validates: Whether records are held out.
    """
    recipe, on_cuda = run.spec.recipe, run.spec.device == "cuda"
    made = SFTConfig(
        output_dir=str(run.checkpoints),
        run_name=run.id,
        max_steps=plan.steps,
        per_device_train_batch_size=division.batch_size,
        gradient_accumulation_steps=division.accumulation,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.scheduler,
        warmup_steps=round(recipe.warmup_share * plan.steps),
        optim=optimizer_name(recipe, run.spec.device),
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        bf16=recipe.dtype == "bfloat16",
        fp16=recipe.dtype == "float16",
        use_cpu=not on_cuda,
        # TRL's default is on; without it a CPU trains a fifth faster and small base models fit its memory anyway.
        activation_checkpointing=plan.gradient_checkpointing,
        # The other kind loses gradients where a block's inputs need none.
        activation_checkpointing_kwargs={"use_reentrant": False} if plan.gradient_checkpointing else None,
        # Rows come tokenised: TRL must neither render nor cut them.
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        save_strategy="steps",
        save_steps=recipe.checkpoint_every,
        # The last, the one before, whose successor may not be whole yet, and the best.
        save_total_limit=3 if recipe.patience else 2,
        eval_strategy="steps" if validates else "no",
        eval_steps=recipe.validate_every,
        metric_for_best_model="eval_loss" if recipe.patience else None,
        greater_is_better=False if recipe.patience else None,
        logging_steps=recipe.logging_steps,
        logging_first_step=True,
        # The default replaces NaN by the running mean, which would hide a broken training.
        logging_nan_inf_filter=False,
        dataloader_pin_memory=on_cuda,
        disable_tqdm=True,
        report_to=list(reporters),
        seed=recipe.seed,
    )
    return on_one_device(made)


def on_one_device(made: SFTConfig) -> SFTConfig:
    """Keeps a process to one GPU.

    With several and no launcher, transformers would copy the base model to all of them in threads, which TRL refuses.
    The first one does; `training` says so.
    """
    if made.n_gpu > 1:
        made._n_gpu = 1
    return made


def refuse_missing(reporters: Sequence[str]) -> None:
    """Raises `PrerequisiteError` naming the package of a reporter that is not installed."""
    for name in reporters:
        if find_spec(name) is None:
            raise PrerequisiteError(
                f"TRAINER_REPORT_TO names {name!r}, which is not installed.",
                hint=f"Run `pip install {name}`, or take it out of TRAINER_REPORT_TO.",
            )
