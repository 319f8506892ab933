"""Adapters leave the shelf as a verified archive, and come back from one. Nothing that serves is taken away."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from preceptor_contracts.errors import InvalidInput, PreceptorError
from preceptor_contracts.files import sha256_file, sync_folder
from preceptor_contracts.manifest import AdapterFolder, verify_files
from preceptor_contracts.wire import AdapterState, AdapterView

from preceptor_trainer.export.archives import ArchiveReport, ask_canary, export_archive, unpacked
from preceptor_trainer.export.bases import open_adapter
from preceptor_trainer.registry.model_card import CARD
from preceptor_trainer.registry.versions import ARCHIVE, archive_place, archives_in, remember_versions

if TYPE_CHECKING:
    from preceptor_trainer.stages import Workshop

_REMOVED = ".removed"


class Retired(NamedTuple):
    """An adapter that was archived and removed."""

    path: Path
    report: ArchiveReport | None
    """None where the archive was there already, with the same files."""


class Restored(NamedTuple):
    """An adapter that is back."""

    adapter: str
    canary_deviation: float | None
    """Nats; None where `BASE_MODEL` is another base model."""


def retire(shop: Workshop, name: str, *, unload: bool, without_gateway: bool) -> Retired:
    """Archives an adapter, verifies the archive, and removes the folder.

    A kill at any moment leaves folder or archive whole; the next call goes on.

    Args:
        shop: Settings, terminal, gateway.
        name: The adapter's.
        unload: Take it out of the engines first.
        without_gateway: Do it though nobody says whether it serves.

    Raises:
        PreceptorError: It is promoted, would be after a rollback, is pinned or loaded; or the gateway is away.
    """
    adapters = shop.settings.adapters_dir
    for stale in adapters.glob(f".*{_REMOVED}"):
        shutil.rmtree(stale, ignore_errors=True)
    adapter = open_adapter(adapters, name)
    if not without_gateway:
        _let_go(shop, name, unload=unload)
    (adapters / ARCHIVE).mkdir(exist_ok=True)
    same = next((each.path for each in archives_in(adapters, name) if _holds(each.path, adapter)), None)
    place = same or archive_place(adapters, name)
    report = None if same else export_archive(shop.settings, adapter, place)
    if not without_gateway:
        # Somebody may have promoted it while it was packed.
        _let_go(shop, name, unload=unload)
    remember_versions(adapters, adapter.manifest.domain)
    _remove(adapter.path)
    return Retired(place, report)


def restore(shop: Workshop, archive: Path) -> Restored:
    """Puts an archived adapter on the shelf, verified first.

    Args:
        shop: Settings.
        archive: A file; or an adapter's name, whose newest archive is taken.

    Raises:
        InvalidInput: The archive is not whole or not harmless, or an adapter of that name is there.
    """
    adapters = shop.settings.adapters_dir
    found = [each.path for each in archives_in(adapters, str(archive))] if not archive.exists() else [archive]
    if not found:
        known = [each.adapter for each in archives_in(adapters)]
        raise InvalidInput(
            f"There is no archive {str(archive)!r}.",
            code="file_missing",
            hint=f"Archived: {', '.join(dict.fromkeys(known)) or 'none'}.",
        )
    adapters.mkdir(parents=True, exist_ok=True)
    with unpacked(found[-1], adapters) as copy:
        target = adapters / copy.path.name
        if target.exists():
            raise InvalidInput(
                f"Adapter {target.name!r} exists; nothing is overwritten.", code="exists", hint="It needs no restoring."
            )
        verify_files(copy)
        deviation = ask_canary(shop.settings, copy)
        copy.path.rename(target)
        sync_folder(adapters)
    return Restored(target.name, deviation)


def _let_go(shop: Workshop, name: str, *, unload: bool) -> None:
    """Makes sure that the gateway can do without an adapter, and that no engine holds it."""

    async def ask() -> AdapterView:
        async with shop.connect(shop.settings) as gateway:
            view = await gateway.adapter(name)
            if view.promoted or (_serves(view) and not unload):
                return view
            # It refuses what a rollback would restore, which the view does not tell.
            return await gateway.unload(name)

    try:
        view = asyncio.run(ask())
    except PreceptorError as error:
        if error.code == "gateway_down":
            raise PreceptorError(
                f"{error.message} So nobody says whether {name!r} serves; nothing was archived.",
                code=error.code,
                hint="Start the stack: make serve. Or, where no gateway uses this folder: --without-gateway",
            ) from error
        raise
    if view.promoted:
        raise PreceptorError(
            f"{name!r} is promoted; nothing was archived.", code="adapter_promoted", hint="Promote another one first."
        )
    if _serves(view):
        what = "pinned" if view.pinned else "loaded"
        raise PreceptorError(
            f"{name!r} is {what} in the gateway; nothing was archived.",
            code="adapter_in_use",
            hint="Take it out first: --unload",
        )


def _serves(view: AdapterView) -> bool:
    return view.pinned or view.state in (AdapterState.READY, AdapterState.LOADING)


def _holds(archive: Path, adapter: AdapterFolder) -> bool:
    """Tells whether an archive, left by a kill or a restoring, has the folder's every file."""
    try:
        with unpacked(archive, archive.parent) as copy:
            return _hashes(copy.path) == _hashes(adapter.path)
    except InvalidInput:
        return False


def _hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in folder.rglob("*")
        if path.is_file() and path.name != CARD and not path.name.startswith(".")
    }


def _remove(folder: Path) -> None:
    """Removes a folder so that no reader ever sees half of it."""
    gone = folder.with_name(f".{folder.name}{_REMOVED}")
    folder.rename(gone)
    sync_folder(folder.parent)
    shutil.rmtree(gone)
