"""Writes report.md and the CSV files: every figure and every pass or fail is computed from the measurements."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.mcq.agreement import NORMALISATIONS, Compared
from bench.mcq.asking import GENERATED_TOKENS
from bench.mcq.harness import PROMPTS_A_REQUEST, REQUESTS_IN_FLIGHT
from bench.mcq.rounds import OPTIONS_A_QUESTION, PROMPTS_IN_FLIGHT, Round
from bench.mcq.summary import Measured, Pair, Side, Spread, rates, ratios, saved, spread


class Goal(NamedTuple):
    """A row of the report's first table."""

    measure: str
    result: str
    wanted: str
    reached: bool | None
    """None where it was not measured."""

    @property
    def word(self) -> str:
        """Reached, or not."""
        return "not measured" if self.reached is None else "reached" if self.reached else "**not reached**"


class Findings:
    """All rounds of a run together."""

    def __init__(self, rounds: Sequence[Round]) -> None:
        self.measured: list[Measured] = [one for part in rounds for one in part.measured]
        self.pairs: list[Pair] = [one for part in rounds for one in part.pairs]
        self.compared: list[Compared] = [one for part in rounds for one in part.compared]
        self.letters_differ: list[str] = [one for part in rounds for one in part.letters_differ]
        self.unread = sum(part.unread for part in rounds)

    def of(self, side: Side) -> list[Measured]:
        """A side's rounds."""
        return [one for one in self.measured if one.side is side]

    def questions(self, side: Side) -> int:
        """How many questions a side was asked."""
        return sum(one.questions for one in self.of(side))

    def disagreements(self, index: int) -> list[Compared]:
        """Items for which the sides choose different options under a normalisation."""
        return [one for one in self.compared if one.ours[index] != one.reference[index]]


def goals(found: Findings) -> list[Goal]:
    """Holds the findings against issue 3's goals."""
    rows = []
    for measure, side, opponent, least in (
        (
            "`letters` against free text parsed for a letter, one at a time",
            Side.LETTERS_ALONE,
            Side.GENERATION_ALONE,
            4.0,
        ),
        (f"the same, {PROMPTS_IN_FLIGHT} at a time", Side.LETTERS, Side.GENERATION, 4.0),
        ("`letters` against lm-evaluation-harness", Side.LETTERS, Side.LM_EVAL_LETTERS, 2.5),
        ("`options` against lm-evaluation-harness", Side.OPTIONS, Side.LM_EVAL_OPTIONS, 1.0),
    ):
        seen = spread(ratios(found.measured, side, opponent))
        rows.append(Goal(measure, f"{shown(seen, 2)}x", f">= {least:g}x", seen.median >= least))
    for index, name in enumerate(NORMALISATIONS):
        total, apart = len(found.compared), len(found.disagreements(index))
        result = f"{total - apart} of {total}" if total else "the route tells no log-probabilities"
        rows.append(Goal(f"same option chosen as by lm-eval, {name}", result, "all", not apart if total else None))
    share = spread([100 * one for one in saved(found.pairs)])
    rows.append(
        Goal("latency saved on a passage's second question", f"{shown(share, 0)} %", ">= 40 %", share.median >= 40)
    )
    return rows


def shown(seen: Spread, digits: int) -> str:
    """Median and range, for a table."""
    return f"{seen.median:.{digits}f} ({seen.low:.{digits}f} to {seen.high:.{digits}f})"


def write_report(folder: Path, found: Findings, machine: Mapping[str, str], seconds: float) -> None:
    """Writes report.md, rounds.csv and prefix.csv."""
    _write_csv(
        folder / "rounds.csv", [*Measured._fields, "questions_per_second"], [_row(one) for one in found.measured]
    )
    _write_csv(folder / "prefix.csv", list(Pair._fields), [_rounded(one) for one in found.pairs])
    parts = [
        "# Multiple choice, side by side",
        "Written by `make bench-mcq`; edits are lost. Ratios are the result: absolute figures belong to the machine.",
        _table(
            ("measure", "median (range over rounds)", "goal", ""), [[*goal[:3], goal.word] for goal in goals(found)]
        ),
        "## Where",
        _table(("", ""), [*machine.items(), ("seconds in all", f"{seconds:.0f}")]),
        "## Questions per second",
        _speeds(found),
        _how(found),
        "## The same choice as lm-evaluation-harness",
        _agreement(found),
        "## The second question of a passage",
        _prefix(found),
    ]
    (folder / "report.md").write_text("\n\n".join(parts) + "\n")


def _row(one: Measured) -> list[object]:
    return [*_rounded(one), round(one.rate, 3)]


def _rounded(row: tuple[object, ...]) -> list[object]:
    return [round(value, 4) if isinstance(value, float) else value for value in row]


def _write_csv(path: Path, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def _speeds(found: Findings) -> str:
    rows = []
    for side in Side:
        part = found.of(side)
        asked = sum(one.questions for one in part)
        given = sum(one.prompt_tokens for one in part)
        right = sum(one.accuracy * one.questions for one in part) / asked
        rows.append(
            [
                side.value,
                shown(spread(rates(found.measured, side)), 2),
                f"{given / asked:.0f}",
                f"{100 * sum(one.cached_tokens for one in part) / given:.0f} %",
                f"{sum(one.generated_tokens for one in part) / asked:.1f}",
                f"{right:.2f}",
            ]
        )
    head = (
        "side",
        "questions/s, median (range)",
        "prompt tokens a question",
        "of them cached",
        "generated",
        "accuracy",
    )
    return _table(head, rows)


def _how(found: Findings) -> str:
    generation = found.of(Side.GENERATION)
    length = sum(one.generated_tokens for one in generation) / found.questions(Side.GENERATION)
    return f"""\
Tokens are the engine's own counts; a prompt counts once for each option that is scored.

- **Items.** The allergy exam, {found.questions(Side.LETTERS)} questions of four options. Each round takes every
  {len(generation)}th of them, so that the rounds together ask each question once; within a round all sides get the same
  ones. Ratios are taken within a round. The order of sides within a round is that of the table's lines but for
  generation, which is second.
- **Base model.** The embedded base model without an adapter. It does not bind letters (docs/domains.md), so the
  accuracies by letter are about chance; what is compared is speed.
- **Concurrency.** {PROMPTS_IN_FLIGHT} prompts in the engine at a time for every side. lm-eval has
  {REQUESTS_IN_FLIGHT} requests of {PROMPTS_A_REQUEST} prompts in flight (`num_concurrent={REQUESTS_IN_FLIGHT}`,
  `batch_size={PROMPTS_A_REQUEST}`), the best of the splits that were tried. `letters` and generation have
  {PROMPTS_IN_FLIGHT} requests in flight, `options` {PROMPTS_IN_FLIGHT // OPTIONS_A_QUESTION}, with one prompt for each
  option.
- **lm-eval's clock.** It runs inside its `loglikelihood`: tokenizing, asking, reading. Its start, its building of the
  task and its metrics are left out; one process serves all rounds.
- **Cache.** The domain's system message begins with a number that changes with the round, so that no round finds
  another's prompts in the cache. Generation has a number of its own. Our scoring and lm-eval are sent the very same
  prompts; ours goes first, so that what a warm cache gives, it gives to lm-eval. It gives nothing: vLLM computes
  prompt log-probabilities without reading the cache. That holds for our `options` too.
- **Generation.** `/v1/chat/completions` with the prompt of `letters` ("Answer with the letter only."), temperature 0,
  at most {GENERATED_TOKENS} tokens; the first letter that stands alone is the answer. Answers had {length:.1f} tokens
  on average, and {found.unread} of {found.questions(Side.GENERATION)} held no letter. The ratio depends on that length:
  a base model that really answers with one token would be as fast as `letters`, though without probabilities.
- **Warm-up.** Every side is asked a few questions before the first round; they are not counted."""


def _agreement(found: Findings) -> str:
    letters = found.questions(Side.LETTERS)
    lines = [
        f"`letters`: the same letter as lm-eval's greatest log-likelihood on {letters - len(found.letters_differ)} of "
        f"{letters} items." + _listed(found.letters_differ)
    ]
    if not found.compared:
        return lines[0] + "\n\n`options`: not compared, since the route tells no log-probabilities."
    offsets = [one.offset for one in found.compared]
    widest = max(one.spread for one in found.compared)
    lines.append(
        f"`options`: lm-eval's sums differ from ours by {min(offsets):.1e} to {max(offsets):.1e} (median "
        f"{statistics.median(offsets):.1e}), and within an item's options by {widest:.1e} at most. lm-eval moves the "
        "line feed that ends the chat template's prompt into the answer, so its sums hold that one more "
        "log-probability, the same for all options of an item."
    )
    for index, name in enumerate(NORMALISATIONS):
        lines.append(
            f"Chosen differently, {name}: {_listed([one.id for one in found.disagreements(index)]) or ' none.'}"
        )
    return "\n\n".join(lines)


def _listed(ids: Sequence[str]) -> str:
    return f" Different: {', '.join(ids)}." if ids else ""


def _prefix(found: Findings) -> str:
    def middle(values: Sequence[float]) -> str:
        return f"{1000 * statistics.median(values):.0f} ms"

    rows = [
        ["first question, nothing cached", middle([pair.first_s for pair in found.pairs])],
        ["second question, nothing cached", middle([pair.cold_s for pair in found.pairs])],
        ["second question, right after the first", middle([pair.warm_s for pair in found.pairs])],
    ]
    tokens = statistics.median(pair.prompt_tokens for pair in found.pairs)
    cached = statistics.median(pair.cached_tokens for pair in found.pairs)
    passages = len({pair.passage for pair in found.pairs})
    return f"""\
Scoring `letters`, one question at a time, {passages} passages of 150 to 250 words in each round.

{_table(("median", "latency"), rows)}

What is saved is the second question warm against the very same question cold, so the questions' lengths do not enter.
Of {tokens:.0f} prompt tokens (median) {cached:.0f} came from the cache, which keeps whole blocks of 32. Scoring
`options` saves nothing here, for vLLM computes prompt log-probabilities without reading the cache."""
