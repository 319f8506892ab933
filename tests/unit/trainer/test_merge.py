from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from preceptor_contracts.base_models import identify_base_model
from preceptor_contracts.errors import InvalidInput, ManifestInvalid, PreceptorError, PrerequisiteError
from preceptor_trainer import cli
from preceptor_trainer.commands import options
from preceptor_trainer.export import merging, places
from preceptor_trainer.export.bases import open_adapter
from preceptor_trainer.export.merging import MergeReport, Precision
from preceptor_trainer.settings import TrainerSettings
from preceptor_trainer.stages import Workshop

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries


class Killed(BaseException):
    """Stands for SIGKILL."""


def _merge(settings: TrainerSettings, name: str, out: Path, precision: Precision = "auto") -> MergeReport:
    return merging.merge(settings, open_adapter(settings.adapters_dir, name), out, precision)


def _logits(source: str, ids: list[int], adapter: Path | None = None) -> Any:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    weights = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    asked: Any = weights if adapter is None else PeftModel.from_pretrained(weights, str(adapter))
    with torch.inference_mode():
        return asked(input_ids=torch.tensor([ids])).logits[0]


@pytest.mark.parametrize(("precision", "near"), [("float32", 1e-3), ("float16", 0.005), ("bfloat16", 0.05)])
def test_merged_weights_answer_as_base_with_adapter(
    precision: Precision, near: float, settings: TrainerSettings, adapter: str, tmp_path: Path
) -> None:
    report = _merge(settings, adapter, tmp_path / "merged", precision)
    assert report.logit_deviation <= 1e-3
    assert report.canary_deviation < report.canary_separation / 4
    ids = [5, 17, 80, 9, 200, 3]
    with_adapter = _logits(settings.base_model, ids, settings.adapters_dir / adapter)
    apart = (_logits(str(tmp_path / "merged"), ids) - with_adapter).abs().max()
    assert apart < near
    assert (with_adapter - _logits(settings.base_model, ids)).abs().max() > 0.5
    stored = json.loads((tmp_path / "merged" / "config.json").read_text(encoding="utf-8"))
    assert stored["dtype"] == precision


def test_the_result_serves_as_a_base_model_of_its_own(settings: TrainerSettings, adapter: str, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    report = _merge(settings, adapter, out)
    assert report.dtype == "bfloat16"
    identity = identify_base_model(str(out), tmp_path)
    assert identity.id == f"tiny-llama+{adapter}"
    names = {path.name for path in out.iterdir()}
    assert {"tokenizer.json", "chat_template.jinja", "generation_config.json", "README.md"} <= names
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "Name the colour." in card
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in out.iterdir())
    moved = settings.model_copy(update={"base_model": str(out)})
    with pytest.raises(InvalidInput, match="was trained on base model 'tiny-llama'"):
        _merge(moved, adapter, tmp_path / "twice")


def test_a_quantised_base_is_refused(settings: TrainerSettings, adapter: str, tiny_base: Path, tmp_path: Path) -> None:
    quantised = tmp_path / "bases" / "tiny-llama"
    shutil.copytree(tiny_base, quantised)
    config = json.loads((quantised / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (quantised / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(InvalidInput, match="bitsandbytes") as caught:
        _merge(settings.model_copy(update={"base_model": str(quantised)}), adapter, tmp_path / "merged")
    assert caught.value.code == "base_quantised"


def test_what_exists_is_not_overwritten(settings: TrainerSettings, adapter: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(InvalidInput, match="nothing is overwritten"):
        _merge(settings, adapter, tmp_path / "mine")
    with pytest.raises(InvalidInput, match="mkdir -p"):
        _merge(settings, adapter, tmp_path / "nowhere" / "merged")


def test_an_altered_adapter_is_refused(settings: TrainerSettings, adapter: str, tmp_path: Path) -> None:
    (settings.adapters_dir / adapter / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ManifestInvalid, match="altered"):
        _merge(settings, adapter, tmp_path / "merged")


def test_too_little_disk_or_memory_is_told_before_any_work(
    settings: TrainerSettings, adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("preceptor_trainer.export.places.shutil.disk_usage", lambda path: SimpleNamespace(free=1))
        with pytest.raises(PrerequisiteError, match="free"):
            _merge(settings, adapter, tmp_path / "merged")
    monkeypatch.setattr("preceptor_trainer.export.bases.free_memory", lambda: 1000)
    with pytest.raises(PrerequisiteError, match="memory"):
        _merge(settings, adapter, tmp_path / "merged")


def _left(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if "merged" in path.name]


def test_weights_that_answer_otherwise_are_not_kept(
    settings: TrainerSettings, adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(merging, "TOLERANCE", -1.0)
        with pytest.raises(PreceptorError, match="a logit differs"):
            _merge(settings, adapter, tmp_path / "merged")
    save = merging._save

    def spoil(weights: Any, folder: Path, dtype: str) -> None:
        weights.model.norm.weight.data.neg_()
        save(weights, folder, dtype)

    monkeypatch.setattr(merging, "_save", spoil)
    with pytest.raises(PreceptorError) as caught:
        _merge(settings, adapter, tmp_path / "merged")
    assert caught.value.code == "canary_failed"
    assert _left(tmp_path) == []


def test_weights_out_of_float16s_range_are_refused(
    settings: TrainerSettings, adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = merging._save

    def enlarge(weights: Any, folder: Path, dtype: str) -> None:
        weights.model.embed_tokens.weight.data[7, 0] = 1e6
        save(weights, folder, dtype)

    monkeypatch.setattr(merging, "_save", enlarge)
    with pytest.raises(InvalidInput, match="float16 cannot hold"):
        _merge(settings, adapter, tmp_path / "merged", "float16")
    assert _left(tmp_path) == []


def test_a_full_disk_leaves_nothing(
    settings: TrainerSettings, adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(weights: Any, folder: Path, dtype: str) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merging, "_save", full)
    with pytest.raises(PreceptorError, match="No space left"):
        _merge(settings, adapter, tmp_path / "merged")
    assert _left(tmp_path) == []


def test_what_a_kill_left_is_removed_by_the_next_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_remove", lambda partial: None)

    def half() -> None:
        with places.written_whole(tmp_path / "merged", is_folder=True) as partial:
            (partial / "half").write_text("x", encoding="utf-8")
            raise Killed

    with pytest.raises(Killed):
        half()
    monkeypatch.undo()
    assert _left(tmp_path) == [".merged.partial"]
    with places.written_whole(tmp_path / "merged", is_folder=True) as partial:
        assert list(partial.iterdir()) == []
    assert _left(tmp_path) == ["merged"]


def test_two_processes_do_not_write_the_same_place(tmp_path: Path) -> None:
    with (
        places.written_whole(tmp_path / "a.gguf") as partial,
        pytest.raises(PreceptorError, match="Another process"),
        places.written_whole(tmp_path / "a.gguf"),
    ):
        pass
    assert partial.name == ".a.gguf.partial"
    assert (tmp_path / "a.gguf").is_file()


def test_the_command_reports_and_bad_input_exits_2(
    shop: Workshop,
    adapter: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(options, "open_shop", lambda: shop)
    out = str(tmp_path / "merged")
    assert cli.main(["merge", adapter, "--out", out, "--dtype", "int4"]) == 2
    assert "'int4'" in capsys.readouterr().err
    assert cli.main(["merge", "plants-v9-00000000", "--out", out]) == 2
    assert "There is no adapter 'plants-v9-00000000'" in capsys.readouterr().err
    assert cli.main(["merge", "../../etc", "--out", out]) == 2
    assert cli.main(["merge", adapter, "--out", out]) == 0
    assert cli.main(["merge", adapter, "--out", out]) == 2
