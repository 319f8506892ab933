"""What the numbers of scoring promise, whatever the engine says."""

from __future__ import annotations

import hashlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from preceptor_contracts.mcq import McqItem
from preceptor_gateway.mcq.debiasing import average, rotations
from preceptor_gateway.mcq.options import _MOST_IDS, _answer, _parts, _Prompted, _steps_are_cheaper
from preceptor_gateway.mcq.scoring import OptionScore, Scores, off_mass, softmax
from preceptor_gateway.problems import EngineRefused

_logprobs = st.lists(st.floats(-9999, 0), min_size=2, max_size=10)
_counts = st.integers(2, 10)


def by_place(options: tuple[str, ...], seed: int) -> Scores:
    """An engine that likes places as much as texts: any two orders of the options score differently."""
    values = [
        -(int.from_bytes(hashlib.sha256(repr((seed, options, place)).encode()).digest()[:4]) / 2**32) * 20
        for place in range(len(options))
    ]
    # As much mass as labels can have together.
    honest = [value - math.log(len(options)) for value in values]
    scored = tuple(OptionScore(value, None, 1) for value in honest)
    return Scores(softmax(honest), off_mass(honest), scored, 10, 3)


@given(_logprobs)
def test_shares_add_up_to_one(logprobs: list[float]) -> None:
    shares = softmax(logprobs)
    assert math.fsum(shares) == pytest.approx(1)
    assert all(0 <= share <= 1 for share in shares)
    assert 0 <= off_mass(logprobs) <= 1


@given(count=_counts, seed=st.integers(0, 1000), turn=st.integers(0, 9))
def test_averaging_over_rotations_forgets_which_one_the_client_sent(count: int, seed: int, turn: int) -> None:
    item = McqItem(question="q", options=tuple(f"option {index}" for index in range(count)))
    turned = rotations(item)[turn % count]
    answers = []
    for one in (item, turned):
        scored = average([by_place(rotated.options, seed) for rotated in rotations(one)])
        assert math.fsum(scored.scores.probabilities) == pytest.approx(1)
        assert scored.flip_rate is not None
        assert 0 <= scored.flip_rate <= 1
        assert (scored.scores.prompt_tokens, scored.scores.cached_tokens) == (10 * count, 3 * count)
        mass = math.fsum(math.exp(option.logprob) for option in scored.scores.options)
        assert scored.scores.off_option_mass == pytest.approx(1 - mass)
        by_text = dict(
            zip(one.options, zip(scored.scores.probabilities, scored.scores.options, strict=True), strict=True)
        )
        answers.append((by_text, one.options[scored.scores.best], scored.flip_rate))
    assert answers[0] == answers[1]


def test_a_liking_for_the_first_place_is_averaged_out_and_told() -> None:
    item = McqItem(question="q", options=("a", "b", "c", "d"))
    # The first place has 0.7; beside that "c" is liked a little.
    rotated = []
    for one in rotations(item):
        shares = [
            (0.7 if place == 0 else 0.08) + (0.06 if text == "c" else 0) for place, text in enumerate(one.options)
        ]
        total = sum(shares)
        logprobs = [math.log(share / total) for share in shares]
        rotated.append(Scores(softmax(logprobs), 0.0, tuple(OptionScore(v, None, 1) for v in logprobs), 1, None))
    assert [one.options[scores.best] for one, scores in zip(rotations(item), rotated, strict=True)] == list("abcd")
    scores, flip_rate = average(rotated)
    assert item.options[scores.best] == "c"
    assert flip_rate == 0.75
    assert scores.cached_tokens is None


def test_steps_are_taken_where_the_prompt_outweighs_the_options() -> None:
    answers = tuple(tuple(range(10 * index, 10 * index + 10)) for index in range(4))
    assert not _steps_are_cheaper(_Prompted(tuple(range(40)), answers))
    assert _steps_are_cheaper(_Prompted(tuple(range(1000)), answers))
    # Long options on a middling prompt: every token of theirs is a sequence of its own.
    long = tuple(tuple(range(100 * index, 100 * index + 100)) for index in range(4))
    assert not _steps_are_cheaper(_Prompted(tuple(range(1000)), long))


@given(st.lists(st.integers(1, 10), min_size=1, max_size=200))
def test_no_request_asks_for_more_token_ids_than_vllm_takes(sizes: list[int]) -> None:
    ids = iter(range(10_000))
    beginnings: dict[tuple[int, ...], set[int]] = {
        (place,): {next(ids) for _ in range(size)} for place, size in enumerate(sizes)
    }
    parts = list(_parts(beginnings))
    assert {key: tokens for part in parts for key, tokens in part.items()} == beginnings
    assert all(len(set[int]().union(*part.values())) <= _MOST_IDS for part in parts)
    assert all(parts)


def test_a_template_that_rewrites_its_prompt_is_refused() -> None:
    assert _answer((1, 2), (1, 2, 5, 6, 9, 7), end=9) == (5, 6, 9)
    with pytest.raises(EngineRefused) as caught:
        _answer((1, 2), (1, 3, 5, 9), end=9)
    assert caught.value.code == "template_not_prefix"
    with pytest.raises(EngineRefused, match="more than one way"):
        _answer((1, 2), (1, 2, 5), end=9)
