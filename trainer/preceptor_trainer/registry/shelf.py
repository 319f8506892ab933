"""The adapters on disk, as a person looks them over."""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from preceptor_contracts.errors import InvalidInput, PreceptorError
from preceptor_contracts.frozen import Frozen
from preceptor_contracts.manifest import Manifest, verify_files
from preceptor_contracts.report import Report, Verdict
from preceptor_contracts.served_names import adapter_domain
from preceptor_contracts.wire import AdapterView

from preceptor_trainer.export.bases import adapter_names, find_adapter
from preceptor_trainer.export.places import gib
from preceptor_trainer.registry.columns import aligned
from preceptor_trainer.registry.model_card import leak_line, read_reports, scored

if TYPE_CHECKING:
    from preceptor_trainer.stages import Workshop

_SHA_SHOWN = 12


class Exam(Frozen):
    """An adapter's newest report, in short."""

    verdict: Verdict
    n: int
    accuracy: float
    ci95: tuple[float, float]
    base_accuracy: float
    mcnemar_p: float


class Entry(Frozen):
    """One adapter on the shelf."""

    adapter: str
    domain: str
    bytes: int
    base_model: str = ""
    created_at: datetime | None = None
    rank: int | None = None
    dataset_sha256: str = ""
    exam: Exam | None = None
    """Of the newest report; null before the first."""
    promoted: bool | None = None
    """Null where the gateway does not say."""
    pinned: bool | None = None
    state: str = ""
    """In the gateway; empty where it does not say."""
    problem: str = ""
    """Why the manifest cannot be read."""


class Shelf(Frozen):
    """All adapters, and whether the gateway told of them."""

    adapters: tuple[Entry, ...]
    gateway: str = ""
    """Why nothing is known of promotions; empty where it is."""


class Shown(Frozen):
    """Everything about one adapter."""

    manifest: Manifest
    problem: str
    """What is wrong with its files; empty where every one has its hash."""
    reports: tuple[Report, ...]
    """Oldest first."""
    entry: Entry
    gateway: str = ""

    @property
    def is_verified(self) -> bool:
        """True where every file has its hash."""
        return not self.problem


def look(shop: Workshop, domain: str | None = None) -> Shelf:
    """Reads every adapter's manifest and newest report, and asks the gateway which are promoted."""
    adapters = shop.settings.adapters_dir
    names = [name for name in adapter_names(adapters) if domain in (None, adapter_domain(name))]
    views, why = ask_gateway(shop)
    return Shelf(adapters=tuple(_entry(adapters, name, views.get(name)) for name in names), gateway=why)


def show(shop: Workshop, name: str) -> Shown:
    """Reads one adapter and compares its files with their hashes.

    Raises:
        InvalidInput: There is none, or its manifest cannot be read.
    """
    adapter = find_adapter(shop.settings.adapters_dir, name)
    try:
        verify_files(adapter)
        problem = ""
    except InvalidInput as error:
        problem = error.message
    views, why = ask_gateway(shop)
    return Shown(
        manifest=adapter.manifest,
        problem=problem,
        reports=tuple(read_reports(adapter)),
        entry=_entry(shop.settings.adapters_dir, name, views.get(name)),
        gateway=why,
    )


def ask_gateway(shop: Workshop) -> tuple[dict[str, AdapterView], str]:
    """Asks what the gateway does with each adapter; where it does not say, why."""

    async def ask() -> dict[str, AdapterView]:
        async with shop.connect(shop.settings) as gateway:
            return {view.adapter: view for view in (await gateway.adapters()).data}

    try:
        return asyncio.run(ask()), ""
    except PreceptorError as error:
        return {}, error.message


def shelf_text(shelf: Shelf) -> str:
    """Lays the shelf out for a terminal, a line an adapter."""
    rows = [["adapter", "base model", "created", "rank", "dataset", "size", "gateway", "newest exam"]]
    for entry in shelf.adapters:
        if entry.problem:
            rows.append([entry.adapter, entry.problem])
            continue
        rows.append(
            [
                entry.adapter,
                entry.base_model.rpartition("/")[2],
                f"{entry.created_at:%Y-%m-%d %H:%M}",
                str(entry.rank),
                entry.dataset_sha256[:_SHA_SHOWN],
                gib(entry.bytes),
                gateway_words(entry),
                _exam_words(entry.exam),
            ]
        )
    return aligned(rows)


def shown_text(shown: Shown) -> str:
    """Lays one adapter out for a terminal."""
    manifest = shown.manifest
    train, recipe, data = manifest.train, manifest.recipe, manifest.dataset
    rows = [
        ("adapter", manifest.adapter),
        ("base model", f"{manifest.base_model.id}, revision {manifest.base_model.revision}"),
        ("created", f"{manifest.created_at:%Y-%m-%d %H:%M} UTC by run {manifest.run_id}"),
        ("files", shown.problem or "verified"),
        ("gateway", f"unknown: {shown.gateway}" if shown.gateway else gateway_words(shown.entry)),
        ("data", f"{data.records} records, {data.tokens} tokens, sha256 {data.sha256}"),
        ("topics", ", ".join(f"{topic} ({count})" for topic, count in data.topics.items())),
        ("leaks", leak_line(data)),
        ("recipe", f"{recipe.get('name')}: {recipe.get('method')}, rank {manifest.rank}, {recipe.get('dtype')}"),
        ("", f"learning rate {recipe.get('learning_rate')}, {recipe.get('epochs')} epochs, seed {manifest.seed}"),
        ("training", f"{train.steps} steps, {train.tokens} tokens in {train.seconds:.0f} s"),
        ("", f"loss {train.first_loss:.3f} to {train.final_loss:.3f}"),
        ("parity", f"{manifest.parity.matched} of {manifest.parity.samples} prompts equal"),
        ("canary", f"{manifest.canary.separation:.2f} nats from its base model"),
        ("libraries", ", ".join(f"{name} {version}" for name, version in manifest.libraries.items())),
        ("size", gib(shown.entry.bytes)),
    ]
    for report in shown.reports:
        rows.append((f"exam {report.created_at:%Y-%m-%d}", f"{report.verdict.value}, n = {report.n}. {report.reason}"))
        rows.append(("", f"base {scored(report.base)}, adapter {scored(report.adapter)}"))
    return aligned(rows if shown.reports else [*rows, ("exam", "none yet")])


def gateway_words(entry: Entry) -> str:
    """Says in words what the gateway does with an adapter."""
    if entry.promoted is None:
        return "unknown"
    words = ["promoted"] if entry.promoted else []
    words += ["pinned"] if entry.pinned else []
    return ", ".join([*words, entry.state])


def _entry(adapters: Path, name: str, view: AdapterView | None) -> Entry:
    folder = adapters / name
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    plain = Entry(adapter=name, domain=adapter_domain(name) or "", bytes=size)
    try:
        adapter = find_adapter(adapters, name)
    except InvalidInput as error:
        return plain.model_copy(update={"problem": error.message})
    manifest, reports = adapter.manifest, read_reports(adapter)
    return Entry(
        adapter=name,
        domain=manifest.domain,
        bytes=size,
        base_model=manifest.base_model.id,
        created_at=manifest.created_at,
        rank=manifest.rank,
        dataset_sha256=manifest.dataset.sha256,
        exam=_exam(reports[-1]) if reports else None,
        promoted=view.promoted if view else None,
        pinned=view.pinned if view else None,
        state=view.state.value if view else "",
    )


def _exam_words(exam: Exam | None) -> str:
    if exam is None:
        return "none yet"
    low, high = exam.ci95
    return f"{exam.verdict.value}: {exam.accuracy:.3f} ({low:.3f} to {high:.3f}), n = {exam.n}"


def _exam(report: Report) -> Exam:
    return Exam(
        verdict=report.verdict,
        n=report.n,
        accuracy=report.adapter.accuracy,
        ci95=report.adapter.ci95,
        base_accuracy=report.base.accuracy,
        mcnemar_p=report.mcnemar_p,
    )
