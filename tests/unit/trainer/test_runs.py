from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from preceptor_contracts.errors import InvalidInput, PreceptorError
from preceptor_contracts.frozen import Frozen
from preceptor_contracts.manifest import BaseModelIdentity, DatasetSummary
from preceptor_trainer.recipes import load_recipe
from preceptor_trainer.runs import RunDir, RunSpec, Stage, new_run_id

SHA = "0" * 64


class Found(Frozen):
    number: int


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    spec = RunSpec(
        run_id=new_run_id("plants"),
        domain="plants",
        prompt_sha=SHA,
        exam_sha=SHA,
        data="train.jsonl",
        dataset=DatasetSummary(sha256=SHA, records=1, tokens=1, topics={}, duplicates_removed=0),
        recipe=load_recipe("smollm2-135m-cpu"),
        base_model=BaseModelIdentity(id="x/y", revision=""),
        base_source="x/y",
        chat_template_sha=SHA,
        seed=7,
        device="cpu",
        device_name="a processor",
        threads=2,
        libraries={},
        git_rev=None,
        created_at=datetime.now(UTC),
    )
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    (prepared / "dataset.jsonl").write_text("{}\n", encoding="utf-8")
    return RunDir.create(tmp_path, spec, prepared)


def test_a_run_is_found_again_as_it_was_made(run: RunDir) -> None:
    assert RunDir.open(run.path.parent, run.id).spec == run.spec


def test_an_unknown_run_names_the_newest(run: RunDir) -> None:
    with pytest.raises(InvalidInput) as caught:
        RunDir.open(run.path.parent, "plants-none")
    assert run.id in caught.value.hint


@pytest.mark.parametrize("name", ["..", "", ".hidden", "a/b"])
def test_a_path_is_no_run(run: RunDir, name: str) -> None:
    with pytest.raises(InvalidInput):
        RunDir.open(run.path.parent, name)


def test_a_stage_is_done_when_its_event_says_so(run: RunDir) -> None:
    run.record(Stage.TRAIN, "started")
    assert not run.is_done(Stage.TRAIN)
    run.finish(Stage.TRAIN, Found(number=3))
    assert run.is_done(Stage.TRAIN)
    assert run.result(Stage.TRAIN, Found) == Found(number=3)


def test_the_newest_result_counts(run: RunDir) -> None:
    run.finish(Stage.EVALUATE, Found(number=1))
    run.finish(Stage.EVALUATE, Found(number=2))
    assert run.result(Stage.EVALUATE, Found).number == 2


def test_a_missing_result_says_how_to_get_it(run: RunDir) -> None:
    with pytest.raises(InvalidInput) as caught:
        run.result(Stage.PLAN, Found)
    assert f"resume {run.id}" in caught.value.hint


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_cut_by_a_kill_is_left_out_and_the_next_one_is_whole(run: RunDir, cut: int) -> None:
    run.finish(Stage.PLAN, Found(number=1))
    run.finish(Stage.TRAIN, Found(number=2))
    path = run.path / "events.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    # Losing only the line break loses nothing.
    assert run.is_done(Stage.TRAIN) is (cut == 1)
    assert run.is_done(Stage.PLAN)
    run.record(Stage.TRAIN, "started")
    assert [event.event for event in run.events()][-1] == "started"
    assert run.is_done(Stage.PLAN)


def test_a_run_appears_whole_or_not_at_all(run: RunDir) -> None:
    assert {path.name for path in run.path.iterdir()} == {"spec.json", "dataset.jsonl"}
    (run.path.parent / ".half.partial").mkdir()
    with pytest.raises(InvalidInput):
        RunDir.open(run.path.parent, ".half.partial")


def test_two_processes_cannot_work_on_one_run(run: RunDir) -> None:
    with run.exclusive(), pytest.raises(PreceptorError) as caught, run.exclusive():
        pass
    assert caught.value.code == "run_busy"
    with run.exclusive():
        pass
