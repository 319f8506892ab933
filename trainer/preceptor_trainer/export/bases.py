"""An adapter and the base model under it, as every export opens them: checked first, loaded only when needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from preceptor_contracts.base_models import base_model_source, identify_base_model, split_revision
from preceptor_contracts.errors import InvalidInput, PreceptorError, PrerequisiteError
from preceptor_contracts.manifest import AdapterFolder, Manifest, read_adapter, verify_files
from preceptor_contracts.served_names import adapter_domain, adapter_version

from preceptor_trainer.export.places import gib
from preceptor_trainer.hardware import free_memory
from preceptor_trainer.settings import TrainerSettings

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_FLOAT32_BYTES = 4
_HEADROOM = 1.2
"""Memory beside the weights: one layer's update, the logits, the process."""


class Base(NamedTuple):
    """A base model that an adapter was trained on."""

    source: str
    """Folder or Hugging Face id."""
    config: PretrainedConfig
    parameters: int


def adapter_names(adapters: Path) -> list[str]:
    """Names of the folders that may be adapters, oldest version first."""
    if not adapters.is_dir():
        return []
    found = [path.name for path in adapters.iterdir() if path.is_dir() and adapter_domain(path.name)]
    return sorted(found, key=lambda name: (adapter_domain(name) or "", adapter_version(name), name))


def find_adapter(adapters: Path, name: str) -> AdapterFolder:
    """Reads an adapter by name without touching its weights.

    Raises:
        InvalidInput: There is none; the hint names the newest ones.
    """
    known = adapter_names(adapters)
    if name not in known:
        raise InvalidInput(
            f"There is no adapter {name!r} in {adapters}.",
            code="unknown_adapter",
            hint=f"Known: {', '.join(known[-5:]) or 'none'}.",
        )
    return read_adapter(adapters / name)


def open_adapter(adapters: Path, name: str) -> AdapterFolder:
    """Reads an adapter and compares every file with its hash.

    Raises:
        InvalidInput: There is none, or it was altered.
    """
    adapter = find_adapter(adapters, name)
    verify_files(adapter)
    return adapter


def open_base(settings: TrainerSettings, manifest: Manifest) -> Base:
    """Finds the base model that an adapter was trained on, without loading its weights.

    Raises:
        InvalidInput: `BASE_MODEL` is another one, or is stored quantised.
        PrerequisiteError: It is not there.
    """
    from preceptor_trainer.plan.forecast import load_config
    from preceptor_trainer.tokens import hub_revision

    source = base_model_source(settings.base_model, settings.base_models_dir)
    identity = identify_base_model(settings.base_model, settings.base_models_dir, hub_revision=hub_revision(source))
    config = load_config(source)
    quantised = getattr(config, "quantization_config", None)
    if quantised:
        told = quantised if isinstance(quantised, dict) else quantised.to_dict()
        raise InvalidInput(
            f"Base model {source!r} is stored quantised ({told.get('quant_method', 'unknown method')}): its weights "
            "are too coarse to take an adapter in.",
            code="base_quantised",
            hint="Set BASE_MODEL to the same base model in 16 bit.",
        )
    if identity != manifest.base_model:
        raise InvalidInput(
            f"{manifest.adapter!r} was trained on base model {manifest.base_model.id!r}, revision "
            f"{manifest.base_model.revision!r}; BASE_MODEL is {identity.id!r}, revision {identity.revision!r}.",
            code="base_mismatch",
            hint="Set BASE_MODEL to the one that it was trained on.",
        )
    return Base(source, config, _count(config))


def load_weights(base: Base, *, exact: bool) -> Any:
    """Loads the base model on the processor, which always has room enough to export, slow as it may be.

    Args:
        base: From `open_base`.
        exact: In float32 or not at all; else as stored where float32 does not fit.

    Raises:
        PrerequisiteError: It does not fit into memory.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from preceptor_trainer.quiet import silence_transformers

    silence_transformers()
    dtype: torch.dtype | str = torch.float32
    needed, free = int(base.parameters * _FLOAT32_BYTES * _HEADROOM), free_memory()
    if needed > free:
        if exact:
            raise PrerequisiteError(
                f"Merging in float32 needs about {gib(needed)} of memory, but only {gib(free)} are free.",
                code="memory_short",
                hint="Stop other programs, or do it on a larger machine: copy the adapter's folder there.",
            )
        dtype = "auto"
    name, revision = split_revision(base.source)
    weights = AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype=dtype, device_map={"": "cpu"})
    return weights.eval()


def with_adapter(weights: Any, folder: Path) -> Any:
    """Puts an adapter on loaded weights.

    Raises:
        PreceptorError: It does not fit them.
    """
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(weights, str(folder)).eval()
    except (RuntimeError, ValueError, KeyError) as error:
        first = str(error).strip().partition("\n")[0]
        raise PreceptorError(
            f"{folder.name!r} does not fit its base model: {first}", code="adapter_misfit", hint="Train it again."
        ) from error


def _count(config: PretrainedConfig) -> int:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in shell.parameters())
