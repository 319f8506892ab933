from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from preceptor_trainer.prepare.split import validation_rows

TOPICS = ["a"] * 50 + ["b"] * 30 + ["c"] * 3 + ["d"]


def test_nothing_is_held_out_unless_asked() -> None:
    assert validation_rows(TOPICS, 0.0, 7) == frozenset()


def test_each_topic_gives_its_share_and_keeps_something_to_train_on() -> None:
    held = Counter(TOPICS[at] for at in validation_rows(TOPICS, 0.1, 7))
    assert held["a"] == 5
    assert held["b"] == 3
    assert held["d"] == 0


def test_the_seed_decides_and_nothing_else() -> None:
    assert validation_rows(TOPICS, 0.2, 7) == validation_rows(TOPICS, 0.2, 7)
    assert validation_rows(TOPICS, 0.2, 7) != validation_rows(TOPICS, 0.2, 8)


def test_a_record_added_to_one_topic_moves_no_other_topic() -> None:
    before = {at for at in validation_rows(TOPICS, 0.1, 7) if TOPICS[at] == "a"}
    after = {at for at in validation_rows([*TOPICS, "b"], 0.1, 7) if TOPICS[at : at + 1] == ["a"]}
    assert before == after


@given(
    st.lists(st.sampled_from("abcdef"), min_size=1, max_size=80),
    st.floats(0.001, 0.499),
    st.integers(0, 2**32 - 1),
)
def test_every_topic_keeps_a_record_and_the_share_is_met_where_it_can_be(
    topics: list[str], share: float, seed: int
) -> None:
    held = validation_rows(topics, share, seed)
    counts = Counter(topics)
    assert all(held <= set(range(len(topics))) for _ in [0])
    assert all(count < counts[topic] for topic, count in Counter(topics[at] for at in held).items())
    possible = sum(count - 1 for count in counts.values())
    assert len(held) <= max(1, round(len(topics) * share))
    if share * len(topics) >= 1 and possible >= len(topics) * share + len(counts):
        assert len(held) == max(1, round(len(topics) * share))
