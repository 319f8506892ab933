"""A training on the engine's GPU: the engine makes way for it, and only for it."""

from __future__ import annotations

import fcntl
import io
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from preceptor_contracts.errors import PreceptorError
from preceptor_contracts.frozen import Frozen
from preceptor_contracts.hand_off import away_lock, hand_off_lock, is_held
from preceptor_trainer import hand_off, oneshot, pipeline
from preceptor_trainer.recipes import Overrides
from preceptor_trainer.runs import RunDir, Stage
from preceptor_trainer.stages import Promoted, Workshop

from tests.unit.trainer.fixtures import FakeGateway

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hand_off, "POLL_S", 0.01)
    monkeypatch.setattr(hand_off, "LEAVE_S", 0.3)


class Launcher:
    """What an engine's launcher does, in a thread: says that its vLLM is gone while the GPU is wanted."""

    def __init__(self, adapters: Path) -> None:
        self._adapters = adapters
        self.end = threading.Event()
        self.thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        wanted, away = hand_off_lock(self._adapters), away_lock(self._adapters)
        while not self.end.wait(0.01):
            if is_held(wanted) and away.exists():
                with away.open("rb") as told:
                    try:
                        fcntl.flock(told, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        continue
                    while is_held(wanted) and not self.end.wait(0.01):
                        pass


@pytest.fixture
def obedient(shop: Workshop, gateway: FakeGateway) -> Iterator[None]:
    """Engine `a` obeys the lock; `b` is on another machine."""
    adapters = shop.settings.adapters_dir
    adapters.mkdir(parents=True, exist_ok=True)
    launcher = Launcher(adapters)
    launcher.thread.start()
    gateway.engines_up = lambda: {"a": not is_held(hand_off_lock(adapters)), "b": True}
    yield
    launcher.end.set()
    launcher.thread.join()


@pytest.mark.usefixtures("obedient")
def test_the_stages_that_need_the_gpu_have_it_and_no_other(
    shop: Workshop, gateway: FakeGateway, recipe: str, monkeypatch: pytest.MonkeyPatch, output: io.StringIO
) -> None:
    lock = hand_off_lock(shop.settings.adapters_dir)
    held: dict[Stage, bool] = {}

    def look(stage: Stage) -> object:
        def work(shop: Workshop, run: RunDir) -> Frozen:
            held[stage] = is_held(lock)
            return Promoted(promoted=False, reason="pretended")

        return work

    monkeypatch.setattr(pipeline, "STAGES", {stage: look(stage) for stage in Stage})
    run = pipeline.start_run(shop, "plants", Overrides(recipe=recipe))
    pipeline.go_on(shop._replace(hand_off=True), run, last=Stage.PROMOTE)
    assert held == {
        Stage.PLAN: True,
        Stage.TRAIN: True,
        Stage.PUBLISH: False,
        Stage.EVALUATE: False,
        Stage.PROMOTE: False,
    }
    assert "It has made way" in output.getvalue()
    held.clear()
    pipeline.go_on(shop._replace(hand_off=True), run, last=Stage.PROMOTE)
    assert held == {}


@pytest.mark.usefixtures("obedient")
def test_a_plan_made_beside_the_engine_is_made_again_without_it(
    shop: Workshop, gateway: FakeGateway, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Stage] = []

    def note(stage: Stage) -> object:
        def work(shop: Workshop, run: RunDir) -> Frozen:
            seen.append(stage)
            return Promoted(promoted=False, reason="pretended")

        return work

    monkeypatch.setattr(pipeline, "STAGES", {stage: note(stage) for stage in Stage})
    run = pipeline.start_run(shop, "plants", Overrides(recipe=recipe))
    pipeline.go_on(shop, run, last=Stage.PLAN)
    pipeline.go_on(shop._replace(hand_off=True), run, last=Stage.TRAIN)
    assert seen == [Stage.PLAN, Stage.PLAN, Stage.TRAIN]


@pytest.mark.usefixtures("obedient")
def test_torch_keeps_no_memory_when_the_engine_comes_back(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM refuses to start where its share of the GPU is not free."""
    lock = hand_off_lock(shop.settings.adapters_dir)
    seen: list[bool] = []
    monkeypatch.setattr("preceptor_trainer.train.memory.free_memory", lambda: seen.append(is_held(lock)))
    with hand_off.handed_off(shop):
        pass
    assert seen == [True]


@pytest.mark.usefixtures("obedient")
def test_an_engine_that_is_still_starting_makes_way_too(shop: Workshop, gateway: FakeGateway) -> None:
    """As after a training that was killed, and is resumed at once."""
    gateway.engines_up = lambda: {"a": False}
    with hand_off.handed_off(shop):
        gateway.engines_up = lambda: {"a": True}


@pytest.mark.usefixtures("obedient")
def test_a_training_that_fails_gives_the_gpu_back(shop: Workshop) -> None:
    with pytest.raises(RuntimeError, match="broken"), hand_off.handed_off(shop):
        raise RuntimeError("broken")
    assert not is_held(hand_off_lock(shop.settings.adapters_dir))


def test_an_engine_that_does_not_obey_is_told_and_nothing_is_held(shop: Workshop) -> None:
    with pytest.raises(PreceptorError, match="No engine made way") as caught, hand_off.handed_off(shop):
        raise AssertionError("it has no GPU")
    assert "ENGINE_HAND_OFF" in caught.value.hint
    assert not is_held(hand_off_lock(shop.settings.adapters_dir))


@pytest.mark.usefixtures("obedient")
def test_two_trainings_do_not_share_a_gpu(shop: Workshop) -> None:
    with (
        hand_off.handed_off(shop),
        pytest.raises(PreceptorError, match="Another training has the GPU"),
        hand_off.handed_off(shop),
    ):
        raise AssertionError("it has no GPU")


@pytest.mark.usefixtures("obedient")
def test_engine_and_gateway_may_look_at_the_locks_whatever_the_umask(shop: Workshop) -> None:
    before = os.umask(0o077)
    try:
        with hand_off.handed_off(shop):
            for lock in (hand_off_lock, away_lock):
                assert stat.S_IMODE(lock(shop.settings.adapters_dir).stat().st_mode) == 0o644
    finally:
        os.umask(before)


@pytest.mark.usefixtures("obedient")
def test_an_engine_that_does_not_come_back_is_told_with_the_command_that_goes_on(
    shop: Workshop, gateway: FakeGateway
) -> None:
    hasty = shop._replace(settings=shop.settings.model_copy(update={"gateway_patience_s": 0.2}), go_on="resume x")
    with pytest.raises(PreceptorError, match=r"^a did not come back") as caught, hand_off.handed_off(hasty):
        gateway.engines_up = lambda: {"a": False, "b": True}
    assert "preceptor-trainer resume x" in caught.value.hint


@pytest.mark.parametrize("limit_s", [0.2, 0.0])
@pytest.mark.usefixtures("obedient")
def test_an_engine_without_one_promoted_adapter_is_told_and_the_run_goes_on(
    shop: Workshop, gateway: FakeGateway, output: io.StringIO, limit_s: float
) -> None:
    hasty = shop._replace(settings=shop.settings.model_copy(update={"gateway_patience_s": limit_s}))
    with hand_off.handed_off(hasty):
        gateway.engines_up = lambda: {"a": True, "b": True}
        gateway.status = "degraded"
    assert "not every promoted adapter is ready" in output.getvalue()


@pytest.mark.usefixtures("obedient")
def test_an_adapter_that_was_broken_before_is_not_waited_for(
    shop: Workshop, gateway: FakeGateway, output: io.StringIO
) -> None:
    gateway.status = "degraded"
    with hand_off.handed_off(shop):
        pass
    assert "not every promoted adapter" not in output.getvalue()


def test_in_the_image_a_domains_name_alone_means_run() -> None:
    assert oneshot.arguments(["allergy", "--data", "/data/mine.csv"])[:2] == ["run", "allergy"]
    assert oneshot.arguments(["plan", "allergy"]) == ["plan", "allergy"]
    assert oneshot.arguments(["adapters", "list"]) == ["adapters", "list"]
    assert oneshot.arguments(["--help"]) == ["--help"]
