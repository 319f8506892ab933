"""What a base model is made of, known from its configuration alone: no weights, no model hub."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from preceptor_contracts.base_models import split_revision
from preceptor_contracts.errors import InvalidInput, PrerequisiteError
from preceptor_contracts.frozen import Frozen, read_json
from pydantic import JsonValue

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_SHIPPED = Path(__file__).parent / "published"


class ShippedBase(Frozen):
    """`plan/published/<name>.json`: enough of a published configuration to count by. A test compares both numbers."""

    base_model: str
    """Hugging Face id."""
    parameters: int
    """As published with the weights."""
    config: dict[str, JsonValue]
    """The fields of `config.json` that shapes depend on."""


@cache
def shipped_bases() -> dict[str, ShippedBase]:
    """Reads the configurations that are shipped, by `short_name`."""
    bases = [read_json(path, ShippedBase) for path in sorted(_SHIPPED.glob("*.json"))]
    return {short_name(base.base_model): base for base in bases}


def short_name(base_model: str) -> str:
    """What stays the same whether a base model is named by id, by folder or as embedded: its last part."""
    return base_model.rstrip("/").rpartition("/")[2].casefold()


def find_config(base_model: str) -> PretrainedConfig:
    """Finds a base model's configuration: the shipped one, or else what a folder or the model hub has.

    Raises:
        PrerequisiteError: It is in none of the three.
    """
    from transformers import AutoConfig

    shipped = shipped_bases().get(short_name(base_model))
    if shipped is None:
        return load_config(base_model)
    fields = dict(shipped.config)
    config: PretrainedConfig = AutoConfig.for_model(str(fields.pop("model_type")), **fields)
    return config


def load_config(source: str) -> PretrainedConfig:
    """Loads a base model's configuration from where its weights are.

    Args:
        source: Folder or Hugging Face id.

    Raises:
        PrerequisiteError: It is not there.
    """
    from transformers import AutoConfig

    try:
        name, revision = split_revision(source)
        config: PretrainedConfig = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise PrerequisiteError(
            f"Base model {source!r} cannot be loaded: {first}",
            hint="Check BASE_MODEL; run `make setup` for the embedded one.",
        ) from error
    return config


def read_config(path: Path) -> PretrainedConfig:
    """Reads a `config.json`, or a folder that holds one.

    Raises:
        InvalidInput: There is none, or it is no configuration that transformers knows.
    """
    from transformers import AutoConfig

    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise InvalidInput(f"{file} does not exist.", hint="Name a base model's config.json or the folder it lies in.")
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(str(file), trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        first = str(error).strip().partition("\n")[0]
        raise InvalidInput(
            f"{file} is no configuration that transformers knows: {first}",
            hint="Take the base model's own config.json.",
        ) from error
    return config
