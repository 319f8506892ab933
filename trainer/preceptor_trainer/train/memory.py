"""Out of memory: how it is told from other failures, and what is tried then."""

from __future__ import annotations

import gc

import torch
from preceptor_contracts.errors import PreceptorError

from preceptor_trainer.runs import RunDir, Stage

_SIGNS = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""torch's allocators on CUDA and on processors, bitsandbytes, and cuBLAS."""

_ROOM = 1.2
"""Times its weights that a base model takes while it answers one prompt."""


def is_out_of_memory(error: BaseException) -> bool:
    """True where an error means that a smaller batch may help."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def free_memory() -> None:
    """Gives back what a failed attempt left behind."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def place_for(weight_bytes: int, device: str) -> str:
    """Says where so many bytes of weights fit: on the GPU, or else on the processor.

    Float32 weights, which the canary is computed with, may be eight times those that a QLoRA trained on.
    """
    if device != "cuda":
        return device
    free_memory()
    free, _ = torch.cuda.mem_get_info()
    return device if free > _ROOM * weight_bytes else "cpu"


def batch_size(run: RunDir) -> int:
    """Rows a forward pass: the recipe's, unless memory did not do for them in an earlier attempt."""
    halved = run.events(Stage.TRAIN, "out_of_memory")
    return int(halved[-1].number("batch_size")) if halved else run.spec.recipe.batch_size


def too_little(run: RunDir) -> PreceptorError:
    """Says that not even one row fits, and what else would help."""
    recipe = run.spec.recipe
    ways = ["lower max_length (and shorten the records)"]
    if recipe.method not in ("qlora", "full"):
        ways.append("take --method qlora")
    if recipe.gradient_checkpointing != "on":
        ways.append("set gradient_checkpointing: on")
    if recipe.method == "full":
        ways.append("take --method lora")
    return PreceptorError(
        f"Out of memory on {run.spec.device_name} with one row a forward pass.",
        code="out_of_memory",
        hint=f"In the recipe, {', or '.join(ways)}; or take a smaller BASE_MODEL.",
    )
