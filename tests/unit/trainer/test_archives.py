from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from preceptor_contracts.errors import InvalidInput, ManifestInvalid, PreceptorError
from preceptor_contracts.manifest import read_adapter, verify_files
from preceptor_trainer import cli
from preceptor_trainer.commands import options
from preceptor_trainer.export import archives
from preceptor_trainer.export.archives import ArchiveReport, export_archive
from preceptor_trainer.export.bases import open_adapter
from preceptor_trainer.gateway import Gateway
from preceptor_trainer.registry import retiring
from preceptor_trainer.registry.retiring import restore, retire
from preceptor_trainer.registry.versions import archives_in
from preceptor_trainer.settings import TrainerSettings
from preceptor_trainer.stages import Workshop

from tests.unit.trainer.fixtures import FakeGateway

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries


class Killed(BaseException):
    """Stands for SIGKILL."""


def _export(settings: TrainerSettings, name: str, out: Path) -> ArchiveReport:
    return export_archive(settings, open_adapter(settings.adapters_dir, name), out)


def _retire(shop: Workshop, name: str, *, unload: bool = False, without_gateway: bool = False) -> retiring.Retired:
    return retire(shop, name, unload=unload, without_gateway=without_gateway)


def test_an_archive_is_the_same_bytes_each_time_and_answers_as_trained(
    settings: TrainerSettings, adapter: str, tmp_path: Path
) -> None:
    first = _export(settings, adapter, tmp_path / "a.tar.gz")
    assert first.canary_deviation == pytest.approx(0, abs=1e-4)
    other = tmp_path / "elsewhere" / adapter
    shutil.copytree(settings.adapters_dir / adapter, other)
    for path in other.rglob("*"):
        path.touch()
        path.chmod(0o700)
    second = _export(settings.model_copy(update={"adapters_dir": other.parent}), adapter, tmp_path / "b.tar.gz")
    assert first.sha256 == second.sha256
    with tarfile.open(tmp_path / "a.tar.gz") as tar:
        names = tar.getnames()
        card = tar.extractfile(f"{adapter}/reports/CARD.md")
        assert card is not None
        assert b"Verdict: **better**" in card.read()
    assert names == sorted(names)
    assert f"{adapter}/preceptor.json" in names


def test_an_adapter_of_another_base_model_is_archived_without_its_canary(
    settings: TrainerSettings, adapter: str, tiny_base: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other-llama"
    shutil.copytree(tiny_base, other)
    moved = settings.model_copy(update={"base_model": str(other)})
    assert _export(moved, adapter, tmp_path / "a.tar.gz").canary_deviation is None


def test_a_broken_archive_is_not_kept(
    settings: TrainerSettings, adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(adapter: object, card: str, stream: io.BufferedWriter) -> None:
        stream.write(b"\x1f\x8b\x08half")

    monkeypatch.setattr(archives, "pack", cut)
    with pytest.raises(InvalidInput, match="no whole archive"):
        _export(settings, adapter, tmp_path / "a.tar.gz")
    assert not [path.name for path in tmp_path.iterdir() if "tar" in path.name or "unpacked" in path.name]


def _tar(path: Path, *members: tuple[str, bytes, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(content), "/etc/passwd"
            tar.addfile(info, io.BytesIO(content))


NAME = "plants-v1-0123abcd"
FILE, LINK, HARD, DEVICE = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([(f"{NAME}/../../evil", FILE, b"x")], "leads out of the folder"),
        ([(f"/{NAME}/evil", FILE, b"x")], "leads out of the folder"),
        ([(f"{NAME}/a", LINK, b"")], "is no plain file"),
        ([(f"{NAME}/a", HARD, b"")], "is no plain file"),
        ([(f"{NAME}/a", DEVICE, b"")], "is no plain file"),
        ([(f"{NAME}/weights.bin", FILE, b"x")], "is a pickle"),
        ([(f"{NAME}/a", FILE, b"x"), (f"{NAME}/a", FILE, b"y")], "is there twice"),
        ([(f"{NAME}/a", FILE, b"x"), ("plants-v2-0123abcd/a", FILE, b"y")], "is not in one adapter's folder"),
        ([("elsewhere/a", FILE, b"x")], "is not in one adapter's folder"),
        ([(f"{NAME}/deep/er/a", FILE, b"x")], "is not where an adapter has files"),
        ([("a", FILE, b"x")], "is not in one adapter's folder"),
        ([], "holds no files"),
        ([(f"{NAME}/README.md", FILE, b"x")], "has no preceptor.json"),
    ],
)
def test_a_harmful_archive_is_refused_and_leaves_nothing(
    members: list[tuple[str, bytes, bytes]], says: str, shop: Workshop, tmp_path: Path
) -> None:
    _tar(tmp_path / "bad.tar.gz", *members)
    with pytest.raises(InvalidInput, match=says):
        restore(shop, tmp_path / "bad.tar.gz")
    assert list(shop.settings.adapters_dir.iterdir()) == []
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("spoil", [lambda data: data[: len(data) // 2], lambda data: b"PK" + data, lambda data: b""])
def test_half_an_archive_and_what_is_none_are_refused(
    spoil: Callable[[bytes], bytes], settings: TrainerSettings, shop: Workshop, adapter: str, tmp_path: Path
) -> None:
    _export(settings, adapter, tmp_path / "a.tar.gz")
    (tmp_path / "a.tar.gz").write_bytes(spoil((tmp_path / "a.tar.gz").read_bytes()))
    shutil.rmtree(settings.adapters_dir / adapter)
    with pytest.raises(InvalidInput, match=r"no whole archive|holds no files"):
        restore(shop, tmp_path / "a.tar.gz")
    assert not [path for path in settings.adapters_dir.iterdir() if path.is_dir()]


def test_an_altered_file_in_an_archive_is_noticed(
    settings: TrainerSettings, shop: Workshop, adapter: str, tmp_path: Path
) -> None:
    _export(settings, adapter, tmp_path / "a.tar.gz")
    data = gzip.decompress((tmp_path / "a.tar.gz").read_bytes())
    spoilt = data.replace(b"library_name: peft", b"library_name: junk")
    assert spoilt != data
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(spoilt))
    shutil.rmtree(settings.adapters_dir / adapter)
    with pytest.raises(ManifestInvalid, match="altered"):
        restore(shop, tmp_path / "a.tar.gz")
    assert not [path for path in settings.adapters_dir.iterdir() if path.is_dir()]


def test_an_archive_larger_than_the_disk_is_refused(
    settings: TrainerSettings, shop: Workshop, adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _export(settings, adapter, tmp_path / "a.tar.gz")
    monkeypatch.setattr("preceptor_trainer.export.archives.shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(InvalidInput, match="are free"):
        restore(shop, tmp_path / "a.tar.gz")


def test_what_a_kill_left_unpacked_is_removed_a_day_later(
    settings: TrainerSettings, adapter: str, tmp_path: Path
) -> None:
    for name in (".unpacked-old", ".unpacked-new"):
        (tmp_path / name).mkdir()
    os.utime(tmp_path / ".unpacked-old", (0, 0))
    _export(settings, adapter, tmp_path / "a.tar.gz")
    assert [path.name for path in tmp_path.glob(".unpacked-*")] == [".unpacked-new"]


def test_what_cannot_be_read_is_told(shop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "folder.tar.gz").mkdir()
    with pytest.raises(PreceptorError, match="cannot be unpacked: Is a directory"):
        restore(shop, tmp_path / "folder.tar.gz")


def test_an_adapter_is_archived_and_comes_back_as_it_was(shop: Workshop, adapter: str) -> None:
    adapters = shop.settings.adapters_dir
    before = {path.name: path.read_bytes() for path in (adapters / adapter).iterdir() if path.is_file()}
    retired = _retire(shop, adapter)
    assert retired.path == adapters / ".archive" / f"{adapter}.tar.gz"
    assert not (adapters / adapter).exists()
    assert restore(shop, Path(adapter)).adapter == adapter
    verify_files(read_adapter(adapters / adapter))
    assert {path.name: path.read_bytes() for path in (adapters / adapter).iterdir() if path.is_file()} == before
    with pytest.raises(InvalidInput, match="nothing is overwritten"):
        restore(shop, Path(adapter))
    assert sorted(path.name for path in adapters.iterdir()) == [".archive", ".versions.json", adapter]


def test_what_serves_is_not_archived(shop: Workshop, gateway: FakeGateway, adapter: str) -> None:
    gateway.promoted = [{"adapter": adapter}]
    with pytest.raises(PreceptorError, match="is promoted; nothing was archived"):
        _retire(shop, adapter, unload=True)
    gateway.promoted = [{"adapter": adapter}, {"adapter": "plants-v2-00000000"}]
    with pytest.raises(PreceptorError, match="is needed"):
        _retire(shop, adapter)
    gateway.promoted = []
    gateway.pinned = {adapter}
    with pytest.raises(PreceptorError, match="is pinned") as caught:
        _retire(shop, adapter)
    assert "--unload" in caught.value.hint
    gateway.pinned, gateway.registered = set(), [adapter]
    with pytest.raises(PreceptorError, match="is loaded"):
        _retire(shop, adapter)
    assert (shop.settings.adapters_dir / adapter).is_dir()
    assert archives_in(shop.settings.adapters_dir) == []
    _retire(shop, adapter, unload=True)
    assert gateway.registered == []
    assert not (shop.settings.adapters_dir / adapter).exists()


def test_one_that_is_promoted_while_it_is_packed_stays(
    shop: Workshop, gateway: FakeGateway, adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def promoted_meanwhile(*args: object) -> ArchiveReport:
        gateway.promoted = [{"adapter": adapter}]
        return export_archive(*args)  # type: ignore[arg-type]  # passed through

    monkeypatch.setattr(retiring, "export_archive", promoted_meanwhile)
    with pytest.raises(PreceptorError, match="is promoted"):
        _retire(shop, adapter)
    assert (shop.settings.adapters_dir / adapter).is_dir()


def test_without_a_gateway_nothing_is_archived_unless_told(shop: Workshop, adapter: str) -> None:
    away = shop.settings.model_copy(update={"gateway_url": "http://127.0.0.1:9"})
    alone = shop._replace(settings=away, connect=Gateway.of)
    with pytest.raises(PreceptorError, match="nobody says whether") as caught:
        _retire(alone, adapter)
    assert "--without-gateway" in caught.value.hint
    assert (away.adapters_dir / adapter).is_dir()
    _retire(alone, adapter, without_gateway=True)
    assert not (away.adapters_dir / adapter).exists()


def test_a_kill_before_the_removal_is_taken_up_where_it_was(
    shop: Workshop, adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(folder: Path) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(retiring, "_remove", killed)
        with pytest.raises(Killed):
            _retire(shop, adapter)
    folder = shop.settings.adapters_dir / adapter
    assert folder.is_dir()
    retired = _retire(shop, adapter)
    assert retired.report is None
    assert len(archives_in(shop.settings.adapters_dir)) == 1
    assert not folder.exists()


def test_a_kill_during_the_removal_leaves_no_half_adapter(
    shop: Workshop, adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(folder: Path) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("preceptor_trainer.registry.retiring.shutil.rmtree", killed)
        with pytest.raises(Killed):
            retiring._remove(shop.settings.adapters_dir / adapter)
    names = [path.name for path in shop.settings.adapters_dir.iterdir() if path.is_dir()]
    assert names == [f".{adapter}.removed"]


def test_reports_that_came_after_a_restoring_get_a_further_archive(shop: Workshop, adapter: str) -> None:
    adapters = shop.settings.adapters_dir
    _retire(shop, adapter)
    restore(shop, Path(adapter))
    reports = adapters / adapter / "reports"
    report = next(reports.glob("*.json"))
    (reports / f"again-{report.name}").write_bytes(report.read_bytes())
    _retire(shop, adapter)
    assert [each.path.name for each in archives_in(adapters)] == [f"{adapter}.tar.gz", f"{adapter}.2.tar.gz"]
    restore(shop, Path(adapter))
    assert len(list(reports.glob("*.json"))) == 2


def test_the_commands_tell_and_exit_codes_hold(
    shop: Workshop,
    adapter: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(options, "open_shop", lambda: shop)
    assert cli.main(["export", adapter, "--archive", str(tmp_path / "a.tar.gz")]) == 0
    assert cli.main(["adapters", "archive", adapter]) == 0
    assert cli.main(["adapters", "archive", adapter]) == 2
    assert cli.main(["adapters", "restore", "plants-v7-00000000"]) == 2
    assert f"Archived: {adapter}." in capsys.readouterr().err
    assert cli.main(["adapters", "restore", str(tmp_path / "a.tar.gz")]) == 0
    assert cli.main(["adapters", "restore", adapter]) == 2
