"""The base weights that are trained on, and the trained ones: loaded, made trainable, and kept whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from preceptor_contracts.base_models import split_revision
from preceptor_contracts.files import sync_folder
from preceptor_contracts.frozen import Frozen
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedTokenizerBase

from preceptor_trainer.ranks import is_sharded, local_rank
from preceptor_trainer.recipes import Recipe
from preceptor_trainer.runs import RunDir

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_TOP = 8


class Probe(Frozen):
    """What freshly trained weights answer to one prompt, so that a copy of them can be compared."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    """The likeliest first tokens of the answer."""
    logprobs: tuple[float, ...]
    """Natural logs, computed in float32."""


def load_base(source: str, recipe: Recipe, device: str) -> Any:
    """Loads the base model's weights in the recipe's format: NF4 with double quantisation for QLoRA, 8 bits, or plain.

    Args:
        source: Folder or Hugging Face id.
        recipe: Resolved.
        device: `cpu` or `cuda`.
    """
    # Weights that are trained stay in float32, or small updates would be lost; products are in `dtype` all the same.
    dtype = torch.float32 if recipe.method == "full" else getattr(torch, recipe.dtype)
    # Sharding wants whole weights in memory, and divides them itself; quantised ones only exist on a GPU, which must be
    # this process's own.
    own = {"": f"cuda:{local_rank()}" if device == "cuda" else device}
    place = None if is_sharded() and not recipe.is_quantised else own
    name, revision = split_revision(source)
    return AutoModelForCausalLM.from_pretrained(
        name, revision=revision, dtype=dtype, quantization_config=_quantisation(recipe, dtype), device_map=place
    )


def _quantisation(recipe: Recipe, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if recipe.method == "qlora":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            # FSDP shards only weights of one type, so the packed ones pass for that of the others.
            bnb_4bit_quant_storage=dtype if is_sharded() else torch.uint8,
        )
    return BitsAndBytesConfig(load_in_8bit=True) if recipe.method == "lora-8bit" else None


def lora(recipe: Recipe) -> LoraConfig | None:
    """What PEFT adds to the base model; nothing where all weights are trained."""
    if recipe.method == "full":
        return None
    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,  # type: ignore[arg-type]  # PEFT says int and divides it by the rank
        lora_dropout=recipe.dropout,
        target_modules=list(recipe.target_modules),
        task_type="CAUSAL_LM",
    )


def float32_trainable(adapted: Any) -> int:
    """Keeps trained weights in float32 and counts them.

    TRL turns LoRA's to bfloat16 for QLoRA, which loses small updates, and float16's gradient scaler refuses them.
    """
    count = 0
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
            count += parameter.numel()
    return count


def keep_adapter(run: RunDir, checkpoint: Path) -> None:
    """Makes the run's `adapter/` of a checkpoint, whole or not at all."""
    partial = _fresh(run.path / ".adapter.partial")
    for name in (WEIGHTS, CONFIG):
        shutil.copyfile(checkpoint / name, partial / name)
    _put(partial, run.adapter)


def keep_weights(run: RunDir, checkpoint: Path, tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int]) -> Probe:
    """Makes the run's `weights/` of a checkpoint in the recipe's dtype, whole or not at all."""
    partial = _fresh(run.path / ".weights.partial")
    trained = AutoModelForCausalLM.from_pretrained(str(checkpoint), dtype=torch.float32).eval()
    probe = _probe(trained, prompt_ids)
    trained.to(getattr(torch, run.spec.recipe.dtype)).save_pretrained(str(partial))
    tokenizer.save_pretrained(str(partial))
    _put(partial, run.weights)
    return probe


def probe_deviation(folder: Path, probe: Probe) -> float:
    """Mean absolute difference, in nats, between a probe and what the weights in `folder` answer."""
    loaded = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    found_V = first_logprobs(loaded, probe.prompt_ids)
    pairs = zip(found_V[list(probe.token_ids)].tolist(), probe.logprobs, strict=True)
    return float(sum(abs(found - expected) for found, expected in pairs) / len(probe.token_ids))


def _probe(trained: Any, prompt_ids: Sequence[int]) -> Probe:
    logprobs_V = first_logprobs(trained, prompt_ids)
    top = logprobs_V.topk(_TOP)
    return Probe(
        prompt_ids=tuple(prompt_ids), token_ids=tuple(top.indices.tolist()), logprobs=tuple(top.values.tolist())
    )


def first_logprobs(base: Any, prompt_ids: Sequence[int]) -> torch.Tensor:
    """Natural logs of the probability of each first token of the answer."""
    with torch.inference_mode():
        ids_BT = torch.tensor([list(prompt_ids)], device=base.device)
        logits_BTV = base(input_ids=ids_BT, logits_to_keep=1).logits
    return torch.log_softmax(logits_BTV[0, -1].float(), dim=-1).cpu()


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _put(partial: Path, at: Path) -> None:
    for path in partial.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    shutil.rmtree(at, ignore_errors=True)
    partial.rename(at)
    sync_folder(at.parent)
