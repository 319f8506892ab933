"""A plan without a run: for a base model that is not here, for another GPU, or for settings that are not yet set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from preceptor_contracts.base_models import (
    EMBEDDED,
    EMBEDDED_NAME,
    base_model_source,
    identify_base_model,
    is_materialised,
)
from preceptor_contracts.domains import DomainFolder, find_domain
from preceptor_contracts.errors import InvalidInput, PrerequisiteError

from preceptor_trainer.hardware import Hardware, detect_hardware, matrix_rate
from preceptor_trainer.plan.bases import find_config, load_config, read_config, short_name
from preceptor_trainer.plan.forecast import Plan, Question, make_plan
from preceptor_trainer.plan.servability import Place
from preceptor_trainer.plan.workload import of_records
from preceptor_trainer.prepare.dataset import read_records
from preceptor_trainer.recipes import Overrides, Recipe, resolve_recipe
from preceptor_trainer.settings import TrainerSettings
from preceptor_trainer.tokens import load_tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


class Asked(NamedTuple):
    """What the command line asks to be planned."""

    domain: str
    overrides: Overrides
    data: Path | None = None
    config: Path | None = None
    """A `config.json`, or the folder that it lies in."""
    gpu_gb: float | None = None
    """Plan for a GPU of so much memory, in GiB, in place of this machine."""
    price_per_hour: float | None = None
    encoding: str | None = None
    """Of the records' file, where it is none of today's."""


class Previewed(NamedTuple):
    """A plan and what it was made for."""

    plan: Plan
    recipe: Recipe
    hardware: Hardware
    base_model: str


class _Tokenizer(NamedTuple):
    tokenizer: PreTrainedTokenizerBase | None
    is_own: bool
    """Whether it is the base model's."""
    has_template: bool | None


def is_preview(settings: TrainerSettings, asked: Asked) -> bool:
    """Tells whether a plan cannot become a run of this machine with these settings."""
    if asked.config is not None or asked.gpu_gb is not None:
        return True
    if settings.base_model == EMBEDDED and not is_materialised(settings.base_models_dir):
        return True
    folder = find_domain(settings.domains_dir, asked.domain)
    recipe = _resolve(asked, folder, detect_hardware())
    is_rank_too_high = recipe.method != "full" and recipe.rank > settings.engine_max_lora_rank
    return is_rank_too_high or short_name(_planned_for(asked, recipe, settings)) != short_name(_identity(settings))


def preview(settings: TrainerSettings, asked: Asked) -> Previewed:
    """Plans; writes nothing.

    Raises:
        InvalidInput: Domain, records, recipe or configuration are wrong.
        PrerequisiteError: The base model's configuration is nowhere.
    """
    folder = find_domain(settings.domains_dir, asked.domain)
    is_here = asked.gpu_gb is None
    hardware = detect_hardware() if asked.gpu_gb is None else _imagined(asked.gpu_gb)
    recipe = _resolve(asked, folder, hardware)
    base_model = _planned_for(asked, recipe, settings)
    found = _find_tokenizer(settings, asked, base_model)
    records = read_records(asked.data or folder.train, asked.encoding)
    workload = of_records(folder.domain, records, recipe, found.tokenizer, own=found.is_own)
    question = Question(
        base_model=base_model,
        place=Place(_identity(settings), settings.engine_max_lora_rank, hardware.device),
        has_template=found.has_template,
        matrix_flops=matrix_rate(hardware.device) if is_here else None,
        price_per_hour=asked.price_per_hour,
    )
    plan = make_plan(_config(settings, asked, base_model), recipe, workload, hardware, question)
    return Previewed(plan, recipe, hardware, base_model)


def _resolve(asked: Asked, folder: DomainFolder, hardware: Hardware) -> Recipe:
    domain = folder.domain
    return resolve_recipe(domain.recipe, asked.overrides, hardware, domain_epochs=domain.epochs)


def _imagined(gpu_gb: float) -> Hardware:
    return Hardware("cuda", f"a GPU of {gpu_gb:g} GB", 0, int(gpu_gb * 2**30), "bfloat16")


def _identity(settings: TrainerSettings) -> str:
    try:
        return identify_base_model(settings.base_model, settings.base_models_dir).id
    except PrerequisiteError:
        return EMBEDDED_NAME


def _planned_for(asked: Asked, recipe: Recipe, settings: TrainerSettings) -> str:
    """The configuration that was named; or what a named recipe was made for; or what `BASE_MODEL` says."""
    if asked.config is not None:
        return asked.config.resolve().name if asked.config.is_dir() else asked.config.resolve().parent.name
    if asked.overrides.recipe is not None and recipe.base_model:
        return recipe.base_model
    return _identity(settings)


def _config(settings: TrainerSettings, asked: Asked, base_model: str) -> PretrainedConfig:
    if asked.config is not None:
        return read_config(asked.config)
    is_here = settings.base_model != EMBEDDED or is_materialised(settings.base_models_dir)
    if is_here and short_name(base_model) == short_name(_identity(settings)):
        return load_config(base_model_source(settings.base_model, settings.base_models_dir))
    return find_config(base_model)


def _find_tokenizer(settings: TrainerSettings, asked: Asked, base_model: str) -> _Tokenizer:
    """Takes the base model's own tokenizer where it is at hand, or `BASE_MODEL`'s, or none."""
    if asked.config is not None and asked.config.is_dir() and (asked.config / "tokenizer_config.json").is_file():
        source, is_own = str(asked.config), True
    else:
        source = base_model_source(settings.base_model, settings.base_models_dir)
        is_own = short_name(base_model) == short_name(_identity(settings))
    try:
        return _Tokenizer(load_tokenizer(source), is_own, True if is_own else None)
    except PrerequisiteError:
        return _Tokenizer(None, False, None)
    except InvalidInput:
        return _Tokenizer(None, False, False if is_own else None)
