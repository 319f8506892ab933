from __future__ import annotations

import errno
import io
import json
import os
import shutil
from pathlib import Path

import pytest
from preceptor_contracts.errors import InvalidInput, PreceptorError
from preceptor_contracts.manifest import read_adapter, verify_files
from preceptor_contracts.report import Verdict
from preceptor_trainer import pipeline
from preceptor_trainer.evaluate.exam import AnswerRow
from preceptor_trainer.publish import Published
from preceptor_trainer.recipes import Overrides
from preceptor_trainer.runs import RunDir, Stage
from preceptor_trainer.stages import Evaluated, Promoted, Workshop
from preceptor_trainer.train.training import WEIGHTS, Trained

from tests.unit.trainer.fixtures import FakeGateway

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the trainer may catch it."""


@pytest.fixture
def run(shop: Workshop, recipe: str) -> RunDir:
    return pipeline.start_run(shop, "plants", Overrides(recipe=recipe))


def _published(shop: Workshop) -> list[str]:
    root = shop.settings.adapters_dir
    return sorted(path.name for path in root.iterdir() if path.is_dir()) if root.exists() else []


def test_a_better_adapter_goes_all_the_way(
    shop: Workshop, run: RunDir, gateway: FakeGateway, output: io.StringIO
) -> None:
    pipeline.check_gateway(shop, run)
    pipeline.go_on(shop, run, last=Stage.PROMOTE)
    name = run.result(Stage.PUBLISH, Published).adapter
    adapter = read_adapter(shop.settings.adapters_dir / name)
    verify_files(adapter)
    assert set(adapter.manifest.files) == {WEIGHTS, "adapter_config.json", "README.md"}
    assert adapter.manifest.parity.samples == 24 + 10
    assert adapter.manifest.canary.separation > 0.2
    assert adapter.manifest.stop_token_ids == (2,)
    assert len(set(adapter.manifest.label_token_ids.values())) == 10
    evaluated = run.result(Stage.EVALUATE, Evaluated)
    assert gateway.promoted == [{"adapter": name, "report": evaluated.report}]
    assert gateway.pinned == set()
    assert (adapter.path / "reports" / evaluated.report).is_file()
    verify_files(adapter)
    assert f"Promoted {name}" in output.getvalue()


def test_the_adapters_config_holds_no_path_of_this_machine(shop: Workshop, run: RunDir) -> None:
    pipeline.go_on(shop, run, last=Stage.PUBLISH)
    folder = shop.settings.adapters_dir / run.result(Stage.PUBLISH, Published).adapter
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "tiny-llama"
    assert str(shop.settings.runs_dir) not in (folder / "README.md").read_text(encoding="utf-8")


def test_an_adapter_that_is_not_better_is_not_promoted(shop: Workshop, run: RunDir, gateway: FakeGateway) -> None:
    gateway.adapter_is_right = lambda question: False
    pipeline.go_on(shop, run, last=Stage.PROMOTE)
    assert run.result(Stage.EVALUATE, Evaluated).verdict is Verdict.TOO_FEW
    assert not run.result(Stage.PROMOTE, Promoted).promoted
    assert gateway.promoted == []
    assert gateway.pinned == set()


def test_an_adapter_stays_pinned_until_its_verdict(shop: Workshop, run: RunDir, gateway: FakeGateway) -> None:
    pipeline.go_on(shop, run, last=Stage.EVALUATE)
    assert gateway.pinned == {run.result(Stage.PUBLISH, Published).adapter}


def test_a_pin_that_cannot_be_taken_away_is_told_and_changes_no_verdict(
    shop: Workshop, run: RunDir, gateway: FakeGateway, output: io.StringIO
) -> None:
    gateway.unpin_fails = True
    pipeline.go_on(shop, run, last=Stage.PROMOTE)
    assert run.result(Stage.PROMOTE, Promoted).promoted
    assert "/pin takes it" in " ".join(output.getvalue().split())


def test_other_token_ids_in_the_engine_stop_everything_before_training(
    shop: Workshop, run: RunDir, gateway: FakeGateway
) -> None:
    gateway.extra_token = True
    with pytest.raises(PreceptorError) as caught:
        pipeline.check_gateway(shop, run)
    assert caught.value.code == "parity_broken"
    assert "'e0'" in caught.value.message


def test_broken_parity_at_publication_publishes_nothing(shop: Workshop, run: RunDir, gateway: FakeGateway) -> None:
    pipeline.go_on(shop, run, last=Stage.TRAIN)
    gateway.extra_token = True
    with pytest.raises(PreceptorError):
        pipeline.go_on(shop, run, last=Stage.PUBLISH)
    assert _published(shop) == []
    assert run.events(Stage.PUBLISH, "failed")[0].text("code") == "parity_broken"


def test_a_failed_canary_is_told_and_publishing_again_reuses_the_adapter(
    shop: Workshop, run: RunDir, gateway: FakeGateway
) -> None:
    gateway.canary_fails = True
    with pytest.raises(PreceptorError, match="canary"):
        pipeline.go_on(shop, run, last=Stage.PUBLISH)
    gateway.canary_fails = False
    pipeline.redo(shop, run, Stage.PUBLISH)
    assert len(_published(shop)) == 1


def test_a_kill_while_publishing_leaves_only_a_dot_folder_which_the_next_try_removes(
    shop: Workshop, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.go_on(shop, run, last=Stage.TRAIN)
    with monkeypatch.context() as patch:
        patch.setattr("preceptor_trainer.publish.write_manifest", _killed)
        with pytest.raises(Killed):
            pipeline.go_on(shop, run, last=Stage.PUBLISH)
    assert [name[0] for name in _published(shop)] == ["."]
    pipeline.go_on(shop, run, last=Stage.PUBLISH)
    assert _published(shop) == [run.result(Stage.PUBLISH, Published).adapter]


def test_versions_count_up(shop: Workshop, recipe: str) -> None:
    names = []
    for seed in (1, 2):
        run = pipeline.start_run(shop, "plants", Overrides(recipe=recipe, seed=seed))
        pipeline.go_on(shop, run, last=Stage.PUBLISH)
        names.append(run.result(Stage.PUBLISH, Published).adapter)
    assert [name[: len("plants-v0-")] for name in names] == ["plants-v1-", "plants-v2-"]


def test_a_training_killed_between_steps_ends_where_an_undisturbed_one_does(
    shop: Workshop, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pipeline.start_run(shop, "plants", Overrides(recipe=recipe))
    pipeline.go_on(shop, whole, last=Stage.TRAIN)
    broken = pipeline.start_run(shop, "plants", Overrides(recipe=recipe))
    with monkeypatch.context() as patch:
        patch.setattr("preceptor_trainer.train.progress.Progress.on_step_end", _killed_at(10))
        with pytest.raises(Killed):
            pipeline.go_on(shop, broken, last=Stage.TRAIN)
    # A folder that no event vouches for is what a kill in the middle of saving leaves.
    (broken.checkpoints / "checkpoint-9").mkdir()
    again = RunDir.open(shop.settings.runs_dir, broken.id)
    pipeline.go_on(shop, again, last=Stage.TRAIN)
    assert again.events(Stage.TRAIN, "resumed")[0].number("step") == 8
    assert (again.adapter / WEIGHTS).read_bytes() == (whole.adapter / WEIGHTS).read_bytes()
    metrics = [each.result(Stage.TRAIN, Trained).metrics for each in (whole, again)]
    assert metrics[0].tokens == metrics[1].tokens
    assert metrics[0].final_loss == pytest.approx(metrics[1].final_loss, rel=1e-3)


def test_training_learns_and_says_so(shop: Workshop, run: RunDir) -> None:
    pipeline.go_on(shop, run, last=Stage.TRAIN)
    metrics = run.result(Stage.TRAIN, Trained).metrics
    assert metrics.final_loss < metrics.first_loss
    assert metrics.steps == 15
    last = run.events(Stage.TRAIN, "progress")[-1]
    assert (last.number("step"), last.number("steps")) == (15, 15)
    assert metrics.tokens == 3 * run.spec.dataset.tokens


def test_the_loss_is_trls_own(shop: Workshop, run: RunDir, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline.go_on(shop, run, last=Stage.TRAIN)
    plain = pipeline.start_run(shop, "plants", Overrides(recipe=recipe))
    monkeypatch.delattr("preceptor_trainer.train.answer_trainer.AnswerTrainer.compute_loss")
    pipeline.go_on(shop, plain, last=Stage.TRAIN)
    losses = [[event.number("loss") for event in of.events(Stage.TRAIN, "progress")] for of in (run, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_a_loss_that_breaks_stops_the_run(shop: Workshop, recipe: str, tiny_base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    spoilt = tmp_path / "spoilt-llama"
    shutil.copytree(tiny_base, spoilt)
    weights = load_file(spoilt / "model.safetensors")
    weights["model.norm.weight"][0] = float("inf")
    save_file(weights, spoilt / "model.safetensors", metadata={"format": "pt"})
    shop = shop._replace(settings=shop.settings.model_copy(update={"base_model": str(spoilt)}))
    run = pipeline.start_run(shop, "plants", Overrides(recipe=recipe))
    with pytest.raises(PreceptorError) as caught:
        pipeline.go_on(shop, run, last=Stage.PROMOTE)
    assert caught.value.code == "loss_diverged"
    assert _published(shop) == []


def test_a_stage_out_of_order_says_what_is_missing(shop: Workshop, run: RunDir) -> None:
    with pytest.raises(InvalidInput) as caught:
        pipeline.redo(shop, run, Stage.EVALUATE)
    assert caught.value.code == "stage_missing"
    assert "'plan'" in caught.value.message


def test_prompts_changed_since_training_are_refused(shop: Workshop, run: RunDir) -> None:
    path = shop.settings.domains_dir / "plants" / "domain.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("Name the colour", "Say it"), encoding="utf-8")
    with pytest.raises(InvalidInput) as caught:
        pipeline.go_on(shop, run, last=Stage.TRAIN)
    assert caught.value.code == "prompt_changed"


def test_every_answer_is_kept(shop: Workshop, run: RunDir) -> None:
    pipeline.go_on(shop, run, last=Stage.EVALUATE)
    lines = (run.path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [AnswerRow.model_validate_json(line) for line in lines]
    assert len(rows) == 48
    assert sum(row.graded.correct for row in rows if row.side == "adapter") == 24


def _killed(*args: object, **kwargs: object) -> None:
    raise Killed


def _killed_at(step: int) -> object:
    from preceptor_trainer.train.progress import Progress

    before = Progress.on_step_end

    def on_step_end(self: Progress, args: object, state: object, control: object, **kwargs: object) -> None:
        if getattr(state, "global_step", 0) == step:
            raise Killed
        before(self, args, state, control, **kwargs)  # type: ignore[arg-type]  # passed through

    return on_step_end


def test_a_full_disk_at_publication_is_told_and_publishes_nothing(
    shop: Workshop, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(source: object, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    with monkeypatch.context() as patch:
        patch.setattr("preceptor_trainer.publish.shutil.copyfile", no_space)
        with pytest.raises(PreceptorError, match="No space left") as caught:
            pipeline.go_on(shop, run, last=Stage.PUBLISH)
    assert caught.value.code == "not_written"
    pipeline.go_on(shop, run, last=Stage.PUBLISH)
    verify_files(read_adapter(shop.settings.adapters_dir / run.result(Stage.PUBLISH, Published).adapter))
