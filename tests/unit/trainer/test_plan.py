from __future__ import annotations

from pathlib import Path

import pytest
from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.manifest import DatasetSummary
from preceptor_trainer.hardware import Hardware, free_memory, matrix_rate
from preceptor_trainer.plan.forecast import Plan, count_parameters, count_steps, load_config, make_plan
from preceptor_trainer.prepare.dataset import Lengths, Prepared
from preceptor_trainer.recipes import SERVABLE_MODULES, Recipe

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries, on import

PREPARED = Prepared(
    dataset=DatasetSummary(sha256="0" * 64, records=10, tokens=500, topics={}, duplicates_removed=0),
    lengths=Lengths(shortest=40, median=50, longest=60, answer_tokens=30, shared=1),
)


def _recipe(**changes: object) -> Recipe:
    values = {"name": "tiny", "description": "x", "method": "lora", "dtype": "float32", "batch_size": 4, **changes}
    return Recipe.model_validate(values)


def _plan(base: Path, memory: int) -> Plan:
    hardware = Hardware("cpu", "a processor", 2, memory, "float32")
    return make_plan(load_config(str(base)), _recipe(), PREPARED, hardware, matrix_flops=1e9)


@pytest.mark.parametrize("modules", [["q_proj"], ["k_proj", "down_proj"], list(SERVABLE_MODULES)])
def test_trainable_parameters_are_what_peft_counts(tiny_base: Path, modules: list[str]) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    counted = count_parameters(load_config(str(tiny_base)), _recipe(target_modules=modules))
    base = AutoModelForCausalLM.from_pretrained(str(tiny_base))
    adapted = get_peft_model(base, LoraConfig(r=16, target_modules=modules, task_type="CAUSAL_LM"))
    trainable, everything = adapted.get_nb_trainable_parameters()
    assert counted.trainable == trainable
    assert counted.base == everything - trainable


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"epochs": 1}, 3),
        ({"epochs": 1.5}, 5),
        ({"epochs": 2}, 6),
        ({"epochs": 2, "accumulation": 2}, 4),
        ({"epochs": 2, "max_steps": 2}, 2),
        ({"epochs": 0.01}, 1),
    ],
)
def test_steps_are_counted_as_the_trainer_does(changes: dict[str, object], steps: int) -> None:
    assert count_steps(10, _recipe(**changes)) == steps


def test_a_training_that_does_not_fit_is_refused_with_a_way_out(tiny_base: Path) -> None:
    assert _plan(tiny_base, 8_000_000_000).steps == 6
    with pytest.raises(InvalidInput) as caught:
        _plan(tiny_base, 1_000_000)
    assert caught.value.code == "memory_exceeded"
    assert "batch_size" in caught.value.hint


def test_a_missing_layer_is_named(tiny_base: Path) -> None:
    config = load_config(str(tiny_base))
    unchecked = _recipe().model_copy(update={"target_modules": ("q_proj", "w_pack")})
    with pytest.raises(InvalidInput, match="'w_pack'"):
        count_parameters(config, unchecked)


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("3000000\n", encoding="ascii")
    (tmp_path / "memory.current").write_text("1000000\n", encoding="ascii")
    assert free_memory(tmp_path) == 2_000_000
    (tmp_path / "memory.max").write_text("max\n", encoding="ascii")
    assert free_memory(tmp_path) > 2_000_000


def test_the_matrix_rate_is_measured() -> None:
    assert matrix_rate("cpu", seconds=0.05) > 1e8
