import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from preceptor_gateway.settings import GatewaySettings

from bench.gateway.contestants import CONTESTANTS, DIRECT, LITELLM, OURS, ROUTER, by_name
from bench.gateway.load import Load, parse
from bench.gateway.machine import BenchFailed
from bench.gateway.measure import QUICK, Plan
from bench.gateway.report import report, rows
from bench.gateway.results import STEADY_REQUESTS, Death, Goal, Memory, Point, Results, Steady, Streams, goals, spread
from bench.gateway.sampling import OTHER, is_waiting, owner, shares
from bench.gateway.upstream import CHUNKS, streamed_answer, whole_answer

LINE = "BENCH requests=1000 us=2000000 bytes=900000 status=1 timeout=2 socket=3 p50=1500 p95=2500 p99=9000 max=9999\n"
ALIKE = ("the-same-bytes",)


def load(rate: float, p50_ms: float, errors: int = 0) -> Load:
    return Load(round(rate * 5), 5.0, 1, errors, p50_ms, p50_ms * 2, p50_ms * 3)


def results(rounds: int = 3) -> Results:
    """A run in which every goal is reached exactly in the middle round."""
    found = Results()
    for number in range(1, rounds + 1):
        # Drift: the machine slows down from round to round, for everybody alike.
        pace = 1 / number
        rates = {DIRECT: 60_000 * pace, OURS: 4_000 * pace, LITELLM: 100 * pace, ROUTER: 8_000 * pace}
        p50 = {DIRECT: 0.1, OURS: 0.3, LITELLM: 10.1, ROUTER: 0.2}
        events = {DIRECT: 64, OURS: 64, LITELLM: 65, ROUTER: 64}
        for name, rate in rates.items():
            for concurrency in (1, 32):
                found.points.append(Point(number, name, False, concurrency, load(rate, p50[name])))
            streams = 1_000 * pace if name == DIRECT else 600 * pace
            found.points.append(Point(number, name, True, 32, load(streams, 5.0)))
            hashes = ALIKE if name != LITELLM else ("one", "another")
            found.streams.append(Streams(number, name, 32, 100, 1.0, 2.0, events[name], 65.0, 13_843, hashes))
            if name != DIRECT:
                found.memory.append(Memory(number, name, 100.0, 101.0, 0.2))
    found.steady = Steady(100.0, 120.0, 121.0, 5_000, STEADY_REQUESTS, 0)
    found.profiles = {"whole answers": [("ours: relay of chat", 0.4), ("ASGI server: uvicorn", 0.6)], "streams": []}
    return found


def words(found: Results) -> list[str]:
    return [goal.word for goal in goals(found)]


def goal(found: Results, start: str) -> Goal:
    return next(one for one in goals(found) if one.measure.startswith(start))


# --- parsing ---


def test_a_summary_of_wrk_is_read() -> None:
    found = parse("Running 2s test\n" + LINE)
    assert found == Load(1000, 2.0, 900_000, 6, 1.5, 2.5, 9.0)
    assert found.rate == 500


@pytest.mark.parametrize("said", ["", "unable to connect to 127.0.0.1:1 Connection refused\n", "BENCH requests=1\n"])
def test_a_wrk_that_measured_nothing_is_a_failure(said: str) -> None:
    with pytest.raises(BenchFailed, match="wrk"):
        parse(said)


# --- arithmetic ---


def test_a_spread_is_a_median_with_its_ends() -> None:
    assert spread([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)


def test_ratios_are_taken_inside_a_round_so_that_drift_cancels() -> None:
    assert results().rate_ratio(OURS, LITELLM, stream=False, concurrency=32) == pytest.approx((40, 40, 40), rel=0.01)


def test_an_added_latency_is_on_top_of_direct() -> None:
    assert results().added(LITELLM, 1, lambda load: load.p50_ms) == pytest.approx((10, 10, 10))
    assert results().added_ratio(OURS, LITELLM, 1).median == pytest.approx(0.02)


def test_streams_count_events_and_not_answers() -> None:
    ratio = results().rate_ratio(LITELLM, DIRECT, stream=True, concurrency=32).median
    assert ratio == pytest.approx(0.6 * 65 / 64)


def test_growth_counts_from_the_warm_process() -> None:
    assert Steady(50.0, 100.0, 104.0, 1, 1, 0).growth == pytest.approx(0.04)


# --- goals ---


def test_goals_that_are_reached_pass() -> None:
    assert words(results()) == ["pass"] * 5


def test_a_failed_answer_of_ours_fails_what_rests_on_it() -> None:
    found = results()
    index = next(number for number, point in enumerate(found.points) if point.contestant == OURS)
    found.points[index] = replace(found.points[index], load=replace(found.points[index].load, errors=1))
    assert words(found) == ["FAIL"] * 4 + ["pass"]


def test_a_payload_that_differs_once_fails_the_streams() -> None:
    found = results()
    index = next(number for number, one in enumerate(found.streams) if one.contestant == OURS)
    found.streams[index] = replace(found.streams[index], hashes=("the-same-bytes", "other-bytes"))
    assert not found.is_identical(OURS)
    assert goal(found, "streaming").word == "FAIL"


def test_a_direct_stream_that_varies_proves_nothing() -> None:
    found = results()
    found.streams = [replace(one, hashes=("one", "another")) for one in found.streams]
    assert not found.is_identical(OURS)


@pytest.mark.parametrize(
    ("steady", "word"),
    [
        (Steady(1, 100, 104.9, 1, STEADY_REQUESTS, 0), "pass"),
        (Steady(1, 100, 105, 1, STEADY_REQUESTS, 0), "FAIL"),
        (Steady(1, 100, 100, 1, STEADY_REQUESTS, 7), "FAIL"),
        (Steady(1, 100, 100, 1, STEADY_REQUESTS - 1, 0), "too few requests to say"),
    ],
)
def test_growth_of_memory_is_judged(steady: Steady, word: str) -> None:
    found = results()
    found.steady = steady
    assert goal(found, "growth").word == word


def test_a_proxy_faster_than_direct_is_no_pass_by_accident() -> None:
    # A negative added latency means a broken measurement, not an infinitely good gateway.
    found = results()
    found.points = [
        replace(point, load=replace(point.load, p50_ms=0.05)) if point.contestant == OURS else point
        for point in found.points
    ]
    assert goal(found, "added p50").word == "FAIL"


# --- report ---


def test_a_report_names_everybody_and_every_goal() -> None:
    text = report(results(), Plan(), {"processor": "a small one"}, 600)
    assert all(one.name in text for one in CONTESTANTS)
    assert all(one.measure in text for one in goals(results()))
    assert "10.0 minutes" in text


def test_a_report_can_be_written_of_one_round() -> None:
    assert "1 round" in report(results(rounds=1), QUICK, {}, 60)


def test_a_report_says_when_the_upstream_was_too_slow() -> None:
    found = results()
    assert "holds nobody back" in report(found, Plan(), {}, 1)
    found.points = [
        replace(point, load=load(9_000, 0.1)) if point.contestant == DIRECT and not point.stream else point
        for point in found.points
    ]
    assert "TOO LITTLE" in report(found, Plan(), {}, 1)


def test_a_contestant_that_died_is_told_and_what_it_did_before_does_not_count() -> None:
    found = results()
    assert "Ended by itself" not in report(found, Plan(), {}, 1)
    found.deaths.append(Death(2, LITELLM, -11))
    assert f"Ended by itself, and began that round anew: {LITELLM} in round 2 with status -11." in report(
        found, Plan(), {}, 1
    )
    found.drop(2, LITELLM)
    points, streams, memory = (
        {(one.round, one.contestant) for one in found.points},
        {(one.round, one.contestant) for one in found.streams},
        {(one.round, one.contestant) for one in found.memory} | {(number, DIRECT) for number in (1, 2, 3)},
    )
    assert points == streams == memory == {(n, one.name) for n in (1, 2, 3) for one in CONTESTANTS} - {(2, LITELLM)}


def test_every_run_is_a_row() -> None:
    found = results()
    table = list(csv.DictReader(io.StringIO(rows(found))))
    assert len(table) == len(found.points) + len(found.streams) + len(found.memory)
    assert {None} & {value for row in table for value in row.values()} == set()
    assert {row["payloads"] for row in table if row["contestant"] == LITELLM} == {"", "2 different"}


# --- profile ---

SERVER = "Server.run (uvicorn/server.py:86)"
OURS_FRAME = "HotRoute.__call__ (preceptor_gateway/hot.py:53)"


@pytest.mark.parametrize(
    ("stack", "expected"),
    [
        ([SERVER, OURS_FRAME], "ours: relay of chat"),
        ([SERVER, OURS_FRAME, "dumps (orjson/__init__.py:1)"], "JSON: orjson"),
        ([SERVER, OURS_FRAME, "gc_collect_main (libpython3.11.so.1.0)"], "Python: garbage collection"),
        ([SERVER, "BytesLogger.msg (structlog/_output.py:348)", "write (libc.so.6)"], "log: structlog"),
        ([SERVER, "_Connection.send (preceptor_gateway/engine/http.py:113)"], "ours: HTTP client"),
        ([SERVER, "Limiter.admit (preceptor_gateway/limits/limiter.py:125)"], "ours: limits"),
        ([SERVER, "MemoryStorage.incr (limits/storage/memory.py:94)"], "limits (library)"),
        (["start (libc.so.6)"], OTHER),
    ],
)
def test_a_look_belongs_to_its_innermost_known_frame(stack: list[str], expected: str) -> None:
    assert owner(stack) == expected


def test_waiting_is_no_work() -> None:
    assert is_waiting([SERVER, "uv__io_poll (linux.c:1452)", "epoll_pwait (libc.so.6)"])
    assert not is_waiting([SERVER, OURS_FRAME])


def test_shares_add_up_to_one() -> None:
    folded = f"{SERVER};{OURS_FRAME} 3\n{SERVER} 1\n{SERVER};epoll_wait (libc.so.6) 96\n"
    assert shares(folded) == [("ours: relay of chat", 0.75), ("ASGI server: uvicorn", 0.25)]


def test_a_profile_of_nothing_is_a_failure() -> None:
    with pytest.raises(BenchFailed, match="load"):
        shares("")


# --- contestants ---


def test_our_gateway_is_given_settings_that_it_has(tmp_path: Path) -> None:
    # An unknown one would be ignored, and the report would claim limits that are off.
    command = by_name(OURS).command
    assert command is not None
    prefix = str(GatewaySettings.model_config["env_prefix"])
    known = {
        str(field.validation_alias or f"{prefix}{name}".upper()) for name, field in GatewaySettings.model_fields.items()
    }
    given = command(tmp_path, 1, 2, 0).environment
    assert set(given) <= known
    assert {"GATEWAY_REQUESTS_PER_MINUTE", "GATEWAY_TOKENS_PER_MINUTE", "GATEWAY_CONCURRENT_REQUESTS"} <= set(given)


# --- upstream ---


def test_the_fixed_answers_are_what_the_issue_asks_for() -> None:
    events = [event for event in streamed_answer().split(b"\n\n") if event]
    assert len(events) == CHUNKS + 1 == 65
    assert events[-1] == b"data: [DONE]"
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events[:-1]]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 63 + ["stop"]
    assert json.loads(whole_answer())["usage"]["completion_tokens"] == CHUNKS


def test_everybody_gets_the_same_question() -> None:
    bodies = [json.loads(one.body(stream=True)) for one in CONTESTANTS]
    assert {body.pop("model") for body in bodies} == {"base", "sql:base"}
    assert all(body == bodies[0] for body in bodies)
