"""Stage publish after method `full`: trained weights become a base model's folder, whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from preceptor_contracts.base_models import IDENTITY
from preceptor_contracts.errors import PreceptorError
from preceptor_contracts.files import sha256_bytes, sha256_file, sync_folder, write_atomic
from preceptor_contracts.frozen import Frozen, read_json
from preceptor_contracts.manifest import BaseModelIdentity

from preceptor_trainer.runs import RunDir
from preceptor_trainer.train.training import Trained
from preceptor_trainer.train.weights import probe_deviation

_LARGEST_DEVIATION = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}
"""Nats by which written weights may answer other than the trained ones, which are float32: what rounding makes."""


class PublishedBase(Frozen):
    """What stage publish found after method `full`."""

    folder: str
    name: str
    deviation: float
    """Nats between the trained weights and those in the folder, on one prompt."""


def write_base(root: Path, run: RunDir, trained: Trained) -> PublishedBase:
    """Copies the run's weights into a folder that BASE_MODEL can name; a run's second call finds the first's.

    Raises:
        PreceptorError: The folder's weights answer other than those that were trained.
    """
    root.mkdir(parents=True, exist_ok=True)
    revision = _hash_weights(run.weights)
    found = [path for path in root.glob(f"{run.spec.domain}-full-v*-{revision[:8]}") if _revision(path) == revision]
    folder = found[0] if found else root / f"{run.spec.domain}-full-v{_next(root, run)}-{revision[:8]}"
    if not found:
        _copy(run.weights, folder, BaseModelIdentity(id=folder.name, revision=revision))
    if trained.probe is None:
        raise PreceptorError(f"Run {run.id!r} has no probe of its weights.", hint="Start a new run.")
    deviation = probe_deviation(folder, trained.probe)
    if not deviation <= _LARGEST_DEVIATION[run.spec.recipe.dtype]:
        raise PreceptorError(
            f"The weights in {str(folder)!r} answer other than those that were trained (by {deviation:.3f} nats).",
            code="weights_differ",
            hint="Delete that folder, and `preceptor-trainer publish` the run again.",
        )
    return PublishedBase(folder=str(folder), name=folder.name, deviation=round(deviation, 6))


def _copy(weights: Path, folder: Path, identity: BaseModelIdentity) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(weights, partial)
        for path in partial.iterdir():
            # safetensors lets only its owner read; the engine may be somebody else.
            path.chmod(0o644)
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        write_atomic(partial / IDENTITY, identity.model_dump_json(indent=2) + "\n")
        partial.rename(folder)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_folder(folder.parent)


def _hash_weights(folder: Path) -> str:
    """One hash for one or several files of weights."""
    hashes = [sha256_file(path) for path in sorted(folder.glob("*.safetensors"))]
    return hashes[0] if len(hashes) == 1 else sha256_bytes("".join(hashes).encode())


def _revision(folder: Path) -> str:
    return read_json(folder / IDENTITY, BaseModelIdentity).revision


def _next(root: Path, run: RunDir) -> int:
    prefix = f"{run.spec.domain}-full-v"
    versions = [path.name.removeprefix(prefix).partition("-")[0] for path in root.glob(f"{prefix}*")]
    return max((int(version) for version in versions if version.isdigit()), default=0) + 1
