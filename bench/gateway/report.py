"""Writes `report.md` and `report.csv`: ratios and goals first, then the tables they come from."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence

from bench.gateway.contestants import CONTESTANTS, DIRECT, LITELLM, OURS, ROUTER
from bench.gateway.load import Load
from bench.gateway.measure import Plan
from bench.gateway.results import GOAL_CONCURRENCY, STEADY_REQUESTS, Results, Spread, goals, spread

_PROXIES = (OURS, LITELLM, ROUTER)
_PERCENTILES: tuple[tuple[str, Callable[[Load], float]], ...] = (
    ("p50", lambda load: load.p50_ms),
    ("p95", lambda load: load.p95_ms),
    ("p99", lambda load: load.p99_ms),
)
_COLUMNS = (
    *("round", "contestant", "kind", "concurrency", "requests", "seconds", "requests_per_s", "errors"),
    *("p50_ms", "p95_ms", "p99_ms", "first_p50_ms", "first_p95_ms", "events", "pieces", "payloads"),
    *("rss_before_mib", "rss_after_mib"),
)
_SHOWN_SHARE = 0.005
_HEADROOM = 3


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [list(head), ["---"] * len(head), *[list(row) for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown(figure: Spread, digits: int = 2) -> str:
    """A median with least and most."""
    middle, low, high = (f"{value:,.{digits}f}" for value in figure)
    return middle if low == high else f"{middle} ({low} to {high})"


def report(results: Results, plan: Plan, environment: dict[str, str], seconds: float) -> str:
    """The whole page."""
    parts = [
        "# The gateway side by side",
        "Written by `make bench-gateway`. Ratios are the result: absolute figures are this machine's, on this day.",
        _goals(results),
        _ratios(results),
        _rates(results),
        _added(results),
        _streams(results),
        _memory(results),
        _profile(results),
        _how(plan, environment, seconds, results),
    ]
    return "\n\n".join(parts) + "\n"


def _goals(results: Results) -> str:
    rows = [(goal.measure, goal.goal, goal.reached, goal.word) for goal in goals(results)]
    text = "Medians of the rounds' ratios, with the least and the most. A word is computed from the median."
    failed = [f"{name}: {count:,}" for name in _PROXIES if (count := results.errors(name))]
    errors = f"Answers that failed, in all runs together: {', '.join(failed) or 'none'}."
    deaths = [f"{one.contestant} in round {one.round} with status {one.status}" for one in results.deaths]
    ended = f"Ended by itself, and began that round anew: {', '.join(deaths)}." if deaths else ""
    text = " ".join(filter(None, (text, errors, ended)))
    return "\n\n".join(("## Goals", table(("measure", "goal", "reached", "word"), rows), text))


def _ratios(results: Results) -> str:
    rows = [
        (
            str(concurrency),
            *(
                shown(results.rate_ratio(OURS, other, stream=False, concurrency=concurrency), digits)
                for other, digits in ((LITELLM, 1), (ROUTER, 2), (DIRECT, 3))
            ),
        )
        for concurrency in results.concurrencies
    ]
    head = ("requests at once", "against LiteLLM", "against vllm-router", "against direct")
    return "\n\n".join(("## Our requests/s as a multiple of theirs", table(head, rows)))


def _names(names: Iterable[str]) -> list[str]:
    return [name for name in (DIRECT, *_PROXIES) if name in names]


def _rates(results: Results) -> str:
    rows = [
        (
            name,
            *(
                shown(results.over_rounds(name, stream=False, concurrency=concurrency, of=_rate), 0)
                for concurrency in results.concurrencies
            ),
        )
        for name in _names((DIRECT, *_PROXIES))
    ]
    direct, fastest = (
        results.over_rounds(name, stream=False, concurrency=GOAL_CONCURRENCY, of=_rate).median
        for name in (
            DIRECT,
            max(
                _PROXIES,
                key=lambda name: results.over_rounds(name, stream=False, concurrency=GOAL_CONCURRENCY, of=_rate).median,
            ),
        )
    )
    headroom = direct / fastest
    verdict = "so it holds nobody back" if headroom >= _HEADROOM else "which is TOO LITTLE: it may hold them back"
    note = (
        f"At {GOAL_CONCURRENCY} at once the upstream is {headroom:.1f} times as fast as the fastest proxy, {verdict}."
    )
    head = ("requests/s", *(f"c={concurrency}" for concurrency in results.concurrencies))
    return "\n\n".join(("## Requests per second", table(head, rows), note))


def _rate(load: Load) -> float:
    return load.rate


def _added(results: Results) -> str:
    rows = [
        (name, str(concurrency), *(shown(results.added(name, concurrency, of)) for _, of in _PERCENTILES))
        for name in _PROXIES
        for concurrency in results.concurrencies
    ]
    head = ("milliseconds", "requests at once", *(f"added {name}" for name, _ in _PERCENTILES))
    return "\n\n".join(("## Latency added over direct", table(head, rows)))


def _streams(results: Results) -> str:
    rates, firsts = [], []
    for concurrency in results.stream_concurrencies:
        for name in _names((DIRECT, *_PROXIES)):
            rate = results.over_rounds(name, stream=True, concurrency=concurrency, of=_rate)
            events = results.events(name)
            ratio = results.rate_ratio(name, DIRECT, stream=True, concurrency=concurrency)
            rates.append((name, str(concurrency), shown(Spread(*(part * events for part in rate)), 0), shown(ratio)))
            seen = [one for one in results.streams if (one.contestant, one.concurrency) == (name, concurrency)]
            firsts.append(
                (
                    name,
                    str(concurrency),
                    shown(spread(one.first_p50_ms for one in seen)),
                    shown(spread(one.first_p95_ms for one in seen)),
                    shown(spread(one.pieces for one in seen), 1),
                )
            )
    same = [
        (name, str(results.events(name)), "yes" if results.is_identical(name) else "no")
        for name in _names((DIRECT, *_PROXIES))
    ]
    notes = (
        "The upstream flushes each of its 64 events by itself, without a pause, so a proxy that is behind may find "
        "several at once and pass them on in one piece. An event counts when it arrived, however it was wrapped. "
        "Payloads are compared by SHA-256 once the chunks' framing is off, every stream of every round."
    )
    return "\n\n".join(
        (
            "## Streams",
            table(("chunks/s", "streams at once", "delivered", "against direct"), rates),
            table(("time to first token, ms", "streams at once", "p50", "p95", "pieces a stream came in"), firsts),
            table(("payload", "events a stream", "byte-identical to direct"), same),
            notes,
        )
    )


def _memory(results: Results) -> str:
    rows = []
    for name in _PROXIES:
        seen = [one for one in results.memory if one.contestant == name]
        rows.append(
            (
                name,
                shown(spread(one.started for one in seen), 0),
                shown(spread(one.ended for one in seen), 0),
                shown(spread(one.cpu_ms for one in seen), 3),
            )
        )
    head = ("process tree", "RSS before, MiB", "RSS after, MiB", f"processor ms a request at c={GOAL_CONCURRENCY}")
    parts = ["## Memory and processor time", table(head, rows), "Before: after the warm-up. After: after every run."]
    if (steady := results.steady) is not None:
        short = "" if steady.requests >= STEADY_REQUESTS else " Too few requests for the goal."
        parts.append(
            f"{steady.requests:,} requests in a row to our gateway, after {steady.warm_requests:,} of warm-up: "
            f"{steady.started_mib:.1f} MiB at the start, {steady.warm_mib:.1f} warm, "
            f"{steady.ended_mib:.1f} at the end, {steady.growth:+.1%}. {steady.errors:,} answers failed.{short}"
        )
    return "\n\n".join(parts)


def _profile(results: Results) -> str:
    parts = [
        "## Where our time goes",
        f"Our gateway at {GOAL_CONCURRENCY} at once, looked at from outside by py-spy. A look belongs to the innermost "
        "frame whose owner is known; what the C library and the kernel do belongs to whoever called them. "
        f"Waiting is left out, and so are shares under {_SHOWN_SHARE:.1%}.",
    ]
    for title, found in results.profiles.items():
        rows = [(name, f"{share:.1%}") for name, share in found if share >= _SHOWN_SHARE]
        parts.append(table((title, "share"), rows))
    ours = sum(share for name, share in results.profiles.get("whole answers", []) if name.startswith("ours"))
    router = results.rate_ratio(OURS, ROUTER, stream=False, concurrency=GOAL_CONCURRENCY).median
    parts.append(
        f"vllm-router neither asks for a key nor counts nor writes a prompt, and is compiled. We answer {router:.2f} "
        f"times as many requests as it does. {ours:.0%} of our time on whole answers is our own code; the rest is the "
        "server, the event loop with its sockets, and the libraries above."
    )
    return "\n\n".join(parts)


def _how(plan: Plan, environment: dict[str, str], seconds: float, results: Results) -> str:
    litellm = results.over_rounds(LITELLM, stream=False, concurrency=GOAL_CONCURRENCY, of=lambda load: load.requests)
    facts = list(environment.items())
    contestants = [(one.name, one.shown, one.does) for one in CONTESTANTS]
    text = (
        f"{plan.rounds} rounds. In each round every contestant is started anew, alone, with one worker, pinned to the "
        "first core; nginx and the load tool have the second. A warm-up comes before every point, and a point begins "
        f"when the process rests. A point takes {plan.point_s:g} s, of streams {plan.stream_s:g} s; "
        "where it brought fewer than 3 answers a "
        "connection, it is done again, 4 times as long. A request that is under way when a point ends is not counted: "
        f"that is at most {GOAL_CONCURRENCY / litellm.median:.1%} of LiteLLM's requests at c={GOAL_CONCURRENCY}, and "
        f"less of everybody else's. The whole took {seconds / 60:.1f} minutes."
    )
    command = (
        "```\nwrk --threads 1 --connections C --duration "
        f"{plan.point_s:g}s --timeout 30s --latency --script bench/gateway/wrk.lua URL -- BODY KEY 0\n```"
    )
    return "\n\n".join(
        (
            "## How it was measured",
            table(("what", "which"), facts),
            table(("contestant", "started as", "does for a request"), contestants),
            text,
            command,
        )
    )


def rows(results: Results) -> str:
    """Every run of the load tool and of the stream client, as CSV."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for point in results.points:
        load = point.load
        kind = "stream" if point.stream else "whole"
        figures = (load.requests, f"{load.seconds:.3f}", f"{load.rate:.1f}", load.errors)
        latencies = (load.p50_ms, load.p95_ms, load.p99_ms)
        writer.writerow([point.round, point.contestant, kind, point.concurrency, *figures, *latencies, *[""] * 7])
    for one in results.streams:
        firsts = (f"{one.first_p50_ms:.3f}", f"{one.first_p95_ms:.3f}", one.events, f"{one.pieces:.1f}")
        payload = one.hashes[0][:16] if len(one.hashes) == 1 else f"{len(one.hashes)} different"
        before = [one.round, one.contestant, "first token", one.concurrency, one.streams, *[""] * 6]
        writer.writerow([*before, *firsts, payload, "", ""])
    for memory in results.memory:
        rss = (f"{memory.started:.1f}", f"{memory.ended:.1f}")
        writer.writerow([memory.round, memory.contestant, "memory", *[""] * 13, *rss])
    return out.getvalue()
