"""Memory estimates against what libraries really store and keep."""

from __future__ import annotations

from typing import Any

import pytest
from preceptor_trainer.plan.bases import find_config
from preceptor_trainer.plan.memory import Batch, estimate_memory, estimate_serving
from preceptor_trainer.plan.parameters import Counts, count_parameters
from preceptor_trainer.plan.tables import card_for
from preceptor_trainer.recipes import Recipe

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries, on import

QWEN = "Qwen/Qwen2.5-1.5B-Instruct"
SMOL = "HuggingFaceTB/SmolLM2-135M-Instruct"
BATCH = Batch(4, 512)


def _recipe(**changes: object) -> Recipe:
    return Recipe.model_validate(
        {"name": "tiny", "description": "x", "method": "qlora", "dtype": "bfloat16", **changes}
    )


def _counts(base: str, recipe: Recipe) -> Counts:
    return count_parameters(find_config(base), recipe)


def _parts(recipe: Recipe, *, checkpointing: bool = False) -> dict[str, int]:
    return estimate_memory(_counts(QWEN, recipe), recipe, "cuda", BATCH, checkpointing=checkpointing)


def test_nf4_takes_the_bytes_that_bitsandbytes_stores() -> None:
    import torch
    from bitsandbytes import functional

    weights = torch.randn(512, 1024)
    packed, state = functional.quantize_4bit(weights, blocksize=64, compress_statistics=True, quant_type="nf4")
    stored = packed.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    tables = state.code.nbytes + state.state2.code.nbytes + state.offset.nbytes
    counts = _counts(QWEN, _recipe())._replace(
        base=weights.numel(), quantisable=weights.numel(), quantisable_layers=1, trainable=0
    )
    parts = estimate_memory(counts, _recipe(), "cuda", BATCH, checkpointing=True)
    assert parts["base weights"] + parts["quantisation state"] == stored + tables


def test_int8_takes_the_bytes_that_bitsandbytes_stores() -> None:
    import torch
    from bitsandbytes import functional

    quantised, scales, _ = functional.int8_vectorwise_quant(torch.randn(64, 128, dtype=torch.float16))
    recipe = _recipe(method="lora-8bit")
    counts = _counts(QWEN, recipe)._replace(base=64 * 128, quantisable=64 * 128, quantisable_rows=64)
    parts = estimate_memory(counts, recipe, "cuda", BATCH, checkpointing=True)
    assert parts["base weights"] + parts["quantisation state"] == quantised.nbytes + scales.nbytes


def test_embeddings_and_head_stay_in_16_bits() -> None:
    counts = _counts(QWEN, _recipe())
    assert counts.base - counts.quantisable > 151_936 * 1536
    assert _parts(_recipe())["base weights"] == counts.quantisable // 2 + (counts.base - counts.quantisable) * 2


@pytest.mark.parametrize(
    ("optimizer", "bytes_a_weight"), [("auto", 8), ("adamw", 8), ("paged-adamw-32bit", 8), ("paged-adamw-8bit", 2)]
)
def test_the_optimizer_has_its_own_size(optimizer: str, bytes_a_weight: int) -> None:
    recipe = _recipe(optimizer=optimizer)
    share = _parts(recipe)["optimizer"] / _counts(QWEN, recipe).trainable
    assert share == pytest.approx(bytes_a_weight, rel=0.02)


def test_full_keeps_weights_gradients_and_moments_of_every_parameter() -> None:
    recipe = _recipe(method="full")
    parts, base = _parts(recipe), _counts(QWEN, recipe).base
    assert [parts[part] // base for part in ("base weights", "gradients", "optimizer")] == [4, 4, 8]
    assert "adapter weights" not in parts


def test_checkpointing_lowers_the_activations_and_nothing_else() -> None:
    with_it, without = _parts(_recipe(), checkpointing=True), _parts(_recipe())
    assert with_it["activations"] < without["activations"] / 5
    assert {part for part in with_it if with_it[part] != without[part]} == {"activations"}


@pytest.mark.parametrize(
    ("method", "dtype", "dropout"),
    [
        ("lora", "float32", 0.0),
        ("lora", "float32", 0.05),
        ("lora", "bfloat16", 0.0),
        ("full", "float32", 0.0),
        ("full", "bfloat16", 0.0),
    ],
)
def test_activations_are_what_autograd_keeps(method: str, dtype: str, dropout: float) -> None:
    recipe = _recipe(method=method, dtype=dtype, dropout=dropout)
    config: Any = find_config(SMOL)
    kept = {}
    for layers in (1, 3):
        config.num_hidden_layers = layers
        kept[layers] = _kept_by_autograd(config, recipe)
    config.num_hidden_layers = 2
    estimated = []
    for batch in (Batch(1, 100), Batch(2, 100)):
        parts = estimate_memory(count_parameters(config, recipe), recipe, "cpu", batch, checkpointing=False)
        estimated.append(parts["activations"])
    passing = 100 * (4 if dtype == "float32" else 2) * 2 * (1536 + 576)
    assert estimated[1] - estimated[0] - passing == pytest.approx(kept[3] - kept[1], rel=0.1)


def _kept_by_autograd(config: Any, recipe: Recipe) -> int:
    """Bytes that one record of 100 tokens leaves for the backward pass, weights and their casts not counted."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base: Any = AutoModelForCausalLM.from_config(config)
    adapted = base.float()
    if recipe.method == "lora":
        lora = LoraConfig(
            r=16, lora_dropout=recipe.dropout, target_modules=list(recipe.target_modules), task_type="CAUSAL_LM"
        )
        adapted = get_peft_model(base.to(getattr(torch, recipe.dtype)), lora)
    adapted.train()
    shapes = {shape for one in adapted.parameters() for shape in (one.shape, one.shape[::-1])}
    storages: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)  # or an address would be given out twice
        if tensor.shape not in shapes:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    mixed = torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.dtype == "bfloat16")
    ids = torch.randint(0, 1000, (1, 100))
    mask = torch.ones_like(ids)
    mask[0, 90:] = 0  # as a padded batch has it
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), mixed:
        base.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False)
    return sum(storages.values())


def test_a_common_beginning_is_kept_once_on_a_processor() -> None:
    assert Batch(8, 100, shared=61).tokens("cpu") == 8 * 100 - 7 * 60
    assert Batch(8, 100, shared=61).tokens("cuda") == 800
    assert Batch(8, 100, answer=10).scored("cpu") == 160


def test_8_bit_serving_nearly_halves_the_engines_weights_and_only_on_a_gpu() -> None:
    base = "mistralai/Mistral-7B-Instruct-v0.3"
    plain, fp8 = _recipe(), _recipe(serving_quantization="fp8")
    counts = _counts(base, plain)

    def weights(recipe: Recipe, device: str) -> int:
        return estimate_serving(counts, recipe, device, adapters=2, context=2048)["base weights"]

    assert weights(fp8, "cuda") == pytest.approx(weights(plain, "cuda") / 2, rel=0.05)
    assert weights(fp8, "cpu") == weights(plain, "cpu") == 4 * counts.base


def test_full_needs_no_adapter_slots() -> None:
    recipe = _recipe(method="full")
    parts = estimate_serving(_counts(QWEN, recipe), recipe, "cuda", adapters=2, context=2048)
    assert "adapter slots" not in parts


def test_the_card_is_the_smallest_that_leaves_a_tenth_spare() -> None:
    assert card_for(7 * 10**9) == "8 GB"
    assert card_for(8 * 10**9) == "12 GB"
    assert card_for(10**12) == "more"


def test_shards_divide_weights_and_optimizer_and_gather_a_block() -> None:
    recipe = _recipe(method="lora")
    counts = _counts(QWEN, recipe)
    alone = estimate_memory(counts, recipe, "cuda", BATCH, checkpointing=True)
    halved = estimate_memory(counts, recipe, "cuda", BATCH, checkpointing=True, shards=2)
    for part in ("base weights", "adapter weights", "gradients", "optimizer"):
        assert halved[part] == -(-alone[part] // 2)
    assert halved["activations"] == alone["activations"]
    block = counts.quantisable // counts.shape.layers
    assert halved["gathered weights"] == (counts.base - counts.quantisable + 2 * block) * 2
    quantised = _recipe()
    whole, shared = (
        estimate_memory(_counts(QWEN, quantised), quantised, "cuda", BATCH, checkpointing=True, shards=shards)
        for shards in (1, 2)
    )
    assert shared["base weights"] == whole["base weights"]  # each GPU makes them before they are divided
