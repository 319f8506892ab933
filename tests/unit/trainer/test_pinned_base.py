"""`BASE_MODEL=<id>@<commit>`: two revisions of one base model in the hub's cache, with chat templates of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from preceptor_contracts.files import sha256_bytes
from preceptor_contracts.manifest import BaseModelIdentity
from preceptor_trainer.runs import RunDir
from preceptor_trainer.settings import TrainerSettings

from tests.unit.trainer.fixtures import CHAT_TEMPLATE

OLD, NEW = "1" * 40, "2" * 40


def template(commit: str) -> str:
    """The fixtures' chat template, told apart by a remark that renders to nothing."""
    return f"{{# {commit} #}}{CHAT_TEMPLATE}"


@pytest.fixture
def hub(tiny_base: Path, tmp_path: Path) -> Path:
    """A Hugging Face home as two downloads leave it: `main` has moved on to the newer commit."""
    root = tmp_path / "hub/models--org--tiny"
    for commit in (OLD, NEW):
        snapshot = root / "snapshots" / commit
        shutil.copytree(tiny_base, snapshot)
        (snapshot / "chat_template.jinja").write_text(template(commit))
    (root / "refs").mkdir()
    (root / "refs/main").write_text(NEW)
    return tmp_path


@pytest.mark.parametrize(("setting", "commit"), [("org/tiny", NEW), (f"org/tiny@{OLD}", OLD)])
def test_a_training_takes_tokenizer_configuration_and_weights_of_the_commit_that_was_named(
    hub: Path, settings: TrainerSettings, recipe: str, setting: str, commit: str
) -> None:
    own = {
        "BASE_MODEL": setting,
        "DOMAINS_DIR": str(settings.domains_dir),
        "RUNS_DIR": str(settings.runs_dir),
        "ADAPTERS_DIR": str(settings.adapters_dir),
        "HF_HOME": str(hub),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "preceptor_trainer", "train", "plants", "--recipe", recipe, "--max-steps", "2"],
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    run = RunDir.open(settings.runs_dir, next(settings.runs_dir.iterdir()).name)
    assert run.spec.base_model == BaseModelIdentity(id="org/tiny", revision=commit)
    assert run.spec.chat_template_sha == sha256_bytes(template(commit).encode())
    # What is loaded again for the canary, at a resume or by an exam, is the same one.
    assert run.spec.base_source == setting
