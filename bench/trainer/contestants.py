"""How each trainer is started, alone, and what is read from it afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import yaml

from bench.environments import TRAINER
from bench.trainer.data import BASE, ROOT, Hyperparameters, Material

_SHOWN_LINES = 15


class Contestant(StrEnum):
    """Who trains, and how."""

    OURS = "Preceptor"
    TRL = "plain TRL, defaults"
    TRL_FAST = "plain TRL, no checkpointing"
    FACTORY = "LLaMA-Factory, defaults, float32"
    OURS_BF16 = "Preceptor, bfloat16"
    FACTORY_BF16 = "LLaMA-Factory, defaults, bfloat16"


class Trained(NamedTuple):
    """One training."""

    seconds: float
    """Of the training loop, as the trainer itself says; loading is nobody's."""
    peak_bytes: int
    """Largest resident set of the process."""
    adapter: Path
    computed_share: float
    """Share of the records' tokens that were computed; 1 but for ours, which computes a shared beginning once."""


class TrainingFailed(Exception):
    """A contestant ended badly; the text holds its last lines."""


def train(contestant: Contestant, material: Material, out: Path) -> Trained:
    """Has one contestant train on all records once.

    Args:
        contestant: Who.
        material: The records.
        out: New folder for what it writes.

    Raises:
        TrainingFailed: It ended badly.
    """
    out.mkdir(parents=True)
    if contestant in (Contestant.OURS, Contestant.OURS_BF16):
        return _ours(material, out, "float32" if contestant is Contestant.OURS else "bfloat16")
    if contestant in (Contestant.TRL, Contestant.TRL_FAST):
        flags = ["--no-checkpointing"] if contestant is Contestant.TRL_FAST else []
        arguments = ["-m", "bench.trainer.trl_worker", "--messages", str(material.messages), "--out", str(out), *flags]
        peak = _run([sys.executable, *arguments], out, {})
        return Trained(_read(out / "result.json", "seconds"), peak, out, 1.0)
    base = BASE if contestant is Contestant.FACTORY_BF16 else _float32_base(out)
    return _factory(material, out, base)


def _ours(material: Material, out: Path, dtype: str) -> Trained:
    told = Hyperparameters()
    recipe = {
        "name": "bench",
        "description": "The shipped CPU recipe, one pass.",
        "method": "lora",
        "dtype": dtype,
        "rank": told.rank,
        "alpha": told.alpha,
        "learning_rate": told.learning_rate,
        "scheduler": told.scheduler,
        "warmup_share": told.warmup_steps / (material.size / told.batch_size),
        "epochs": 1,
        "batch_size": told.batch_size,
        "checkpoint_every": 100_000,
        "seed": told.seed,
    }
    (out / "bench.yaml").write_text(yaml.safe_dump(recipe))
    command = ["train", material.domain, "--recipe", str(out / "bench.yaml"), "--data", str(material.records)]
    # The domain asks for passes of its own, and wins over the recipe.
    command += ["--epochs", "1"]
    environment = {"RUNS_DIR": str(out / "runs"), "BASE_MODEL": "embedded"}
    peak = _run([sys.executable, "-m", "preceptor_trainer", *command], out, environment)
    run = next((out / "runs").glob("[!.]*/events.jsonl")).parent
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    result = next(event["result"] for event in events if event["stage"] == "train" and event["event"] == "done")
    return Trained(result["metrics"]["seconds"], peak, run / "adapter", result["computed_share"])


def _float32_base(out: Path) -> Path:
    """The base model's folder with another dtype in its configuration.

    LLaMA-Factory knows no setting for float32: without bf16 and fp16 it takes the dtype that the configuration names,
    and the processor then computes in it.
    """
    folder = out / "base"
    folder.mkdir()
    for path in BASE.iterdir():
        if path.name != "config.json":
            (folder / path.name).symlink_to(path)
    config = json.loads((BASE / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    return folder


def _factory(material: Material, out: Path, base: Path) -> Trained:
    told = Hyperparameters()
    wanted = {
        "model_name_or_path": str(base),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": told.rank,
        "lora_alpha": told.alpha,
        "lora_target": "all",
        "dataset_dir": str(material.sharegpt.parent),
        "dataset": "bench",
        "template": "smollm2",
        "cutoff_len": 1024,
        "output_dir": str(out / "adapter"),
        "per_device_train_batch_size": told.batch_size,
        "gradient_accumulation_steps": 1,
        "learning_rate": told.learning_rate,
        "num_train_epochs": 1.0,
        "lr_scheduler_type": told.scheduler,
        "warmup_steps": told.warmup_steps,
        "seed": told.seed,
        "bf16": False,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
    }
    (out / "train.yaml").write_text(yaml.safe_dump(wanted))
    command = [str(TRAINER.python), "-m", "llamafactory.cli", "train", str(out / "train.yaml")]
    stand_ins = {"PYTHONPATH": str(Path(__file__).parent / "stand_ins"), "DISABLE_VERSION_CHECK": "1"}
    peak = _run(command, out, stand_ins)
    return Trained(_read(out / "adapter/train_results.json", "train_runtime"), peak, out / "adapter", 1.0)


def _read(path: Path, key: str) -> float:
    return float(json.loads(path.read_text())[key])


def _run(command: Sequence[str], out: Path, extra: Mapping[str, str]) -> int:
    """Runs a process to its end and returns its largest resident set, in bytes; children it waited for count."""
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1", "WANDB_DISABLED": "true"}
    environment = {**os.environ, **offline, **extra}
    log = out / "log.txt"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-_SHOWN_LINES:])
        raise TrainingFailed(f"{' '.join(command[:4])} ended with {process.returncode}:\n{tail}")
    # ru_maxrss is in KiB on Linux.
    return int(usage.ru_maxrss) * 1024
