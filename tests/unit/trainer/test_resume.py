"""A training that was killed, ran out of memory or filled the disk ends where an undisturbed one does."""

from __future__ import annotations

import errno
import io
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from preceptor_contracts.errors import PreceptorError
from preceptor_trainer import pipeline
from preceptor_trainer.recipes import Overrides
from preceptor_trainer.runs import RunDir, Stage
from preceptor_trainer.stages import Workshop
from preceptor_trainer.train.answer_trainer import AnswerTrainer
from preceptor_trainer.train.checkpoints import whole_checkpoint
from preceptor_trainer.train.memory import batch_size, is_out_of_memory
from preceptor_trainer.train.training import WEIGHTS, Trained, _halve
from safetensors.torch import load_file

from tests.unit.trainer.fixtures import write_domain, write_recipe

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries

RECIPES: dict[str, dict[str, object]] = {
    "length": {
        "batching": "length",
        "batch_size": 2,
        "accumulation": 2,
        "validation_share": 0.2,
        "validate_every": 3,
        "patience": 50,
    },
    "packed": {"batching": "packed", "batch_size": 1, "accumulation": 2, "epochs": 6, "validation_share": 0.2},
    "full": {"method": "full", "learning_rate": 0.003, "max_steps": 13},
}


def _start(shop: Workshop, tmp_path: Path, **recipe: object) -> RunDir:
    if not (shop.settings.domains_dir / "many").exists():
        write_domain(shop.settings.domains_dir, name="many", records=20)
    path = write_recipe(tmp_path / "own.yaml", **{"dropout": 0.1, "learning_rate": 0.02, "logging_steps": 1, **recipe})
    return pipeline.start_run(shop, "many", Overrides(recipe=str(path)))


def _train(shop: Workshop, run: RunDir) -> Trained:
    pipeline.go_on(shop, RunDir.open(shop.settings.runs_dir, run.id), last=Stage.TRAIN)
    return run.result(Stage.TRAIN, Trained)


def _weights(run: RunDir) -> dict[str, torch.Tensor]:
    full = run.spec.recipe.method == "full"
    return load_file(run.weights / "model.safetensors" if full else run.adapter / WEIGHTS)


def _in_a_process_that_dies(work: Callable[[], object], *, when: Callable[[], bool] | None = None) -> None:
    """Does the work in a child, which the kernel kills: from outside once `when` holds, or by the child itself."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(3)  # reached only where nothing killed it
    end = time.monotonic() + 50
    while when is not None and not when():
        assert time.monotonic() < end
        time.sleep(0.02)
    if when is not None:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


def _reached(run: RunDir, step: int) -> Callable[[], bool]:
    return lambda: any(event.number("step") >= step for event in run.events(Stage.TRAIN, "progress"))


def _same(left: RunDir, right: RunDir, *, within: float = 1e-6) -> None:
    found, expected = _weights(left), _weights(right)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=within)
    mine, other = (run.result(Stage.TRAIN, Trained) for run in (left, right))
    assert mine.metrics.final_loss == pytest.approx(other.metrics.final_loss, abs=1e-4)
    assert mine.metrics.tokens == other.metrics.tokens
    assert mine.weights_step == other.weights_step
    assert (mine.validation_loss or 0.0) == pytest.approx(other.validation_loss or 0.0, abs=1e-4)


@pytest.mark.parametrize("name", list(RECIPES))
def test_killed_at_any_step_it_ends_with_the_same_weights(shop: Workshop, tmp_path: Path, name: str) -> None:
    whole, broken = (_start(shop, tmp_path, **RECIPES[name]) for _ in range(2))
    _train(shop, whole)
    # Before the first checkpoint, between two and near the end; each takes up what the one before left.
    for step in (2, 7, 11):
        _in_a_process_that_dies(lambda: _train(shop, broken), when=_reached(broken, step))
    _train(shop, broken)
    assert broken.events(Stage.TRAIN, "resumed")
    _same(broken, whole)


def test_killed_in_the_middle_of_a_checkpoint_it_goes_on_from_the_one_before(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = (_start(shop, tmp_path, **RECIPES["length"]) for _ in range(2))
    _train(shop, whole)
    saved = torch.save

    def die(value: object, path: object, *args: object, **kwargs: object) -> None:
        if "checkpoint-8" in str(path):
            os.kill(os.getpid(), signal.SIGKILL)
        saved(value, path, *args, **kwargs)  # type: ignore[arg-type]  # passed through

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", die)
        _in_a_process_that_dies(lambda: _train(shop, broken))
    assert (broken.checkpoints / "checkpoint-8").is_dir()
    _train(shop, broken)
    assert broken.events(Stage.TRAIN, "resumed")[-1].number("step") < 8
    _same(broken, whole)


@pytest.mark.parametrize("name", ["length", "full"])
def test_killed_after_the_last_step_it_trains_no_further(shop: Workshop, tmp_path: Path, name: str) -> None:
    whole, broken = (_start(shop, tmp_path, **RECIPES[name]) for _ in range(2))
    steps = _train(shop, whole).metrics.steps
    saved = f"checkpoint-{steps}"
    _in_a_process_that_dies(lambda: _with_keeping_killed(lambda: _train(shop, broken)))
    assert (broken.checkpoints / saved).is_dir()
    assert _train(shop, broken).metrics.steps == steps
    _same(broken, whole)


def _with_keeping_killed(work: Callable[[], object]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("preceptor_trainer.train.training._keep", lambda *args: os.kill(os.getpid(), signal.SIGKILL))
        work()


def test_a_stopped_training_that_is_killed_stays_stopped(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _start(shop, tmp_path, validation_share=0.2, validate_every=2, patience=2)
    rising = iter(range(1, 99))

    def evaluate(self: AnswerTrainer, *args: object, **kwargs: object) -> dict[str, float]:
        metrics = {"eval_loss": float(next(rising))}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    monkeypatch.setattr(AnswerTrainer, "evaluate", evaluate)
    _in_a_process_that_dies(lambda: _with_keeping_killed(lambda: _train(shop, run)))
    trained = _train(shop, run)
    assert (trained.weights_step, trained.metrics.steps, trained.stopped_early) == (2, 6, True)


def _out_of_memory_above(monkeypatch: pytest.MonkeyPatch, rows: int, error: BaseException, *, at: int = 0) -> None:
    before = AnswerTrainer.training_step

    def training_step(self: AnswerTrainer, base: object, inputs: dict[str, torch.Tensor], *rest: object) -> object:
        if self.state.global_step >= at and len(inputs["input_ids"]) > rows:
            raise error
        return before(self, base, inputs, *rest)  # type: ignore[no-untyped-call]  # untyped there

    monkeypatch.setattr(AnswerTrainer, "training_step", training_step)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_too_little_memory_has_many_names(error: Exception) -> None:
    assert is_out_of_memory(error)


def test_out_of_memory_halves_the_batch_and_changes_nothing_else(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: io.StringIO
) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    recipe = {"batch_size": 5, "dropout": 0, "epochs": 4}
    whole, tight = (_start(shop, tmp_path, **recipe) for _ in range(2))
    _train(shop, whole)
    _out_of_memory_above(monkeypatch, 2, error, at=6)
    _train(shop, tight)
    told = tight.events(Stage.TRAIN, "out_of_memory")
    assert [(event.number("batch_size"), event.number("accumulation")) for event in told] == [(3, 2), (2, 3)]
    assert [event.number("step") for event in tight.events(Stage.TRAIN, "resumed")] == [4, 4]
    assert "Out of memory with 5 rows a forward pass" in output.getvalue()
    _same(tight, whole, within=1e-4)  # sums in another order


def test_processes_that_run_out_of_memory_together_halve_the_batch_once(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _start(shop, tmp_path, batch_size=8)
    pipeline.go_on(shop, run, last=Stage.PLAN)
    monkeypatch.setenv("WORLD_SIZE", "2")
    size = batch_size(run)
    for _ in range(2):  # as each of the two would
        with pytest.raises(PreceptorError, match="Out of memory with 4 rows"):
            _halve(run, shop.terminal, size)
    assert batch_size(run) == 2


def test_a_resumed_run_remembers_the_batch_that_fits(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _start(shop, tmp_path, batch_size=4)
    _out_of_memory_above(monkeypatch, 2, MemoryError())
    _in_a_process_that_dies(lambda: _train(shop, run), when=_reached(run, 6))
    _train(shop, run)
    assert len(run.events(Stage.TRAIN, "out_of_memory")) == 1


def test_where_one_row_does_not_fit_the_ways_out_are_named(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _start(shop, tmp_path, batch_size=2)
    _out_of_memory_above(monkeypatch, 0, MemoryError())
    with pytest.raises(PreceptorError) as caught:
        _train(shop, run)
    assert caught.value.code == "out_of_memory"
    for way in ("max_length", "--method qlora", "gradient_checkpointing: on"):
        assert way in caught.value.hint


def test_another_failure_is_not_taken_for_too_little_memory(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _start(shop, tmp_path)
    _out_of_memory_above(monkeypatch, 0, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        _train(shop, run)


def test_a_mistake_while_saving_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-4"
    folder.mkdir()
    with pytest.raises(RuntimeError, match="invalid storage"), whole_checkpoint(folder):
        raise RuntimeError("Attempted to access an invalid storage.")
    assert not folder.exists()


def test_a_full_disk_leaves_the_last_whole_checkpoint_and_a_sentence(shop: Workshop, tmp_path: Path) -> None:
    whole, full = (_start(shop, tmp_path, **RECIPES["length"]) for _ in range(2))
    _train(shop, whole)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    sizes = [path.stat().st_size for path in (whole.checkpoints / "checkpoint-12").iterdir()]

    def on_a_small_disk() -> None:
        with pytest.raises(PreceptorError) as caught:
            _train(shop, full)
        assert caught.value.code == "not_written"
        assert "preceptor-trainer resume" in caught.value.hint
        assert not list(full.checkpoints.glob("*"))
        os.kill(os.getpid(), signal.SIGKILL)

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (max(sizes) - 1, before[1]))
        on_a_small_disk()

    _in_a_process_that_dies(limited)
    assert full.events(Stage.TRAIN, "failed")[0].text("code") == "not_written"
    _train(shop, full)
    _same(full, whole)


def test_a_disk_that_fills_later_costs_no_earlier_checkpoint(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, full = (_start(shop, tmp_path, **RECIPES["length"]) for _ in range(2))
    _train(shop, whole)
    saved = torch.save

    def no_space(value: object, path: object, *args: object, **kwargs: object) -> None:
        if "checkpoint-8" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        saved(value, path, *args, **kwargs)  # type: ignore[arg-type]  # passed through

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", no_space)
        with pytest.raises(PreceptorError, match=r"checkpoint-8 could not be written: .*No space left"):
            _train(shop, full)
    assert not (full.checkpoints / "checkpoint-8").exists()
    newest = max(event.number("step") for event in full.events(Stage.TRAIN, "checkpoint"))
    assert 4 <= newest < 8
    _train(shop, full)
    assert full.events(Stage.TRAIN, "resumed")[0].number("step") == newest
    _same(full, whole)
