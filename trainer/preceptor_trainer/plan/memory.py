"""Memory by part, in bytes: of a training at its peak, and of the engine that serves the result."""

from __future__ import annotations

from typing import NamedTuple

from preceptor_trainer.plan.parameters import Counts, Shape
from preceptor_trainer.recipes import Recipe

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Of one number."""
_NF4_BLOCK, _NESTED_BLOCK = 64, 256
"""NF4 keeps a scale for 64 weights, of 1 byte where it is quantised again, and a float32 for 256 such scales.

Source: QLoRA paper (arXiv:2305.14314), section 3, and bitsandbytes' defaults.
"""
_NF4_TABLES = (16 + 256 + 1) * 4
"""Bytes a layer: the 16 values of NF4, the 256 of the scales, and the scales' mean, float32 each."""
_TRAINED_BYTES = 4
"""Trained weights and their gradients are float32 whatever the recipe computes in (train/weights.py)."""
_OPTIMIZER_BYTES = {"adamw": 8.0, "paged-adamw-32bit": 8.0, "paged-adamw-8bit": 2 + 8 / 256}
"""Of one trained weight: two moments in float32, or two bytes and two float32 scales for 256 weights (bitsandbytes)."""
_SCORED = 1024
"""Most tokens that are scored over the vocabulary at once; TRL computes scores in chunks on CUDA."""
_PROCESS_BYTES = {"cpu": 900_000_000, "cuda": 700_000_000}
"""Python, torch and its buffers, or the CUDA context: measured for an empty training process."""
_CUDA_GRAPHS = 1_000_000_000
"""What vLLM keeps beside weights and cache on a GPU: context, workspace and captured graphs; an allowance."""

Parts = dict[str, int]
"""Bytes by part, in the order in which people read them."""


class Batch(NamedTuple):
    """The largest forward pass of a training."""

    records: int
    longest: int
    """Tokens of the longest record."""
    shared: int = 0
    """Tokens of the beginning that all records have in common."""
    answer: int = 0
    """Tokens of a mean answer; 0 where that is unknown."""

    def tokens(self, device: str) -> int:
        """What is computed, padding included; on a CPU the common beginning once (side_by_side)."""
        again = (self.records - 1) * max(0, self.shared - 1) if device == "cpu" else 0
        return self.records * self.longest - again

    def scored(self, device: str) -> int:
        """Tokens whose scores over the vocabulary exist at once."""
        if device != "cpu":
            return min(self.tokens(device), _SCORED)
        # The answers' only, all at once. A batch of long records has long answers, so twice the mean.
        most = self.tokens(device)
        return min(most, 2 * self.records * self.answer) if self.answer else most


def estimate_memory(
    counts: Counts, recipe: Recipe, device: str, batch: Batch, *, checkpointing: bool, shards: int = 1
) -> Parts:
    """Estimates a training's peak in each process, for a batch of the longest records.

    Args:
        counts: Of base model and what is trained.
        recipe: Resolved: neither method nor dtype is `auto`.
        device: `cpu` or `cuda`.
        batch: The largest.
        checkpointing: Whether activations are recomputed in the backward pass.
        shards: Processes that share weights, gradients and optimizer (FSDP).
    """
    size = BYTES[recipe.dtype]
    is_full = recipe.method == "full"
    parts: Parts = {"base weights": _stored(counts, recipe)}
    if state := _quantisation_state(counts, recipe):
        parts["quantisation state"] = state
    if is_full and device == "cuda" and size == 2:
        # Autocast keeps what it cast until the forward pass is over, and autograd until the backward pass is.
        parts["16-bit copies of the weights"] = counts.quantisable * size
    if not is_full:
        parts["adapter weights"] = counts.trainable * _TRAINED_BYTES
    parts["gradients"] = counts.trainable * _TRAINED_BYTES
    parts["optimizer"] = round(counts.trainable * _OPTIMIZER_BYTES[optimizer_of(recipe, device)])
    parts["activations"] = _activations(counts, recipe, device, batch.tokens(device), checkpointing=checkpointing)
    parts["scores over the vocabulary"] = 3 * 4 * batch.scored(device) * counts.shape.vocabulary
    parts["process"] = _PROCESS_BYTES[device]
    return _sharded(parts, counts, recipe, shards) if shards > 1 else parts


def _sharded(parts: Parts, counts: Counts, recipe: Recipe, shards: int) -> Parts:
    """Divides what FSDP divides, and adds what it gathers to compute with. From its documentation; never measured."""
    divided = {"adapter weights", "gradients", "optimizer"}
    if not recipe.is_quantised:
        # Quantised weights are made on each GPU, whole, before they are divided.
        divided.add("base weights")
    found = {name: -(-count // shards) if name in divided else count for name, count in parts.items()}
    if not recipe.is_quantised:
        # The embeddings and the head, for as long as a pass takes, a block at work, and the next one on its way.
        size = _TRAINED_BYTES if recipe.method == "full" else BYTES[recipe.dtype]
        gathered = counts.base - counts.quantisable + 2 * counts.quantisable // counts.shape.layers
        found["gathered weights"] = gathered * size
    return found


def optimizer_of(recipe: Recipe, device: str) -> str:
    """Settles `auto`: paged AdamW in 32 bits for quantised base weights on a CUDA device, and AdamW elsewhere."""
    if device != "cuda":
        return "adamw"
    if recipe.optimizer != "auto":
        return recipe.optimizer
    return "paged-adamw-32bit" if recipe.method in ("qlora", "lora-8bit") else "adamw"


def estimate_serving(counts: Counts, recipe: Recipe, device: str, *, adapters: int, context: int) -> Parts:
    """Estimates what the engine needs at least: weights, slots for adapters, and the KV cache of one full context.

    Args:
        counts: Of the base model.
        recipe: Its serving_quantization counts, and whether it makes an adapter at all.
        device: `cpu` or `cuda`.
        adapters: That can share a batch.
        context: Longest prompt and answer, in tokens.
    """
    size = 2 if device == "cuda" else 4
    is_fp8 = recipe.serving_quantization == "fp8" and device == "cuda"
    weights = counts.base * size
    if is_fp8:
        # One byte a weight and a float32 scale a row; embeddings, norms and the head stay.
        weights = counts.quantisable + 4 * counts.quantisable_rows + (counts.base - counts.quantisable) * size
    parts: Parts = {"base weights": weights}
    if recipe.method != "full":
        parts["adapter slots"] = adapters * counts.adapter_slots * size
    parts["KV cache of one full context"] = 2 * counts.shape.layers * counts.shape.key_value * context * size
    parts["process"] = _CUDA_GRAPHS if device == "cuda" else _PROCESS_BYTES["cpu"]
    return parts


def _stored(counts: Counts, recipe: Recipe) -> int:
    size = BYTES[recipe.dtype]
    rest = (counts.base - counts.quantisable) * size
    if recipe.method == "qlora":
        return counts.quantisable // 2 + rest
    if recipe.method == "lora-8bit":
        return counts.quantisable + rest
    return counts.base * (_TRAINED_BYTES if recipe.method == "full" else size)


def _quantisation_state(counts: Counts, recipe: Recipe) -> int:
    if recipe.method == "qlora":
        scales = -(-counts.quantisable // _NF4_BLOCK)
        return scales + 4 * -(-scales // _NESTED_BLOCK) + counts.quantisable_layers * _NF4_TABLES
    if recipe.method == "lora-8bit":
        return 4 * counts.quantisable_rows
    return 0


def _activations(counts: Counts, recipe: Recipe, device: str, tokens: int, *, checkpointing: bool) -> int:
    shape, size = counts.shape, BYTES[recipe.dtype]
    block = tokens * _kept_by_a_block(counts, recipe, device)
    # Gradients of the widest values, and a quantised layer's weights restored for the product.
    passing = tokens * size * 2 * (shape.intermediate + shape.hidden)
    if recipe.method in ("qlora", "lora-8bit"):
        passing += counts.largest * size
    if not checkpointing:
        return shape.layers * block + passing
    # Only what enters a block stays, and one block at a time is computed again.
    entering = _TRAINED_BYTES if recipe.method == "full" else size
    return shape.layers * tokens * shape.hidden * entering + block + passing


def _kept_by_a_block(counts: Counts, recipe: Recipe, device: str) -> int:
    """Bytes a token that one decoder block keeps for the backward pass.

    A frozen linear layer keeps nothing. The norms keep their inputs in float32; attention keeps queries, keys, values
    (on a CPU repeated for all heads) and its result; the gated product keeps gate, its activation and the other factor.
    LoRA keeps its input: one tensor that several layers share in float32, and one cast for each under autocast.
    """
    shape, size = counts.shape, BYTES[recipe.dtype]
    key_value = shape.attention if device == "cpu" else shape.key_value
    kept = 2 * shape.hidden * 4
    kept += (2 * shape.attention + 2 * key_value + 3 * shape.intermediate) * size
    if recipe.method == "full":
        return kept + (2 * shape.hidden * 4) + (3 * shape.hidden + shape.attention + shape.intermediate) * size
    inputs = counts.lora_inputs
    dropped = sum(inputs.values()) * (size + (1 if device == "cuda" else size)) if recipe.dropout else 0
    own = sum(inputs.values()) if size == 2 else _shared_inputs(inputs, shape)
    return kept + dropped + (0 if recipe.dropout else own * size) + len(inputs) * recipe.rank * size


def _shared_inputs(inputs: dict[str, int], shape: Shape) -> int:
    """Width of the distinct tensors that the targeted layers of a block read."""
    readers = (("q_proj", "k_proj", "v_proj", "qkv_proj"), ("o_proj",), ("gate_proj", "up_proj", "gate_up_proj"))
    widths = (shape.hidden, shape.attention, shape.hidden)
    shared = sum(width for width, names in zip(widths, readers, strict=True) if any(name in inputs for name in names))
    return shared + inputs.get("down_proj", 0)
