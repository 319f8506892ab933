from __future__ import annotations

import io
from collections import Counter

import httpx
import pytest
from preceptor_contracts.errors import InvalidInput, PreceptorError
from preceptor_trainer import pipeline
from preceptor_trainer.evaluate.exam import AnswerRow
from preceptor_trainer.gateway import Gateway, GatewayDown
from preceptor_trainer.publish import Published
from preceptor_trainer.runs import RunDir, Stage
from preceptor_trainer.stages import Evaluated, ExamWishes, Workshop

from tests.unit.trainer.fixtures import FakeGateway, published_run

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries
SEATS = 48


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the trainer may catch it."""


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preceptor_trainer.evaluate.patience.PAUSE_S", 0.0)


@pytest.fixture
def run(shop: Workshop, gateway: FakeGateway, recipe: str) -> RunDir:
    return published_run(shop, gateway, recipe)


def _impatient(shop: Workshop) -> Workshop:
    return shop._replace(settings=shop.settings.model_copy(update={"gateway_patience_s": 0.0, "concurrency": 1}))


def _busy() -> httpx.Response:
    problem = {"message": "No engine answers.", "type": "x", "code": "engine_down"}
    return httpx.Response(503, json={"error": problem, "request_id": "1"}, headers={"retry-after": "0"})


def _rows(run: RunDir) -> list[AnswerRow]:
    return [AnswerRow.model_validate_json(line) for line in (run.path / "answers.jsonl").read_bytes().splitlines()]


def _breaks_at(gateway: FakeGateway, seat: int) -> None:
    def refuse(count: int) -> httpx.Response | None:
        if count >= seat:
            raise httpx.ConnectError("refused")
        return None

    gateway.refuse = refuse


@pytest.mark.parametrize("kind", ["gone", "without engine"])
def test_an_exam_waits_for_a_gateway_that_left_and_asks_nothing_twice(
    shop: Workshop, run: RunDir, gateway: FakeGateway, output: io.StringIO, kind: str
) -> None:
    refusals = iter(range(60))

    def refuse(count: int) -> httpx.Response | None:
        if count == 10 and next(refusals, None) is not None:
            if kind == "gone":
                raise httpx.ConnectError("refused")
            return _busy()
        return None

    gateway.refuse = refuse
    pipeline.go_on(shop, run, last=Stage.EVALUATE)
    assert len(gateway.asked) == SEATS
    said = output.getvalue()
    assert "answers so far are kept" in said
    assert "The gateway answers again" in said


def test_an_engine_that_is_still_starting_is_waited_for(shop: Workshop, run: RunDir, gateway: FakeGateway) -> None:
    looks = []

    def connect(settings: object) -> object:
        client = FakeGateway.connect(gateway, shop.settings)
        before = client.health

        async def health() -> object:
            looks.append(1)
            gateway.engine = "down" if len(looks) < 4 else "fake 1"
            return await before()

        client.health = health  # type: ignore[method-assign,assignment]
        return client

    pipeline.go_on(shop._replace(connect=connect), run, last=Stage.EVALUATE)  # type: ignore[arg-type]
    assert len(looks) == 4
    assert run.is_done(Stage.EVALUATE)


def test_a_wait_that_is_too_long_ends_the_run_with_its_answers_kept(
    shop: Workshop, run: RunDir, gateway: FakeGateway
) -> None:
    _breaks_at(gateway, 11)
    with pytest.raises(PreceptorError) as caught:
        pipeline.go_on(_impatient(shop), run, last=Stage.PROMOTE)
    assert not isinstance(caught.value, InvalidInput)
    assert caught.value.code == "gateway_away"
    assert f"preceptor-trainer resume {run.id}" in caught.value.hint
    assert len(_rows(run)) == 10
    gateway.refuse = lambda count: None
    pipeline.go_on(shop, RunDir.open(shop.settings.runs_dir, run.id), last=Stage.PROMOTE)
    assert len(gateway.asked) == SEATS
    assert len(_rows(run)) == SEATS
    assert len(gateway.promoted) == 1


def test_an_exam_killed_in_the_middle_of_a_line_goes_on_after_the_last_whole_one(
    shop: Workshop, run: RunDir, gateway: FakeGateway
) -> None:
    def refuse(count: int) -> httpx.Response | None:
        if count == 11:
            raise Killed
        return None

    gateway.refuse = refuse
    with pytest.raises(Killed):
        pipeline.go_on(_impatient(shop), run, last=Stage.EVALUATE)
    path = run.path / "answers.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    gateway.refuse = lambda count: None
    pipeline.go_on(shop, run, last=Stage.EVALUATE)
    assert len(gateway.asked) == SEATS + 1
    seats = Counter((row.side, row.question) for row in _rows(run))
    assert len(seats) == SEATS
    assert set(seats.values()) == {1}


def test_answers_of_another_engine_are_not_mixed_in(shop: Workshop, run: RunDir, gateway: FakeGateway) -> None:
    _breaks_at(gateway, 11)
    with pytest.raises(PreceptorError):
        pipeline.go_on(_impatient(shop), run, last=Stage.EVALUATE)
    gateway.refuse, gateway.engine = lambda count: None, "fake 2"
    pipeline.go_on(shop, run, last=Stage.EVALUATE)
    assert len(gateway.asked) == SEATS + 10


def test_an_exam_that_was_finished_is_sat_anew(shop: Workshop, run: RunDir, gateway: FakeGateway) -> None:
    pipeline.go_on(shop, run, last=Stage.EVALUATE)
    first = run.result(Stage.EVALUATE, Evaluated).report
    pipeline.redo(shop, run, Stage.EVALUATE)
    assert len(gateway.asked) == 2 * SEATS
    assert run.result(Stage.EVALUATE, Evaluated).report == first.replace(".json", "-2.json")


def test_a_sitting_that_failed_before_anybody_was_asked_passes_no_old_answers_on(
    shop: Workshop, run: RunDir, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(gateway: Gateway) -> None:
        raise GatewayDown("It is away.")

    pipeline.go_on(shop, run, last=Stage.EVALUATE)
    with monkeypatch.context() as patch:
        patch.setattr(Gateway, "health", away)
        with pytest.raises(PreceptorError):
            pipeline.redo(_impatient(shop), run, Stage.EVALUATE)
    pipeline.redo(shop, run, Stage.EVALUATE)
    assert len(gateway.asked) == 2 * SEATS


def test_an_adapter_unloaded_in_the_middle_is_loaded_again(
    shop: Workshop, run: RunDir, gateway: FakeGateway, output: io.StringIO
) -> None:
    name = run.result(Stage.PUBLISH, Published).adapter
    unloaded: list[int] = []

    def refuse(count: int) -> httpx.Response | None:
        if count == 40 and not unloaded:
            unloaded.append(count)
            gateway.served.remove(f"plants:{name}")
        return None

    gateway.refuse = refuse
    pipeline.go_on(shop, run, last=Stage.EVALUATE)
    assert gateway.registered == [name, name]
    assert len(gateway.asked) == SEATS
    assert "was unloaded during the exam" in output.getvalue()


def test_an_adapter_that_somebody_keeps_unloading_ends_the_exam(
    shop: Workshop, run: RunDir, gateway: FakeGateway
) -> None:
    name = run.result(Stage.PUBLISH, Published).adapter

    def refuse(count: int) -> httpx.Response | None:
        if count > 40 and f"plants:{name}" in gateway.served:
            gateway.served.remove(f"plants:{name}")
        return None

    gateway.refuse = refuse
    with pytest.raises(PreceptorError) as caught:
        pipeline.go_on(_impatient(shop), run, last=Stage.EVALUATE)
    assert caught.value.code == "adapter_unloaded"
    assert len(_rows(run)) == 40


@pytest.mark.parametrize(
    ("also", "says"),
    [
        ("nonsense name", "'nonsense name' is not a served name"),
        ("moss", "There is no served name 'moss'"),
        ("base", "has no domain prompt"),
        ("plants:base", "stands there twice"),
    ],
)
def test_a_served_name_that_cannot_sit_the_exam_is_bad_input_before_anybody_is_asked(
    shop: Workshop, run: RunDir, gateway: FakeGateway, also: str, says: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        pipeline.go_on(shop._replace(exam=ExamWishes(also=(also,))), run, last=Stage.EVALUATE)
    assert says in caught.value.message
    assert gateway.asked == []


def test_a_further_served_name_stands_beside_base_and_adapter(
    shop: Workshop, run: RunDir, gateway: FakeGateway
) -> None:
    gateway.served.append("plants")
    pipeline.go_on(shop._replace(exam=ExamWishes(also=("plants",))), run, last=Stage.EVALUATE)
    report = (run.path / "report.md").read_text(encoding="utf-8")
    assert "| `plants` | 1.000 (24;" in report
    assert len([row for row in _rows(run) if row.side == "also plants"]) == 24
