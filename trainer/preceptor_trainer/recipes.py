"""Recipes: YAML files of training settings, and how they are resolved against domain, command line and hardware."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.frozen import Frozen, parse, read_yaml
from preceptor_contracts.messages import Text
from pydantic import Field, StringConstraints, TypeAdapter, field_validator, model_validator

from preceptor_trainer.hardware import Hardware

SERVABLE_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linear layers of a decoder block, as Llama, Mistral and Qwen name them."""
FUSED_MODULES = ("qkv_proj", "gate_up_proj")
"""What Phi-3 has in place of five of them; vLLM 0.32 serves one adapter on each (its phi3.py and lora/utils.py)."""
LORA_MODULES = (*SERVABLE_MODULES, *FUSED_MODULES)
"""What the engine serves adapters on; which of them a base model has, `plan` finds out."""
SERVABLE_RANKS = (8, 16, 32, 64)
"""Limits that vLLM takes (its config/lora.py) which make sense for small adapters; an odd rank wastes its slot."""
_UNSERVABLE = {
    "use_dora": "DoRA",
    "bias": "a trained bias",
    "modules_to_save": "fully trained modules",
    "init_lora_weights": "a LoRA initialisation that alters the base model",
    "loftq_config": "a LoRA initialisation that alters the base model",
    "lora_bias": "a trained bias",
    "alora_invocation_tokens": "an adapter that is on for part of a prompt",
    "use_qalora": "QALoRA",
    "layer_replication": "layer replication",
    "trainable_token_indices": "trained token embeddings",
}
Method = Literal["lora", "qlora", "lora-8bit", "full"]
RecipeName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]*$", max_length=60)]


class Recipe(Frozen):
    """`trainer/recipes/<name>.yaml`."""

    name: RecipeName
    description: Text
    base_model: str = ""
    """Hugging Face id that the settings were made for; empty where they fit several."""
    stated_parameters: Annotated[int, Field(ge=1)] | None = None
    """Trainable parameters on `base_model`; a test counts them on its configuration."""
    method: Method | Literal["auto"] = "auto"
    """`auto` is QLoRA on a CUDA device and LoRA elsewhere; `full` trains every weight and makes no adapter."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What products are computed in; `auto` is float32 on a CPU and what a CUDA device has units for."""
    rank: int = 16
    """LoRA rank, unitless."""
    alpha: Annotated[float, Field(gt=0)] = 32
    """LoRA scale is alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of LoRA inputs dropped."""
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] = SERVABLE_MODULES
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """Peak, for AdamW."""
    scheduler: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of all steps during which the learning rate rises."""
    optimizer: Literal["auto", "adamw", "paged-adamw-32bit", "paged-adamw-8bit"] = "auto"
    """`auto` is paged AdamW in 32 bits for quantised base weights on a CUDA device, and AdamW elsewhere."""
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """AdamW's, on trained weights."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to this norm."""
    epochs: Annotated[float, Field(gt=0, le=50)] = 2
    """Passes over the records."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Ends training early, in optimizer steps; None leaves it to `epochs`."""
    batch_size: Annotated[int, Field(ge=1, le=512)] = 8
    """Records a forward pass."""
    accumulation: Annotated[int, Field(ge=1, le=512)] = 1
    """Forward passes an optimizer step."""
    max_length: Annotated[int, Field(ge=16, le=131072)] = 1024
    """Longest record, prompt and answer, in tokens; longer ones are refused, never cut."""
    batching: Literal["shuffled", "length", "packed"] = "shuffled"
    """`shuffled`: any records share a step, those of like length in it a forward pass. `length`: records of like length
    share a step, which pads least and learns worse. `packed` fills rows of `max_length` with several, kept apart."""
    gradient_checkpointing: Literal["auto", "on", "off"] = "auto"
    """Recomputes activations in the backward pass; `auto` does so where the plan says that memory would not do."""
    validation_share: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of the records held out, topic by topic, for the validation loss; never of the exam."""
    validate_every: Annotated[int, Field(ge=1)] = 20
    """Steps between validation losses."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Ends training after so many validation losses without a better one and keeps the best weights; None: never."""
    serving_quantization: Literal["none", "fp8"] = "none"
    """How the engine should hold the base weights: `fp8` is 8 bits. `plan` counts with it and names the flag."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 20
    """Steps between checkpoints."""
    logging_steps: Annotated[int, Field(ge=1)] = 5
    """Steps between progress events."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 7

    @property
    def is_quantised(self) -> bool:
        """True where the base weights are held in fewer bits than they are computed in."""
        return self.method in ("qlora", "lora-8bit")

    @model_validator(mode="before")
    @classmethod
    def _servable(cls, values: object) -> object:
        if isinstance(values, dict):
            for key, what in _UNSERVABLE.items():
                if key in values:
                    raise ValueError(f"{key} asks for {what}, which the engine cannot serve; leave it out")
        return values

    @model_validator(mode="after")
    def _patience_needs_validation(self) -> Recipe:
        if self.patience is not None and not self.validation_share:
            raise ValueError("patience needs a validation_share above 0, e.g. 0.1")
        return self

    @field_validator("serving_quantization", mode="before")
    @classmethod
    def _quantised_by_the_engine(cls, value: object) -> object:
        if value == "bitsandbytes":
            raise ValueError("vLLM 0.32 quantises by bitsandbytes no more; take fp8, which is 8 bits too")
        return value

    @field_validator("rank")
    @classmethod
    def _servable_rank(cls, rank: int) -> int:
        if rank not in SERVABLE_RANKS:
            allowed = ", ".join(str(allowed) for allowed in SERVABLE_RANKS)
            raise ValueError(f"the engine serves ranks {allowed}; take the next one up")
        return rank

    @field_validator("target_modules")
    @classmethod
    def _servable_modules(cls, modules: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := sorted(set(modules) - set(LORA_MODULES)):
            raise ValueError(f"the engine serves adapters on {', '.join(LORA_MODULES)} only, not on {unknown[0]!r}")
        if len(set(modules)) != len(modules):
            raise ValueError("a module stands there twice")
        return modules


class Overrides(Frozen):
    """What the command line says in place of the recipe; None where it says nothing."""

    recipe: str | None = None
    method: str | None = None
    epochs: float | None = None
    max_steps: int | None = None
    seed: int | None = None


def recipes_dir() -> Path:
    """Finds the shipped recipes: inside an installed wheel, beside the package in a checkout."""
    inside = Path(__file__).parent / "recipes"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "recipes"


def load_recipe(name: str) -> Recipe:
    """Reads a shipped recipe by name, or any `.yaml` file by path.

    Raises:
        InvalidInput: No such recipe, or it is malformed or not servable.
    """
    if name.endswith((".yaml", ".yml")):
        return read_yaml(Path(name), Recipe)
    known = {path.stem: path for path in sorted(recipes_dir().glob("*.yaml"))}
    if name not in known:
        raise InvalidInput(
            f"There is no recipe {name!r}.",
            code="unknown_recipe",
            hint=f"Known recipes: {', '.join(known)}; or name a .yaml file.",
        )
    recipe = read_yaml(known[name], Recipe)
    if recipe.name != name:
        raise InvalidInput(f"{known[name]}: name {recipe.name!r} is not the file's.", hint="Make them the same.")
    return recipe


def resolve_recipe(
    default: str, overrides: Overrides, hardware: Hardware, *, domain_epochs: float | None = None
) -> Recipe:
    """Settles every choice: command line before domain before recipe, `auto` by hardware.

    Args:
        default: The domain's recipe.
        overrides: From the command line.
        hardware: What is there.
        domain_epochs: Passes that the domain asks for.

    Raises:
        InvalidInput: The recipe, an override, or their combination with the hardware cannot work.
    """
    recipe = load_recipe(overrides.recipe or default)
    chosen = {name: value for name, value in overrides.model_dump(exclude={"recipe"}).items() if value is not None}
    epochs = {} if domain_epochs is None else {"epochs": domain_epochs}
    merged = parse(TypeAdapter(Recipe), {**recipe.model_dump(), **epochs, **chosen}, where="recipe and options")
    method = merged.method if merged.method != "auto" else "qlora" if hardware.device == "cuda" else "lora"
    dtype = merged.dtype if merged.dtype != "auto" else hardware.best_dtype
    if dtype == "float16" and hardware.device == "cpu":
        raise InvalidInput(
            "dtype 'float16' needs a CUDA device.", hint="Set dtype to 'auto' or 'float32' in the recipe."
        )
    if merged.optimizer.startswith("paged") and hardware.device == "cpu":
        raise InvalidInput(
            f"optimizer {merged.optimizer!r} needs a CUDA device.",
            hint="Set optimizer to 'auto' or 'adamw' in the recipe.",
        )
    return parse(TypeAdapter(Recipe), {**merged.model_dump(), "method": method, "dtype": dtype}, where="recipe")
