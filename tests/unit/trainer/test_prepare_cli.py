from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path

import pytest
from preceptor_contracts.errors import PreceptorError
from preceptor_trainer import cli
from preceptor_trainer.commands import options
from preceptor_trainer.prepare.workplace import workplace
from preceptor_trainer.runs import RunDir
from preceptor_trainer.settings import TrainerSettings
from preceptor_trainer.stages import Workshop
from preceptor_trainer.terminal import Terminal

from tests.unit.trainer.fixtures import FakeGateway

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries
CSV = "Question;Answer;Category\n" + "".join(f"What is plant {at}?;It is number {at}.;herbs\n" for at in range(12))


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, settings: TrainerSettings, gateway: FakeGateway) -> None:
    monkeypatch.setattr(options, "open_shop", lambda: Workshop(settings, Terminal(), gateway.connect))
    options.busy_with.clear()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "team.csv"
    path.write_text(CSV, encoding="utf-8")
    return path


def test_a_teams_own_csv_is_trained_on_as_it_is(data: Path, recipe: str, settings: TrainerSettings) -> None:
    arguments = ["train", "plants", "--recipe", recipe, "--max-steps", "2", "--data", str(data)]
    assert cli.main(arguments) == 0
    run = RunDir.open(settings.runs_dir, next(settings.runs_dir.iterdir()).name)
    assert (run.spec.dataset.records, run.spec.dataset.topics, run.spec.data) == (12, {"herbs": 12}, str(data))
    first = json.loads((run.path / "dataset.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert (first["id"], first["prompt"]) == ("row-000002", "What is plant 0?")


def test_validate_only_prints_the_report_and_makes_no_run(
    data: Path, recipe: str, settings: TrainerSettings, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["prepare", "plants", "--recipe", recipe, "--validate-only", "--data", str(data)]
    assert cli.main([*arguments, "--report-dir", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    for part in ("CSV with ';', utf-8", "12 rows, 12 records", "| prompt/completion | 12 |", "Lengths in tokens"):
        assert part in printed
    assert not settings.runs_dir.exists()
    report = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    assert (report["records"], report["errors"]) == (12, [])
    assert (tmp_path / "out/report.md").read_text(encoding="utf-8") in printed


def test_a_long_preparation_says_how_far_it_is(
    data: Path, recipe: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preceptor_trainer.terminal._LINE_EVERY_S", 0.0)
    assert cli.main(["prepare", "plants", "--recipe", recipe, "--validate-only", "--data", str(data)]) == 0
    printed = capsys.readouterr().out
    assert "read (MB) 0/1 after" in printed
    assert "tokenise 0/13 after" in printed


def test_validate_only_tells_everything_and_exits_2(
    data: Path, recipe: str, capsys: pytest.CaptureFixture[str], settings: TrainerSettings
) -> None:
    longest = "long " * 300
    data.write_text(CSV + f"What is plant 3?;It is none.;herbs\n;x;y\nWhy?;{longest};z\n", encoding="utf-8")
    assert cli.main(["prepare", "plants", "--recipe", recipe, "--validate-only", "--data", str(data)]) == 2
    printed = capsys.readouterr()
    for part in ("| line 15 | question: empty |", "answered in two ways", "longer than max_length 256", "Contradict"):
        assert part in printed.out
    assert "for 3 reason(s)" in printed.err
    assert "--allow-contradictions" in printed.err
    assert not settings.runs_dir.exists()


def test_validate_only_works_without_a_base_model(
    data: Path,
    recipe: str,
    settings: TrainerSettings,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    missing = settings.model_copy(update={"base_model": str(tmp_path / "none")})
    monkeypatch.setattr(options, "open_shop", lambda: Workshop(missing, Terminal()))
    assert cli.main(["prepare", "plants", "--recipe", recipe, "--validate-only", "--data", str(data)]) == 0
    assert "Token lengths are not counted" in capsys.readouterr().out


def test_an_old_encoding_is_read_once_it_is_named(data: Path, recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    data.write_bytes((CSV + "Größe?;fünf;herbs\n").encode("cp1252"))
    arguments = ["prepare", "plants", "--recipe", recipe, "--validate-only", "--data", str(data)]
    assert cli.main(arguments) == 2
    assert "'Größe?;fünf;herbs' as cp1252" in capsys.readouterr().err
    assert cli.main([*arguments, "--encoding", "cp1252"]) == 0
    assert "13 records" in capsys.readouterr().out


def test_a_report_folder_without_validate_only_is_refused(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prepare", "plants", "--recipe", recipe, "--report-dir", "x"]) == 2
    assert "under preparation/" in capsys.readouterr().err


def test_a_killed_preparations_folder_is_swept_an_hour_later_and_a_living_ones_is_not(tmp_path: Path) -> None:
    def age(folder: Path) -> None:
        old = time.time() - 7200
        os.utime(folder, (old, old))

    root = tmp_path / "runs"
    (root / ".preparing-dead.partial").mkdir(parents=True)
    (root / ".preparing-young.partial").mkdir()
    age(root / ".preparing-dead.partial")
    with workplace(root) as living:
        age(living)
        with workplace(root):
            pass
        assert living.exists()
    assert [path.name for path in root.iterdir()] == [".preparing-young.partial"]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    def write_half() -> None:
        with workplace(tmp_path / "runs") as folder:
            (folder / "dataset.jsonl").write_text("half", encoding="utf-8")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(PreceptorError, match="no space left"):
        write_half()
    assert not (tmp_path / "runs").exists()
