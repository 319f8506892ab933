"""Adapter lifecycle: registry, canary, promotion, and the reconciler."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable

import pytest
from preceptor_contracts.manifest import MANIFEST
from preceptor_contracts.report import Verdict

from tests.unit.gateway.conftest import V1, V2, Stack, StackMaker


def eventually(claim: Callable[[], bool], limit_s: float = 5.0) -> bool:
    """Waits for something that happens by itself."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if claim():
            return True
        time.sleep(0.02)
    return False


def state(stack: Stack, name: str) -> str:
    views = stack.use.get("/v1/adapters").json()["data"]
    return next((view["state"] for view in views if view["adapter"] == name), "absent")


def test_load_verifies_probes_and_lists(stack: Stack) -> None:
    stack.add(V1)
    assert state(stack, V1) == "registered"
    view = stack.load(V1).json()
    assert (view["state"], view["pinned"], view["promoted"]) == ("ready", True, False)
    assert all("load_inplace" not in body for _, body in stack.fake.calls)


def test_use_key_may_not_load_or_promote(stack: Stack) -> None:
    stack.add(V1)
    assert stack.use.post("/v1/adapters", json={"adapter": V1}).status_code == 403
    assert stack.use.post("/v1/domains/clinic/promote", json={"adapter": V1}).status_code == 403


def test_adapter_without_effect_fails_its_canary(stack: Stack) -> None:
    stack.add(V1, deaf=True)
    answer = stack.load(V1)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "canary_failed")
    assert state(stack, V1) == "failed"
    assert stack.chat(f"clinic:{V1}").status_code == 503


def test_altered_weights_are_refused(stack: Stack) -> None:
    stack.add(V1)
    (stack.adapters / V1 / "adapter_model.safetensors").write_bytes(b"other")
    answer = stack.load(V1)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "manifest_invalid")
    assert "adapter_model.safetensors" in answer.json()["error"]["message"]
    assert V1 not in stack.fake.adapters


def test_pickled_weights_are_refused(stack: Stack) -> None:
    stack.add(V1)
    (stack.adapters / V1 / "adapter_model.bin").write_bytes(b"pickle")
    assert "pickle" in stack.load(V1).json()["error"]["message"]


def test_folder_without_manifest_is_not_listed(stack: Stack) -> None:
    stack.add(V1)
    (stack.adapters / V1 / MANIFEST).unlink()
    (stack.adapters / f".{V2}.partial").mkdir()
    assert stack.use.get("/v1/adapters").json()["data"] == []
    assert stack.load(V1).status_code == 404


def test_names_that_are_paths_never_reach_the_engine(stack: Stack) -> None:
    for name in ("../clinic-v1-00000001", "/etc", "clinic-v1-00000001\n", "clinic-v1-00000001/.."):
        assert stack.load(name).status_code in (400, 404)
    assert not [path for path, _ in stack.fake.calls if "lora" in path]


def test_adapter_of_another_prompt_is_refused(make_stack: StackMaker) -> None:
    stack = make_stack()
    stack.add(V1)
    path = stack.root / "domains" / "clinic" / "domain.yaml"
    path.write_text(path.read_text().replace("You are a clinic.", "You are another clinic."))
    changed = make_stack()
    assert "another prompt" in changed.load(V1).json()["error"]["message"]


def test_promotion_rests_on_a_report_that_says_better(stack: Stack) -> None:
    better, worse = stack.add(V1, Verdict.BETTER), stack.add(V2, Verdict.NOT_BETTER)
    assert stack.promote(V1).json()["error"]["code"] == "report_missing"
    assert stack.promote(V1, report="../../x.json").json()["error"]["code"] == "unknown_report"
    assert stack.promote(V2, report=worse).json()["error"]["code"] == "not_better"
    assert stack.promote(V1, report=better).json() == {"domain": "clinic", "promoted": V1, "previous": None}
    assert stack.promote(V2, force=True).json() == {"domain": "clinic", "promoted": V2, "previous": V1}
    assert stack.chat("clinic").headers["x-preceptor-adapter"] == V2


def test_rollback_goes_one_step_and_says_when_there_is_none(stack: Stack) -> None:
    assert stack.admin.post("/v1/domains/clinic/rollback").json()["error"]["code"] == "no_previous"
    for name in (V1, V2):
        stack.add(name)
        stack.promote(name, force=True).raise_for_status()
    assert stack.admin.post("/v1/domains/clinic/rollback").json()["promoted"] == V1
    assert stack.chat("clinic").headers["x-preceptor-adapter"] == V1


def test_promoted_adapter_cannot_be_unloaded(stack: Stack) -> None:
    stack.add(V1)
    stack.promote(V1, force=True).raise_for_status()
    assert stack.admin.delete(f"/v1/adapters/{V1}").json()["error"]["code"] == "adapter_promoted"
    stack.add(V2)
    stack.load(V2).raise_for_status()
    assert stack.admin.delete(f"/v1/adapters/{V2}").json()["state"] == "registered"
    assert V2 not in stack.fake.adapters
    assert stack.chat(f"clinic:{V2}").json()["error"]["code"] == "adapter_not_loaded"


def test_engine_restart_heals_without_anyone_asking(stack: Stack) -> None:
    stack.add(V1)
    stack.promote(V1, force=True).raise_for_status()
    stack.fake.restart()
    assert eventually(lambda: V1 in stack.fake.adapters)
    assert eventually(lambda: stack.chat("clinic").status_code == 200)


def test_request_to_a_lost_adapter_is_503_and_hastens_the_reconciler(make_stack: StackMaker) -> None:
    stack = make_stack(reconcile_seconds=30)
    stack.add(V1)
    stack.promote(V1, force=True).raise_for_status()
    stack.fake.restart()
    answer = stack.chat("clinic")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert eventually(lambda: stack.chat("clinic").status_code == 200)


def test_gateway_restart_restores_aliases(make_stack: StackMaker) -> None:
    first = make_stack()
    first.add(V1)
    first.promote(V1, force=True).raise_for_status()
    second = make_stack()
    assert eventually(lambda: second.chat("clinic").status_code == 200)
    assert second.use.get("/health").json()["adapters_ready"] == 1


def test_failed_canary_heals_with_the_next_engine(stack: Stack) -> None:
    stack.add(V1)
    stack.promote(V1, force=True).raise_for_status()
    stack.fake.deaf_adapters = True
    stack.fake.restart()
    assert eventually(lambda: state(stack, V1) == "failed")
    stack.fake.deaf_adapters = False
    stack.fake.restart()
    assert eventually(lambda: stack.chat("clinic").status_code == 200)


def test_odd_engine_answer_does_not_strand_an_adapter(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    stack.add(V1)
    stack.promote(V1, force=True).raise_for_status()
    whole = stack.fake._top
    with monkeypatch.context() as patch:
        patch.setattr(stack.fake, "_top", lambda name, prompt, wanted: whole(name, prompt, wanted)[:1])
        stack.fake.restart()
        assert eventually(lambda: stack.chat("clinic").status_code == 503)
    assert eventually(lambda: stack.chat("clinic").status_code == 200)


def test_unload_cannot_overtake_a_promotion(make_stack: StackMaker) -> None:
    stack = make_stack(reconcile_seconds=30)
    for name in (V1, V2):
        stack.add(name)
    stack.promote(V1, force=True).raise_for_status()
    stack.fake.token_delay_s = 0.5
    promoting = threading.Thread(target=lambda: stack.promote(V2, force=True))
    promoting.start()
    time.sleep(0.2)
    refused = stack.admin.delete(f"/v1/adapters/{V2}")
    promoting.join()
    stack.fake.token_delay_s = 0
    assert refused.json()["error"]["code"] == "adapter_promoted"
    assert stack.chat("clinic").headers["x-preceptor-adapter"] == V2


def test_what_a_rollback_would_restore_stays(stack: Stack) -> None:
    for name in (V1, V2):
        stack.add(name)
        stack.promote(name, force=True).raise_for_status()
    assert stack.admin.delete(f"/v1/adapters/{V1}").json()["error"]["code"] == "adapter_promoted"


def test_a_slow_list_of_the_engine_demotes_nobody(make_stack: StackMaker) -> None:
    stack = make_stack(reconcile_seconds=0.01)
    stack.fake.models_delay_s = 0.3
    stack.add(V1)
    stack.promote(V1, force=True).raise_for_status()
    assert [stack.chat("clinic").status_code for _ in range(40)] == [200] * 40


def test_pinned_adapter_whose_folder_is_gone_is_told_and_can_be_unpinned(stack: Stack) -> None:
    stack.add(V1)
    stack.load(V1).raise_for_status()
    shutil.rmtree(stack.adapters / V1)
    assert eventually(lambda: state(stack, V1) == "failed")
    assert stack.admin.delete(f"/v1/adapters/{V1}").status_code == 200
    assert state(stack, V1) == "absent"


def test_forced_promotion_names_no_invented_report(stack: Stack) -> None:
    stack.add(V1)
    assert stack.promote(V1, force=True, report="invented.json").json()["error"]["code"] == "unknown_report"


def test_two_rollbacks_at_once_go_one_step_each_and_serve(stack: Stack) -> None:
    for name in (V1, V2):
        stack.add(name)
        stack.promote(name, force=True).raise_for_status()
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(stack.admin.post("/v1/domains/clinic/rollback").status_code))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200, 409]
    assert stack.chat("clinic").headers["x-preceptor-adapter"] == V1


def test_adapter_whose_folder_vanished_is_told(stack: Stack) -> None:
    stack.add(V1)
    stack.promote(V1, force=True).raise_for_status()
    for path in (stack.adapters / V1).iterdir():
        path.unlink()
    (stack.adapters / V1).rmdir()
    stack.fake.restart()
    assert eventually(lambda: stack.use.get("/health").json()["status"] == "degraded")
