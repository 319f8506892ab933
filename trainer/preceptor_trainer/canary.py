"""The canary: one prompt by which serving can tell that an adapter is in effect."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from preceptor_contracts.base_models import split_revision
from preceptor_contracts.errors import PreceptorError
from preceptor_contracts.manifest import Canary
from preceptor_contracts.messages import Message
from transformers import AutoModelForCausalLM

from preceptor_trainer.tokens import TokenisedExample

PROMPTS_TRIED = 8
_TOP = 4
"""Likeliest first tokens taken from each of adapter and base."""
_LEAST_SEPARATION = 0.2
"""Nats; a quarter of it must stay above the ~0.05 by which a bf16 engine differs from float32."""


def make_canary(
    source: str,
    adapter: Path,
    candidates: Sequence[tuple[tuple[Message, ...], TokenisedExample]],
    *,
    device: str,
) -> Canary:
    """Finds the prompt whose first answer token differs most between adapter and base.

    Computed in float32 on unquantised weights, which is what the engine serves also after QLoRA.

    Args:
        source: Base model: folder or Hugging Face id.
        adapter: Folder with the trained weights.
        candidates: Prompts to choose from, as messages and as ids.
        device: `cpu` or `cuda`.

    Raises:
        PreceptorError: The adapter answers as the base model does.
    """
    name, revision = split_revision(source)
    base = AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype=torch.float32, device_map={"": device})
    adapted: Any = PeftModel.from_pretrained(base, str(adapter)).eval()
    found = [_compare(adapted, messages, example.prompt_ids) for messages, example in candidates]
    best = max(found, key=lambda canary: canary.separation)
    if not best.separation >= _LEAST_SEPARATION:
        raise PreceptorError(
            f"The adapter answers almost as its base model does (they differ by {best.separation:.3f} nats); "
            "nothing was published.",
            code="adapter_without_effect",
            hint="Train longer: raise --epochs or --max-steps.",
        )
    return best


def ask(weights: Any, canary: Canary) -> tuple[float, ...]:
    """Returns the logprobs that weights give the canary's compared tokens as the first of the answer.

    Args:
        weights: A causal language model of transformers, with the adapter in effect or merged in.
        canary: The adapter's.
    """
    with torch.inference_mode():
        logprobs_V = _first_logprobs(weights, canary.prompt_ids)
    return tuple(logprobs_V[list(canary.token_ids)].tolist())


def _compare(adapted: Any, messages: tuple[Message, ...], prompt_ids: Sequence[int]) -> Canary:
    with torch.inference_mode():
        with_adapter_V = _first_logprobs(adapted, prompt_ids)
        with adapted.disable_adapter():
            without_V = _first_logprobs(adapted, prompt_ids)
    top = [*with_adapter_V.topk(_TOP).indices.tolist(), *without_V.topk(_TOP).indices.tolist()]
    chosen = list(dict.fromkeys(top))
    return Canary(
        messages=messages,
        prompt_ids=tuple(prompt_ids),
        token_ids=tuple(chosen),
        adapter_logprobs=tuple(with_adapter_V[chosen].tolist()),
        base_logprobs=tuple(without_V[chosen].tolist()),
    )


def _first_logprobs(adapted: Any, prompt_ids: Sequence[int]) -> torch.Tensor:
    ids_BT = torch.tensor([list(prompt_ids)], device=adapted.device)
    logits_BTV = adapted(input_ids=ids_BT, logits_to_keep=1).logits
    return torch.log_softmax(logits_BTV[0, -1].float(), dim=-1).cpu()
