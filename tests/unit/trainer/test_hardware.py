"""What a plan takes for free on a GPU: never what the engine, or anybody else, has of it now."""

from __future__ import annotations

import pytest
import torch
from preceptor_contracts.errors import InvalidInput
from preceptor_trainer.hardware import detect_hardware
from preceptor_trainer.plan.bases import find_config
from preceptor_trainer.plan.forecast import Plan, Question, make_plan, refuse_misfit
from preceptor_trainer.plan.servability import Place
from preceptor_trainer.plan.workload import Workload
from preceptor_trainer.recipes import Overrides, resolve_recipe

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries, on import
GIB = 2**30


def _gpu(monkeypatch: pytest.MonkeyPatch, *, free: int, total: int = 24 * GIB) -> None:
    """A pretended GPU with so much free."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda at: (8, 9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda at: "a GPU")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda at: (free, total))


def _plan() -> Plan:
    hardware = detect_hardware()
    recipe = resolve_recipe("qwen2.5-1.5b-qlora", Overrides(), hardware)
    work = Workload(16, 16 * recipe.max_length, recipe.max_length, shared=0, answer=0)
    question = Question(recipe.base_model, Place(recipe.base_model, 64, "cuda"))
    return make_plan(find_config(recipe.base_model), recipe, work, hardware, question)


def test_a_plan_counts_what_is_free_on_the_gpu_and_not_what_the_engine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    _gpu(monkeypatch, free=24 * GIB)
    alone = _plan()
    assert alone.memory_available_bytes == 24 * GIB
    refuse_misfit(alone, detect_hardware())
    # vLLM has taken ENGINE_GPU_MEMORY_UTILIZATION of it, 0.85 unless set.
    _gpu(monkeypatch, free=int(0.15 * 24 * GIB))
    beside = _plan()
    assert beside.memory_available_bytes == int(0.15 * 24 * GIB)
    with pytest.raises(InvalidInput, match=r"only 3\.9 GB are free on a GPU") as caught:
        refuse_misfit(beside, detect_hardware())
    assert "--hand-off" in caught.value.hint


def test_what_no_hand_off_could_mend_does_not_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    _gpu(monkeypatch, free=2 * GIB, total=4 * GIB)
    with pytest.raises(InvalidInput) as caught:
        refuse_misfit(_plan(), detect_hardware())
    assert "--hand-off" not in caught.value.hint


def test_checkpointing_too_is_settled_by_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    _gpu(monkeypatch, free=80 * GIB)
    assert not _plan().gradient_checkpointing
    _gpu(monkeypatch, free=12 * GIB)
    assert _plan().gradient_checkpointing
