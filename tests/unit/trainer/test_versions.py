from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from preceptor_contracts.errors import InvalidInput
from preceptor_trainer import pipeline
from preceptor_trainer.publish import Published
from preceptor_trainer.recipes import Overrides
from preceptor_trainer.registry.retiring import retire
from preceptor_trainer.registry.versions import LEDGER, archive_place, archives_in, claim_version
from preceptor_trainer.runs import Stage
from preceptor_trainer.stages import Workshop

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries


def _publish(shop: Workshop, recipe: str, seed: int) -> str:
    run = pipeline.start_run(shop, "plants", Overrides(recipe=recipe, seed=seed))
    pipeline.go_on(shop, run, last=Stage.PUBLISH)
    return run.result(Stage.PUBLISH, Published).adapter


def test_the_version_of_an_archived_adapter_is_not_given_again(shop: Workshop, adapter: str, recipe: str) -> None:
    assert adapter.startswith("plants-v1-")
    second = _publish(shop, recipe, 2)
    assert second.startswith("plants-v2-")
    retire(shop, second, unload=True, without_gateway=False)
    assert _publish(shop, recipe, 3).startswith("plants-v3-")


def test_nor_is_that_of_one_deleted_by_hand_or_whose_archive_was_moved_away(shop: Workshop, adapter: str) -> None:
    adapters = shop.settings.adapters_dir
    (adapters / LEDGER).unlink()  # as an older trainer left it
    retire(shop, adapter, unload=True, without_gateway=False)
    shutil.rmtree(adapters / ".archive")
    assert claim_version(adapters, "plants") == 2
    assert claim_version(adapters, "plants") == 3
    assert claim_version(adapters, "trees") == 1


def test_what_an_older_trainer_left_counts_without_a_ledger(tmp_path: Path) -> None:
    (tmp_path / "plants-v4-00000000").mkdir()
    (tmp_path / ".plants-v6-00000000.partial").mkdir()
    (tmp_path / ".archive").mkdir()
    (tmp_path / ".archive" / "plants-v7-00000000.2.tar.gz").touch()
    (tmp_path / ".archive" / "notes.tar.gz").touch()
    (tmp_path / "herbs-plants-v9-00000000").mkdir()
    assert claim_version(tmp_path, "plants") == 8
    assert claim_version(tmp_path, "herbs-plants") == 10


def test_two_publishers_at_once_get_different_versions(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(lambda at: claim_version(tmp_path, "plants"), range(40)))
    assert sorted(versions) == list(range(1, 41))


def test_an_unreadable_ledger_stops_publication_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / LEDGER).write_text('{"highest": {"plants": "many"}}', encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"highest\.plants"):
        claim_version(tmp_path, "plants")


def test_archives_are_found_newest_last(tmp_path: Path) -> None:
    (tmp_path / ".archive").mkdir()
    for number in range(1, 12):
        place = archive_place(tmp_path, "plants-v1-00000000")
        assert place.name == f"plants-v1-00000000{'' if number == 1 else f'.{number}'}.tar.gz"
        place.touch()
    assert [each.number for each in archives_in(tmp_path, "plants-v1-00000000")] == list(range(1, 12))
    assert archives_in(tmp_path, "plants-v2-00000000") == []
