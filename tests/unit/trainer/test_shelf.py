from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.manifest import MANIFEST, Manifest, read_adapter
from preceptor_contracts.report import Verdict
from preceptor_trainer import cli
from preceptor_trainer.commands import options
from preceptor_trainer.gateway import Gateway
from preceptor_trainer.registry.differences import compare
from preceptor_trainer.registry.shelf import gateway_words, look, shelf_text, show
from preceptor_trainer.stages import Workshop

from tests.unit.trainer.fixtures import FakeGateway

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries


@pytest.fixture
def alone(shop: Workshop) -> Workshop:
    """A workplace whose gateway is away."""
    away = shop.settings.model_copy(update={"gateway_url": "http://127.0.0.1:9"})
    return shop._replace(settings=away, connect=Gateway.of)


def _twin(shop: Workshop, adapter: str, **changes: object) -> str:
    """Copies an adapter under another name, with other facts in its manifest."""
    root, name = shop.settings.adapters_dir, "plants-v2-0123abcd"
    shutil.copytree(root / adapter, root / name)
    values = {**read_adapter(root / adapter).manifest.model_dump(mode="json"), **changes, "adapter": name}
    text = Manifest.model_validate(values).model_dump_json()
    (root / name / MANIFEST).write_text(text, encoding="utf-8")
    return name


def test_the_shelf_tells_exam_and_promotion(shop: Workshop, gateway: FakeGateway, adapter: str) -> None:
    twin = _twin(shop, adapter)
    gateway.promoted, gateway.registered, gateway.pinned = [{"adapter": twin}], [twin], {adapter}
    shelf = look(shop)
    assert [entry.adapter for entry in shelf.adapters] == [adapter, twin]
    assert [gateway_words(entry) for entry in shelf.adapters] == ["pinned, registered", "promoted, ready"]
    exam = shelf.adapters[0].exam
    assert exam is not None
    assert (exam.verdict, exam.n, exam.accuracy) == (Verdict.BETTER, 24, 1.0)
    assert shelf.adapters[0].bytes > 1000
    text = shelf_text(shelf)
    assert len(text.splitlines()) == 3
    assert "better: 1.000 (0.862 to 1.000), n = 24" in text
    assert look(shop, "trees").adapters == ()


def test_without_a_gateway_promotion_is_unknown_and_not_denied(alone: Workshop, adapter: str) -> None:
    shelf = look(alone)
    assert shelf.adapters[0].promoted is None
    assert "does not answer" in shelf.gateway
    assert gateway_words(shelf.adapters[0]) == "unknown"


def test_without_a_key_the_shelf_is_listed_all_the_same(alone: Workshop, adapter: str) -> None:
    keyless = alone._replace(settings=alone.settings.model_copy(update={"gateway_admin_key": None}))
    assert "GATEWAY_ADMIN_KEY" in look(keyless).gateway


def test_an_unreadable_manifest_is_told_in_its_line(shop: Workshop, adapter: str) -> None:
    (shop.settings.adapters_dir / adapter / MANIFEST).write_text("{", encoding="utf-8")
    (shop.settings.adapters_dir / "plants-v3-0123abcd").mkdir()
    problems = [entry.problem for entry in look(shop).adapters]
    assert "not valid JSON" in problems[0]
    assert "did not finish" in problems[1]
    assert "not valid JSON" in shelf_text(look(shop))


def test_an_altered_file_is_shown(shop: Workshop, adapter: str) -> None:
    assert show(shop, adapter).is_verified
    (shop.settings.adapters_dir / adapter / "README.md").write_text("other", encoding="utf-8")
    shown = show(shop, adapter)
    assert "'README.md' was altered" in shown.problem


def test_two_adapters_differ_in_what_went_in_and_what_came_out(shop: Workshop, adapter: str) -> None:
    root = shop.settings.adapters_dir
    before = read_adapter(root / adapter).manifest
    recipe = {**before.recipe, "learning_rate": 0.5}
    dataset = {**before.dataset.model_dump(mode="json"), "sha256": "0" * 64}
    twin = _twin(shop, adapter, recipe=recipe, seed=99, dataset=dataset)
    shutil.rmtree(root / twin / "reports")
    found = {
        each.field: (each.left, each.right)
        for each in compare(*(read_adapter(root / n) for n in (adapter, twin))).fields
    }
    assert found["recipe.learning_rate"] == (0.05, 0.5)
    assert found["dataset.sha256"] == (before.dataset.sha256, "0" * 64)
    assert found["seed"] == (before.seed, 99)
    assert found["exam.adapter.accuracy"] == (1.0, None)
    assert not any(field.startswith(("canary", "files", "adapter")) for field in found)


def test_the_distance_of_weights_is_that_of_the_updates(shop: Workshop, adapter: str) -> None:
    from safetensors.torch import load_file, save_file

    root, twin = shop.settings.adapters_dir, _twin(shop, adapter)
    path = root / twin / "adapter_model.safetensors"
    state = load_file(path)
    # The same product from other factors is the same adapter.
    save_file({name: tensor * (2 if "lora_A" in name else 0.5) for name, tensor in state.items()}, path)
    left, right = read_adapter(root / adapter), read_adapter(root / twin)
    same = compare(left, right, weights=True)
    assert [each.layer for each in same.layers] == [0, 1]
    assert all(each.distance < 1e-4 for each in same.layers)
    assert all(each.left_norm > 0 for each in same.layers)
    save_file({name: tensor * (-1 if "lora_B" in name else 1) for name, tensor in state.items()}, path)
    assert all(each.distance == pytest.approx(2) for each in compare(left, right, weights=True).layers)
    save_file({name: tensor for name, tensor in state.items() if "q_proj" not in name}, path)
    with pytest.raises(InvalidInput, match="do not change the same layers"):
        compare(left, right, weights=True)


def test_the_commands_print_text_and_json(
    shop: Workshop, adapter: str, output: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "open_shop", lambda: shop)
    twin = _twin(shop, adapter, seed=99)

    def printed(*arguments: str, code: int = 0) -> str:
        output.seek(0)
        output.truncate()
        assert cli.main(["adapters", *arguments]) == code
        return output.getvalue()

    assert adapter in printed("list")
    assert adapter in printed("list", "plants")
    listed = json.loads(printed("list", "--json"))
    assert [entry["adapter"] for entry in listed["adapters"]] == [adapter, twin]
    assert "verified" in printed("show", adapter)
    assert json.loads(printed("show", adapter, "--json"))["manifest"]["adapter"] == adapter
    assert printed("show", adapter, "--card").startswith("---\nbase_model: tiny-llama\n")
    assert "seed" in printed("diff", adapter, twin)
    assert json.loads(printed("diff", adapter, twin, "--weights", "--json"))["layers"][0]["distance"] == 0
    (shop.settings.adapters_dir / adapter / "README.md").write_text("other", encoding="utf-8")
    assert "altered" in printed("show", adapter, code=1)


def test_bad_input_exits_2_with_a_sentence(
    shop: Workshop, adapter: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(options, "open_shop", lambda: shop)
    for arguments, says in (
        (["list", "trees"], "There is no domain 'trees'"),
        (["show", "plants-v9-00000000"], adapter),
        (["show", ".archive"], "There is no adapter '.archive'"),
        (["diff", adapter, "nope"], "There is no adapter 'nope'"),
    ):
        assert cli.main(["adapters", *arguments]) == 2
        assert says in capsys.readouterr().err


def test_an_empty_shelf_is_no_error(shop: Workshop, output: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "open_shop", lambda: shop)
    assert not Path(shop.settings.adapters_dir).exists()
    assert cli.main(["adapters", "list"]) == 0
    assert "There is no adapter" in output.getvalue()
