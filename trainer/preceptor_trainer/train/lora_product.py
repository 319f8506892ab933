"""LoRA's linear layer as one product with a backward of its own: no pass over the outputs but the products' own.

PEFT computes the base layer, the two low-rank products, a scaling of the whole output and a sum, and autograd adds the
inputs' two gradients. Here the scale is applied between the low-rank products, where it is `rank` wide, and the sums
are the products' own accumulation.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from peft.tuners.lora import Linear

_ADAPTER = "default"


class _LoraProduct(torch.autograd.Function):
    """x W' + bias + scale (x A') B'. N tokens, I inputs, O outputs, R the rank."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight_OI: torch.Tensor,
        bias_O: torch.Tensor | None,
        a_RI: torch.Tensor,
        b_OR: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        x_NI = x.reshape(-1, x.shape[-1])
        cast_a_RI, cast_b_OR = a_RI.to(x.dtype), b_OR.to(x.dtype)
        low_NR = (x_NI @ cast_a_RI.t()).mul_(scale)
        y_NO = x_NI @ weight_OI.t() if bias_O is None else torch.addmm(bias_O, x_NI, weight_OI.t())
        y_NO.addmm_(low_NR, cast_b_OR.t())
        ctx.save_for_backward(x_NI, weight_OI, a_RI, b_OR, low_NR)
        ctx.scale = scale
        return y_NO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_NI, weight_OI, a_RI, b_OR, low_NR = ctx.saved_tensors
        shape = gradients[0].shape
        dy_NO = gradients[0].reshape(-1, shape[-1])
        dlow_NR = (dy_NO @ b_OR.to(dy_NO.dtype)).mul_(ctx.scale)
        dx = None
        if ctx.needs_input_grad[0]:
            dx_NI = (dy_NO @ weight_OI).addmm_(dlow_NR, a_RI.to(dy_NO.dtype))
            dx = dx_NI.view(*shape[:-1], -1)
        da_RI = (dlow_NR.t() @ x_NI).to(a_RI.dtype)
        db_OR = (dy_NO.t() @ low_NR).to(b_OR.dtype)
        return dx, None, None, da_RI, db_OR, None


def use_lora_product(adapted: torch.nn.Module) -> int:
    """Gives every plain LoRA layer the one product; others stay PEFT's: quantised ones, and those with dropout.

    Args:
        adapted: A base model with PEFT's layers, whose base weights are frozen.

    Returns:
        Layers changed.
    """
    changed = 0
    for layer in adapted.modules():
        if isinstance(layer, Linear) and _is_plain(layer):
            # An attribute of the instance: PEFT's own forward stays in the class, for merging and saving.
            layer.forward = MethodType(_forward, layer)  # type: ignore[method-assign]
            changed += 1
    return changed


def _is_plain(layer: Linear) -> bool:
    return (
        type(layer.base_layer) is torch.nn.Linear
        and not layer.base_layer.weight.requires_grad
        and list(layer.lora_A) == [_ADAPTER]
        and isinstance(layer.lora_dropout[_ADAPTER], torch.nn.Identity)
        and not layer.lora_variant
        and layer.lora_A[_ADAPTER].bias is None
        and layer.lora_B[_ADAPTER].bias is None
    )


def _forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    base = layer.base_layer
    if layer.disable_adapters or layer.merged:
        plain: torch.Tensor = base(x)
        return plain
    a, b = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
    product: torch.Tensor = _LoraProduct.apply(  # type: ignore[no-untyped-call]  # untyped there
        x.to(base.weight.dtype), base.weight, base.bias, a, b, layer.scaling[_ADAPTER]
    )
    return product
