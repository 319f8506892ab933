"""Exact parameter counts, from the layers that a configuration makes; no weight is loaded."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.frozen import Frozen

from preceptor_trainer.recipes import LORA_MODULES, Recipe

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig


class ModuleCount(Frozen):
    """What all modules of one kind and shape train together."""

    module: str
    """Last part of the name, e.g. `q_proj`."""
    layers: int
    """How many there are."""
    shape: str
    """Inputs x outputs of a linear layer; of other weights, their dimensions."""
    trainable: int


class Shape(NamedTuple):
    """Widths that activations and the KV cache depend on."""

    layers: int
    hidden: int
    intermediate: int
    attention: int
    """All query heads together."""
    key_value: int
    """All key heads together; as many are value heads."""
    vocabulary: int
    positions: int
    """Longest context that the base model was made for, in tokens."""


class Counts(NamedTuple):
    """Parameters of a base model and of what is trained on it."""

    base: int
    """Tied embeddings count once."""
    quantisable: int
    """In linear layers but the head: what NF4 and int8 store."""
    quantisable_layers: int
    quantisable_rows: int
    """Outputs of those layers together: int8 keeps one scale each."""
    largest: int
    """Of the largest of those layers, which is restored whole for a product."""
    trainable: int
    modules: tuple[ModuleCount, ...]
    lora_inputs: dict[str, int]
    """Input width of each targeted kind of layer; empty for `full`."""
    adapter_slots: int
    """Parameters of an adapter of the same rank on all layers that the engine serves: the size of its slot."""
    shape: Shape


def count_parameters(config: PretrainedConfig, recipe: Recipe) -> Counts:
    """Counts exactly, on a copy without weights: rank x (inputs + outputs) for every targeted linear layer.

    Args:
        config: Of the base model.
        recipe: `full` trains every weight, and its rank and target_modules mean nothing.

    Raises:
        InvalidInput: The base model has none of the targeted layers, or is no text generator.
    """
    import torch

    shell = _shell(config)
    head = shell.get_output_embeddings()
    linear = {name: item for name, item in shell.named_modules() if isinstance(item, torch.nn.Linear)}
    body = [item for item in linear.values() if item is not head]
    served = {name: item for name, item in linear.items() if _kind(name) in LORA_MODULES}
    is_full = recipe.method == "full"
    targeted = {} if is_full else _targeted(served, recipe)
    modules = _every_weight(shell) if is_full else _adapted(targeted, recipe.rank)
    return Counts(
        base=sum(parameter.numel() for parameter in shell.parameters()),
        quantisable=sum(item.weight.numel() for item in body),
        quantisable_layers=len(body),
        quantisable_rows=sum(item.out_features for item in body),
        largest=max((item.weight.numel() for item in body), default=0),
        trainable=sum(count.trainable for count in modules),
        modules=modules,
        lora_inputs={_kind(name): item.in_features for name, item in targeted.items()},
        adapter_slots=sum(recipe.rank * (item.in_features + item.out_features) for item in served.values()),
        shape=_shape(config),
    )


def _shell(config: PretrainedConfig) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise InvalidInput(
            f"A base model of type {config.model_type!r} does not generate text.",
            hint="Take one that transformers loads as a causal language model.",
        ) from error


def _targeted(served: dict[str, nn.Linear], recipe: Recipe) -> dict[str, nn.Linear]:
    present = {_kind(name) for name in served}
    missing = [module for module in recipe.target_modules if module not in present]
    if missing:
        has = ", ".join(module for module in LORA_MODULES if module in present) or "none that the engine serves"
        raise InvalidInput(
            f"The base model has no layer {missing[0]!r}.",
            code="layer_missing",
            hint=f"Set target_modules in the recipe to layers that it has: {has}.",
        )
    return {name: item for name, item in served.items() if _kind(name) in recipe.target_modules}


def _adapted(targeted: dict[str, nn.Linear], rank: int) -> tuple[ModuleCount, ...]:
    kinds = Counter((_kind(name), item.in_features, item.out_features) for name, item in targeted.items())
    order = sorted(kinds, key=lambda kind: LORA_MODULES.index(kind[0]))
    return tuple(
        ModuleCount(
            module=module,
            layers=kinds[module, inputs, outputs],
            shape=f"{inputs} x {outputs}",
            trainable=kinds[module, inputs, outputs] * rank * (inputs + outputs),
        )
        for module, inputs, outputs in order
    )


def _every_weight(shell: Any) -> tuple[ModuleCount, ...]:
    # `named_parameters` names tied weights once.
    kinds = Counter(
        (_kind(name.rpartition(".")[0]) + (".bias" if name.endswith(".bias") else ""), tuple(parameter.shape))
        for name, parameter in shell.named_parameters()
    )
    return tuple(
        ModuleCount(
            module=module,
            layers=layers,
            shape=" x ".join(str(size) for size in reversed(shape)),
            trainable=layers * _product(shape),
        )
        for (module, shape), layers in kinds.items()
    )


def _shape(config: PretrainedConfig) -> Shape:
    text = config.get_text_config()
    heads = int(text.num_attention_heads)
    width = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    return Shape(
        layers=int(text.num_hidden_layers),
        hidden=int(text.hidden_size),
        intermediate=int(text.intermediate_size),
        attention=heads * width,
        key_value=int(getattr(text, "num_key_value_heads", None) or heads) * width,
        vocabulary=int(text.vocab_size),
        positions=int(getattr(text, "max_position_embeddings", 0) or 0),
    )


def _kind(name: str) -> str:
    return name.rpartition(".")[2]


def _product(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
