from __future__ import annotations

import io
import tomllib
from collections import Counter
from pathlib import Path

import httpx
import pytest
from preceptor_contracts.frozen import read_json
from preceptor_contracts.records import McqQuestion
from preceptor_contracts.report import Report, Verdict
from preceptor_trainer import pipeline
from preceptor_trainer.evaluate.exam import AnswerRow
from preceptor_trainer.evaluate.graders import Graded
from preceptor_trainer.evaluate.guard import GuardGrader, guard_file, judge_guard, read_guard
from preceptor_trainer.evaluate.sitting import Sitting
from preceptor_trainer.gateway import GatewayFailure
from preceptor_trainer.runs import RunDir, Stage
from preceptor_trainer.stages import Evaluated, ExamWishes, Promoted, Workshop
from preceptor_trainer.tokens import load_tokenizer

from tests.unit.trainer.fixtures import FakeGateway, published_run

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries
QUESTIONS = [question for question in read_guard() if isinstance(question, McqQuestion)]
RIGHT = {f"Question: {one.question}\nAnswer: {one.options[one.answer]}" for one in QUESTIONS}


@pytest.fixture
def run(shop: Workshop, gateway: FakeGateway, recipe: str) -> RunDir:
    return published_run(shop, gateway, recipe)


def _with(shop: Workshop, guard: str) -> Workshop:
    return shop._replace(settings=shop.settings.model_copy(update={"guard": guard}))


def _knows_all(served: str, text: str) -> float:
    return -0.5 if text in RIGHT else -1.5


def _base_knows(served: str, text: str) -> float:
    return _knows_all(served, text) if served == "plants:base" else -1.0


def test_the_shipped_questions_are_many_balanced_and_each_its_own() -> None:
    assert len(QUESTIONS) == len(read_guard()) >= 60
    assert {len(one.options) for one in QUESTIONS} == {4}
    positions = Counter(one.answer for one in QUESTIONS)
    assert max(positions.values()) - min(positions.values()) <= 1
    assert len({one.id for one in QUESTIONS}) == len({one.question for one in QUESTIONS}) == len(QUESTIONS)
    assert len({one.topic for one in QUESTIONS}) >= 5
    assert max(len(one.question) + max(map(len, one.options)) for one in QUESTIONS) < 100


def test_a_wheel_carries_them_where_the_package_looks() -> None:
    project = tomllib.loads((guard_file().parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert "guard" in wheel["only-include"]
    assert wheel["sources"]["guard"] == "preceptor_trainer/guard"


async def test_the_likeliest_option_by_mean_is_chosen_whatever_its_length(gateway: FakeGateway) -> None:
    question = McqQuestion(
        id="q", kind="mcq", topic="t", group="g", question="Which?", options=("no", "a far longer one"), answer=1
    )
    grader = GuardGrader(load_tokenizer(gateway.settings.base_model))
    gateway.likes = lambda served, text: -1.0 if text.endswith("longer one") else -1.1
    async with gateway.connect(gateway.settings) as client:
        graded = await grader.ask(client, "base", question)
    assert graded.correct
    assert gateway.asked == [("base", "/v1/completions")]


def _sitting(base: int, adapter: int, n: int = 64) -> Sitting:
    rows = []
    for side, right in (("base", base), ("adapter", adapter)):
        for at in range(n):
            graded = Graded(answer="A", expected="A", correct=at < right)
            rows.append(
                AnswerRow(question=f"g{at}", side=side, served=side, group="g", topic="t", seconds=0, graded=graded)
            )
    return Sitting(tuple(rows))


@pytest.mark.parametrize(
    ("base", "adapter", "forgot", "says"),
    [
        (60, 50, True, "The adapter forgot"),
        (60, 57, False, "shows no forgetting"),
        (50, 60, False, "shows no forgetting"),
        (18, 10, True, "forgot"),
        (18, 17, False, "could not show"),
    ],
)
def test_forgetting_is_said_when_the_loss_is_significant(base: int, adapter: int, forgot: bool, says: str) -> None:
    guard = judge_guard(_sitting(base, adapter), "0" * 64)
    assert guard.forgot is forgot
    assert says in guard.reason


def test_forgetting_is_told_and_blocks_nothing_unless_asked_to(
    shop: Workshop, run: RunDir, gateway: FakeGateway, output: io.StringIO
) -> None:
    gateway.likes = _base_knows
    pipeline.go_on(_with(shop, "warn"), run, last=Stage.PROMOTE)
    report = read_json(run.path / "report.json", Report)
    assert report.guard is not None
    assert (report.guard.base.correct, report.guard.adapter.correct) == (64, 16)
    assert report.guard.forgot
    assert report.verdict is Verdict.BETTER
    assert run.result(Stage.PROMOTE, Promoted).promoted
    assert "The adapter forgot: of 64 general questions it lost 48" in output.getvalue()
    assert "guard: general questions" in (run.path / "report.md").read_text(encoding="utf-8")


def test_forgetting_blocks_promotion_where_the_settings_say_so(
    shop: Workshop, run: RunDir, gateway: FakeGateway
) -> None:
    gateway.likes = _base_knows
    pipeline.go_on(_with(shop, "block"), run, last=Stage.PROMOTE)
    evaluated = run.result(Stage.EVALUATE, Evaluated)
    assert evaluated.verdict is Verdict.NOT_BETTER
    assert "TRAINER_GUARD=block" in evaluated.reason
    assert gateway.promoted == []


def test_an_adapter_that_forgot_nothing_passes_the_block(shop: Workshop, run: RunDir, gateway: FakeGateway) -> None:
    gateway.likes = _knows_all
    pipeline.go_on(_with(shop, "block"), run, last=Stage.PROMOTE)
    assert len(gateway.promoted) == 1


def test_guard_answers_are_kept_too(shop: Workshop, run: RunDir, gateway: FakeGateway) -> None:
    def breaks(served: str, text: str) -> float:
        if len(gateway.asked) > 100:
            raise KeyboardInterrupt
        return -1.0

    gateway.likes = breaks
    one_by_one = shop.settings.model_copy(update={"guard": "warn", "concurrency": 1})
    with pytest.raises(KeyboardInterrupt):
        pipeline.go_on(shop._replace(settings=one_by_one), run, last=Stage.EVALUATE)
    gateway.likes = lambda served, text: -1.0
    pipeline.go_on(_with(shop, "warn"), run, last=Stage.EVALUATE)
    assert len(gateway.asked) == 48 + 128 + 1


def test_an_engine_that_scores_no_prompts_costs_the_guard_and_not_the_exam(
    shop: Workshop, run: RunDir, gateway: FakeGateway, output: io.StringIO
) -> None:
    problem = {"error": {"message": "No logprobs here.", "type": "x", "code": "not_supported"}, "request_id": "1"}

    def refuse(count: int) -> httpx.Response | None:
        return httpx.Response(400, json=problem) if count > 48 else None

    gateway.refuse = refuse
    with pytest.raises(GatewayFailure):
        pipeline.go_on(_with(shop, "block"), run, last=Stage.EVALUATE)
    pipeline.go_on(_with(shop, "warn"), run, last=Stage.EVALUATE)
    assert read_json(run.path / "report.json", Report).guard is None
    assert "could not be asked: No logprobs here." in output.getvalue()


@pytest.mark.parametrize(
    ("setting", "option", "asks"), [("warn", False, False), ("off", True, True), ("off", None, False)]
)
def test_a_command_may_turn_it_on_or_off(
    shop: Workshop, run: RunDir, gateway: FakeGateway, setting: str, option: bool | None, asks: bool
) -> None:
    pipeline.go_on(_with(shop, setting)._replace(exam=ExamWishes(guard=option)), run, last=Stage.EVALUATE)
    assert (run.path / "guard.jsonl").is_file() is asks
    assert ("/v1/completions" in {path for _, path in gateway.asked}) is asks


def test_an_old_report_without_the_new_fields_is_still_read(tmp_path: Path) -> None:
    side = {"served": "plants:base", "correct": 1, "accuracy": 0.5, "ci95": [0.1, 0.9]}
    old = {
        **{"n": 2, "base": side, "adapter": side, "difference": 0.0, "mcnemar_p": 1.0},
        **{"schema_version": 1, "domain": "plants", "run_id": "r", "exam_sha": "0" * 64, "verdict": "too_few"},
        **{"reason": "x", "groups": {}, "topics": {}, "seconds": 1.0, "engine": "vLLM"},
        "calibration": [{"served": "plants:base", "ece": 0.1, "brier": 0.2}],
        "created_at": "2026-11-21T12:00:00Z",
    }
    report = Report.model_validate(old)
    assert report.guard is None
    assert report.others == ()
    assert report.calibration[0].bins == ()
