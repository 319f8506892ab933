from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from preceptor_contracts.domains import find_domain
from preceptor_contracts.errors import InvalidInput
from preceptor_trainer import pipeline
from preceptor_trainer.prepare.dataset import Dataset, prepare, read_exam, read_records
from preceptor_trainer.recipes import Overrides
from preceptor_trainer.stages import Workshop
from preceptor_trainer.tokens import load_tokenizer, tokenise

from tests.unit.trainer.fixtures import TOPICS, write_jsonl

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries, on import


def _rows(shop: Workshop) -> list[dict[str, Any]]:
    text = (shop.settings.domains_dir / "plants" / "train.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _prepare(shop: Workshop, rows: list[dict[str, Any]], *, max_length: int = 256) -> Dataset:
    path = shop.settings.domains_dir / "plants" / "train.jsonl"
    write_jsonl(path, rows)
    folder = find_domain(shop.settings.domains_dir, "plants")
    tokenizer = load_tokenizer(shop.settings.base_model)
    return prepare(folder.domain, read_records(path), read_exam(folder), tokenizer, max_length=max_length)


def test_bad_rows_are_all_named_with_line_and_field_and_nothing_is_written(shop: Workshop, recipe: str) -> None:
    rows = _rows(shop)
    del rows[1]["completion"]
    rows[3]["extra"] = 1
    path = shop.settings.domains_dir / "plants" / "train.jsonl"
    write_jsonl(path, rows)
    path.write_text(path.read_text(encoding="utf-8") + "{not json\n", encoding="utf-8")
    with pytest.raises(InvalidInput) as caught:
        pipeline.start_run(shop, "plants", Overrides(recipe=recipe))
    for part in ("line 2", "completion", "line 4", "extra", "line 11", "not valid JSON"):
        assert part in caught.value.message
    assert not shop.settings.runs_dir.exists()


def test_an_id_used_twice_is_refused(shop: Workshop) -> None:
    rows = _rows(shop)
    rows[1]["id"] = rows[0]["id"]
    with pytest.raises(InvalidInput, match="'t0' is used by 2 rows"):
        _prepare(shop, rows)


def test_a_record_that_gives_an_exam_question_away_is_refused(shop: Workshop) -> None:
    rows = _rows(shop)
    rows[2]["prompt"] = f"which colour would {TOPICS[4]} show in picture 4"
    with pytest.raises(InvalidInput) as caught:
        _prepare(shop, rows)
    assert caught.value.code == "exam_leak"
    assert "'t2' ~ 'e4'" in caught.value.message


def test_exact_duplicates_are_dropped_and_counted(shop: Workshop) -> None:
    rows = _rows(shop)
    copy = {**rows[0], "id": "copy", "prompt": "  " + rows[0]["prompt"].upper()}
    other_answer = {**rows[0], "id": "other", "completion": "mauve"}
    prepared = _prepare(shop, [*rows, copy, other_answer]).summary().dataset
    assert (prepared.records, prepared.duplicates_removed) == (11, 1)


def test_a_record_longer_than_the_limit_is_named_with_its_length(shop: Workshop) -> None:
    rows = _rows(shop)
    rows[5]["completion"] = "red " * 200
    with pytest.raises(InvalidInput) as caught:
        _prepare(shop, rows)
    assert caught.value.code == "record_too_long"
    assert "'t5' (" in caught.value.message


def test_the_datasets_hash_does_not_depend_on_how_the_file_is_spelt(shop: Workshop) -> None:
    rows = _rows(shop)
    once = _prepare(shop, rows).summary().dataset
    again = _prepare(shop, [dict(reversed(row.items())) for row in rows]).summary().dataset
    assert once == again
    changed = _prepare(shop, [{**rows[0], "completion": "teal"}, *rows[1:]]).summary().dataset
    assert changed.sha256 != once.sha256


def test_an_exam_of_the_wrong_kind_is_refused(shop: Workshop) -> None:
    folder = shop.settings.domains_dir / "plants"
    question = {"id": "q", "kind": "sql", "topic": "x", "group": "g", "question": "how many", "query": "SELECT 1"}
    write_jsonl(folder / "exam.jsonl", [question])
    with pytest.raises(InvalidInput, match="grader is 'mcq'"):
        read_exam(find_domain(shop.settings.domains_dir, "plants"))


def test_only_answer_and_end_of_turn_are_trained_on(shop: Workshop, tiny_base: Path) -> None:
    dataset = _prepare(shop, _rows(shop))
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
    dataset = _prepare(shop, _rows(shop))
    tokenizer = load_tokenizer(str(tiny_base))
    tokenizer.chat_template = "{{ messages | length }}" + str(tokenizer.chat_template)
    with pytest.raises(InvalidInput) as caught:
        tokenise(tokenizer, dataset.examples[0], "t0")
    assert caught.value.code == "prompt_not_prefix"
