from __future__ import annotations

import io
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from preceptor_trainer import pipeline
from preceptor_trainer.recipes import Overrides
from preceptor_trainer.runs import Stage
from preceptor_trainer.settings import TrainerSettings
from preceptor_trainer.stages import Workshop
from preceptor_trainer.terminal import Terminal
from pydantic import SecretStr
from rich.console import Console

from tests.fakes.completions import Completions, completions
from tests.unit.trainer.fixtures import FakeGateway, write_base_model, write_domain, write_recipe
from tests.unit.trainer.generating import Bench, about_the_text


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases") / "tiny-llama"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries, on import
        import torch

        write_base_model(folder)
    # Two threads on products this small wait for each other longer than they compute, most of all on a busy machine.
    torch.set_num_threads(1)
    return folder


@pytest.fixture(autouse=True)
def _no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares every plan the second that measuring the matrix rate takes."""
    monkeypatch.setattr("preceptor_trainer.stages.matrix_rate", lambda device: 1e11)


@pytest.fixture
def settings(tmp_path: Path, tiny_base: Path) -> TrainerSettings:
    write_domain(tmp_path / "domains")
    return _settings(tmp_path, tiny_base)


def _settings(root: Path, base: Path) -> TrainerSettings:
    return TrainerSettings(
        domains_dir=root / "domains",
        adapters_dir=root / "adapters",
        runs_dir=root / "runs",
        base_model=str(base),
        base_models_dir=root / "base-models",
        report_to="none",
        gateway_admin_key=SecretStr("k"),
        # Two sides of 64 general questions, which test_guard.py asks.
        guard="off",
    )


@pytest.fixture(scope="session")
def examined(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A workplace after one whole run; read it only."""
    root = tmp_path_factory.mktemp("examined")
    write_domain(root / "domains")
    settings = _settings(root, tiny_base)
    shop = Workshop(settings, Terminal(Console(file=io.StringIO())), FakeGateway(settings).connect)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries
        patch.setattr("preceptor_trainer.stages.matrix_rate", lambda device: 1e11)
        run = pipeline.start_run(shop, "plants", Overrides(recipe=str(write_recipe(root / "tiny.yaml"))))
        pipeline.go_on(shop, run, last=Stage.EVALUATE)
    return root


@pytest.fixture
def adapter(examined: Path, settings: TrainerSettings) -> str:
    """Name of a published and examined adapter, in a copy that a test may spoil."""
    shutil.copytree(examined / "adapters", settings.adapters_dir)
    return next(path.name for path in settings.adapters_dir.iterdir() if path.is_dir())


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    return str(write_recipe(tmp_path / "tiny.yaml"))


@pytest.fixture
def gateway(settings: TrainerSettings) -> FakeGateway:
    return FakeGateway(settings)


@pytest.fixture
def output() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def shop(settings: TrainerSettings, gateway: FakeGateway, output: io.StringIO) -> Workshop:
    console = Console(file=output, width=200, markup=False, highlight=False)
    return Workshop(settings, Terminal(console), gateway.connect)


@pytest.fixture(scope="module")
def started_endpoint() -> Iterator[Completions]:
    with completions(about_the_text) as one:
        yield one


@pytest.fixture
def bench(
    tmp_path: Path,
    started_endpoint: Completions,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Bench:
    started_endpoint.bodies, started_endpoint.headers = [], []
    started_endpoint.answer = about_the_text
    made = Bench(tmp_path, started_endpoint, capsys)
    monkeypatch.setattr("preceptor_trainer.commands.options.open_shop", made.open_shop)
    monkeypatch.setattr("preceptor_trainer.generate.endpoint.RETRIES", 2)
    return made
