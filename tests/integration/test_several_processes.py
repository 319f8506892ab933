"""Two processes train one recipe as one does; gloo in place of NCCL, a processor in place of each GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from preceptor_trainer import pipeline
from preceptor_trainer.recipes import Overrides
from preceptor_trainer.runs import RunDir, Stage
from preceptor_trainer.settings import TrainerSettings
from preceptor_trainer.stages import Workshop
from preceptor_trainer.terminal import Terminal
from preceptor_trainer.train.training import WEIGHTS, Trained
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.stack import REPO
from tests.unit.trainer.fixtures import write_base_model, write_domain, write_recipe

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries
RECIPE = {
    "batch_size": 3,
    "accumulation": 2,
    "learning_rate": 0.02,
    "validation_share": 0.2,
    "validate_every": 3,
    "patience": 9,
}


def _shop(root: Path) -> Workshop:
    settings = TrainerSettings(
        domains_dir=root / "domains",
        runs_dir=root / "runs",
        adapters_dir=root / "adapters",
        base_model=str(root / "tiny-llama"),
        report_to="none",
    )
    return Workshop(settings, Terminal())


def _resume(shop: Workshop, run: RunDir) -> str:
    """Resumes with two processes; the gateway is away, so the run stops after its training."""
    settings = shop.settings
    paths = [str(REPO / member) for member in ("packages/contracts", "trainer")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "DOMAINS_DIR": str(settings.domains_dir),
        "RUNS_DIR": str(settings.runs_dir),
        "ADAPTERS_DIR": str(settings.adapters_dir),
        "BASE_MODEL": settings.base_model,
        "TRAINER_REPORT_TO": "none",
        "TRAINER_GATEWAY_URL": "http://127.0.0.1:9",
        "GATEWAY_ADMIN_KEY": "k",
    }
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "preceptor_trainer", "resume", run.id],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.is_done(Stage.TRAIN), done.stderr
    assert done.stderr.count("does not answer") == 1
    return done.stdout


def test_two_processes_reach_the_weights_of_one(tmp_path: Path) -> None:
    write_base_model(tmp_path / "tiny-llama")
    write_domain(tmp_path / "domains", records=23)
    shop = _shop(tmp_path)
    overrides = Overrides(recipe=str(write_recipe(tmp_path / "own.yaml", **RECIPE)))
    alone, together = (pipeline.start_run(shop, "plants", overrides) for _ in range(2))
    pipeline.go_on(shop, alone, last=Stage.TRAIN)
    # 18 records to train on: each step's 6 are 3 a process, and nothing is left over or seen twice.
    said = _resume(shop, together)
    assert said.count("Trained ") == 1
    found, expected = (run.result(Stage.TRAIN, Trained) for run in (together, alone))
    assert found.metrics.tokens == expected.metrics.tokens
    assert found.metrics.final_loss == pytest.approx(expected.metrics.final_loss, abs=1e-4)
    assert found.validation_loss == pytest.approx(expected.validation_loss, abs=1e-4)
    for event in ("started", "done", "checkpoint"):
        assert len(together.events(Stage.TRAIN, event)) == len(alone.events(Stage.TRAIN, event))
    ours, theirs = (load_file(run.adapter / WEIGHTS) for run in (together, alone))
    for name, value in theirs.items():
        assert_close(ours[name], value, rtol=0, atol=1e-4)


def test_a_batch_that_two_processes_cannot_halve_evenly_is_trained_on_all_the_same(tmp_path: Path) -> None:
    write_base_model(tmp_path / "tiny-llama")
    write_domain(tmp_path / "domains", records=11)
    shop = _shop(tmp_path)
    # 5 records a step: 3 and 2; the last step's one record: 1 and none.
    path = write_recipe(
        tmp_path / "own.yaml", batch_size=5, epochs=2, learning_rate=0.02, batching="packed", max_length=80
    )
    alone, together = (pipeline.start_run(shop, "plants", Overrides(recipe=str(path))) for _ in range(2))
    pipeline.go_on(shop, alone, last=Stage.TRAIN)
    _resume(shop, together)
    losses = [[event.number("loss") for event in run.events(Stage.TRAIN, "progress")] for run in (together, alone)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert together.result(Stage.TRAIN, Trained).metrics.tokens == 2 * together.spec.dataset.tokens
