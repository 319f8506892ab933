"""Which records are held out for the validation loss: topic by topic, the same for the same seed."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence


def validation_rows(topics: Sequence[str], share: float, seed: int) -> frozenset[int]:
    """Draws the records held out.

    Every topic gives its share, rounded by largest remainder over the whole, and keeps at least one record to train on.

    Args:
        topics: Topic of each record, in the dataset's order.
        share: Part to hold out, in [0, 0.5).
        seed: The recipe's.

    Returns:
        0-based positions in `topics`; empty where `share` is 0.
    """
    if not share:
        return frozenset()
    by_topic: defaultdict[str, list[int]] = defaultdict(list)
    for position, topic in enumerate(topics):
        by_topic[topic].append(position)
    exact = {topic: len(positions) * share for topic, positions in by_topic.items()}
    counts = {topic: min(int(value), len(by_topic[topic]) - 1) for topic, value in exact.items()}
    spare = max(1, round(len(topics) * share)) - sum(counts.values())
    for topic in sorted(exact, key=lambda name: (counts[name] - exact[name], name)):
        if spare > 0 and counts[topic] + 1 < len(by_topic[topic]):
            counts[topic] += 1
            spare -= 1
    drawn: set[int] = set()
    for topic in sorted(by_topic):
        # A generator a topic: a record added to one topic moves no other topic's draw.
        drawn.update(random.Random(f"{seed}:{topic}").sample(by_topic[topic], counts[topic]))
    return frozenset(drawn)
