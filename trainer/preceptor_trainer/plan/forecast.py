"""Stage plan: what a training will cost, before it costs anything; refuses what cannot fit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from preceptor_contracts.errors import InvalidInput, PrerequisiteError
from preceptor_contracts.frozen import Frozen
from rich.table import Table

from preceptor_trainer.hardware import Hardware
from preceptor_trainer.prepare.dataset import Prepared
from preceptor_trainer.recipes import Recipe

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_NF4_BYTES = 0.516
"""Bytes a parameter: 4 bits, plus doubly quantised scales at 0.127 bits (QLoRA paper, section 3)."""
_ADAM_BYTES = 16
"""Bytes a trainable parameter: weight, gradient and two moments, all float32."""
_PROCESS_BYTES = {"cpu": 900_000_000, "cuda": 700_000_000}
"""Python, torch and its buffers: measured for an empty training process."""
_EXPECTED_SHARE = 0.5
"""Share of the float32 matrix rate that training reached on 2 CPU cores; only the time forecast rests on it."""


class Counts(NamedTuple):
    """Parameters of a base model and an adapter on it."""

    base: int
    quantisable: int
    """In linear layers but the head: what NF4 stores."""
    trainable: int
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int


class Plan(Frozen):
    """What stage plan found."""

    base_parameters: int
    trainable_parameters: int
    steps: int
    tokens: int
    """Non-padding tokens of all passes, forecast."""
    memory_bytes: dict[str, int]
    """Estimated peak, by part."""
    memory_available_bytes: int
    matrix_flops: float
    """Measured float32 matrix rate of this machine, FLOP/s."""
    expected_seconds: float
    gradient_checkpointing: bool = False
    """Settled: whether activations are computed again in the backward pass."""

    @property
    def memory_total_bytes(self) -> int:
        """Estimated peak."""
        return sum(self.memory_bytes.values())


def load_config(source: str) -> PretrainedConfig:
    """Loads the base model's configuration.

    Raises:
        PrerequisiteError: It is not there.
    """
    from transformers import AutoConfig

    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise PrerequisiteError(
            f"Base model {source!r} cannot be loaded: {first}",
            hint="Check BASE_MODEL; run `make setup` for the embedded one.",
        ) from error
    return config


def count_parameters(config: PretrainedConfig, recipe: Recipe) -> Counts:
    """Counts exactly, on a copy without weights: rank x (inputs + outputs) for every targeted linear layer.

    Raises:
        InvalidInput: The base model has none of the targeted layers.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        shell: Any = AutoModelForCausalLM.from_config(config)
    head = shell.get_output_embeddings()
    linear = {name: item for name, item in shell.named_modules() if isinstance(item, torch.nn.Linear)}
    targeted = [item for name, item in linear.items() if name.rpartition(".")[2] in recipe.target_modules]
    missing = set(recipe.target_modules) - {name.rpartition(".")[2] for name in linear}
    if missing:
        raise InvalidInput(
            f"The base model has no layer {min(missing)!r}.", hint="Take it out of target_modules in the recipe."
        )
    text = config.get_text_config()
    return Counts(
        base=sum(parameter.numel() for parameter in shell.parameters()),
        quantisable=sum(item.weight.numel() for item in linear.values() if item is not head),
        trainable=sum(recipe.rank * (item.in_features + item.out_features) for item in targeted),
        layers=int(text.num_hidden_layers),
        hidden=int(text.hidden_size),
        intermediate=int(text.intermediate_size),
        vocabulary=int(text.vocab_size),
    )


def count_steps(records: int, recipe: Recipe) -> int:
    """Counts optimizer steps as transformers' Trainer does."""
    batches = math.ceil(records / recipe.batch_size)
    per_pass = max(1, math.ceil(batches / recipe.accumulation))
    steps = max(1, math.ceil(recipe.epochs * per_pass))
    return min(steps, recipe.max_steps) if recipe.max_steps else steps


def estimate_memory(counts: Counts, recipe: Recipe, device: str, *, longest: int) -> dict[str, int]:
    """Estimates the peak by part, in bytes, for a batch of the longest records.

    Args:
        counts: Of base model and adapter.
        recipe: Resolved.
        device: `cpu` or `cuda`.
        longest: Tokens of the longest record.
    """
    size = _BYTES[recipe.dtype]
    stored = counts.base * size
    if recipe.method == "qlora":
        stored = int(counts.quantisable * _NF4_BYTES) + (counts.base - counts.quantisable) * size
    tokens = recipe.batch_size * longest
    # Kept for the backward pass: inputs of the linear layers, of LoRA's A, norms, rotations and the gated product.
    block = tokens * size * (14 * counts.hidden + 5 * counts.intermediate)
    # With gradient checkpointing, which we use on CUDA, only block inputs stay and one block at a time is redone.
    blocks = block + counts.layers * tokens * size * counts.hidden if device == "cuda" else block * counts.layers
    return {
        "base weights": stored,
        "adapter, gradients, optimizer": counts.trainable * _ADAM_BYTES,
        "activations": blocks,
        "scores over the vocabulary": 3 * 4 * min(tokens, 1024) * counts.vocabulary,
        "process": _PROCESS_BYTES[device],
    }


def make_plan(
    config: PretrainedConfig,
    recipe: Recipe,
    prepared: Prepared,
    hardware: Hardware,
    *,
    matrix_flops: float,
    rows: int | None = None,
) -> Plan:
    """Forecasts a training and refuses one that does not fit.

    Args:
        config: The base model's.
        recipe: Resolved.
        prepared: The records.
        hardware: What is there.
        matrix_flops: Measured, FLOP/s.
        rows: Of one pass (`training.training_rows`); None: one a record.

    Raises:
        InvalidInput: The estimated peak exceeds the memory that is free, or a layer is missing.
    """
    counts = count_parameters(config, recipe)
    rows = prepared.dataset.records if rows is None else rows
    steps = count_steps(rows, recipe)
    per_pass = count_steps(rows, recipe.model_copy(update={"epochs": 1, "max_steps": None}))
    tokens = round(prepared.dataset.tokens * (1 - recipe.validation_share) * steps / per_pass)
    # On a CPU each batch computes the prompts' common beginning once (answer_trainer).
    again = (recipe.batch_size - 1) * recipe.accumulation * max(0, prepared.lengths.shared - 1)
    computed = tokens - steps * again if hardware.device == "cpu" else tokens
    plan = Plan(
        base_parameters=counts.base,
        trainable_parameters=counts.base if recipe.method == "full" else counts.trainable,
        steps=steps,
        tokens=tokens,
        memory_bytes=estimate_memory(counts, recipe, hardware.device, longest=prepared.lengths.longest),
        memory_available_bytes=hardware.memory_bytes,
        matrix_flops=matrix_flops,
        expected_seconds=4 * counts.base * computed / (matrix_flops * _EXPECTED_SHARE),
        gradient_checkpointing=recipe.gradient_checkpointing == "on"
        or (recipe.gradient_checkpointing == "auto" and hardware.device == "cuda"),
    )
    if plan.memory_total_bytes > plan.memory_available_bytes:
        raise InvalidInput(
            f"Training needs about {_gb(plan.memory_total_bytes)} of memory, "
            f"but only {_gb(plan.memory_available_bytes)} are free on {hardware.name}.",
            code="memory_exceeded",
            hint="Lower batch_size in the recipe (and raise accumulation), or take --method qlora.",
        )
    return plan


def plan_table(plan: Plan, recipe: Recipe, hardware: Hardware, base: str) -> Table:
    """Lays a plan out for people."""
    table = Table(title="Plan", show_header=False, title_justify="left")
    share = plan.trainable_parameters / plan.base_parameters
    rows = {
        "base model": f"{base}, {plan.base_parameters:,} parameters",
        "recipe": f"{recipe.name}: {recipe.method}, {recipe.dtype}, rank {recipe.rank}",
        "trainable": f"{plan.trainable_parameters:,} parameters ({share:.1%})",
        "device": f"{hardware.name} ({hardware.device}, {hardware.threads} threads)",
        "steps": f"{plan.steps} of {recipe.batch_size * recipe.accumulation} records, {plan.tokens:,} tokens",
        "memory": f"about {_gb(plan.memory_total_bytes)} of {_gb(plan.memory_available_bytes)} free",
        "matrix rate": f"{plan.matrix_flops / 1e9:.0f} GFLOP/s in float32, measured",
        "time": f"about {max(1, round(plan.expected_seconds / 60))} min",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
