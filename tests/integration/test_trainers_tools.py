"""What the trainer asks of a served adapter beside its run: exams, perplexity, candidates, other forms of weights."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from preceptor_contracts.report import Report
from preceptor_trainer.evaluate.standings import Standings

from tests.integration.conftest import EXAM_QUESTIONS, TRAINER, RealStack, only_adapter, running_gateway, trainer


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


def test_adapters_are_compared_on_exact_answers_and_by_a_judge(
    real_stack: RealStack, adapter: str, tmp_path: Path
) -> None:
    plain = {"group": "g", "topic": "t"}
    rows: list[dict[str, object]] = [
        {**plain, "id": f"x{at}", "kind": "exact", "question": f"How many books of shelf {at}?", "answer": "None"}
        for at in range(3)
    ]
    rows += [{**plain, "id": f"j{at}", "kind": "judge", "question": f"What is shelf {at} for?"} for at in range(3)]
    exam, out = tmp_path / "exam.jsonl", tmp_path / "out"
    exam.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # The trainer's own copy of the domain: its grader is no part of what the gateway renders.
    domains = tmp_path / "domains"
    shutil.copytree(real_stack.domains / "sql", domains / "sql")
    described = domains / "sql/domain.yaml"
    described.write_text(described.read_text().replace("grader: sql", "grader: mixed"))
    wanted = {
        "DOMAINS_DIR": str(domains),
        "TRAINER_JUDGE_URL": f"{real_stack.url}/v1",
        "TRAINER_JUDGE_NAME": "base",
        "TRAINER_JUDGE_API_KEY": "use-key-for-tests",
    }
    stack = replace(real_stack, env={**real_stack.env, **wanted})
    compared = trainer(stack, "compare", adapter, "--exam", str(exam), "--out", str(out))
    assert compared.returncode == 0, compared.stdout + compared.stderr
    found = Standings.model_validate_json((out / "standings.json").read_text())
    assert found.judging is not None
    # A small base model is a poor judge; that its verdicts are read and both orders asked about is what shows here.
    assert (found.judging.judge, found.judging.comparisons, found.judging.unreadable) == ("base", 3, 0)
    answers = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 12
    right = {one["side"]: 0 for one in answers}
    for one in answers:
        right[one["side"]] += one["graded"]["correct"]
    assert [entry.side.correct for entry in found.entries] == list(right.values())


def test_an_exam_waits_for_a_gateway_that_is_killed_and_asks_nothing_twice(
    real_stack: RealStack, adapter: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [TRAINER, "exam", "sql", "--served", "sql:base", "--served", f"sql:{adapter}", "--out", str(out)]
    with running_gateway(tmp_path / "gateway", real_stack.env, [real_stack.engine]) as own:
        env = {**os.environ, **own.env, "TRAINER_GATEWAY_PATIENCE_S": "120"}
        exam = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            asked = _wait_for_answers(out / "answers.jsonl", 5)
            own.gateway.end(signal.SIGKILL)
            time.sleep(3)
            assert exam.poll() is None
            own.gateway.start()
            own.gateway.wait_for(f"{own.url}/health", 60)
            told, _ = exam.communicate(timeout=200)
        finally:
            exam.kill()
    assert exam.returncode == 0, told
    assert "answers so far are kept" in told
    assert "The gateway answers again" in told
    lines = (out / "answers.jsonl").read_text().splitlines()
    assert lines[: len(asked)] == asked
    answered = [(row["side"], row["question"]) for row in map(json.loads, lines)]
    assert len(answered) == len(set(answered)) == 2 * EXAM_QUESTIONS


def _wait_for_answers(path: Path, count: int) -> list[str]:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if path.is_file() and len(found := path.read_text().splitlines()[:-1]) >= count:
            return found
        time.sleep(0.05)
    raise AssertionError(f"There were no {count} answers in {path}.")


def test_candidates_are_written_by_a_real_engine(real_stack: RealStack, tmp_path: Path) -> None:
    document = tmp_path / "document.md"
    document.write_text("The library opens at nine on weekdays. It is closed on Sundays. Books are kept a month.\n")
    wanted = {
        "TRAINER_GENERATOR_URL": f"{real_stack.url}/v1",
        "TRAINER_GENERATOR_NAME": "base",
        "TRAINER_GENERATOR_API_KEY": "use-key-for-tests",
        "TRAINER_GENERATED_DIR": str(tmp_path / "generated"),
    }
    stack = replace(real_stack, env={**real_stack.env, **wanted})
    asked = trainer(stack, "generate", "sql", "--documents", str(document), "--count", "1", "--max-tokens", "300")
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
