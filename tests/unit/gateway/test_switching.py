"""The seeds' `/switch-adapter`, and what an alias remembers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from preceptor_contracts.report import Verdict
from preceptor_gateway.store import AliasStore

from tests.unit.gateway.conftest import V1, V2, Stack, StackMaker


def switch(stack: Stack, adapter: str, **more: object) -> dict[str, object]:
    answer: dict[str, object] = stack.admin.post("/switch-adapter", json={"adapter": adapter, **more}).json()
    return answer


@pytest.fixture
def both(stack: Stack) -> Stack:
    for name in (V1, V2):
        stack.add(name)
    return stack


def test_an_adapter_is_switched_to_by_name_or_served_name(both: Stack) -> None:
    assert switch(both, V1) == {"status": "ok", "domain": "clinic", "adapter": V1, "previous": "base"}
    assert switch(both, f"clinic:{V2}") == {"status": "ok", "domain": "clinic", "adapter": V2, "previous": V1}
    assert switch(both, V2, domain="clinic")["previous"] == V2
    assert both.chat("clinic").headers["x-preceptor-adapter"] == V2


@pytest.mark.parametrize("base", ["base", "clinic:base"])
def test_base_makes_the_base_model_answer_and_a_rollback_undoes_it(both: Stack, base: str) -> None:
    switch(both, V1)
    assert switch(both, base) == {"status": "ok", "domain": "clinic", "adapter": "base", "previous": V1}
    item = {"domain": "clinic", "question": "Q?", "choices": ["a", "b"]}
    assert both.use.post("/submit_mcq", json=item).json()["served"] == "clinic:base"
    answer = both.chat("clinic")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "nothing_promoted")
    assert both.admin.post("/v1/domains/clinic/rollback").json()["promoted"] == V1
    assert both.chat("clinic").headers["x-preceptor-adapter"] == V1


def test_what_was_switched_away_from_can_be_unloaded_only_when_no_rollback_needs_it(both: Stack) -> None:
    switch(both, V1)
    switch(both, "base")
    assert both.admin.delete(f"/v1/adapters/{V1}").json()["error"]["code"] == "adapter_promoted"
    switch(both, V2)
    assert both.admin.delete(f"/v1/adapters/{V1}").status_code == 200
    # One step back is the base model again.
    assert both.admin.post("/v1/domains/clinic/rollback").json() == {
        "domain": "clinic",
        "promoted": None,
        "previous": V1,
    }


def test_base_where_nothing_is_promoted_changes_nothing(both: Stack) -> None:
    assert switch(both, "base") == {"status": "ok", "domain": "clinic", "adapter": "base", "previous": "base"}
    assert both.use.get("/v1/domains/clinic/history").json()["data"] == []


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"adapter": "clinic-v9-00000009"}, 404, "unknown_adapter"),
        ({"adapter": "../clinic-v1-00000001"}, 404, "unknown_adapter"),
        ({"adapter": "other-v1-00000001"}, 404, "unknown_domain"),
        ({"adapter": "other:base"}, 404, "unknown_domain"),
        ({"adapter": V1, "domain": "other"}, 409, "wrong_domain"),
        ({"adapter": "clinic"}, 400, "invalid_field"),
        ({"adapter": ""}, 400, "invalid_field"),
        ({}, 400, "invalid_field"),
        ({"adapter": V1, "force": True}, 400, "invalid_field"),
    ],
)
def test_what_cannot_be_switched_to_is_told(both: Stack, body: dict[str, object], status: int, code: str) -> None:
    answer = both.admin.post("/switch-adapter", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text


def test_switching_needs_an_admin(both: Stack) -> None:
    assert both.use.post("/switch-adapter", json={"adapter": V1}).status_code == 403


def test_base_needs_a_domain_where_there_are_several(make_stack: StackMaker, tmp_path: Path) -> None:
    make_stack()
    source = tmp_path / "domains" / "clinic" / "domain.yaml"
    (tmp_path / "domains" / "ward").mkdir()
    (tmp_path / "domains" / "ward" / "domain.yaml").write_text(source.read_text().replace("clinic\n", "ward\n", 1))
    stack = make_stack()
    assert stack.admin.post("/switch-adapter", json={"adapter": "base"}).json()["error"]["code"] == "domain_missing"
    assert switch(stack, "base", domain="ward")["domain"] == "ward"


def test_the_history_tells_everything_newest_first(stack: Stack) -> None:
    better = stack.add(V1, Verdict.BETTER)
    stack.add(V2)
    stack.promote(V1, report=better).raise_for_status()
    stack.promote(V1, report=better).raise_for_status()  # changes nothing
    switch(stack, V2)
    stack.admin.post("/v1/domains/clinic/rollback").raise_for_status()
    switch(stack, "base")
    history = stack.use.get("/v1/domains/clinic/history").json()
    assert history["domain"] == "clinic"
    assert [(one["kind"], one["adapter"], one["report"]) for one in history["data"]] == [
        ("switch", None, None),
        ("rollback", V1, better),
        ("switch", V2, None),
        ("promote", V1, better),
    ]
    times = [one["at"] for one in history["data"]]
    assert times == sorted(times, reverse=True)
    assert stack.use.get("/v1/domains/nowhere/history").json()["error"]["code"] == "unknown_domain"


def test_the_history_outlives_the_gateway(make_stack: StackMaker) -> None:
    first = make_stack()
    first.add(V1)
    first.promote(V1, force=True).raise_for_status()
    before = first.use.get("/v1/domains/clinic/history").json()
    assert make_stack().use.get("/v1/domains/clinic/history").json() == before
    assert len(before["data"]) == 1


def test_a_file_of_an_earlier_version_has_its_moves_as_history(tmp_path: Path) -> None:
    path = tmp_path / "aliases.json"
    moves = [{"adapter": name, "at": f"2026-11-0{day}T00:00:00Z"} for day, name in ((1, V1), (2, V2))]
    path.write_text(json.dumps({"aliases": {"clinic": {"moves": moves}}, "pinned": []}))
    store = AliasStore(path)
    assert [one.adapter for one in store.alias("clinic").past] == [V1, V2]
    store.step_back("clinic")
    past = AliasStore(path).alias("clinic").past
    assert [(one.kind, one.adapter) for one in past] == [("promote", V1), ("promote", V2), ("rollback", V1)]


def test_the_history_is_bounded(tmp_path: Path) -> None:
    store = AliasStore(tmp_path / "aliases.json")
    for number in range(120):
        store.move("clinic", (V1, V2)[number % 2], None)
    assert len(store.alias("clinic").past) == len(store.alias("clinic").moves) == 50
