"""The README's first command, and what a person then does in the browser. Needs Chromium."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect
from preceptor_contracts.report import Report, Verdict

from tests.browser import ANSWER_LIMIT_MS, opened_page
from tests.e2e.conftest import Demo, start_demo


@pytest.fixture
def page(demo: Demo) -> Iterator[Page]:
    with opened_page(demo.page) as one:
        yield one


def test_the_story_prints_the_table_and_the_adapter_is_better(demo: Demo) -> None:
    text = demo.text()
    report = Report.model_validate_json(next(demo.root.glob("runs/*/report.json")).read_text())
    assert report.verdict is Verdict.BETTER
    assert report.n >= 100
    assert report.mcnemar_p < 0.01
    assert f"n = {report.n}" in text
    assert f"{report.adapter.accuracy:.3f}" in text
    assert re.search(r"tokens/s", text)
    assert re.search(r"Hot load to first token \d+\.\d\d s; promote \d+ ms; rollback \d+ ms;", text)
    assert re.search(r"\d+ requests to 'sql' meanwhile, 0 failed\.", text)
    assert "Asked over REST: How many patients live in Leeds?" in text


def test_the_promoted_adapter_answers_over_rest(demo: Demo) -> None:
    headers = {"authorization": f"Bearer {demo.env['GATEWAY_API_KEY']}"}
    with httpx.Client(base_url=demo.gateway, headers=headers, timeout=60) as client:
        assert "sql" in [card["id"] for card in client.get("/v1/models").json()["data"]]
        body = {
            "model": "sql",
            "temperature": 0,
            "messages": [{"role": "user", "content": "How many patients live in Leeds?"}],
        }
        answer = client.post("/v1/chat/completions", json=body).raise_for_status()
        assert answer.json()["choices"][0]["message"]["content"].startswith("SELECT COUNT(*) FROM patients")


def test_chat_page_streams_an_answer_of_the_specialist(page: Page) -> None:
    page.get_by_role("tab", name="Chat").click()
    expect(page.locator("#chat-about")).to_contain_text("Clinic SQL")
    page.get_by_role("textbox", name="Your question").fill("How many patients live in Leeds?")
    page.locator("#chat-send").click()
    expect(page.locator("[data-testid=bot]").last).to_contain_text("SELECT", timeout=ANSWER_LIMIT_MS)


def test_multiple_choice_page_shows_a_bar_per_option(page: Page) -> None:
    page.get_by_role("tab", name="Multiple choice").click()
    page.locator("#mcq-question textarea, #mcq-question input").first.fill("Which medicine comes first in anaphylaxis?")
    page.locator("#mcq-options textarea").fill("Adrenaline injection.\nA glass of milk.\nBed rest.")
    page.locator("#mcq-answer").click()
    result = page.locator("#mcq-result")
    expect(result.get_by_role("listitem")).to_have_count(3, timeout=ANSWER_LIMIT_MS)
    expect(result).to_contain_text("%")


def test_bad_multiple_choice_is_told_in_a_sentence(page: Page) -> None:
    page.get_by_role("tab", name="Multiple choice").click()
    page.locator("#mcq-question textarea, #mcq-question input").first.fill("Which?")
    page.locator("#mcq-options textarea").fill("A) one\nA) two")
    page.locator("#mcq-answer").click()
    expect(page.locator("#mcq-problem")).to_contain_text("label 'A' is used by 2 choices.", timeout=ANSWER_LIMIT_MS)


def test_ctrl_c_ends_everything_that_the_demo_started(demo: Demo) -> None:
    # A terminal sends Ctrl-C to the whole foreground group.
    os.killpg(demo.child.pid, signal.SIGINT)
    demo.child.wait(60)
    assert demo.members() == []


def test_once_ends_with_the_storys_exit_code(tmp_path: Path) -> None:
    """A short training may or may not be better; the exit code says which, and nothing is left."""
    demo = start_demo(tmp_path, ONCE="1", DEMO_TRAINER_ARGUMENTS="--max-steps 8 --no-promote")
    try:
        demo.child.wait(1500)
        report = Report.model_validate_json(next(tmp_path.glob("runs/*/report.json")).read_text())
        # Of a recipe that failed make itself says 2, whatever the recipe said.
        assert demo.child.returncode == (0 if report.verdict is Verdict.BETTER else 2), demo.text()[-3000:]
        assert "The story took" in demo.text()
        assert demo.members() == []
    finally:
        demo.kill()
