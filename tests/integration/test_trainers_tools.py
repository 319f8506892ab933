"""What the trainer asks of a served adapter beside its run: exams, perplexity, candidates, other forms of weights."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from preceptor_contracts.report import Report

from tests.integration.conftest import RealStack, only_adapter, trainer


@pytest.fixture(scope="module")
def adapter(real_stack: RealStack, short_run: subprocess.CompletedProcess[str]) -> str:
    assert short_run.returncode in (0, 3), short_run.stdout + short_run.stderr
    return only_adapter(real_stack, "sql")


def test_the_run_asked_the_guard_questions_of_both_sides(real_stack: RealStack, adapter: str) -> None:
    (path,) = (real_stack.adapters / adapter / "reports").glob("*.json")
    guard = Report.model_validate_json(path.read_text()).guard
    assert guard is not None
    assert guard.n >= 60
    # A base model that knows that Paris is in France is far above a quarter, or the questions do not reach it.
    assert guard.base.accuracy > 0.5
    assert (path.parent / "CARD.md").is_file()


def test_any_served_names_sit_an_exam_and_a_text_is_scored(real_stack: RealStack, adapter: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 20)
    served = ["--served", "sql:base", "--served", f"sql:{adapter}"]
    exam = trainer(real_stack, "exam", "sql", *served)
    assert exam.returncode == 0, exam.stderr
    assert "sql:base" in exam.stdout
    scored = trainer(real_stack, "perplexity", "sql", *served, "--text", str(text), "--window", "64", "--stride", "32")
    assert scored.returncode == 0, scored.stderr
    assert "bits a byte" in scored.stdout


def test_candidates_are_written_by_a_real_engine(real_stack: RealStack, tmp_path: Path) -> None:
    document = tmp_path / "document.md"
    document.write_text("The library opens at nine on weekdays. It is closed on Sundays. Books are kept a month.\n")
    real_stack.env.update(
        TRAINER_GENERATOR_URL=f"{real_stack.url}/v1",
        TRAINER_GENERATOR_NAME="base",
        TRAINER_GENERATOR_API_KEY="use-key-for-tests",
        TRAINER_GENERATED_DIR=str(tmp_path / "generated"),
    )
    asked = trainer(real_stack, "generate", "sql", "--documents", str(document), "--count", "1", "--max-tokens", "300")
    assert asked.returncode == 0, asked.stdout + asked.stderr
    line = json.loads((tmp_path / "generated/sql/candidates.jsonl").read_text().splitlines()[0])
    assert line["served"] == "base"
    assert line["answer_tokens"] > 0
    assert "use-key-for-tests" not in asked.stdout + asked.stderr


def test_weights_leave_in_every_form_and_come_back(real_stack: RealStack, adapter: str, tmp_path: Path) -> None:
    merged = trainer(real_stack, "merge", adapter, "--out", str(tmp_path / "merged"))
    assert merged.returncode == 0, merged.stderr
    assert (tmp_path / "merged/preceptor-base.json").is_file()
    gguf = trainer(real_stack, "export", adapter, "--gguf", "q8_0", "--out", str(tmp_path / "sql.gguf"))
    assert gguf.returncode == 0, gguf.stderr
    archive = tmp_path / "sql.tar.gz"
    packed = trainer(real_stack, "export", adapter, "--archive", str(archive))
    assert packed.returncode == 0, packed.stderr
    again = trainer(real_stack, "adapters", "restore", str(archive))
    assert again.returncode == 2
    assert adapter in again.stderr
    shown = trainer(real_stack, "adapters", "show", adapter)
    assert shown.returncode == 0, shown.stderr
    assert adapter in shown.stdout
