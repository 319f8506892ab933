"""Folders that come, go, change or lie, and the rule of pins."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from preceptor_contracts.manifest import MANIFEST, AdapterFolder, hash_files, verify_files

from tests.unit.gateway.conftest import V1, V2, Stack, StackMaker
from tests.unit.gateway.test_adapters import eventually, state


def rewrite(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Changes a manifest as its author could."""
    path = folder / MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def refusal(stack: Stack, name: str = V1) -> str:
    """Why a load is refused; the engine must not have heard of the adapter."""
    answer = stack.load(name)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == "manifest_invalid"
    assert not [path for path, _ in stack.fake.calls if "lora" in path]
    return str(answer.json()["error"]["message"])


# --- what is refused ---


@pytest.mark.parametrize("file", ["adapter_model.bin", "adapter_model.pt", "deep/optimizer.pkl", "weights.BIN"])
@pytest.mark.parametrize("listed", [True, False])
def test_a_pickle_is_refused_in_the_manifest_or_not(stack: Stack, file: str, listed: bool) -> None:
    stack.add(V1)
    folder = stack.adapters / V1
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_bytes(b"pickle")
    if listed:
        rewrite(folder, lambda manifest: manifest.update(files=hash_files(folder)))
    assert "is a pickle, which runs code when loaded" in refusal(stack)


def test_an_adapter_without_safetensors_is_refused(stack: Stack) -> None:
    stack.add(V1)
    folder = stack.adapters / V1
    (folder / "adapter_model.safetensors").unlink()
    rewrite(folder, lambda manifest: manifest.update(files=hash_files(folder)))
    assert refusal(stack) == f"{V1!r} has no 'adapter_model.safetensors'."


@pytest.mark.parametrize(("samples", "matched"), [(2, 1), (0, 0), (1, 2)])
def test_a_parity_certificate_that_certifies_nothing_is_refused(stack: Stack, samples: int, matched: int) -> None:
    stack.add(V1)
    certificate = {"samples": samples, "matched": matched, "ids_sha256": "0" * 64}
    rewrite(stack.adapters / V1, lambda manifest: manifest.update(parity=certificate))
    assert "parity" in refusal(stack)


def test_a_folder_that_is_a_link_out_is_refused_with_its_reason(stack: Stack, tmp_path: Path) -> None:
    stack.add(V1)
    outside = tmp_path / "outside" / V1
    outside.parent.mkdir()
    (stack.adapters / V1).rename(outside)
    (stack.adapters / V1).symlink_to(outside)
    assert "is a link to another folder" in refusal(stack)
    view = stack.use.get(f"/v1/adapters/{V1}").json()
    assert view["state"] == "failed"
    assert "is a link" in view["reason"]


def test_a_link_to_another_adapter_is_refused(stack: Stack) -> None:
    stack.add(V1)
    (stack.adapters / V2).symlink_to(stack.adapters / V1)
    assert "is a link to another folder" in refusal(stack, V2)


def test_a_link_inside_an_adapter_is_refused(stack: Stack, tmp_path: Path) -> None:
    stack.add(V1)
    weights = stack.adapters / V1 / "adapter_model.safetensors"
    weights.rename(tmp_path / "weights")
    weights.symlink_to(tmp_path / "weights")
    assert "'adapter_model.safetensors' is a link" in refusal(stack)


def test_an_adapters_folder_that_is_itself_a_link_is_fine(make_stack: StackMaker, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "adapters").symlink_to(tmp_path / "elsewhere")
    stack = make_stack()
    stack.add(V1)
    assert stack.load(V1).json()["state"] == "ready"
    assert stack.fake.adapters[V1] == str(tmp_path / "elsewhere" / V1)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Adapters whose files were hashed, in order; how often cannot be seen from outside."""
    found: list[str] = []

    def counted(adapter: AdapterFolder) -> None:
        found.append(adapter.manifest.adapter)
        verify_files(adapter)

    monkeypatch.setattr("preceptor_gateway.adapters.verification.verify_files", counted)
    return found


def test_files_are_hashed_again_only_where_something_changed(stack: Stack, hashed: list[str]) -> None:
    stack.add(V1)
    for _ in range(3):
        stack.load(V1).raise_for_status()
        stack.admin.delete(f"/v1/adapters/{V1}").raise_for_status()
    assert hashed == [V1]
    weights = stack.adapters / V1 / "adapter_model.safetensors"
    weights.write_bytes(b"WEIGHTS")  # of the same length
    assert "was altered after training" in stack.load(V1).json()["error"]["message"]
    weights.write_bytes(b"weights")
    stack.load(V1).raise_for_status()
    assert hashed == [V1] * 3


def test_several_engines_have_the_files_hashed_once(make_stack: StackMaker, hashed: list[str]) -> None:
    stack = make_stack(engines=3)
    stack.add(V1)
    stack.load(V1).raise_for_status()
    assert hashed == [V1]


# --- folders that come and go ---


def test_a_new_folder_is_registered_and_nothing_more(stack: Stack) -> None:
    assert stack.use.get(f"/v1/adapters/{V1}").json()["error"]["code"] == "unknown_adapter"
    stack.add(V1)
    view = stack.use.get(f"/v1/adapters/{V1}").json()
    assert (view["state"], view["pinned"], view["promoted"], view["reason"]) == ("registered", False, False, "")
    assert not [path for path, _ in stack.fake.calls if "lora" in path]


def test_a_promoted_adapter_without_its_folder_is_unloaded_told_and_healed_by_its_return(
    stack: Stack, tmp_path: Path
) -> None:
    stack.add(V1)
    stack.promote(V1, force=True).raise_for_status()
    (stack.adapters / V1).rename(tmp_path / "kept")
    assert eventually(lambda: V1 not in stack.fake.adapters)
    view = stack.use.get(f"/v1/adapters/{V1}").json()
    assert (view["state"], view["reason"], view["promoted"]) == ("failed", "Its folder is gone.", True)
    answer = stack.chat("clinic")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "adapter_failed")
    assert "Its folder is gone." in answer.json()["error"]["message"]
    assert stack.chat("clinic:base").status_code == 200
    (tmp_path / "kept").rename(stack.adapters / V1)
    assert eventually(lambda: stack.chat("clinic").status_code == 200)


def test_an_adapter_that_nobody_wants_is_unloaded_with_its_folder_and_forgotten(stack: Stack) -> None:
    stack.add(V1)
    stack.admin.post("/v1/adapters", json={"adapter": V1, "pin": False}).raise_for_status()
    shutil.rmtree(stack.adapters / V1)
    assert eventually(lambda: V1 not in stack.fake.adapters)
    assert state(stack, V1) == "absent"
    assert stack.chat(f"clinic:{V1}").json()["error"]["code"] == "unknown_adapter"
    assert eventually(lambda: f'adapter="{V1}",domain="clinic",engine' not in stack.use.get("/metrics").text)


def test_a_folder_replaced_under_its_old_name_is_checked_again(stack: Stack) -> None:
    stack.add(V1)
    stack.load(V1).raise_for_status()
    shutil.rmtree(stack.adapters / V1)
    stack.add(V1)
    (stack.adapters / V1 / "adapter_model.safetensors").write_bytes(b"other")
    assert eventually(lambda: state(stack, V1) == "failed")
    assert V1 not in stack.fake.adapters


def test_the_wish_is_older_than_the_folder(make_stack: StackMaker, tmp_path: Path) -> None:
    first = make_stack()
    first.add(V1)
    first.promote(V1, force=True).raise_for_status()
    (first.adapters / V1).rename(tmp_path / "kept")
    first.fake.restart()
    # A restored backup: the gateway starts with an alias and without the adapter, which comes later.
    second = make_stack()
    assert eventually(lambda: state(second, V1) == "failed")
    (tmp_path / "kept").rename(second.adapters / V1)
    assert eventually(lambda: second.chat("clinic").status_code == 200)


# --- pins ---


def test_loading_without_a_pin_lasts_until_the_engine_starts_again(stack: Stack) -> None:
    for name in (V1, V2):
        stack.add(name)
    view = stack.admin.post("/v1/adapters", json={"adapter": V1, "pin": False}).json()
    assert (view["state"], view["pinned"]) == ("ready", False)
    assert stack.load(V2).json()["pinned"] is True
    assert stack.chat(f"clinic:{V1}").status_code == 200
    stack.fake.restart()
    assert eventually(lambda: state(stack, V2) == "ready" and state(stack, V1) == "registered")
    assert V1 not in stack.fake.adapters
    assert stack.chat(f"clinic:{V1}").json()["error"]["code"] == "adapter_not_loaded"


def test_a_pin_is_put_and_taken_without_touching_what_is_loaded(stack: Stack) -> None:
    stack.add(V1)
    path = f"/v1/adapters/{V1}/pin"
    assert stack.admin.put(path).json()["pinned"] is True
    assert eventually(lambda: state(stack, V1) == "ready")
    assert stack.admin.delete(path).json()["pinned"] is False
    assert stack.admin.delete(path).status_code == 200
    assert stack.chat(f"clinic:{V1}").status_code == 200
    stack.fake.restart()
    assert eventually(lambda: state(stack, V1) == "registered")


def test_loading_without_a_pin_leaves_a_pin_as_it_is(stack: Stack) -> None:
    stack.add(V1)
    stack.load(V1).raise_for_status()
    assert stack.admin.post("/v1/adapters", json={"adapter": V1, "pin": False}).json()["pinned"] is True


def test_a_promoted_adapter_needs_no_pin(stack: Stack) -> None:
    stack.add(V1)
    stack.load(V1).raise_for_status()
    stack.promote(V1, force=True).raise_for_status()
    stack.admin.delete(f"/v1/adapters/{V1}/pin").raise_for_status()
    stack.fake.restart()
    assert eventually(lambda: V1 in stack.fake.adapters)


def test_pins_need_an_adapter_and_an_admin(stack: Stack) -> None:
    for method in ("PUT", "DELETE"):
        answer = stack.admin.request(method, f"/v1/adapters/{V1}/pin")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_adapter")
        assert stack.use.request(method, f"/v1/adapters/{V1}/pin").status_code == 403
    assert stack.use.get(f"/v1/adapters/{V1}").status_code == 404
    assert stack.use.get("/v1/adapters/..%2f..%2fetc").status_code == 404


# --- races ---


def test_promote_unload_and_rollback_at_once_with_a_busy_reconciler_end_in_agreement(make_stack: StackMaker) -> None:
    stack = make_stack(reconcile_seconds=0.01)
    for name in (V1, V2):
        stack.add(name)
        stack.promote(name, force=True).raise_for_status()
    codes: list[int] = []

    def often(method: str, path: str, body: object = None) -> Callable[[], None]:
        def work() -> None:
            for _ in range(12):
                codes.append(stack.admin.request(method, path, json=body).status_code)

        return work

    threads = [
        threading.Thread(target=often("POST", "/v1/domains/clinic/promote", {"adapter": V1, "force": True})),
        threading.Thread(target=often("POST", "/v1/domains/clinic/promote", {"adapter": V2, "force": True})),
        threading.Thread(target=often("POST", "/v1/domains/clinic/rollback")),
        threading.Thread(target=often("DELETE", f"/v1/adapters/{V1}")),
        threading.Thread(target=often("DELETE", f"/v1/adapters/{V2}/pin")),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(codes) <= {200, 409}
    promoted = stack.use.get("/v1/domains/clinic").json()["promoted"]
    assert promoted in (V1, V2)
    assert eventually(lambda: stack.chat("clinic").headers.get("x-preceptor-adapter") == promoted)
