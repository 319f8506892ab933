from __future__ import annotations

import errno
import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from preceptor_contracts.frozen import read_json
from preceptor_contracts.report import Report
from preceptor_trainer import cli
from preceptor_trainer.commands import options
from preceptor_trainer.evaluate.exam import AnswerRow
from preceptor_trainer.evaluate.judge import Judge
from preceptor_trainer.evaluate.standings import Standings
from preceptor_trainer.runs import RunDir
from preceptor_trainer.settings import TrainerSettings
from preceptor_trainer.stages import Workshop
from preceptor_trainer.terminal import Terminal

from tests.unit.trainer.fixtures import FakeGateway, pretend_adapter, published_run, write_domain, write_jsonl

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries
ADAPTERS = ["plants-v1-00000001", "plants-v2-00000002"]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, settings: TrainerSettings, gateway: FakeGateway) -> Iterator[None]:
    monkeypatch.setattr(options, "open_shop", lambda: Workshop(settings, Terminal(), gateway.connect))
    monkeypatch.setattr("preceptor_trainer.evaluate.patience.PAUSE_S", 0.0)
    options.busy_with.clear()
    for name in ADAPTERS:
        pretend_adapter(settings, name)
    yield
    options.busy_with.clear()


def _standings(settings: TrainerSettings) -> Standings:
    (path,) = (settings.runs_dir / "exams").glob("*/standings.json")
    return read_json(path, Standings)


def test_any_served_names_sit_an_exam_side_by_side(
    settings: TrainerSettings, gateway: FakeGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.served.append("plants")
    assert cli.main(["exam", "plants", "--served", "plants:base", "--served", "plants"]) == 0
    found = _standings(settings)
    assert [(entry.side.served, entry.side.correct) for entry in found.entries] == [("plants:base", 0), ("plants", 24)]
    assert (found.duels[0].only_second, found.duels[0].holm_p) == (24, found.duels[0].mcnemar_p)
    assert "plants is better than plants:base" in found.reading
    folder = next((settings.runs_dir / "exams").iterdir())
    names = {"answers.jsonl", "standings.json", "standings.md", "reliability.svg"}
    assert {path.name for path in folder.iterdir()} == names
    assert found.reading in capsys.readouterr().out
    assert "topic moss" in (folder / "standings.md").read_text(encoding="utf-8")


def test_adapters_are_loaded_and_compared_with_each_other_and_their_base(
    settings: TrainerSettings, gateway: FakeGateway
) -> None:
    assert cli.main(["compare", *ADAPTERS]) == 0
    assert gateway.registered == ADAPTERS
    found = _standings(settings)
    assert [entry.side.served for entry in found.entries] == ["plants:base", *(f"plants:{name}" for name in ADAPTERS)]
    assert len(found.duels) == 3
    assert found.duels[0].holm_p == pytest.approx(3 * found.duels[0].mcnemar_p)
    assert found.duels[2].holm_p == 1


def test_one_adapter_is_compared_with_its_base(settings: TrainerSettings) -> None:
    assert cli.main(["compare", ADAPTERS[0]]) == 0
    assert len(_standings(settings).duels) == 1


def test_an_exam_of_19_questions_is_too_small_to_tell(settings: TrainerSettings, tmp_path: Path) -> None:
    write_domain(tmp_path / "small", questions=19)
    exam = tmp_path / "small" / "plants" / "exam.jsonl"
    assert cli.main(["compare", ADAPTERS[0], "--exam", str(exam)]) == 0
    assert _standings(settings).reading.startswith("n is too small to tell: 19 questions")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["compare", "plants"], "'plants' is not an adapter's name"),
        (["compare", "plants-v1-00000001", "moss-v1-00000001"], "several domains: moss, plants"),
        (["compare", "moss-v1-00000001"], "There is no domain 'moss'"),
        (["compare", ADAPTERS[0], ADAPTERS[0]], "stands there twice"),
        (["compare"], "Missing argument"),
        (["exam", "plants"], "--served"),
        (["exam", "nope", "--served", "base"], "There is no domain 'nope'"),
        (["exam", "plants", "--served", "plants:base", "--exam", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["exam", "plants", "--served", "plants:base", "--served", "plants"], "There is no served name 'plants'"),
        (["exam", "plants", "--served", "base"], "no domain prompt"),
        (["exam", "plants", "--served", "plants:base", "--out", "/dev/null/x"], "cannot be a folder for answers"),
        (["perplexity", "plants", "--text", "nowhere.txt"], "nowhere.txt does not exist"),
        (["perplexity", "plants"], "--text"),
        (["perplexity", "plants", "--text", "x", "--window", "8", "--stride", "8"], "cannot move by 8"),
        (["perplexity", "plants", "--text", "x", "--served", "no such"], "not a served name"),
    ],
)
def test_bad_input_exits_2_before_anybody_is_asked(
    arguments: list[str], says: str, gateway: FakeGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    printed = capsys.readouterr().err
    assert says in printed
    assert "Traceback" not in printed
    assert gateway.asked == []


def test_an_adapter_that_does_not_exist_is_bad_input(
    gateway: FakeGateway, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = {"error": {"message": "There is no adapter.", "type": "x", "code": "unknown_adapter"}, "request_id": "1"}
    monkeypatch.setattr(gateway, "_register", lambda name: httpx.Response(404, json=problem))
    assert cli.main(["compare", ADAPTERS[0]]) == 2
    assert "GET /v1/adapters" in capsys.readouterr().err


def test_an_interrupted_comparison_says_how_to_go_on_and_asks_only_the_rest(
    settings: TrainerSettings,
    gateway: FakeGateway,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    hasty = settings.model_copy(update={"gateway_patience_s": 0.0, "concurrency": 1})
    monkeypatch.setattr(options, "open_shop", lambda: Workshop(hasty, Terminal(), gateway.connect))

    def refuse(count: int) -> httpx.Response | None:
        if count == 11:
            raise httpx.ConnectError("refused")
        return None

    gateway.refuse = refuse
    out = str(tmp_path / "out")
    assert cli.main(["compare", ADAPTERS[0], "--out", out]) == 1
    assert f"preceptor-trainer compare {ADAPTERS[0]} --out {out}" in capsys.readouterr().err
    gateway.refuse = lambda count: None
    assert cli.main(["compare", ADAPTERS[0], "--out", out]) == 0
    assert len(gateway.asked) == 48
    assert cli.main(["compare", ADAPTERS[0], "--out", out]) == 2
    assert "holds a finished exam" in capsys.readouterr().err


@pytest.mark.parametrize("trouble", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_stop_and_a_full_disk_cost_no_answer_and_name_the_command_that_goes_on(
    trouble: BaseException,
    settings: TrainerSettings,
    gateway: FakeGateway,
    recipe: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    before = AnswerRow.model_dump_json

    def after_seven(row: AnswerRow) -> str:
        if len(gateway.asked) > 7:
            raise trouble
        return before(row)

    run = _published(settings, gateway, recipe)
    out = tmp_path / "an exam"
    compare = ["compare", ADAPTERS[0], "--out", str(out)]
    evaluate = ["evaluate", run.id, "--also", f"plants:{ADAPTERS[1]}", "--no-guard"]
    for arguments, folder, everybody in ((compare, out, 48), (evaluate, run.path, 72)):
        gateway.asked.clear()
        with monkeypatch.context() as patch:
            patch.setattr(AnswerRow, "model_dump_json", after_seven)
            assert cli.main(arguments) == 1
        told = capsys.readouterr().err
        assert shlex.join(["preceptor-trainer", *arguments]) in told
        assert "bug" not in told
        kept = (folder / "answers.jsonl").read_text(encoding="utf-8").count("\n")
        assert kept >= 4
        gateway.asked.clear()
        assert cli.main(arguments) == 0
        assert len(gateway.asked) == everybody - kept


def test_a_run_without_promotion_goes_on_without_it(
    settings: TrainerSettings, recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("preceptor_trainer.pipeline.go_on", stop)
    assert cli.main(["run", "plants", "--recipe", recipe, "--no-promote"]) == 1
    run_id = next(settings.runs_dir.glob("plants-*")).name
    assert f"preceptor-trainer resume {run_id} --no-promote" in capsys.readouterr().err


def test_perplexity_is_measured_for_every_served_name(
    gateway: FakeGateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "held-out.txt"
    text.write_text("which colour has the plant " * 40, encoding="utf-8")
    gateway.likes = lambda served, text: -2.0 if served == "base" else -1.0
    arguments = ["perplexity", "plants", "--text", str(text), "--served", "base", "--served", "plants:base"]
    assert cli.main([*arguments, "--window", "64", "--stride", "32"]) == 0
    printed = capsys.readouterr().out
    assert "7.389" in printed
    assert "2.718" in printed
    gateway.extra_token = True
    assert cli.main(arguments) == 1
    assert "tokenise the text in different ways" in capsys.readouterr().err


def test_evaluate_takes_further_names_a_text_and_no_guard(
    settings: TrainerSettings, gateway: FakeGateway, recipe: str, tmp_path: Path
) -> None:
    run = _published(settings, gateway, recipe)
    text = tmp_path / "held-out.txt"
    text.write_text("which colour has the plant", encoding="utf-8")
    gateway.served.append("plants")
    arguments = ["--also", "plants", "--text", str(text), "--no-guard"]
    assert cli.main(["evaluate", run.id, *arguments]) == 0
    report = read_json(run.path / "report.json", Report)
    assert [other.side.served for other in report.others] == ["plants"]
    assert [item.served for item in report.perplexity] == [report.base.served, report.adapter.served]
    assert report.perplexity[0].per_token == pytest.approx(2.71828, rel=1e-4)
    assert report.guard is None


def _published(settings: TrainerSettings, gateway: FakeGateway, recipe: str) -> RunDir:
    return published_run(Workshop(settings, Terminal(), gateway.connect), gateway, recipe)


def _judged_exam(settings: TrainerSettings) -> None:
    folder = settings.domains_dir / "plants"
    path = folder / "domain.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("grader: mcq", "grader: judge"), encoding="utf-8")
    rows = [
        {"id": f"e{at}", "kind": "judge", "topic": "t", "group": "g", "question": f"Why is plant {at} green?"}
        for at in range(24)
    ]
    write_jsonl(folder / "exam.jsonl", rows)


def test_an_exam_for_a_judge_is_decided_by_wins(
    settings: TrainerSettings, gateway: FakeGateway, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _judged_exam(settings)
    run = _published(settings, gateway, recipe)
    gateway.says = lambda served, question: "It is so." if served == "plants:base" else f"Light: {question}"

    def fair(request: httpx.Request) -> httpx.Response:
        material = json.loads(json.loads(request.content)["messages"][1]["content"])
        winner = "1" if material["answer_1"].startswith("Light") else "2"
        return httpx.Response(200, json={"choices": [{"message": {"content": json.dumps({"winner": winner})}}]})

    judged = settings.model_copy(update={"judge_url": "http://judge.example/v1", "judge_name": "wise"})
    shop = Workshop(
        judged,
        Terminal(),
        gateway.connect,
        judge=lambda settings: Judge("http://judge.example/v1", "wise", transport=httpx.MockTransport(fair)),
    )
    monkeypatch.setattr(options, "open_shop", lambda: shop)
    assert cli.main(["evaluate", run.id]) == 0
    report = read_json(run.path / "report.json", Report)
    assert (report.base.correct, report.adapter.correct, report.verdict.value) == (0, 24, "better")
    assert report.judging is not None
    assert (report.judging.judge, report.judging.comparisons, report.judging.disagreed) == ("wise", 24, 0)
    assert '"correct":true' in (run.path / "answers.jsonl").read_text(encoding="utf-8")


def test_an_exam_for_a_judge_without_one_is_refused_before_anybody_is_asked_or_trained(
    settings: TrainerSettings, gateway: FakeGateway, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _judged_exam(settings)
    assert cli.main(["run", "plants", "--recipe", recipe]) == 1
    assert cli.main(["exam", "plants", "--served", "plants:base"]) == 1
    assert "TRAINER_JUDGE_URL" in capsys.readouterr().err
    assert gateway.asked == []
    assert not list(settings.runs_dir.glob("*/checkpoints"))
