from __future__ import annotations

import shutil
from typing import Any

import pytest
import yaml
from preceptor_contracts.manifest import AdapterFolder, LeakedPair, LeakSummary, read_adapter, verify_files
from preceptor_contracts.report import Comparison, Guard, Verdict
from preceptor_trainer.registry.model_card import (
    ADAPTER,
    CARD,
    MERGED,
    card_of,
    keep_card,
    model_card,
    read_reports,
)
from preceptor_trainer.settings import TrainerSettings

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries


@pytest.fixture
def folder(settings: TrainerSettings, adapter: str) -> AdapterFolder:
    return read_adapter(settings.adapters_dir / adapter)


def _front(card: str) -> Any:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_at_publication_knows_no_exam_and_is_hashed(folder: AdapterFolder) -> None:
    text = (folder.path / "README.md").read_text(encoding="utf-8")
    assert "README.md" in folder.manifest.files
    verify_files(folder)
    front = _front(text)
    assert front["base_model"] == "tiny-llama"
    assert front["library_name"] == "peft"
    assert "model-index" not in front
    assert "do not use it before its exam" in text
    assert folder.manifest.dataset.sha256 in text
    assert folder.manifest.files["adapter_model.safetensors"] in text
    assert "Name the colour." in text


def test_the_card_after_the_exam_tells_it_and_leaves_the_hashes_alone(folder: AdapterFolder) -> None:
    text = (folder.path / "reports" / CARD).read_text(encoding="utf-8")
    verify_files(folder)
    report = read_reports(folder)[-1]
    result = _front(text)["model-index"][0]["results"][0]
    assert result["metrics"][0]["value"] == report.adapter.accuracy == 1.0
    assert result["dataset"]["revision"] == report.exam_sha
    assert f"| all | {report.n} |" in text
    assert "| group trained |" in text
    assert "Verdict: **better**" in text
    assert "So few questions leave a wide interval." in text
    assert "McNemar's p" in text


def test_an_adapter_that_is_not_better_says_so(folder: AdapterFolder) -> None:
    report = read_reports(folder)[-1].model_copy(update={"verdict": Verdict.NOT_BETTER})
    text = model_card(folder.manifest, None, (report,), ADAPTER)
    assert "It was **not** shown to be better than its base model." in text


def test_merged_weights_are_not_said_to_have_sat_the_exam(settings: TrainerSettings, folder: AdapterFolder) -> None:
    text = card_of(settings, folder, MERGED._replace(name="m", precision="bfloat16"))
    assert "These weights were compared with it on one prompt" in text
    assert "in bfloat16" in text
    assert "These weights" not in card_of(settings, folder, ADAPTER)


def test_several_exams_are_all_owned_up_to(settings: TrainerSettings, folder: AdapterFolder) -> None:
    first = next((folder.path / "reports").glob("*.json"))
    (first.parent / "second.json").write_bytes(first.read_bytes())
    (first.parent / "broken.json").write_text("{", encoding="utf-8")
    keep_card(settings, folder.path.name)
    assert "2 exams were sat" in (folder.path / "reports" / CARD).read_text(encoding="utf-8")


def test_without_its_domain_the_card_is_written_from_the_manifest(
    settings: TrainerSettings, folder: AdapterFolder
) -> None:
    shutil.rmtree(settings.domains_dir)
    text = card_of(settings, folder, ADAPTER)
    assert "A specialist for domain `plants`." in text
    assert "````text\nName the colour.\n````" in text


def test_a_prompt_that_was_changed_since_is_not_told_as_the_trained_one(
    settings: TrainerSettings, folder: AdapterFolder
) -> None:
    path = settings.domains_dir / "plants" / "domain.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("Name the colour", "Say it"), encoding="utf-8")
    text = card_of(settings, folder, ADAPTER)
    assert "Name the colour." in text
    assert "Say it" not in text


def test_a_domains_disclaimer_is_among_the_limits(settings: TrainerSettings, folder: AdapterFolder) -> None:
    path = settings.domains_dir / "plants" / "domain.yaml"
    path.write_text(path.read_text(encoding="utf-8") + "disclaimer: Do not eat them.\n", encoding="utf-8")
    text = card_of(settings, folder, ADAPTER)
    assert "> Do not eat them." in text
    assert "- Do not eat them." in text


def test_a_topic_cannot_break_the_table_or_the_front_matter(folder: AdapterFolder) -> None:
    dataset = folder.manifest.dataset.model_copy(update={"topics": {"a | b\n---\nc: d": 3}})
    text = model_card(folder.manifest.model_copy(update={"dataset": dataset}), None, (), ADAPTER)
    row = next(line for line in text.splitlines() if line.startswith("| topics |"))
    assert row == "| topics | a &#124; b --- c: d (3) |"
    assert _front(text)["tags"] == ["lora", "preceptor", "plants"]


def test_leaks_that_were_allowed_stand_in_the_card(folder: AdapterFolder) -> None:
    pair = LeakedPair(record="t1", question="e1", method="exact", share=1.0)
    leaks = LeakSummary(pairs=1, records=1, questions=1, first=(pair,))
    dataset = folder.manifest.dataset.model_copy(update={"leaks": leaks, "contradictions": 2})
    text = model_card(folder.manifest.model_copy(update={"dataset": dataset}), None, [], ADAPTER)
    assert "**1 exam questions were trained on** (1 records; `t1` ~ `e1`)" in text
    assert "measures memory besides skill" in text
    assert "| contradictions kept | 2 |" in text


def test_forgetting_stands_in_the_card(folder: AdapterFolder) -> None:
    report = read_reports(folder)[-1]
    scores = dict(Comparison.model_validate(report.model_dump(include=set(Comparison.model_fields))))
    guard = Guard(**scores, guard_sha="0" * 64, forgot=True, reason="It forgot the capital of France.")
    text = model_card(folder.manifest, None, [report.model_copy(update={"guard": guard})], ADAPTER)
    assert "It forgot the capital of France." in text
    assert "worse than its base model at general questions" in text
