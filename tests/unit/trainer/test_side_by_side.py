"""Records side by side, and LoRA's one product, change nothing but the time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from preceptor_trainer.tokens import TokenisedExample
from preceptor_trainer.train import answer_trainer, side_by_side
from preceptor_trainer.train.batches import IGNORED, collate
from preceptor_trainer.train.lora_product import use_lora_product
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries

SHARED = 17
_LAYERS = ["q_proj", "o_proj", "up_proj", "down_proj"]
SIZES = {
    "vocab_size": 90, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def base(architecture: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **SIZES, **changes)).train()
    for parameter in made.parameters():
        # Biases and norms start as nothings, which would hide a mistake in them.
        parameter.data += 0.05 * torch.randn_like(parameter)
    return made


def examples(shared: int = SHARED) -> list[TokenisedExample]:
    generator = torch.Generator().manual_seed(3)

    def ids(count: int) -> list[int]:
        return [int(value) for value in torch.randint(3, 90, (count,), generator=generator)]

    beginning = ids(shared)
    return [
        TokenisedExample(str(at), [*beginning, *ids(2 + at)], ids(answer)) for at, answer in enumerate((9, 4, 12, 1, 6))
    ]


def loss_and_gradients(causal: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, int]:
    causal.zero_grad()
    states = answer_trainer._states(causal, inputs)
    carries = states.targets_N != IGNORED
    loss = functional.cross_entropy(causal.lm_head(states.hidden_NH[carries]), states.targets_N[carries])
    loss.backward()  # type: ignore[no-untyped-call]  # untyped there
    gradients = [value.grad.flatten().clone() for value in causal.parameters() if value.grad is not None]
    return loss.detach(), torch.cat(gradients), states.spared


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("architecture", sorted(side_by_side.ARCHITECTURES))
def test_loss_and_gradients_are_those_of_the_whole_batch(architecture: str, *, packed: bool) -> None:
    causal, records = base(architecture), examples()
    rows = [records[:2], records[2:]] if packed else [[record] for record in records]
    inputs = collate(rows, packed=packed, pad_id=0)
    plain, gradients, none = loss_and_gradients(causal, inputs)
    assert none == 0
    side_by_side.prepare(causal)
    loss, ours, spared = loss_and_gradients(causal, inputs)
    assert spared == (SHARED - 1) * (len(records) - 1)
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(ours, gradients, rtol=1e-3, atol=1e-6)


def test_recomputed_activations_know_the_records_apart_too() -> None:
    causal, inputs = base("llama"), collate([[record] for record in examples()], packed=False, pad_id=0)
    side_by_side.prepare(causal)
    loss, gradients, _ = loss_and_gradients(causal, inputs)
    causal.gradient_checkpointing_enable()
    again, recomputed, _ = loss_and_gradients(causal, inputs)
    torch.testing.assert_close(again, loss)
    torch.testing.assert_close(recomputed, gradients)


def test_a_sliding_window_shorter_than_the_records_is_not_passed_over() -> None:
    inputs = collate([[record] for record in examples()], packed=False, pad_id=0)
    windowed = base("mistral", sliding_window=8)
    plain, _, _ = loss_and_gradients(windowed, inputs)
    side_by_side.prepare(windowed)
    loss, _, spared = loss_and_gradients(windowed, inputs)
    assert spared == 0
    torch.testing.assert_close(loss, plain)
    unbounded, _, _ = loss_and_gradients(base("mistral"), inputs)
    assert abs(float(unbounded - plain)) > 1e-3


def test_an_unknown_architecture_keeps_its_own_attention() -> None:
    causal = base("gemma")
    side_by_side.prepare(causal)
    assert not side_by_side.fits(causal.config, 10)


def test_a_short_common_beginning_is_not_shared() -> None:
    records = side_by_side.records_of(collate([[record] for record in examples(3)], packed=False, pad_id=0))
    assert side_by_side.common_beginning(records) == 0


def test_answers_are_never_shared() -> None:
    ids = torch.arange(20)
    labels = torch.cat([torch.full((12,), IGNORED), ids[12:]])
    assert side_by_side.common_beginning([(ids, labels), (ids, labels)]) == 11


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_the_one_product_is_pefts(architecture: str, *, bias: bool) -> None:
    changes = {"attention_bias": True} if bias and architecture == "llama" else {}
    adapted: Any = get_peft_model(
        base(architecture, **changes),
        LoraConfig(r=4, lora_alpha=6, target_modules=_LAYERS, init_lora_weights=False),
    )
    ids = torch.randint(3, 90, (2, 15))

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        adapted.zero_grad()
        logits = adapted(input_ids=ids).logits
        logits.square().mean().backward()
        found = [value.grad.flatten().clone() for value in adapted.parameters() if value.grad is not None]
        return logits.detach(), torch.cat(found)

    logits, gradients = run()
    assert use_lora_product(adapted) == 8
    ours, our_gradients = run()
    torch.testing.assert_close(ours, logits)
    torch.testing.assert_close(our_gradients, gradients, rtol=1e-4, atol=1e-7)
    with adapted.disable_adapter():
        without = adapted(input_ids=ids).logits
    assert not torch.allclose(without, logits)


def test_layers_with_dropout_stay_pefts() -> None:
    adapted: Any = get_peft_model(base("llama"), LoraConfig(r=4, lora_dropout=0.1, target_modules=["q_proj"]))
    assert use_lora_product(adapted) == 0
