from __future__ import annotations

import io
import warnings
from pathlib import Path

import pytest
from preceptor_trainer.settings import TrainerSettings
from preceptor_trainer.stages import Workshop
from preceptor_trainer.terminal import Terminal
from pydantic import SecretStr
from rich.console import Console

from tests.unit.trainer.fixtures import FakeGateway, write_base_model, write_domain, write_recipe


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
    return TrainerSettings(
        domains_dir=tmp_path / "domains",
        adapters_dir=tmp_path / "adapters",
        runs_dir=tmp_path / "runs",
        base_model=str(tiny_base),
        gateway_admin_key=SecretStr("k"),
        # Two sides of 64 general questions, which test_guard.py asks.
        guard="off",
    )


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
