"""The trainer's exam through the real gateway: what its client asks is what the gateway answers."""

from __future__ import annotations

from pathlib import Path

import pytest
from preceptor_contracts.errors import PreceptorError
from preceptor_contracts.records import McqQuestion
from preceptor_trainer.evaluate.exam import AnswerRow, Basis, Sheet, examine
from preceptor_trainer.evaluate.graders import McqGrader
from preceptor_trainer.evaluate.patience import Patience, require_served
from preceptor_trainer.gateway import Gateway

from tests.unit.gateway.conftest import V1, Stack

QUESTIONS = [
    McqQuestion(id=f"q{at}", kind="mcq", topic="t", group="g", question=f"Which {at}?", options=("a", "b"), answer=0)
    for at in range(12)
]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preceptor_trainer.evaluate.patience.PAUSE_S", 0.05)
    monkeypatch.setattr("preceptor_trainer.gateway._LONGEST_WAIT_S", 0.05)


def _sheet(stack: Stack, tmp_path: Path) -> Sheet:
    return Sheet(tmp_path / "answers.jsonl", Basis(("0" * 64,), stack.domain, "fake", "base"), goes_on=True)


async def test_raw_prompts_are_scored_by_base_and_adapter_without_the_domains_prompt(stack: Stack) -> None:
    stack.add(V1)
    stack.load(V1)
    prompts = [[5, 6, 7], [5, 6, 8, 9]]
    async with Gateway(stack.url, "admin-key") as gateway:
        base = await gateway.score("clinic:base", prompts)
        adapter = await gateway.score(f"clinic:{V1}", prompts)
    assert [len(one) for one in base] == [2, 3]
    assert base != adapter
    assert stack.sent("/v1/completions")["prompt"] == prompts


async def test_an_adapter_that_is_not_loaded_is_loaded_and_one_that_does_not_exist_is_told(stack: Stack) -> None:
    stack.add(V1)
    async with Gateway(stack.url, "admin-key") as gateway:
        patience = Patience(gateway, 5, print, go_on="")
        assert (await patience.health()).engine != "down"
        await require_served(patience, ["clinic:base", f"clinic:{V1}"])
        assert f"clinic:{V1}" in await gateway.served_names()
        for name in ("clinic", "clinic:clinic-v9-99999999", "plants:base"):
            with pytest.raises(PreceptorError):
                await require_served(patience, [name])


async def test_an_exam_goes_on_after_the_engine_died_and_its_adapter_was_unloaded(stack: Stack, tmp_path: Path) -> None:
    stack.add(V1)
    stack.load(V1)
    said: list[str] = []

    def tick(done: int) -> None:
        if done == 6:
            stack.hosts[0].kill()
            stack.hosts[0].start()
        if done == 18:
            stack.admin.delete(f"/v1/adapters/{V1}").raise_for_status()

    async with Gateway(stack.url, "admin-key") as gateway:
        rows: list[AnswerRow] = await examine(
            Patience(gateway, 30, said.append, go_on=""),
            McqGrader(),
            QUESTIONS,
            {"base": "clinic:base", "adapter": f"clinic:{V1}"},
            _sheet(stack, tmp_path),
            concurrency=2,
            tick=tick,
        )
    assert [row.question for row in rows if row.side == "adapter"] == [question.id for question in QUESTIONS]
    assert any("was unloaded during the exam" in line for line in said)
    assert len((tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()) == 24
