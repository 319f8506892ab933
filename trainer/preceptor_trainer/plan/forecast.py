"""Stage plan: what a training will cost, before it costs anything, and whether its result can be served."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.frozen import Frozen
from pydantic import Field

from preceptor_trainer.hardware import Hardware
from preceptor_trainer.plan.bases import load_config
from preceptor_trainer.plan.memory import Batch, Parts, estimate_memory, estimate_serving
from preceptor_trainer.plan.parameters import Counts, ModuleCount, count_parameters
from preceptor_trainer.plan.servability import Finding, Place, check_servability, engine_flags
from preceptor_trainer.plan.workload import Workload
from preceptor_trainer.recipes import Recipe

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["Plan", "Question", "count_parameters", "count_steps", "load_config", "make_plan", "refuse_misfit"]

_EXPECTED_SHARE = 0.5
"""Share of the float32 matrix rate that training reached on 2 CPU cores; only the time forecast rests on it."""
_MARGIN = 1.1
"""Gradient checkpointing stays off where the estimate without it leaves a tenth spare."""
_HAND_OFF = " Or have the engine on this GPU make way for it: --hand-off"
_SHARE = (
    " Several GPUs can share the weights: accelerate launch --config_file trainer/recipes/accelerate/fsdp.yaml -m "
    "preceptor_trainer resume <run-id>"
)
_ENGINE_ADAPTERS, _ENGINE_CONTEXT = 2, 2048
"""`ENGINE_MAX_LORAS` and `ENGINE_MAX_MODEL_LEN` unless set; only the engine's estimate rests on them."""


class Measured(Frozen):
    """What a probe of three optimizer steps measured."""

    seconds: tuple[float, ...]
    """Of each step."""
    tokens: tuple[int, ...]
    """Non-padding tokens of each step."""
    peak_bytes: int
    """Highest memory so far: the GPU's, or all that this process held at once."""

    @property
    def tokens_per_second(self) -> float:
        """Of the steps on median records; the first, on the longest, warms up."""
        return sum(self.tokens[1:]) / sum(self.seconds[1:])


class Plan(Frozen):
    """What stage plan found."""

    base_parameters: int
    trainable_parameters: int
    modules: tuple[ModuleCount, ...] = ()
    """Trainable parameters by kind of module."""
    steps: int
    tokens: int
    """Non-padding tokens of all passes, forecast."""
    tokens_estimated: bool = False
    """Whether they were not counted by the base model's own tokenizer."""
    gradient_checkpointing: bool = False
    """Whether activations are recomputed in the backward pass; settles the recipe's `auto`."""
    memory_bytes: Parts
    """Estimated peak, by part."""
    memory_available_bytes: int
    serving_bytes: Parts = Field(default_factory=dict)
    """What the engine needs at least, by part."""
    engine_flags: tuple[str, ...] = ()
    """vLLM's, to serve the result."""
    findings: tuple[Finding, ...] = ()
    matrix_flops: float = 0.0
    """Measured float32 matrix rate of this machine, FLOP/s; 0 where the plan is for another."""
    probe: Measured | None = None
    expected_seconds: float | None = None
    """From the probe where there is one, else from the matrix rate; None where the plan is for another machine."""
    price_per_hour: float | None = None
    """Of the machine, in any currency."""

    @property
    def memory_total_bytes(self) -> int:
        """Estimated peak."""
        return sum(self.memory_bytes.values())

    @property
    def fits(self) -> bool:
        """Whether the estimated peak stays within the memory that is free."""
        return self.memory_total_bytes <= self.memory_available_bytes

    @property
    def cost(self) -> float | None:
        """Price of the expected time, in the currency of `price_per_hour`."""
        if self.price_per_hour is None or self.expected_seconds is None:
            return None
        return self.price_per_hour * self.expected_seconds / 3600

    def timed_by(self, measured: Measured) -> Plan:
        """The same plan with its time taken from a probe."""
        expected = round(self.tokens / measured.tokens_per_second, 1)
        return self.model_copy(update={"probe": measured, "expected_seconds": expected})


class Question(NamedTuple):
    """What a plan is asked for."""

    base_model: str
    """Id or folder of what is planned for."""
    place: Place
    has_template: bool | None = True
    """Whether the base model's tokenizer has a chat template; None where it is not at hand."""
    matrix_flops: float | None = None
    """Measured on the machine that is planned for; None where that is not this one."""
    price_per_hour: float | None = None
    processes: int = 1
    """That train together."""
    sharded: bool = False
    """Whether they share weights, gradients and optimizer (FSDP)."""

    @property
    def shards(self) -> int:
        """Processes that share weights."""
        return self.processes if self.sharded else 1


def count_steps(rows: int, recipe: Recipe) -> int:
    """Counts optimizer steps as transformers' Trainer does."""
    batches = math.ceil(rows / recipe.batch_size)
    per_pass = max(1, math.ceil(batches / recipe.accumulation))
    steps = max(1, math.ceil(recipe.epochs * per_pass))
    return min(steps, recipe.max_steps) if recipe.max_steps else steps


def make_plan(
    config: PretrainedConfig, recipe: Recipe, workload: Workload, hardware: Hardware, question: Question
) -> Plan:
    """Forecasts a training. Refuses nothing but a layer that is missing: see `refuse_misfit`.

    Args:
        config: Of the base model; its weights are not needed.
        recipe: Resolved.
        workload: One pass over the records.
        hardware: Where it is to be trained.
        question: What is asked besides.

    Raises:
        InvalidInput: The base model lacks a targeted layer.
    """
    counts = count_parameters(config, recipe)
    steps = count_steps(workload.rows, recipe)
    per_pass = count_steps(workload.rows, recipe.model_copy(update={"epochs": 1, "max_steps": None}))
    tokens = round(workload.tokens * steps / per_pass)
    rows = min(_rows_a_pass(recipe, question.processes), workload.rows)
    shared = workload.shared if _is_shared(config, recipe, workload, hardware, question) else 0
    batch = Batch(rows, workload.longest, shared, workload.answer)
    if recipe.batching == "packed":
        batch = Batch(rows, recipe.max_length)
    checkpointing = needs_checkpointing(counts, recipe, hardware, batch, shards=question.shards)
    expected = None
    if question.matrix_flops is not None:
        computed = _less_shared(shared, recipe, steps=steps, tokens=tokens)
        flops = _products(recipe, checkpointing=checkpointing) * counts.base * computed
        expected = flops / (question.matrix_flops * _EXPECTED_SHARE * question.processes)
    return Plan(
        base_parameters=counts.base,
        trainable_parameters=counts.trainable,
        modules=counts.modules,
        steps=steps,
        tokens=tokens,
        tokens_estimated=workload.is_estimated,
        gradient_checkpointing=checkpointing,
        memory_bytes=estimate_memory(
            counts, recipe, hardware.device, batch, checkpointing=checkpointing, shards=question.shards
        ),
        memory_available_bytes=hardware.memory_bytes,
        serving_bytes=estimate_serving(
            counts, recipe, hardware.device, adapters=_ENGINE_ADAPTERS, context=_ENGINE_CONTEXT
        ),
        engine_flags=engine_flags(recipe),
        findings=check_servability(
            recipe,
            question.place,
            base_model=question.base_model,
            positions=counts.shape.positions,
            longest=workload.longest,
            has_template=question.has_template,
        ),
        matrix_flops=question.matrix_flops or 0.0,
        expected_seconds=expected,
        price_per_hour=question.price_per_hour,
    )


def _rows_a_pass(recipe: Recipe, processes: int) -> int:
    """Rows of a forward pass in each process, as the training divides a step."""
    from preceptor_trainer.train.batches import Division

    return Division.of(recipe.batch_size * recipe.accumulation, recipe.batch_size, processes).batch_size


def _is_shared(
    config: PretrainedConfig, recipe: Recipe, workload: Workload, hardware: Hardware, question: Question
) -> bool:
    """Tells whether the training computes the prompts' common beginning once a batch (side_by_side)."""
    from preceptor_trainer.train import side_by_side

    alone_on_cpu = hardware.device == "cpu" and question.processes == 1 and recipe.batching != "packed"
    return alone_on_cpu and side_by_side.is_suited(config, workload.longest)


def needs_checkpointing(counts: Counts, recipe: Recipe, hardware: Hardware, batch: Batch, *, shards: int) -> bool:
    """Settles gradient_checkpointing: `auto` is on only where memory would not suffice without it."""
    if recipe.gradient_checkpointing != "auto":
        return recipe.gradient_checkpointing == "on"
    without = estimate_memory(counts, recipe, hardware.device, batch, checkpointing=False, shards=shards)
    return sum(without.values()) * _MARGIN > hardware.memory_bytes


def refuse_misfit(plan: Plan, hardware: Hardware) -> None:
    """Refuses a training that cannot be served or does not fit.

    Raises:
        InvalidInput: The engine could not serve it, or the estimated peak exceeds the memory that is free.
    """
    refused = [finding for finding in plan.findings if finding.level == "refused"]
    if refused:
        raise InvalidInput(
            f"The engine could not serve this: {'; '.join(finding.what for finding in refused)}.",
            code="not_servable",
            hint=f"What helps: {'; '.join(finding.fix for finding in refused)}.",
        )
    if not plan.fits:
        raise InvalidInput(
            f"Training needs about {gigabytes(plan.memory_total_bytes)} of memory, "
            f"but only {gigabytes(plan.memory_available_bytes)} are free on {hardware.name}.",
            code="memory_exceeded",
            hint=_way_out(plan) + _way_out_of_sharing(plan, hardware),
        )


def _way_out(plan: Plan) -> str:
    by_batch = sum(plan.memory_bytes.get(part, 0) for part in ("activations", "scores over the vocabulary"))
    fixed = plan.memory_total_bytes - by_batch
    ways = [] if "quantisation state" in plan.memory_bytes else ["take --method qlora"]
    if fixed < plan.memory_available_bytes:
        return f"{' or '.join(['Lower batch_size in the recipe (and raise accumulation)', *ways])}."
    ways.append("take a smaller base model or a larger GPU")
    return f"No batch is small enough: {gigabytes(fixed)} do not depend on it. {' or '.join(ways).capitalize()}."


def _way_out_of_sharing(plan: Plan, hardware: Hardware) -> str:
    if hardware.device != "cuda":
        return ""
    would_fit = plan.memory_total_bytes * _MARGIN <= hardware.total_bytes
    return _HAND_OFF if would_fit else _SHARE


def gigabytes(count: int) -> str:
    """Bytes for people: GB of 10^9."""
    return f"{count / 1e9:.1f} GB"


def _products(recipe: Recipe, *, checkpointing: bool) -> int:
    """Floating-point operations a weight and token: forward, gradients of activations and weights, forward redone."""
    return 4 + (2 if recipe.method == "full" else 0) + (2 if checkpointing else 0)


def _less_shared(shared: int, recipe: Recipe, *, steps: int, tokens: int) -> int:
    """Tokens that are computed where each batch computes a common beginning of so many tokens once."""
    again = (recipe.batch_size - 1) * recipe.accumulation * max(0, shared - 1)
    return max(0, tokens - steps * again)
