"""Stage train on a base model of a few thousand parameters: every method, and what a recipe asks for."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from preceptor_contracts.base_models import identify_base_model
from preceptor_contracts.errors import InvalidInput, PreceptorError, PrerequisiteError
from preceptor_trainer import cli, pipeline
from preceptor_trainer.commands import options
from preceptor_trainer.gateway import Gateway
from preceptor_trainer.hardware import Hardware
from preceptor_trainer.publish_base import PublishedBase
from preceptor_trainer.recipes import Overrides, Recipe, resolve_recipe
from preceptor_trainer.runs import RunDir, Stage
from preceptor_trainer.settings import TrainerSettings
from preceptor_trainer.stages import Workshop
from preceptor_trainer.tokens import load_tokenizer
from preceptor_trainer.train.answer_trainer import AnswerTrainer
from preceptor_trainer.train.arguments import optimizer_name, refuse_missing
from preceptor_trainer.train.training import WEIGHTS, Trained

from tests.unit.trainer.fixtures import write_domain, write_jsonl, write_recipe

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries


def _start(shop: Workshop, tmp_path: Path, **recipe: object) -> RunDir:
    return pipeline.start_run(shop, "plants", Overrides(recipe=str(write_recipe(tmp_path / "own.yaml", **recipe))))


def _train(shop: Workshop, tmp_path: Path, **recipe: object) -> RunDir:
    run = _start(shop, tmp_path, **recipe)
    pipeline.go_on(shop, run, last=Stage.TRAIN)
    return run


def _losses(run: RunDir) -> list[float]:
    return [event.number("loss") for event in run.events(Stage.TRAIN, "progress")]


@pytest.mark.parametrize(
    "recipe",
    [
        {"method": "qlora"},
        {"method": "lora-8bit", "learning_rate": 0.02, "epochs": 6},
        {"method": "full", "learning_rate": 0.005},
        {"batching": "packed", "epochs": 6},
        {"gradient_checkpointing": "on"},
        {"dtype": "bfloat16", "batching": "packed", "epochs": 6},
    ],
    ids=lambda recipe: "-".join(str(value) for value in recipe.values()),
)
def test_it_learns(shop: Workshop, tmp_path: Path, recipe: dict[str, object]) -> None:
    run = _train(shop, tmp_path, **recipe)
    losses = _losses(run)
    # A step holds any records, so one step's loss says little.
    third = len(losses) // 3
    assert sum(losses[-third:]) < sum(losses[:third])
    passes = run.spec.recipe.epochs
    assert run.result(Stage.TRAIN, Trained).metrics.tokens == passes * run.spec.dataset.tokens


@pytest.mark.parametrize(
    "recipe",
    [
        {"gradient_checkpointing": "on"},
        {"batch_size": 1, "accumulation": 4},
        # Rows too short for two records: packed into rows of one each.
        {"batching": "packed", "max_length": 80},
    ],
    ids=lambda recipe: "-".join(str(value) for value in recipe.values()),
)
def test_it_is_the_same_training_another_way(shop: Workshop, tmp_path: Path, recipe: dict[str, object]) -> None:
    # One step a pass holds all records, in whatever order.
    whole = {"batch_size": 4, "epochs": 5, "logging_steps": 1}
    write_domain(shop.settings.domains_dir, name="four", records=4)

    def losses(**changes: object) -> list[float]:
        path = write_recipe(tmp_path / "own.yaml", **{**whole, **changes})
        run = pipeline.start_run(shop, "four", Overrides(recipe=str(path)))
        pipeline.go_on(shop, run, last=Stage.TRAIN)
        return _losses(run)

    assert losses(**recipe) == pytest.approx(losses(), abs=2e-5)


def test_weight_decay_and_the_gradients_norm_reach_the_optimizer(shop: Workshop, tmp_path: Path) -> None:
    plain, held, decayed = (
        (_train(shop, tmp_path, **changes).adapter / WEIGHTS).read_bytes()
        for changes in ({}, {"max_grad_norm": 1e-4}, {"weight_decay": 0.5})
    )
    assert len({plain, held, decayed}) == 3


def test_the_best_weights_are_kept_and_training_stops_when_the_validation_loss_rises(
    shop: Workshop, tmp_path: Path, output: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_domain(shop.settings.domains_dir, name="more", records=20)
    recipe = {"validation_share": 0.2, "validate_every": 2, "patience": 2, "epochs": 20, "checkpoint_every": 100}
    path = str(write_recipe(tmp_path / "own.yaml", **recipe))
    run = pipeline.start_run(shop, "more", Overrides(recipe=path))
    _fake_validation(monkeypatch, {2: 3.0, 4: 2.0, 6: 2.5, 8: 2.2, 10: 1.0})
    pipeline.go_on(shop, run, last=Stage.TRAIN)
    trained = run.result(Stage.TRAIN, Trained)
    assert (trained.weights_step, trained.metrics.steps) == (4, 8)
    assert (trained.validation_loss, trained.stopped_early) == (2.0, True)
    assert (run.adapter / WEIGHTS).read_bytes() == (run.checkpoints / "checkpoint-4" / WEIGHTS).read_bytes()
    assert [event.number("step") for event in run.events(Stage.TRAIN, "validation")] == [2, 4, 6, 8]
    assert "Stopped after 8 of 160 steps" in output.getvalue()


def test_the_best_checkpoint_is_never_rotated_away(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fake_validation(monkeypatch, {2: 1.0, **dict.fromkeys(range(4, 40, 2), 2.0)})
    recipe = {"validation_share": 0.2, "validate_every": 2, "patience": 9, "checkpoint_every": 2, "epochs": 4}
    run = _train(shop, tmp_path, **recipe)
    assert run.result(Stage.TRAIN, Trained).weights_step == 2
    assert len(list(run.checkpoints.iterdir())) == 3


def _fake_validation(monkeypatch: pytest.MonkeyPatch, losses: dict[int, float]) -> None:
    def evaluate(self: AnswerTrainer, *args: object, **kwargs: object) -> dict[str, float]:
        metrics = {"eval_loss": losses[self.state.global_step]}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    monkeypatch.setattr(AnswerTrainer, "evaluate", evaluate)


def test_the_validation_loss_is_the_mean_over_the_answers_tokens_held_out(shop: Workshop, tmp_path: Path) -> None:
    from peft import PeftModel
    from preceptor_trainer.stages import _dataset
    from preceptor_trainer.train.training import split
    from transformers import AutoModelForCausalLM

    run = _train(shop, tmp_path, validation_share=0.3, validate_every=100, batch_size=2)
    held_out = split(_dataset(shop, run)[0], run.spec.recipe).held_out
    assert len(held_out) == 3
    base = AutoModelForCausalLM.from_pretrained(run.spec.base_source)
    adapted = PeftModel.from_pretrained(base, str(run.adapter)).eval()
    total, count = 0.0, 0
    for example in held_out:
        ids_BT = torch.tensor([[*example.prompt_ids, *example.answer_ids]])
        with torch.no_grad():
            logprobs_TV = adapted(input_ids=ids_BT).logits[0].log_softmax(-1)
        for at in range(len(example.prompt_ids), ids_BT.shape[1]):
            total -= float(logprobs_TV[at - 1, ids_BT[0, at]])
            count += 1
    assert run.result(Stage.TRAIN, Trained).validation_loss == pytest.approx(total / count, abs=1e-4)


def test_records_held_out_are_not_trained_on(shop: Workshop, tmp_path: Path) -> None:
    run = _train(shop, tmp_path, validation_share=0.3, epochs=1, batch_size=1)
    trained = run.result(Stage.TRAIN, Trained)
    assert trained.metrics.steps == 7
    assert trained.metrics.tokens < run.spec.dataset.tokens


def test_full_fine_tuning_ends_in_a_base_model_that_the_trainer_itself_can_name(
    shop: Workshop, tmp_path: Path, output: io.StringIO
) -> None:
    run = _start(shop, tmp_path, method="full", learning_rate=0.005)
    pipeline.go_on(shop, run, last=Stage.PROMOTE)
    published = run.result(Stage.PUBLISH, PublishedBase)
    assert not run.is_done(Stage.EVALUATE)
    folder = Path(published.folder)
    identity = identify_base_model(published.folder, shop.settings.base_models_dir)
    assert identity.id == folder.name == published.name
    assert folder.name == f"plants-full-v1-{identity.revision[:8]}"
    assert load_tokenizer(published.folder).chat_template == load_tokenizer(run.spec.base_source).chat_template
    assert published.deviation < 1e-4
    assert not shop.settings.adapters_dir.exists()
    said = output.getvalue()
    assert f"BASE_MODEL={published.folder}" in said
    assert "preceptor-trainer exam plants --served plants:base" in said


def test_publishing_all_weights_again_writes_nothing_new(shop: Workshop, tmp_path: Path) -> None:
    run = _start(shop, tmp_path, method="full", learning_rate=0.005)
    pipeline.go_on(shop, run, last=Stage.PUBLISH)
    pipeline.redo(shop, run, Stage.PUBLISH)
    assert len(list(shop.settings.base_models_dir.iterdir())) == 1
    with pytest.raises(InvalidInput, match="trains all weights"):
        pipeline.redo(shop, run, Stage.EVALUATE)


def test_weights_that_changed_on_the_way_are_not_called_published(shop: Workshop, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    run = _start(shop, tmp_path, method="full", learning_rate=0.005)
    pipeline.go_on(shop, run, last=Stage.TRAIN)
    path = run.weights / "model.safetensors"
    save_file({name: value * 1.1 for name, value in load_file(path).items()}, path, metadata={"format": "pt"})
    with pytest.raises(PreceptorError) as caught:
        pipeline.go_on(shop, run, last=Stage.PUBLISH)
    assert caught.value.code == "weights_differ"


def test_a_rank_that_the_engine_cannot_serve_does_not_matter_where_there_is_no_adapter(
    shop: Workshop, tmp_path: Path
) -> None:
    assert _start(shop, tmp_path, method="full", rank=64).spec.recipe.method == "full"


def _resolve(tmp_path: Path, device: str, **changes: object) -> Recipe:
    hardware = Hardware("cuda" if device == "cuda" else "cpu", "a device", 2, 10**9, "float32")
    return resolve_recipe(str(write_recipe(tmp_path / "own.yaml", **changes)), Overrides(), hardware)


@pytest.mark.parametrize(
    ("device", "changes", "name"),
    [
        ("cpu", {"method": "qlora"}, "adamw_torch_fused"),
        ("cuda", {"method": "lora"}, "adamw_torch_fused"),
        ("cuda", {"method": "qlora"}, "paged_adamw_32bit"),
        ("cuda", {"method": "lora-8bit"}, "paged_adamw_32bit"),
        ("cuda", {"method": "qlora", "optimizer": "adamw"}, "adamw_torch_fused"),
        ("cuda", {"method": "lora", "optimizer": "paged-adamw-8bit"}, "paged_adamw_8bit"),
    ],
)
def test_the_optimizer_is_paged_where_that_helps(
    tmp_path: Path, device: str, changes: dict[str, object], name: str
) -> None:
    assert optimizer_name(_resolve(tmp_path, device, **changes), device) == name


def test_a_paged_optimizer_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="'paged-adamw-8bit' needs a CUDA device"):
        _resolve(tmp_path, "cpu", optimizer="paged-adamw-8bit")


def test_metrics_go_to_tensorboard_in_the_runs_folder(shop: Workshop, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]  # ships none
        EventAccumulator,
    )

    shop = shop._replace(settings=shop.settings.model_copy(update={"report_to": "tensorboard"}))
    run = _train(shop, tmp_path, validation_share=0.2, validate_every=4)
    read = EventAccumulator(str(run.path / "logs"))
    read.Reload()
    assert {"train/loss", "train/learning_rate", "eval/loss"} <= set(read.Tags()["scalars"])
    assert [round(item.value, 4) for item in read.Scalars("train/loss")] == [round(loss, 4) for loss in _losses(run)]


def test_a_reporter_that_is_not_installed_is_named_with_its_package(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preceptor_trainer.train.arguments.find_spec", lambda name: None)
    with pytest.raises(PrerequisiteError) as caught:
        refuse_missing(["wandb"])
    assert "'wandb'" in caught.value.message
    assert "pip install wandb" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "names"), [("none", ()), ("tensorboard", ("tensorboard",)), ("wandb, mlflow", ("wandb", "mlflow"))]
)
def test_several_reporters_are_separated_by_commas(text: str, names: tuple[str, ...]) -> None:
    assert TrainerSettings(report_to=text).reporters == names


@pytest.mark.parametrize("text", ["comet", "tensorboard,", "none,wandb"])
def test_other_reporters_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="tensorboard, wandb, mlflow"):
        TrainerSettings(report_to=text)


def test_a_base_model_that_is_nowhere_is_told_in_one_sentence(shop: Workshop, recipe: str) -> None:
    for name in ("nobody/no-such-base", "/nowhere/base"):
        nowhere = shop._replace(settings=shop.settings.model_copy(update={"base_model": name}))
        with pytest.raises(PreceptorError) as caught:
            pipeline.start_run(nowhere, "plants", Overrides(recipe=recipe))
        assert repr(name) in caught.value.message
        assert caught.value.message.count("\n") == 0
        assert "BASE_MODEL" in caught.value.hint


def test_a_base_model_without_a_chat_template_is_refused(
    shop: Workshop, recipe: str, tiny_base: Path, tmp_path: Path
) -> None:
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(tiny_base, bare)
    (bare / "chat_template.jinja").unlink()
    plain = shop._replace(settings=shop.settings.model_copy(update={"base_model": str(bare)}))
    with pytest.raises(InvalidInput, match="no chat template"):
        pipeline.start_run(plain, "plants", Overrides(recipe=recipe))


def test_a_plan_of_other_steps_is_refused(shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _start(shop, tmp_path, validation_share=0.3)
    monkeypatch.setattr("preceptor_trainer.plan.workload.count_rows", lambda lengths, recipe: 10)
    with pytest.raises(PreceptorError, match="make 12 steps where the plan says 15"):
        pipeline.go_on(shop, run, last=Stage.TRAIN)


def test_a_new_run_is_not_begun_by_several_processes(
    shop: Workshop, recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(options, "open_shop", lambda: shop)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["train", "plants", "--recipe", recipe]) == 2
    assert "preceptor-trainer plan plants" in capsys.readouterr().err
    assert not shop.settings.runs_dir.exists()


def test_a_following_process_leaves_no_event(shop: Workshop, tmp_path: Path) -> None:
    run = _start(shop, tmp_path)
    before = run.events()
    RunDir.open(shop.settings.runs_dir, run.id, writes=False).record(Stage.TRAIN, "checkpoint", step=1)
    assert run.events() == before


def test_the_command_for_all_weights_needs_no_gateway(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "open_shop", lambda: shop._replace(connect=_no_gateway))
    path = str(write_recipe(tmp_path / "own.yaml", learning_rate=0.005))
    assert cli.main(["run", "plants", "--recipe", path, "--method", "full"]) == 0
    run_id = next(shop.settings.runs_dir.iterdir()).name
    assert cli.main(["resume", run_id]) == 0
    assert cli.main(["evaluate", run_id]) == 2


def _no_gateway(settings: TrainerSettings) -> Gateway:
    raise AssertionError("a full run needs no gateway")


def test_a_folder_that_holds_no_base_model_is_told_apart(shop: Workshop, recipe: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    empty = shop._replace(settings=shop.settings.model_copy(update={"base_model": str(tmp_path / "empty")}))
    with pytest.raises(PrerequisiteError, match=r"holds no config\.json"):
        pipeline.start_run(empty, "plants", Overrides(recipe=recipe))


def test_eight_bit_weights_are_not_sharded(shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _start(shop, tmp_path, method="lora-8bit")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InvalidInput, match="'lora-8bit' cannot be sharded"):
        pipeline.go_on(shop, run, last=Stage.TRAIN)


def test_patience_without_a_record_to_hold_out_is_refused_before_the_base_model_is_loaded(
    shop: Workshop, tmp_path: Path
) -> None:
    rows = [{"question": f"What is {at}?", "answer": f"It is {at}.", "topic": f"topic {at}"} for at in range(4)]
    write_jsonl(tmp_path / "rows.jsonl", [dict(row) for row in rows])
    path = write_recipe(tmp_path / "patient.yaml", validation_share=0.1, patience=2)
    run = pipeline.start_run(shop, "plants", Overrides(recipe=str(path)), data=tmp_path / "rows.jsonl")
    with pytest.raises(InvalidInput, match="No record can be held out"):
        pipeline.go_on(shop, run, last=Stage.TRAIN)


def test_a_share_that_holds_no_record_out_trains_without_validation(shop: Workshop, tmp_path: Path) -> None:
    rows = [{"question": f"What is {at}?", "answer": f"It is {at}.", "topic": f"topic {at}"} for at in range(4)]
    write_jsonl(tmp_path / "rows.jsonl", [dict(row) for row in rows])
    path = write_recipe(tmp_path / "own.yaml", validation_share=0.1)
    run = pipeline.start_run(shop, "plants", Overrides(recipe=str(path)), data=tmp_path / "rows.jsonl")
    pipeline.go_on(shop, run, last=Stage.TRAIN)
    assert run.events(Stage.TRAIN, "validation") == []
