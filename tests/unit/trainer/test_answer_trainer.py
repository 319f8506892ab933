"""Computing a common beginning once changes nothing but the time."""

from __future__ import annotations

import pytest
import torch
from preceptor_trainer.train import answer_trainer
from preceptor_trainer.train.answer_trainer import shared_prefix
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

IGNORED = -100


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 90, (4, 30), generator=generator)
    ids[:, :17] = ids[0, :17]
    labels = ids.clone()
    labels[:, :21] = IGNORED
    mask = torch.ones_like(ids)
    ids[2, -4:], labels[2, -4:], mask[2, -4:] = 0, IGNORED, 0
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def loss_and_gradients(base: LlamaForCausalLM, rows: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, int]:
    base.zero_grad()
    states = answer_trainer._after_shared_prefix(base, rows)
    carries = states.targets_BT != IGNORED
    loss = functional.cross_entropy(base.lm_head(states.hidden_BTH[carries]), states.targets_BT[carries])
    loss.backward()  # type: ignore[no-untyped-call]  # untyped there
    gradients = [value.grad.flatten() for value in base.parameters() if value.grad is not None]
    return loss.detach(), torch.cat(gradients), states.shared


def test_loss_and_gradients_are_those_of_rows_computed_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    base = LlamaForCausalLM(config).train()
    loss, gradients, shared = loss_and_gradients(base, batch())
    assert shared == 16 * 3
    monkeypatch.setattr(answer_trainer, "_WORTH_SHARING", 1000)
    apart, gradients_apart, none = loss_and_gradients(base, batch())
    assert none == 0
    torch.testing.assert_close(loss, apart)
    torch.testing.assert_close(gradients, gradients_apart, rtol=1e-4, atol=1e-6)


def test_answers_are_never_shared() -> None:
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 8]])
    labels = torch.tensor([[IGNORED, IGNORED, 7, 8], [IGNORED, IGNORED, 7, 8]])
    assert shared_prefix(ids, labels) == 2
    assert shared_prefix(torch.tensor([[5], [6]]), torch.full((2, 1), IGNORED)) == 0
