from __future__ import annotations

from pathlib import Path

import pytest
from preceptor_contracts.errors import InvalidInput, PrerequisiteError
from preceptor_trainer import cli, pipeline
from preceptor_trainer.commands import options, runs
from preceptor_trainer.gateway import Gateway
from preceptor_trainer.recipes import Overrides
from preceptor_trainer.runs import RunDir, Stage
from preceptor_trainer.settings import TrainerSettings, load_settings
from preceptor_trainer.stages import Workshop
from preceptor_trainer.terminal import Terminal

from tests.unit.trainer.fixtures import FakeGateway

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, settings: TrainerSettings, gateway: FakeGateway) -> None:
    monkeypatch.setattr(options, "open_shop", lambda: Workshop(settings, Terminal(), gateway.connect))
    options.busy_with.clear()


def test_a_better_adapter_exits_0(recipe: str, gateway: FakeGateway, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "plants", "--recipe", recipe]) == 0
    assert len(gateway.promoted) == 1
    printed = capsys.readouterr().out
    for part in ("tokens/s", "float32 matrix rate", "McNemar p", "Promoted plants-v1-", "all (24)"):
        assert part in printed


def test_one_that_is_not_better_exits_3(recipe: str, gateway: FakeGateway) -> None:
    gateway.adapter_is_right = lambda question: False
    assert cli.main(["run", "plants", "--recipe", recipe]) == 3
    assert gateway.promoted == []


def test_no_promote_stops_after_the_exam(recipe: str, gateway: FakeGateway) -> None:
    assert cli.main(["run", "plants", "--recipe", recipe, "--no-promote"]) == 0
    assert gateway.promoted == []


def test_each_stage_is_a_command_and_resume_does_the_rest(
    recipe: str, settings: TrainerSettings, gateway: FakeGateway
) -> None:
    assert cli.main(["train", "plants", "--recipe", recipe, "--max-steps", "6"]) == 0
    run_id = next(settings.runs_dir.iterdir()).name
    assert cli.main(["publish", run_id]) == 0
    assert cli.main(["evaluate", run_id]) == 0
    assert gateway.promoted == []
    assert cli.main(["promote", run_id]) == 0
    assert cli.main(["resume", run_id]) == 0
    assert len(gateway.promoted) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["prepare", "nope"], "There is no domain 'nope'"),
        (["prepare", "plants", "--recipe", "nope"], "There is no recipe 'nope'"),
        (["prepare", "plants", "--method", "dora"], "method"),
        (["prepare", "plants", "--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["prepare", "plants", "--epochs", "many"], "--epochs"),
        (["resume", "nope"], "There is no run 'nope'"),
        (["nonsense"], "nonsense"),
    ],
)
def test_bad_input_exits_2_with_a_sentence(
    arguments: list[str], says: str, settings: TrainerSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    printed = capsys.readouterr().err
    assert says in printed
    assert "Traceback" not in printed
    assert not settings.runs_dir.exists()


def test_a_gateway_that_is_down_exits_1_before_training(
    recipe: str, settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nobody = settings.model_copy(update={"gateway_url": "http://127.0.0.1:9"})
    monkeypatch.setattr(options, "open_shop", lambda: Workshop(nobody, Terminal(), Gateway.of))
    assert cli.main(["run", "plants", "--recipe", recipe]) == 1
    assert "make serve" in capsys.readouterr().err
    assert not list(settings.runs_dir.glob("*/checkpoints"))


def test_a_bug_exits_1_and_leaves_its_traceback_in_the_run(
    recipe: str, settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(shop: Workshop, run: RunDir, *, last: Stage) -> None:
        raise KeyError("oh")

    monkeypatch.setattr(pipeline, "go_on", broken)
    assert cli.main(["train", "plants", "--recipe", recipe]) == 1
    printed = capsys.readouterr().err
    assert "KeyError" in printed
    assert "Traceback" not in printed
    path = next(settings.runs_dir.iterdir()) / "error.txt"
    assert "Traceback" in path.read_text(encoding="utf-8")


def test_a_missing_key_is_told_before_any_work(
    recipe: str, settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keyless = settings.model_copy(update={"gateway_admin_key": None})
    monkeypatch.setattr(options, "open_shop", lambda: Workshop(keyless, Terminal()))
    assert cli.main(["run", "plants", "--recipe", recipe]) == 1
    assert "GATEWAY_ADMIN_KEY" in capsys.readouterr().err
    assert not settings.runs_dir.exists()


def test_a_bad_setting_is_named_and_no_secret_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRAINER_CONCURRENCY", "0")
    monkeypatch.setenv("GATEWAY_ADMIN_KEY", "s3cret")
    with pytest.raises(InvalidInput, match="concurrency") as caught:
        load_settings()
    assert "s3cret" not in str(caught.value)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("GATEWAY_ADMIN_KEY", "BASE_MODEL", "RUNS_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RUNS_DIR", "elsewhere")
    loaded = load_settings()
    assert loaded.runs_dir == Path("elsewhere")
    with pytest.raises(PrerequisiteError):
        loaded.admin_key()


def test_overrides_say_nothing_by_default() -> None:
    assert Overrides() == runs._overrides(None, None, None, None, None)
