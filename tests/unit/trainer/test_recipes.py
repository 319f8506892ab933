from __future__ import annotations

from pathlib import Path

import pytest
from preceptor_contracts.errors import InvalidInput
from preceptor_trainer.hardware import Hardware
from preceptor_trainer.recipes import SERVABLE_MODULES, Overrides, load_recipe, recipes_dir, resolve_recipe

from tests.unit.trainer.fixtures import write_recipe

CPU = Hardware("cpu", "a processor", 2, 8_000_000_000, "float32")
OLD_GPU = Hardware("cuda", "an older GPU", 8, 24_000_000_000, "float16")
GPU = Hardware("cuda", "a GPU", 8, 24_000_000_000, "bfloat16")
SHIPPED = sorted(path.stem for path in recipes_dir().glob("*.yaml"))


def test_eight_recipes_are_shipped() -> None:
    assert set(SHIPPED) == {
        "codellama-sql",
        "llama3-8b-lora",
        "llama3.2-3b-qlora",
        "mistral-7b-qlora",
        "phi-3",
        "qwen2.5-1.5b-full",
        "qwen2.5-1.5b-qlora",
        "smollm2-135m-cpu",
    }


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_resolves_on_every_hardware(name: str) -> None:
    for hardware, dtype in ((CPU, "float32"), (GPU, "bfloat16"), (OLD_GPU, "float16")):
        if hardware is CPU and load_recipe(name).optimizer.startswith("paged"):
            continue
        resolved = resolve_recipe(name, Overrides(), hardware)
        assert (resolved.name, resolved.dtype) == (name, dtype)
        assert resolved.method != "auto"


def test_the_allergy_recipe_has_the_prototypes_settings() -> None:
    recipe = load_recipe("qwen2.5-1.5b-qlora")
    assert (recipe.rank, recipe.alpha, recipe.dropout) == (64, 128, 0.05)
    assert (recipe.batch_size, recipe.accumulation, recipe.epochs) == (4, 4, 3)
    assert (recipe.learning_rate, recipe.scheduler, recipe.warmup_share) == (2e-4, "cosine", 0.1)
    assert (recipe.optimizer, recipe.max_length, recipe.seed) == ("auto", 2048, 42)
    assert recipe.target_modules == SERVABLE_MODULES


def test_the_sat_recipe_has_the_prototypes_settings() -> None:
    recipe = load_recipe("llama3.2-3b-qlora")
    assert (recipe.rank, recipe.alpha, recipe.dropout) == (16, 32, 0.05)
    assert (recipe.batch_size, recipe.accumulation, recipe.epochs) == (1, 2, 2)
    assert (recipe.learning_rate, recipe.scheduler, recipe.warmup_share) == (2e-4, "cosine", 0.05)
    assert recipe.optimizer == "paged-adamw-8bit"
    assert recipe.target_modules == SERVABLE_MODULES


@pytest.mark.parametrize("name", ["llama3-8b-lora", "phi-3", "codellama-sql"])
def test_the_specifications_recipes_have_its_settings(name: str) -> None:
    recipe = load_recipe(name)
    assert (recipe.rank, recipe.alpha, recipe.dropout) == (16, 32, 0.05)
    assert (recipe.batch_size, recipe.accumulation, recipe.epochs) == (4, 4, 3)
    assert (recipe.learning_rate, recipe.scheduler, recipe.warmup_share) == (2e-4, "linear", 0.0)
    attention = ("qkv_proj", "o_proj") if name == "phi-3" else ("q_proj", "k_proj", "v_proj", "o_proj")
    assert recipe.target_modules == attention


def test_the_demos_recipe_is_as_its_published_figures_were_made() -> None:
    recipe = resolve_recipe("smollm2-135m-cpu", Overrides(), CPU)
    assert (recipe.rank, recipe.alpha, recipe.dropout, recipe.target_modules) == (16, 32, 0.0, SERVABLE_MODULES)
    assert (recipe.learning_rate, recipe.scheduler, recipe.warmup_share) == (1e-3, "cosine", 0.05)
    assert (recipe.batch_size, recipe.accumulation, recipe.epochs, recipe.seed) == (8, 1, 2, 7)
    assert (recipe.batching, recipe.validation_share, recipe.weight_decay) == ("shuffled", 0.0, 0.0)


def test_the_cpu_recipe_computes_the_same_everywhere() -> None:
    resolved = resolve_recipe("smollm2-135m-cpu", Overrides(), CPU)
    assert (resolved.method, resolved.dtype) == ("lora", "float32")
    assert resolve_recipe("smollm2-135m-cpu", Overrides(), GPU).method == "qlora"


def test_an_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(InvalidInput) as caught:
        load_recipe("nope")
    assert "smollm2-135m-cpu" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rank": 12}, "serves ranks 8, 16, 32, 64"),
        ({"rank": 128}, "serves ranks 8, 16, 32, 64"),
        ({"target_modules": ["q_proj", "lm_head"]}, "'lm_head'"),
        ({"target_modules": ["q_proj", "q_proj"]}, "twice"),
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["embed_tokens"]}, "fully trained modules"),
        ({"init_lora_weights": "pissa"}, "initialisation"),
        ({"loftq_config": {}}, "initialisation"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_what_the_engine_cannot_serve_is_refused(tmp_path: Path, change: dict[str, object], says: str) -> None:
    path = write_recipe(tmp_path / "bad.yaml", **change)
    with pytest.raises(InvalidInput) as caught:
        load_recipe(str(path))
    assert says in caught.value.message
    assert "bad.yaml" in caught.value.message


def test_the_command_line_beats_the_domain_and_the_domain_beats_the_recipe(tmp_path: Path) -> None:
    path = str(write_recipe(tmp_path / "tiny.yaml", epochs=3))
    assert resolve_recipe(path, Overrides(), CPU).epochs == 3
    assert resolve_recipe(path, Overrides(), CPU, domain_epochs=4).epochs == 4
    assert resolve_recipe(path, Overrides(epochs=5), CPU, domain_epochs=4).epochs == 5


@pytest.mark.parametrize(("hardware", "method", "dtype"), [(CPU, "lora", "float32"), (GPU, "qlora", "bfloat16")])
def test_auto_fits_the_hardware(tmp_path: Path, hardware: Hardware, method: str, dtype: str) -> None:
    path = str(write_recipe(tmp_path / "tiny.yaml", method="auto", dtype="auto"))
    resolved = resolve_recipe(path, Overrides(), hardware)
    assert (resolved.method, resolved.dtype) == (method, dtype)


def test_qlora_on_a_processor_computes_in_float32(tmp_path: Path) -> None:
    path = str(write_recipe(tmp_path / "tiny.yaml", dtype="auto"))
    assert resolve_recipe(path, Overrides(method="qlora"), CPU).dtype == "float32"


@pytest.mark.parametrize("overrides", [Overrides(method="dora"), Overrides(epochs=-1), Overrides(max_steps=0)])
def test_a_bad_override_is_refused(overrides: Overrides) -> None:
    with pytest.raises(InvalidInput):
        resolve_recipe("smollm2-135m-cpu", overrides, CPU)


def test_float16_needs_cuda(tmp_path: Path) -> None:
    path = str(write_recipe(tmp_path / "tiny.yaml", dtype="float16"))
    with pytest.raises(InvalidInput, match="CUDA"):
        resolve_recipe(path, Overrides(), CPU)
