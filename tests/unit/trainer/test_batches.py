"""What a step is made of depends on the seed and on nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from preceptor_trainer.recipes import Recipe
from preceptor_trainer.tokens import TokenisedExample
from preceptor_trainer.train.batches import IGNORED, Division, Row, StepBatches, collate, count_rows
from transformers import LlamaConfig, LlamaForCausalLM

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries, on import

LENGTHS = st.lists(st.integers(2, 40), min_size=1, max_size=60)


def _recipe(**changes: object) -> Recipe:
    return Recipe.model_validate({"name": "tiny", "description": "x", "max_length": 40, **changes})


def _flat(steps: list[list[Row]]) -> list[int]:
    return sorted(position for rows in steps for row in rows for position in row)


@settings(deadline=None)
@given(LENGTHS, st.sampled_from(["shuffled", "length", "packed"]), st.integers(0, 3))
def test_every_record_comes_once_a_pass_and_the_number_of_steps_is_known_beforehand(
    lengths: list[int], batching: str, epoch: int
) -> None:
    recipe = _recipe(batching=batching, batch_size=3, accumulation=2)
    batches = StepBatches(lengths, recipe, 3)
    batches.set_epoch(epoch)
    steps = batches.steps()
    assert _flat(steps) == list(range(len(lengths)))
    assert sum(len(rows) for rows in steps) == count_rows(lengths, recipe)
    assert all(len(rows) == 6 for rows in steps[:-1])
    assert all(sum(lengths[at] for at in row) <= 40 for rows in steps for row in rows)


@settings(deadline=None)
@given(LENGTHS, st.sampled_from(["shuffled", "length", "packed"]), st.integers(1, 7), st.integers(1, 4))
def test_neither_a_smaller_batch_nor_more_processes_change_a_step(
    lengths: list[int], batching: str, batch_size: int, ranks: int
) -> None:
    recipe = _recipe(batching=batching, batch_size=5, accumulation=2)
    alone = StepBatches(lengths, recipe, 10)
    accumulation = Division.of(10, batch_size, ranks).accumulation
    each = [StepBatches(lengths, recipe, batch_size, rank=rank, ranks=ranks) for rank in range(ranks)]
    passes = [list(one) for one in each]
    assert {len(of) for of in passes} == {len(each[0])}
    for at, rows in enumerate(alone.steps()):
        mine = [of[at * accumulation : (at + 1) * accumulation] for of in passes]
        together = [row for of in mine for one in of for row in one if row]
        assert sorted(together) == sorted(rows)
        assert all(len(one) <= batch_size for of in mine for one in of)


@pytest.mark.parametrize("batching", ["shuffled", "length", "packed"])
def test_the_order_is_the_same_for_the_same_seed_and_another_in_every_pass(batching: str) -> None:
    lengths = [2 + at % 9 for at in range(60)]

    def order(seed: int, epoch: int) -> list[list[Row]]:
        batches = StepBatches(lengths, _recipe(batching=batching, seed=seed), 8)
        batches.set_epoch(epoch)
        return batches.steps()

    assert order(7, 1) == order(7, 1)
    assert order(7, 1) != order(7, 2)
    assert order(7, 1) != order(8, 1)


def test_shuffled_steps_are_mixed_and_their_passes_alike() -> None:
    lengths = [2 + at % 20 for at in range(400)]
    spreads = {}
    for batching in ("shuffled", "length"):
        recipe = _recipe(batching=batching, batch_size=4, accumulation=2)
        steps = [[lengths[row[0]] for row in rows] for rows in StepBatches(lengths, recipe, 4).steps()]
        assert all(step == sorted(step) for step in steps)
        spreads[batching] = sum(step[-1] - step[0] for step in steps) / len(steps)
    assert spreads["length"] < 2
    assert spreads["shuffled"] > 10


def test_rows_are_packed_as_full_as_first_fit_decreasing_would() -> None:
    assert count_rows([30, 20, 20, 10, 25, 15], _recipe(batching="packed")) == 3


def _examples() -> list[TokenisedExample]:
    generator = torch.Generator().manual_seed(5)

    def ids(count: int) -> list[int]:
        return [int(token) for token in torch.randint(3, 90, (count,), generator=generator)]

    return [TokenisedExample(f"r{at}", ids(4 + at % 5), ids(2 + at % 3)) for at in range(9)]


def _loss_and_gradients(rows: list[list[TokenisedExample]], *, packed: bool, attention: str) -> torch.Tensor:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    config._attn_implementation = attention
    base = LlamaForCausalLM(config).double().train()
    batch = collate(rows, packed=packed, pad_id=0)
    tokens = batch.pop("tokens")
    assert tokens == sum(example.length for row in rows for example in row)
    labels_BT = batch.pop("labels")
    logits_BTV = base(**batch, use_cache=False).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(
        logits_BTV.flatten(0, 1), labels_BT[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )
    loss.backward()  # type: ignore[no-untyped-call]  # untyped there
    gradients = [value.grad.flatten() for value in base.parameters() if value.grad is not None]
    return torch.cat([loss.detach().reshape(1), *gradients])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_records_do_not_see_each_other(attention: str) -> None:
    examples = _examples()
    apart = _loss_and_gradients([[example] for example in examples], packed=False, attention=attention)
    together = _loss_and_gradients(
        [examples[:4], examples[4:5], examples[5:]], packed=True, attention=attention
    )  # rows of unlike lengths: padding is there too
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-6)


def test_a_row_without_records_is_a_number_and_carries_no_loss() -> None:
    for packed in (False, True):
        batch = collate([[], _examples()[:1]], packed=packed, pad_id=0)
        assert (batch["labels"][0] == IGNORED).all()
        assert batch["tokens"] == _examples()[0].length
        assert torch.isfinite(_loss_and_gradients([[], _examples()[:1]], packed=packed, attention="sdpa")).all()
