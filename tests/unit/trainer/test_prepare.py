from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from preceptor_contracts.domains import find_domain
from preceptor_contracts.errors import InvalidInput
from preceptor_trainer import pipeline, stages
from preceptor_trainer.prepare.dataset import Dataset, Given, Prepared, prepare, read_exam, read_records, reload
from preceptor_trainer.prepare.report import Length, Reading
from preceptor_trainer.recipes import Overrides
from preceptor_trainer.runs import RunDir, Stage
from preceptor_trainer.stages import Workshop
from preceptor_trainer.tokens import load_tokenizer, tokenise, tokenise_many

from tests.unit.trainer.fixtures import TOPICS, write_jsonl, write_recipe

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries, on import
LEAK = f"which colour would {TOPICS[4]} show in picture 4"


def _rows(shop: Workshop) -> list[dict[str, Any]]:
    text = (shop.settings.domains_dir / "plants" / "train.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _write(shop: Workshop, rows: list[dict[str, Any]]) -> None:
    write_jsonl(shop.settings.domains_dir / "plants" / "train.jsonl", rows)


def _prepare(
    shop: Workshop, rows: list[dict[str, Any]], *, max_length: int = 256, reading: Reading | None = None
) -> tuple[Dataset, Prepared]:
    _write(shop, rows)
    folder = find_domain(shop.settings.domains_dir, "plants")
    given = Given(folder.domain, folder.train, read_exam(folder), Length(max_length, 0.2, 7), reading or Reading())
    work = shop.settings.domains_dir.parent / f"work{len(list(shop.settings.domains_dir.parent.glob('work*')))}"
    work.mkdir()
    return prepare(given, work, lambda: load_tokenizer(shop.settings.base_model)).accepted()


def _start(shop: Workshop, recipe: str, **reading: Any) -> RunDir:
    return pipeline.start_run(shop, "plants", Overrides(recipe=recipe), reading=Reading(**reading))


def test_bad_rows_are_all_named_with_line_and_field_and_nothing_is_written(shop: Workshop, recipe: str) -> None:
    rows = _rows(shop)
    del rows[1]["completion"]
    rows[3]["extra"] = 1
    _write(shop, rows)
    path = shop.settings.domains_dir / "plants" / "train.jsonl"
    path.write_text(path.read_text(encoding="utf-8") + "{not json\n", encoding="utf-8")
    with pytest.raises(InvalidInput) as caught:
        _start(shop, recipe)
    for part in ("line 2", "completion", "line 4", "extra", "line 11", "not valid JSON"):
        assert part in caught.value.message
    assert not shop.settings.runs_dir.exists()


def test_faults_of_different_sorts_are_told_together(shop: Workshop, recipe: str) -> None:
    rows = _rows(shop)
    rows[1]["id"] = "t0"
    rows[2]["prompt"] = LEAK
    rows += [{**rows[3], "id": "x", "completion": "mauve"}, {"kind": "prompt_completion"}]
    _write(shop, rows)
    with pytest.raises(InvalidInput) as caught:
        _start(shop, recipe)
    for part in ("line 12", "'t0' is used by 2 rows", "'t2' ~ 'e4'", "'t3' ~ 'x': 'white' / 'mauve'"):
        assert part in caught.value.message
    assert caught.value.code == "invalid_rows"


def test_of_very_many_bad_rows_some_are_shown_and_all_counted(shop: Workshop, recipe: str) -> None:
    _write(shop, [{"frage": "x"}] * 500)
    with pytest.raises(InvalidInput) as caught:
        _start(shop, recipe)
    assert "... and 490 more." in caught.value.message
    assert len(caught.value.message.splitlines()) == 11


def test_records_of_any_format_are_read_at_once_for_a_preview(tmp_path: Path) -> None:
    path = tmp_path / "team.csv"
    path.write_text("question;answer\nWhy?;So.\n;x\n", encoding="utf-8")
    with pytest.raises(InvalidInput, match="line 3: question: empty"):
        read_records(path)
    path.write_text("question;answer\nWhy?;So.\n", encoding="utf-8")
    assert [record.id for record in read_records(path)] == ["row-000002"]


def test_an_id_used_twice_is_refused(shop: Workshop) -> None:
    rows = _rows(shop)
    rows[1]["id"] = rows[0]["id"]
    with pytest.raises(InvalidInput, match="'t0' is used by 2 rows"):
        _prepare(shop, rows)


def test_a_line_that_stands_there_twice_is_a_duplicate_and_no_repeated_id(shop: Workshop) -> None:
    rows = _rows(shop)
    assert _prepare(shop, [*rows, rows[0]])[1].dataset.duplicates_removed == 1


def test_a_record_that_gives_an_exam_question_away_is_refused(shop: Workshop) -> None:
    rows = _rows(shop)
    rows[2]["prompt"] = LEAK
    with pytest.raises(InvalidInput) as caught:
        _prepare(shop, rows)
    assert caught.value.code == "exam_leak"
    assert f"'t2' ~ 'e4' (exact): {LEAK!r}" in caught.value.message


def test_an_exam_inside_the_training_file_is_refused_with_the_pairs(shop: Workshop, recipe: str) -> None:
    exam = (shop.settings.domains_dir / "plants" / "exam.jsonl").read_text(encoding="utf-8")
    rows = [{key: item for key, item in json.loads(line).items() if key != "group"} for line in exam.splitlines()]
    _write(shop, [*_rows(shop), *rows])
    with pytest.raises(InvalidInput) as caught:
        _start(shop, recipe)
    assert "24 training question(s) repeat an exam question" in caught.value.message
    assert "more pairs." in caught.value.message


def test_an_allowed_leak_is_written_into_the_runs_dataset(shop: Workshop, recipe: str) -> None:
    rows = _rows(shop)
    rows[2]["prompt"] = LEAK
    _write(shop, rows)
    leaks = _start(shop, recipe, allow_leak=True).spec.dataset.leaks
    assert leaks is not None
    assert (leaks.pairs, leaks.records, leaks.questions) == (2, 1, 2)
    assert (leaks.first[0].record, leaks.first[0].question, leaks.first[0].method) == ("t2", "e4", "exact")


def test_exact_duplicates_are_dropped_and_counted(shop: Workshop) -> None:
    rows = _rows(shop)
    copy = {**rows[0], "id": "copy", "prompt": "  " + rows[0]["prompt"].upper()}
    prepared = _prepare(shop, [*rows, copy])[1].dataset
    assert (prepared.records, prepared.duplicates_removed) == (10, 1)


def test_contradictions_are_refused_unless_allowed(shop: Workshop) -> None:
    rows = _rows(shop)
    rows.append({**rows[0], "id": "other", "completion": "mauve"})
    with pytest.raises(InvalidInput) as caught:
        _prepare(shop, rows)
    assert caught.value.code == "contradiction"
    assert "'t0' ~ 'other': 'red' / 'mauve'" in caught.value.message
    dataset = _prepare(shop, rows, reading=Reading(allow_contradictions=True))[1].dataset
    assert (dataset.records, dataset.contradictions) == (11, 1)


def test_a_record_longer_than_the_limit_is_named_with_its_length(shop: Workshop) -> None:
    rows = _rows(shop)
    rows[5]["completion"] = "red " * 200
    rows[6]["prompt"] = "tint " * 200
    with pytest.raises(InvalidInput) as caught:
        _prepare(shop, rows)
    assert caught.value.code == "record_too_long"
    for part in ("'t5' (", "20.0% of all", "1 would lose the whole answer", "up to 128: "):
        assert part in caught.value.message


def test_the_datasets_hash_does_not_depend_on_how_the_file_is_spelt(shop: Workshop) -> None:
    rows = _rows(shop)
    once = _prepare(shop, rows)[1].dataset
    again = _prepare(shop, [dict(reversed(row.items())) for row in rows])[1].dataset
    assert once == again
    changed = _prepare(shop, [{**rows[0], "completion": "teal"}, *rows[1:]])[1].dataset
    assert changed.sha256 != once.sha256


def test_an_exam_of_the_wrong_kind_is_refused(shop: Workshop) -> None:
    folder = shop.settings.domains_dir / "plants"
    question = {"id": "q", "kind": "sql", "topic": "x", "group": "g", "question": "how many", "query": "SELECT 1"}
    write_jsonl(folder / "exam.jsonl", [question])
    with pytest.raises(InvalidInput, match="grader is 'mcq'"):
        read_exam(find_domain(shop.settings.domains_dir, "plants"))


def test_a_run_keeps_dataset_report_and_token_ids_and_nothing_else(shop: Workshop, tmp_path: Path) -> None:
    recipe = str(write_recipe(tmp_path / "held.yaml", validation_share=0.2))
    rows = _rows(shop)
    rows[0]["prompt"] += " ask jane@plants.example"
    _write(shop, rows)
    run = _start(shop, recipe)
    inside = sorted(path.relative_to(run.path).as_posix() for path in run.path.rglob("*") if path.is_file())
    kept = ["report.json", "report.md", "tokens.i32", "tokens.json", "tokens.rows.npy"]
    assert inside == ["dataset.jsonl", "events.jsonl", *(f"preparation/{name}" for name in kept), "spec.json"]
    assert sorted(path.name for path in shop.settings.runs_dir.iterdir()) == [run.id]
    report = json.loads((run.path / "preparation/report.json").read_text(encoding="utf-8"))
    assert report["dataset_sha256"] == run.spec.dataset.sha256
    assert report["split"]["validation"] == {"colours": 2}
    assert report["private_data"] == {"e-mail address": 1}
    [warning] = run.events(Stage.PREPARE, "warning")
    assert "personal data (e-mail address: 1), first in line 1" in warning.text("message")
    page = (run.path / "preparation/report.md").read_text(encoding="utf-8")
    for part in ("| colours | 8 | 2 |", "e-mail address", "Lengths in tokens"):
        assert part in page
    assert "jane" not in page + json.dumps(report)


def test_a_dataset_is_opened_again_without_tokenising(
    shop: Workshop, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _start(shop, recipe)
    domain, tokenizer = stages.folder_of(shop, run).domain, load_tokenizer(shop.settings.base_model)
    path, sha = run.path / "dataset.jsonl", run.spec.dataset.sha256
    monkeypatch.setattr("preceptor_trainer.prepare.dataset.tokenise_many", lambda *_: pytest.fail("tokenised again"))
    dataset = reload(domain, path, tokenizer, expected_sha=sha)
    monkeypatch.undo()
    assert [example.record_id for example in dataset.tokenised] == [record.id for record in dataset.records]
    once = tokenise(tokenizer, dataset.examples[3], "t3")
    assert dataset.tokenised[3] == once == dataset.tokenised[-7] == dataset.tokenised[3:4][0]
    assert len(dataset.tokenised) == len(dataset.examples) == len(dataset.records[::1]) == 10
    with pytest.raises(IndexError):
        dataset.tokenised[10]


def test_token_ids_are_made_again_where_they_are_damaged_or_of_another_tokenizer(shop: Workshop, recipe: str) -> None:
    run = _start(shop, recipe)
    domain, tokenizer = stages.folder_of(shop, run).domain, load_tokenizer(shop.settings.base_model)
    path, sha, ids = run.path / "dataset.jsonl", run.spec.dataset.sha256, run.path / "preparation/tokens.i32"
    before, lengths = ids.read_bytes(), reload(domain, path, tokenizer, expected_sha=sha).lengths()
    ids.write_bytes(before[:-4] + b"\0\0\0\0")
    assert reload(domain, path, tokenizer, expected_sha=sha).lengths() == lengths
    assert ids.read_bytes() == before
    tokenizer.chat_template = str(tokenizer.chat_template).replace("\n", " ")
    assert reload(domain, path, tokenizer, expected_sha=sha).tokenised.shared > 0
    assert ids.read_bytes() != before


def test_an_altered_dataset_is_refused(shop: Workshop, recipe: str) -> None:
    run = _start(shop, recipe)
    path = run.path / "dataset.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("red", "rad"), encoding="utf-8")
    with pytest.raises(InvalidInput, match="was altered after its run was made"):
        stages.prepare(shop, run)


def test_only_answer_and_end_of_turn_are_trained_on(shop: Workshop, tiny_base: Path) -> None:
    dataset, _ = _prepare(shop, _rows(shop))
    tokenizer = load_tokenizer(str(tiny_base))
    first = dataset.tokenised[0]
    assert tokenizer.decode(first.answer_ids) == "red<|im_end|>"
    assert str(tokenizer.decode(first.prompt_ids)).endswith("<|im_start|>assistant\n")


def test_an_answer_that_ends_the_turn_itself_is_refused(shop: Workshop) -> None:
    rows = _rows(shop)
    rows[0]["completion"] = "red<|im_end|> and more"
    with pytest.raises(InvalidInput, match=r"'t0'.*ends a turn"):
        _prepare(shop, rows)


def test_a_template_that_changes_the_prompt_is_refused(shop: Workshop, tiny_base: Path) -> None:
    dataset, _ = _prepare(shop, _rows(shop))
    tokenizer = load_tokenizer(str(tiny_base))
    tokenizer.chat_template = "{{ messages | length }}" + str(tokenizer.chat_template)
    with pytest.raises(InvalidInput) as caught:
        tokenise(tokenizer, dataset.examples[0], "t0")
    assert caught.value.code == "prompt_not_prefix"


def test_a_template_that_refuses_one_conversation_leaves_the_others(shop: Workshop, tiny_base: Path) -> None:
    dataset, _ = _prepare(shop, _rows(shop))
    tokenizer = load_tokenizer(str(tiny_base))
    refusal = "{% if 'number 3' in messages[1]['content'] %}{{ raise_exception('no threes') }}{% endif %}"
    tokenizer.chat_template = refusal + str(tokenizer.chat_template)
    done = tokenise_many(tokenizer, [(example, f"t{at}") for at, example in enumerate(dataset.examples)])
    [refused] = [row for row in done if isinstance(row, InvalidInput)]
    assert "'t3': the chat template refuses its turns: no threes" in refused.message
    assert done[4] == dataset.tokenised[4]
