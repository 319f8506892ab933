"""Parameter counts: ours, PEFT's and the published ones must be the same to the last parameter."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from preceptor_contracts.errors import InvalidInput
from preceptor_trainer.plan.bases import find_config, load_config, shipped_bases
from preceptor_trainer.plan.parameters import count_parameters
from preceptor_trainer.recipes import SERVABLE_MODULES, Recipe, load_recipe, recipes_dir

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries, on import

RECIPES = sorted(path.stem for path in recipes_dir().glob("*.yaml"))
PHI = "microsoft/Phi-3-mini-4k-instruct"


def _recipe(**changes: object) -> Recipe:
    return Recipe.model_validate({"name": "tiny", "description": "x", "method": "lora", "dtype": "float32", **changes})


def _by_peft(base_model: str, recipe: Recipe) -> Counter[str]:
    """What real PEFT trains, by kind of module, on a copy without weights."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        shell: Any = AutoModelForCausalLM.from_config(find_config(base_model))
        lora = LoraConfig(r=recipe.rank, target_modules=list(recipe.target_modules), task_type="CAUSAL_LM")
        adapted = shell if recipe.method == "full" else get_peft_model(shell, lora)
    counted: Counter[str] = Counter()
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            counted[name.partition(".lora_")[0].rpartition(".")[2]] += parameter.numel()
    return counted


@pytest.mark.parametrize("name", sorted(shipped_bases()))
def test_a_base_has_as_many_parameters_as_was_published(name: str) -> None:
    shipped = shipped_bases()[name]
    counts = count_parameters(find_config(shipped.base_model), _recipe(method="full"))
    assert counts.base == shipped.parameters
    assert counts.trainable == shipped.parameters


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_trains_what_it_states_and_what_peft_trains(name: str) -> None:
    recipe = load_recipe(name)
    counts = count_parameters(find_config(recipe.base_model), recipe)
    assert counts.trainable == recipe.stated_parameters
    by_peft = _by_peft(recipe.base_model, recipe)
    assert sum(by_peft.values()) == recipe.stated_parameters
    if recipe.method != "full":
        assert {count.module: count.trainable for count in counts.modules} == by_peft


def test_the_allergy_prototypes_settings_train_73_9_million_and_not_26() -> None:
    recipe = load_recipe("qwen2.5-1.5b-qlora")
    counts = count_parameters(find_config(recipe.base_model), recipe)
    assert {count.module: (count.layers, count.shape, count.trainable) for count in counts.modules} == {
        "q_proj": (28, "1536 x 1536", 5_505_024),
        "k_proj": (28, "1536 x 256", 3_211_264),
        "v_proj": (28, "1536 x 256", 3_211_264),
        "o_proj": (28, "1536 x 1536", 5_505_024),
        "gate_proj": (28, "1536 x 8960", 18_808_832),
        "up_proj": (28, "1536 x 8960", 18_808_832),
        "down_proj": (28, "8960 x 1536", 18_808_832),
    }
    assert counts.trainable == 73_859_072


@pytest.mark.parametrize("modules", [["q_proj"], ["k_proj", "down_proj"], list(SERVABLE_MODULES)])
def test_a_base_from_a_folder_is_counted_as_peft_does(tiny_base: Path, modules: list[str]) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    counted = count_parameters(load_config(str(tiny_base)), _recipe(target_modules=modules))
    base = AutoModelForCausalLM.from_pretrained(str(tiny_base))
    adapted = get_peft_model(base, LoraConfig(r=16, target_modules=modules, task_type="CAUSAL_LM"))
    trainable, everything = adapted.get_nb_trainable_parameters()
    assert counted.trainable == trainable
    assert counted.base == everything - trainable


def test_full_trains_tied_embeddings_once(tiny_base: Path) -> None:
    from transformers import AutoModelForCausalLM

    counted = count_parameters(load_config(str(tiny_base)), _recipe(method="full"))
    base = AutoModelForCausalLM.from_pretrained(str(tiny_base))
    assert counted.trainable == counted.base == sum(parameter.numel() for parameter in base.parameters())
    assert {count.module: count.layers for count in counted.modules}["embed_tokens"] == 1


def test_phi_3_has_fused_layers_and_the_message_names_them() -> None:
    with pytest.raises(InvalidInput, match="'q_proj'") as caught:
        count_parameters(find_config(PHI), _recipe())
    assert "o_proj, down_proj, qkv_proj, gate_up_proj" in caught.value.hint


def test_on_phi_3_peft_would_train_o_proj_alone_and_say_nothing() -> None:
    attention = _recipe(target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    assert set(_by_peft(PHI, attention)) == {"o_proj"}


def test_a_base_that_writes_no_text_is_refused() -> None:
    from transformers import ViTConfig

    with pytest.raises(InvalidInput, match="'vit'"):
        count_parameters(ViTConfig(), _recipe())
