from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from preceptor_contracts.errors import InvalidInput
from preceptor_trainer.hardware import Hardware, free_memory, matrix_rate
from preceptor_trainer.plan.bases import find_config, load_config
from preceptor_trainer.plan.forecast import Measured, Plan, Question, count_steps, make_plan, refuse_misfit
from preceptor_trainer.plan.servability import Place
from preceptor_trainer.plan.workload import Workload
from preceptor_trainer.recipes import Overrides, Recipe, resolve_recipe
from preceptor_trainer.train.batches import count_rows

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries, on import

LENGTHS = [50] * 8 + [40, 60]
ROOMY = 8_000_000_000


def _recipe(**changes: object) -> Recipe:
    values = {"name": "tiny", "description": "x", "method": "lora", "dtype": "float32", "batch_size": 4, **changes}
    return Recipe.model_validate(values)


def _workload(recipe: Recipe) -> Workload:
    return Workload(count_rows(LENGTHS, recipe), sum(LENGTHS), max(LENGTHS), shared=1, answer=3)


def _plan(base: Path, memory: int = ROOMY, *, price: float | None = None, **changes: object) -> Plan:
    recipe = _recipe(**changes)
    question = Question("tiny-llama", Place("tiny-llama", 16, "cpu"), matrix_flops=1e9, price_per_hour=price)
    return make_plan(load_config(str(base)), recipe, _workload(recipe), _hardware(memory), question)


def _hardware(memory: int = ROOMY) -> Hardware:
    return Hardware("cpu", "a processor", 2, memory, "float32")


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


def test_packed_rows_hold_several_records(tiny_base: Path) -> None:
    assert _plan(tiny_base, epochs=1, batch_size=1).steps == 10
    assert _plan(tiny_base, epochs=1, batch_size=1, batching="packed", max_length=250).steps == 2


def test_a_training_that_does_not_fit_is_refused_with_a_way_out(tiny_base: Path) -> None:
    assert _plan(tiny_base).fits
    refuse_misfit(_plan(tiny_base), _hardware())
    # By its activations alone; the process that they come on top of does fit.
    tight = _plan(tiny_base).memory_total_bytes - 1000
    with pytest.raises(InvalidInput, match=r"0\.9 GB of memory") as caught:
        refuse_misfit(_plan(tiny_base, tight, gradient_checkpointing="off"), _hardware(tight))
    assert caught.value.code == "memory_exceeded"
    assert "batch_size" in caught.value.hint
    with pytest.raises(InvalidInput) as caught:
        refuse_misfit(_plan(tiny_base, 1_000_000), _hardware(1_000_000))
    assert "No batch is small enough: 0.9 GB" in caught.value.hint


def test_checkpointing_is_on_only_where_memory_would_not_suffice_without_it(tiny_base: Path) -> None:
    without = _plan(tiny_base, gradient_checkpointing="off")
    assert not _plan(tiny_base).gradient_checkpointing
    tight = without.memory_total_bytes
    squeezed = _plan(tiny_base, tight)
    assert squeezed.gradient_checkpointing
    assert squeezed.memory_total_bytes < tight
    assert squeezed.expected_seconds == pytest.approx((without.expected_seconds or 0) * 1.5)
    assert not _plan(tiny_base, tight, gradient_checkpointing="off").gradient_checkpointing
    assert _plan(tiny_base, gradient_checkpointing="on").gradient_checkpointing


def test_the_probe_takes_the_place_of_the_matrix_rate_and_gives_the_cost(tiny_base: Path) -> None:
    plan = _plan(tiny_base, price=7.2)
    measured = Measured(seconds=(9.0, 2.0, 2.0), tokens=(900, 150, 250), peak_bytes=1)
    timed = plan.timed_by(measured)
    assert measured.tokens_per_second == 100
    assert timed.expected_seconds == 10
    assert timed.cost == pytest.approx(0.02)
    assert _plan(tiny_base).cost is None


def test_a_plan_of_an_earlier_version_can_still_be_read() -> None:
    kept = {
        "base_parameters": 10,
        "trainable_parameters": 2,
        "steps": 3,
        "tokens": 4,
        "memory_bytes": {"base weights": 5},
        "memory_available_bytes": 6,
        "matrix_flops": 7.0,
        "expected_seconds": 8.0,
    }
    assert not Plan.model_validate(kept).gradient_checkpointing


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("3000000\n", encoding="ascii")
    (tmp_path / "memory.current").write_text("1000000\n", encoding="ascii")
    assert free_memory(tmp_path) == 2_000_000
    (tmp_path / "memory.max").write_text("max\n", encoding="ascii")
    assert free_memory(tmp_path) > 2_000_000


def test_the_matrix_rate_is_measured() -> None:
    assert matrix_rate("cpu", seconds=0.05) > 1e8


def test_what_is_too_large_for_one_gpu_may_fit_several_that_share_it() -> None:
    recipe = resolve_recipe("llama3-8b-lora", Overrides(), Hardware("cuda", "a GPU", 1, 0, "bfloat16"))
    config = find_config(recipe.base_model)
    gpu = Hardware("cuda", "a GPU", 1, 16_000_000_000, "bfloat16")
    alone = Question(recipe.base_model, Place(recipe.base_model, 64, "cuda"))
    work = Workload(1000, 200_000, 400, shared=50, answer=20)
    with pytest.raises(InvalidInput, match="memory") as caught:
        refuse_misfit(make_plan(config, recipe, work, gpu, alone), gpu)
    assert "fsdp.yaml" in caught.value.hint
    refuse_misfit(make_plan(config, recipe, work, gpu, alone._replace(processes=4, sharded=True)), gpu)
    several = make_plan(config, recipe, work, gpu, alone._replace(processes=4))
    assert not several.fits  # whole weights on each


@pytest.mark.parametrize(("accumulation", "rows"), [(1, 4), (2, 8), (4, 8)])
def test_memory_is_counted_for_the_rows_that_each_process_computes(
    tiny_base: Path, accumulation: int, rows: int
) -> None:
    config = load_config(str(tiny_base))
    work = Workload(1000, 50_000, 60, shared=0, answer=3)
    question = Question("tiny-llama", Place("tiny-llama", 16, "cuda"))
    gpu = Hardware("cuda", "a GPU", 1, ROOMY, "float32")

    def activations(processes: int, **changes: object) -> int:
        recipe = _recipe(gradient_checkpointing="off", **changes)
        return make_plan(config, recipe, work, gpu, question._replace(processes=processes)).memory_bytes["activations"]

    assert activations(2, batch_size=8, accumulation=accumulation) == activations(1, batch_size=rows)


def test_a_common_beginning_is_forecast_once_only_where_the_training_computes_it_once(tiny_base: Path) -> None:
    config: Any = load_config(str(tiny_base))
    recipe = _recipe(gradient_checkpointing="on")
    question = Question("tiny-llama", Place("tiny-llama", 16, "cpu"), matrix_flops=1e9)
    work = _workload(recipe)._replace(shared=31)

    def seconds(processes: int = 1) -> float:
        planned = make_plan(config, recipe, work, _hardware(), question._replace(processes=processes))
        assert planned.expected_seconds is not None
        return planned.expected_seconds * processes

    assert seconds() < seconds(processes=2)
    config.model_type = "gemma"
    assert seconds() == pytest.approx(seconds(processes=2))
