"""What a run was made of: enough in `spec.json` to make it again."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from preceptor_contracts.domains import DomainFolder
from preceptor_contracts.files import sha256_file
from preceptor_contracts.manifest import BaseModelIdentity, DatasetSummary

from preceptor_trainer.hardware import Hardware
from preceptor_trainer.recipes import Recipe
from preceptor_trainer.runs import RunSpec, new_run_id
from preceptor_trainer.tokens import chat_template_sha

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets", "preceptor-trainer")


def new_spec(
    folder: DomainFolder,
    recipe: Recipe,
    hardware: Hardware,
    tokenizer: PreTrainedTokenizerBase,
    *,
    data: Path,
    dataset: DatasetSummary,
    base_model: BaseModelIdentity,
    base_source: str,
) -> RunSpec:
    """Names a new run and writes down everything that it rests on."""
    return RunSpec(
        run_id=new_run_id(folder.domain.name),
        domain=folder.domain.name,
        prompt_sha=folder.domain.prompt_sha,
        exam_sha=sha256_file(folder.exam),
        data=str(data),
        dataset=dataset,
        recipe=recipe,
        base_model=base_model,
        base_source=base_source,
        chat_template_sha=chat_template_sha(tokenizer),
        seed=recipe.seed,
        device=hardware.device,
        device_name=hardware.name,
        threads=hardware.threads,
        libraries={name: metadata.version(name) for name in _LIBRARIES},
        git_rev=git_revision(Path(__file__).parent),
        created_at=datetime.now(UTC),
    )


def git_revision(folder: Path) -> str | None:
    """Returns the commit that `folder` is at; None outside a checkout, or where git is missing."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
