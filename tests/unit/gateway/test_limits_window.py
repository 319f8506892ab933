"""The arithmetic of limits, without a clock or a server."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as some
from preceptor_gateway.limits.context import (
    MOST_CHARACTERS_PER_TOKEN,
    characters_of,
    check_context,
    check_message_count,
    fewest_tokens,
)
from preceptor_gateway.limits.gate import CHARACTERS_PER_TOKEN, Cost, cost_of, estimate_tokens
from preceptor_gateway.limits.window import Window, minute_of, spell
from preceptor_gateway.problems import BadRequest


@some.composite
def windows(draw: some.DrawFn) -> Window:
    limit = draw(some.integers(1, 1000))
    seconds = some.floats(0, 59.999)
    return Window(limit, draw(some.integers(0, 2 * limit)), draw(some.integers(0, 2 * limit)), draw(seconds))


def later(window: Window, seconds: float) -> Window:
    """The same counts so many seconds on."""
    elapsed = window.elapsed + seconds
    if elapsed < 60:
        return window._replace(elapsed=elapsed)
    if elapsed < 120:
        return Window(window.limit, window.current, 0, elapsed - 60)
    return Window(window.limit, 0, 0, elapsed % 60)


@given(windows(), some.integers(1, 1000))
def test_waiting_as_told_is_enough_and_not_much_too_long(window: Window, cost: int) -> None:
    assume(cost <= window.limit)
    seconds = window.wait_s(cost)
    assert 0 <= seconds <= 120
    after = later(window, seconds + 0.001)
    assert after._replace(current=after.current + cost).holds
    if seconds > 0.01:
        before = later(window, seconds - 0.01)
        assert before.used + cost > window.limit - 0.001


@given(windows())
def test_after_the_reset_nothing_counts(window: Window) -> None:
    assert later(window, window.reset_s).used == pytest.approx(0, abs=1e-6)
    assert window.remaining >= 0
    assert (window.remaining == 0) == (window.used > window.limit - 1 + 1e-6)


@given(some.lists(some.floats(0, 300), max_size=200).map(sorted), some.integers(1, 20))
def test_a_burst_over_the_edge_of_a_minute_is_not_doubled(moments: list[float], limit: int) -> None:
    counts: dict[int, int] = {}
    let_in: list[float] = []
    for moment in moments:
        minute, elapsed = minute_of(moment)
        window = Window(limit, counts.get(minute - 1, 0), counts.get(minute, 0) + 1, elapsed)
        if window.holds:
            counts[minute] = window.current
            let_in.append(moment)
    for start in let_in:
        # Any 10 seconds: the limit, and what leaves the window meanwhile, which is at most a sixth of it.
        assert sum(start <= moment < start + 10 for moment in let_in) <= limit * 7 / 6 + 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0s"),
        (0, "0s"),
        (0.0004, "1ms"),
        (0.25, "250ms"),
        (0.9995, "1s"),
        (1, "1s"),
        (1.2, "2s"),
        (59.5, "1m0s"),
        (60, "1m0s"),
        (119.9, "2m0s"),
        (360, "6m0s"),
        (3661, "1h1m1s"),
    ],
)
def test_durations_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert spell(seconds) == text


@pytest.mark.parametrize(
    ("raw", "cost"),
    [
        (b"", Cost(1, 0)),
        (b"{", Cost(1, 0)),
        (b"[1]", Cost(1, 0)),
        (b'{"question": "abcdefghij"}', Cost(1, 26 // CHARACTERS_PER_TOKEN + 1)),
        (b'{"items": [{}, {}, {}]}', Cost(3, 23 // CHARACTERS_PER_TOKEN + 3)),
        (b'{"items": []}', Cost(1, 13 // CHARACTERS_PER_TOKEN + 1)),
        (b'{"items": 5}', Cost(1, 12 // CHARACTERS_PER_TOKEN + 1)),
        (b'{"prompt": "Hi"}', Cost(1, 16 // CHARACTERS_PER_TOKEN + 256)),
        (b'{"prompt": "Hi", "max_tokens": 9}', Cost(1, 33 // CHARACTERS_PER_TOKEN + 9)),
        (b'{"prompt": "Hi", "max_tokens": true}', Cost(1, 36 // CHARACTERS_PER_TOKEN + 256)),
        (b'{"prompt": "Hi", "max_tokens": -9}', Cost(1, 34 // CHARACTERS_PER_TOKEN + 256)),
        (b'{"prompts": ["a", "b"], "max_tokens": 9}', Cost(2, 40 // CHARACTERS_PER_TOKEN + 18)),
    ],
)
def test_what_a_body_costs(raw: bytes, cost: Cost) -> None:
    assert cost_of(raw) == cost
    assert estimate_tokens(300, 10) == 110


@pytest.mark.parametrize(
    ("context", "answer", "characters", "fits"),
    [
        (2048, None, 0, True),
        (2048, 2047, 100, True),
        (2048, 2048, 100, False),
        (2048, None, 2047 * MOST_CHARACTERS_PER_TOKEN, True),
        (2048, None, 2047 * MOST_CHARACTERS_PER_TOKEN + 1, False),
        (2048, 1048, 1000 * MOST_CHARACTERS_PER_TOKEN, True),
        (2048, 1048, 1000 * MOST_CHARACTERS_PER_TOKEN + 1, False),
        (0, 10**9, 10**9, True),
    ],
)
def test_what_can_not_fit_is_refused_with_its_numbers(
    context: int, answer: int | None, characters: int, fits: bool
) -> None:
    if fits:
        check_context(context, answer, characters)
        return
    with pytest.raises(BadRequest) as caught:
        check_context(context, answer, characters)
    assert caught.value.code == "context_length_exceeded"
    for number in (context, characters, fewest_tokens(characters)):
        assert str(number) in caught.value.message


def test_characters_are_those_that_no_template_drops() -> None:
    messages: list[dict[str, object]] = [
        {"role": "system", "content": "  abc \n"},
        {"role": "user", "content": [{"type": "text", "text": "de "}, {"type": "image_url"}, "f"]},
        {"role": "assistant", "content": None, "tool_calls": []},
    ]
    assert characters_of(messages) == 6


def test_too_many_messages() -> None:
    check_message_count(256, 256)
    with pytest.raises(BadRequest, match="257 messages") as caught:
        check_message_count(257, 256)
    assert "256" in caught.value.hint
