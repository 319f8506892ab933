"""Stage publish: trained weights become an immutable adapter folder, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

from preceptor_contracts.domains import Domain
from preceptor_contracts.errors import ManifestInvalid, PreceptorError
from preceptor_contracts.files import sha256_file, sync_folder
from preceptor_contracts.frozen import Frozen
from preceptor_contracts.manifest import (
    MANIFEST,
    Canary,
    Manifest,
    ParityCertificate,
    hash_files,
    read_adapter,
    write_manifest,
)
from preceptor_contracts.wire import AdapterState

from preceptor_trainer.gateway import Gateway
from preceptor_trainer.registry.model_card import ADAPTER, model_card
from preceptor_trainer.registry.versions import claim_version
from preceptor_trainer.runs import RunDir, Stage
from preceptor_trainer.train.training import CONFIG, WEIGHTS, Trained


class Published(Frozen):
    """What stage publish found."""

    adapter: str
    parity_samples: int
    canary_separation: float
    """Nats."""
    load_seconds: float
    """From asking the gateway to load the adapter to its canary passed."""


class Proofs(Frozen):
    """What must be known before anything is written."""

    parity: ParityCertificate
    canary: Canary
    stop_token_ids: tuple[int, ...]
    label_token_ids: dict[str, int]


def find_published(adapters: Path, run: RunDir) -> Manifest | None:
    """Returns the manifest of the adapter that this run published before; a kill may have hidden it from the events."""
    for path in sorted(adapters.glob(f"{run.spec.domain}-v*/{MANIFEST}")):
        try:
            manifest = read_adapter(path.parent).manifest
        except ManifestInvalid:
            continue  # A renamed folder or one of another day is not this run's, and must not stop it.
        if manifest.run_id == run.id:
            return manifest
    return None


def write_adapter(adapters: Path, run: RunDir, domain: Domain, trained: Trained, proofs: Proofs) -> Manifest:
    """Writes the adapter beside the others under a dot-name, its manifest last, and renames it.

    Args:
        adapters: Folder of all adapters.
        run: Whose weights are published.
        domain: As it was at training; the caller compared it.
        trained: Goes into the manifest.
        proofs: Go into the manifest.
    """
    adapters.mkdir(parents=True, exist_ok=True)
    _remove_stale(adapters, run)
    digest = sha256_file(run.adapter / WEIGHTS)[:8]
    name, partial = _claim(adapters, run, digest)
    shutil.copyfile(run.adapter / WEIGHTS, partial / WEIGHTS)
    config = json.loads((run.adapter / CONFIG).read_text(encoding="utf-8"))
    # PEFT writes where the weights lay on this machine; the identity holds everywhere.
    config["base_model_name_or_path"] = run.spec.base_model.id
    (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    draft = _manifest(name, run, domain, trained, proofs, files=hash_files(partial))
    (partial / "README.md").write_text(model_card(draft, domain, (), ADAPTER), encoding="utf-8")
    for path in sorted(partial.iterdir()):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    manifest = draft.model_copy(update={"files": hash_files(partial)})
    write_manifest(partial, manifest)
    partial.rename(adapters / name)
    sync_folder(adapters)
    return manifest


async def register(gateway: Gateway, adapter: str) -> None:
    """Has the gateway load the adapter.

    Raises:
        PreceptorError: It is not ready, because its canary failed or the engine refused it.
    """
    view = await gateway.register(adapter)
    if view.state is not AdapterState.READY:
        raise PreceptorError(
            f"Adapter {adapter!r} was published but is {view.state.value} in the gateway: "
            f"{view.reason or 'no reason given'}.",
            code="adapter_not_ready",
            hint="Mend what it says, then run `preceptor-trainer publish` for this run again.",
        )


def _manifest(
    name: str, run: RunDir, domain: Domain, trained: Trained, proofs: Proofs, *, files: dict[str, str]
) -> Manifest:
    spec = run.spec
    return Manifest(
        adapter=name,
        domain=spec.domain,
        prompt_sha=spec.prompt_sha,
        base_model=spec.base_model,
        chat_template_sha=spec.chat_template_sha,
        stop_token_ids=proofs.stop_token_ids,
        rank=spec.recipe.rank,
        mcq_scoring=domain.mcq.scoring if domain.mcq else None,
        label_token_ids=proofs.label_token_ids,
        dataset=spec.dataset,
        recipe=spec.recipe.model_dump(mode="json"),
        libraries=spec.libraries,
        git_rev=spec.git_rev,
        seed=spec.seed,
        run_id=run.id,
        created_at=datetime.now(UTC),
        train=trained.metrics,
        parity=proofs.parity,
        canary=proofs.canary,
        files=files,
    )


def _remove_stale(adapters: Path, run: RunDir) -> None:
    """Removes folders that this run began and did not finish; its events name them."""
    for event in run.events(Stage.PUBLISH, "claimed"):
        shutil.rmtree(adapters / f".{event.text('adapter')}.partial", ignore_errors=True)


def _claim(adapters: Path, run: RunDir, digest: str) -> tuple[str, Path]:
    """Takes the next version number, which no other run gets, and makes the folder to write to."""
    domain = run.spec.domain
    name = f"{domain}-v{claim_version(adapters, domain)}-{digest}"
    run.record(Stage.PUBLISH, "claimed", adapter=name)
    partial = adapters / f".{name}.partial"
    partial.mkdir()
    return name, partial
