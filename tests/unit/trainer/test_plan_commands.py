"""`plan` and `recipes` as people type them, and what they say about serving."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from preceptor_contracts.domains import find_domain
from preceptor_contracts.errors import InvalidInput
from preceptor_trainer import cli
from preceptor_trainer.commands import options
from preceptor_trainer.plan.forecast import Plan
from preceptor_trainer.plan.servability import ENGINE_RANKS, Finding, Place, check_servability, engine_flags
from preceptor_trainer.plan.workload import of_records
from preceptor_trainer.prepare.dataset import read_records
from preceptor_trainer.recipes import Recipe, load_recipe
from preceptor_trainer.runs import RunDir, Stage
from preceptor_trainer.settings import TrainerSettings
from preceptor_trainer.stages import Workshop
from preceptor_trainer.tokens import load_tokenizer

from tests.unit.trainer.fixtures import write_recipe

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries

HERE = Place("tiny-llama", 16, "cpu")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, shop: Workshop) -> None:
    monkeypatch.setattr(options, "open_shop", lambda: shop)
    monkeypatch.setattr("preceptor_trainer.plan.preview.matrix_rate", lambda device: 1e11)
    options.busy_with.clear()


def _recipe(**changes: object) -> Recipe:
    return Recipe.model_validate({"name": "tiny", "description": "x", "method": "lora", "dtype": "float32", **changes})


def _runs(settings: TrainerSettings) -> list[RunDir]:
    if not settings.runs_dir.exists():
        return []
    return [RunDir.open(settings.runs_dir, path.name) for path in settings.runs_dir.iterdir()]


def _found(recipe: Recipe, **changes: object) -> dict[str, Finding]:
    facts = {"base_model": "tiny-llama", "positions": 512, "longest": 100, "has_template": True, **changes}
    found = check_servability(recipe, HERE, **facts)  # type: ignore[arg-type]  # any fact by name
    return {f"{finding.level}: {finding.what}": finding for finding in found}


def test_plan_measures_three_steps_and_makes_a_run_that_can_go_on(
    recipe: str, settings: TrainerSettings, output: io.StringIO
) -> None:
    assert cli.main(["plan", "plants", "--recipe", recipe, "--price-per-hour", "36"]) == 0
    (run,) = _runs(settings)
    plan = run.result(Stage.PLAN, Plan)
    assert plan.probe is not None
    assert len(plan.probe.seconds) == len(plan.probe.tokens) == 3
    assert plan.expected_seconds == pytest.approx(plan.tokens / plan.probe.tokens_per_second, abs=0.1)
    assert plan.cost == pytest.approx((plan.expected_seconds or 0) / 100)
    for part in ("from the probe", "at 36 an hour", "q_proj", "quantisation" if plan.findings else "optimizer", run.id):
        assert part in output.getvalue()
    assert cli.main(["resume", run.id, "--no-promote"]) == 0


def test_the_probe_trains_nothing_that_stays(recipe: str, settings: TrainerSettings) -> None:
    assert cli.main(["plan", "plants", "--recipe", recipe]) == 0
    (run,) = _runs(settings)
    assert not run.adapter.exists()
    assert not list(run.checkpoints.glob("*"))


def test_without_the_probe_the_matrix_rate_must_do(recipe: str, settings: TrainerSettings, output: io.StringIO) -> None:
    assert cli.main(["plan", "plants", "--recipe", recipe, "--no-probe"]) == 0
    assert _runs(settings)[0].result(Stage.PLAN, Plan).probe is None
    assert "from the matrix rate" in output.getvalue()


def test_the_one_shot_does_not_probe(recipe: str, settings: TrainerSettings, output: io.StringIO) -> None:
    assert cli.main(["run", "plants", "--recipe", recipe]) == 0
    assert _runs(settings)[0].result(Stage.PLAN, Plan).probe is None
    assert "Memory of the training" not in output.getvalue()


def test_a_configuration_alone_is_enough(
    tmp_path: Path, tiny_base: Path, recipe: str, settings: TrainerSettings, output: io.StringIO
) -> None:
    folder = tmp_path / "Other-Base"
    folder.mkdir()
    (folder / "config.json").write_bytes((tiny_base / "config.json").read_bytes())
    for config in (folder, folder / "config.json"):
        assert cli.main(["plan", "plants", "--recipe", recipe, "--config", str(config)]) == 0
    said = output.getvalue()
    assert "Other-Base, 25,760 parameters" in said
    assert "set BASE_MODEL=Other-Base" in said
    assert "No run was made" in said
    assert _runs(settings) == []


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "never-heard-of"}'])
def test_a_bad_configuration_is_bad_input(
    tmp_path: Path, recipe: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    assert cli.main(["plan", "plants", "--recipe", recipe, "--config", str(tmp_path)]) == 2
    assert "no configuration that transformers knows" in capsys.readouterr().err


def test_a_missing_configuration_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "plants", "--config", str(tmp_path)]) == 2
    assert "config.json does not exist" in capsys.readouterr().err


def test_a_recipe_is_planned_for_the_base_that_it_was_made_for(settings: TrainerSettings, output: io.StringIO) -> None:
    asked = ["plan", "plants", "--recipe", "mistral-7b-qlora", "--gpu-gb", "24", "--price-per-hour", "1"]
    assert cli.main(asked) == 0
    said = output.getvalue()
    for part in ("7,248,023,552", "41,943,040", "a GPU of 24 GB", "fp8_per_channel", "about", "time", "unknown"):
        assert part in said
    assert _runs(settings) == []


def test_one_that_does_not_fit_is_shown_and_refused(output: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "plants", "--recipe", "llama3-8b-lora", "--gpu-gb", "8"]) == 2
    assert "8,030,261,248" in output.getvalue()
    assert "only 8.6 GB are free on a GPU of 8 GB" in capsys.readouterr().err


def test_a_rank_above_the_engines_limit_is_told_with_the_setting(
    tmp_path: Path, settings: TrainerSettings, output: io.StringIO
) -> None:
    path = str(write_recipe(tmp_path / "high.yaml", rank=32))
    assert cli.main(["plan", "plants", "--recipe", path]) == 0
    assert "set ENGINE_MAX_LORA_RANK=32" in output.getvalue()
    assert _runs(settings) == []


def test_a_plan_without_weights_counts_tokens_by_their_bytes(
    settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch, shop: Workshop, tmp_path: Path, output: io.StringIO
) -> None:
    bare = settings.model_copy(update={"base_model": "embedded", "base_models_dir": tmp_path / "nothing"})
    monkeypatch.setattr(options, "open_shop", lambda: shop._replace(settings=bare))
    assert cli.main(["plan", "plants"]) == 0
    assert "134,515,008 parameters" in output.getvalue()
    assert "the tokenizer of" in output.getvalue()


@pytest.mark.parametrize(
    "options_", [["--gpu-gb", "0"], ["--price-per-hour", "-1"], ["--method", "dora"], ["--recipe", "nope"]]
)
def test_a_bad_option_is_bad_input(options_: list[str]) -> None:
    assert cli.main(["plan", "plants", *options_]) == 2


def test_recipes_lists_each_with_its_memory(output: io.StringIO) -> None:
    assert cli.main(["recipes"]) == 0
    assert cli.main(["recipes", "--device", "cpu", "--markdown"]) == 0
    said = output.getvalue()
    for part in (
        "Recipes",
        "73,859,072",
        "on 24 GB",
        "| smollm2-135m-cpu | HuggingFaceTB/SmolLM2-135M-Instruct | lora |",
    ):
        assert part in said


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_documentation_shows_what_the_command_prints(device: str, output: io.StringIO) -> None:
    assert cli.main(["recipes", "--device", device, "--markdown"]) == 0
    table = [line for line in output.getvalue().splitlines() if line.startswith("|")]
    assert len(table) >= 8
    assert "\n".join(table) in (Path(__file__).parents[3] / "docs/recipes.md").read_text()


def test_what_no_base_can_serve_is_refused_in_words() -> None:
    assert _found(_recipe()) == {}
    refused = [name for name in _found(_recipe(), longest=513, has_template=False) if name.startswith("refused")]
    assert len(refused) == 2
    assert any("no chat template" in name for name in refused)
    assert any("513" in name for name in refused)


def test_a_recipe_for_another_base_is_a_note_where_the_base_is_the_one_that_is_set() -> None:
    (only,) = _found(_recipe(base_model="someone/Other-7B"))
    assert only == "note: recipe tiny was made for someone/Other-7B"


def test_full_is_served_as_a_base_model_of_its_own_whatever_the_rank() -> None:
    (only,) = _found(_recipe(method="full", rank=64)).values()
    assert (only.level, "no adapter" in only.what) == ("note", True)
    assert engine_flags(_recipe(method="full", rank=64)) == ()


def test_the_flags_serve_the_recipe() -> None:
    assert engine_flags(load_recipe("mistral-7b-qlora")) == (
        "--enable-lora",
        "--max-lora-rank 16",
        "--quantization fp8_per_channel",
    )


def test_the_ranks_are_those_of_the_engines_setting() -> None:
    from preceptor_engine.settings import EngineSettings

    for rank in ENGINE_RANKS:
        assert EngineSettings(_env_file=None, max_lora_rank=rank).max_lora_rank == rank
    with pytest.raises(ValueError, match="max_lora_rank"):
        EngineSettings(_env_file=None, max_lora_rank=24)


def test_tokens_by_bytes_are_marked_and_not_far_off(settings: TrainerSettings) -> None:
    folder = find_domain(settings.domains_dir, "plants")
    records = read_records(folder.train)
    counted = of_records(folder.domain, records, _recipe(), load_tokenizer(settings.base_model), own=True)
    by_bytes = of_records(folder.domain, records, _recipe(), None, own=False)
    assert not counted.is_estimated
    assert by_bytes.is_estimated
    # The tiny base's tokenizer knows 300 tokens, most of them bytes; a real one is within a tenth.
    assert counted.tokens / 4 < by_bytes.tokens < counted.tokens
    assert counted.shared > 8


def test_bitsandbytes_serving_is_refused_with_what_takes_its_place(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "old.yaml", serving_quantization="bitsandbytes")
    with pytest.raises(InvalidInput, match="take fp8"):
        load_recipe(str(path))


def test_the_probe_begins_with_the_longest_and_stays_around_the_median() -> None:
    from preceptor_trainer.plan.probe import probe_passes

    def lengths(count: int, **changes: object) -> list[list[int]]:
        recipe = _recipe(batch_size=2, **changes)
        return [[sum(row) for row in rows] for rows in probe_passes(list(range(count)), recipe)]

    assert lengths(101) == [[100, 99], [52, 51], [50, 49]]
    assert len(lengths(101, accumulation=2)) == 6
    assert lengths(3) == [[2, 1], [2, 1], [0, 2]]
    assert lengths(1) == [[0, 0]] * 3
    assert len(lengths(20, batching="packed", max_length=100)) == 3


@pytest.mark.parametrize("changes", [{"validation_share": 0.3}, {"batching": "packed"}, {"method": "full"}])
def test_a_plan_counts_the_steps_that_training_makes(
    tmp_path: Path, settings: TrainerSettings, changes: dict[str, object]
) -> None:
    path = str(write_recipe(tmp_path / "tiny.yaml", **changes))
    assert cli.main(["plan", "plants", "--recipe", path]) == 0
    (run,) = _runs(settings)
    assert cli.main(["resume", run.id, "--no-promote"]) in (0, 3)
    steps = {event.number("steps") for event in run.events(Stage.TRAIN, "progress")}
    assert steps == {run.result(Stage.PLAN, Plan).steps}


def test_full_is_planned_and_makes_a_run_whatever_the_engines_rank(
    tmp_path: Path, settings: TrainerSettings, output: io.StringIO
) -> None:
    path = str(write_recipe(tmp_path / "full.yaml", method="full", rank=64))
    assert cli.main(["plan", "plants", "--recipe", path, "--no-probe"]) == 0
    plan = _runs(settings)[0].result(Stage.PLAN, Plan)
    assert plan.trainable_parameters == plan.base_parameters
    assert json.loads(plan.model_dump_json())["findings"][0]["level"] == "note"
    assert "no adapter" in output.getvalue()
