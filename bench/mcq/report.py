"""Writes report.md and the CSV files: every figure and every pass or fail is computed from the measurements."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from preceptor_contracts.mcq import Scoring

from bench.goal import Goal
from bench.mcq.agreement import NORMALISATIONS, Compared
from bench.mcq.load import GENERATED_TOKENS, PROMPTS_IN_FLIGHT, TRIES, WARM_UP, Tried
from bench.mcq.rounds import Round
from bench.mcq.summary import Measured, Pair, Side, rates, ratios, saved
from bench.spread import Spread, shown, spread

RACES = (
    ("`letters` against free text, one question at a time", Side.LETTERS_ALONE, Side.GENERATION_ALONE, 4.0),
    (f"`letters` against free text, {PROMPTS_IN_FLIGHT} at a time", Side.LETTERS, Side.GENERATION, 4.0),
    ("`letters` against lm-evaluation-harness", Side.LETTERS, Side.LM_EVAL_LETTERS, 2.5),
    ("`options` against lm-evaluation-harness", Side.OPTIONS, Side.LM_EVAL_OPTIONS, 1.0),
    ("`options` against lm-evaluation-harness, with passages", Side.PASSAGES, Side.LM_EVAL_PASSAGES, 1.0),
)
"""What is timed, who against whom, and issue 3's goal for the ratio."""
LEAST_SAVED = 0.4
"""What the SAT seed claims that the prefix cache saves on a passage's second question."""


class Findings:
    """All rounds of a run together."""

    def __init__(self, rounds: Sequence[Round], tried: Sequence[Tried]) -> None:
        self.rounds = len(rounds)
        self.tried = tuple(tried)
        self.measured: list[Measured] = [one for part in rounds for one in part.measured]
        self.pairs: list[Pair] = [one for part in rounds for one in part.pairs]
        self.compared: list[Compared] = [one for part in rounds for one in part.compared]
        self.letters: dict[str, bool] = {item: same for part in rounds for item, same in part.letters}
        self.unread = sum(part.unread for part in rounds)

    def of(self, side: Side) -> list[Measured]:
        """A side's rounds."""
        return [one for one in self.measured if one.side is side]

    def disagreements(self, index: int) -> list[str]:
        """Items for which the sides choose different options under a normalisation."""
        return [one.id for one in self.compared if one.ours[index] != one.reference[index]]


def goals(found: Findings) -> list[Goal]:
    """Holds the findings against issue 3's goals."""
    rows = []
    for measure, side, opponent, least in RACES:
        seen = spread(ratios(found.measured, side, opponent))
        rows.append(Goal(measure, f"{shown(seen, 2)}x", f">= {least:g}x", seen.median >= least))
    for index, name in enumerate(NORMALISATIONS):
        total, apart = len(found.compared), len(found.disagreements(index))
        result = f"{total - apart} of {total} items" if total else "the route tells no log-probabilities"
        rows.append(Goal(f"same option chosen as by lm-eval, {name}", result, "all", not apart if total else None))
    for scoring in Scoring:
        shares = spread(saved(found.pairs, scoring))
        percent = Spread(*(100 * share for share in shares))
        measure = f"latency saved on a passage's second question, `{scoring.value}`"
        rows.append(
            Goal(measure, f"{shown(percent, 0)} %", f">= {100 * LEAST_SAVED:.0f} %", shares.median >= LEAST_SAVED)
        )
    return rows


def write_report(folder: Path, found: Findings, machine: Mapping[str, str]) -> None:
    """Writes report.md, rounds.csv and prefix.csv."""
    rounds = [[*_rounded(one), round(one.rate, 3)] for one in found.measured]
    _write_csv(folder / "rounds.csv", [*Measured._fields, "questions_per_second"], rounds)
    _write_csv(folder / "prefix.csv", list(Pair._fields), [_rounded(one) for one in found.pairs])
    parts = [
        "# Multiple choice, side by side",
        "Written by `make bench-mcq`; edits are lost. Ratios are the result: absolute figures belong to the machine. "
        f"Each is the median of {found.rounds} rounds, with the range.",
        _table(("measure", "result", "goal", ""), [[*goal[:3], goal.word] for goal in goals(found)]),
        "## Where",
        _table(("", ""), list(machine.items())),
        "## Questions per second",
        _speeds(found),
        "Tokens are the engine's own counts; a prompt counts once for each sequence that the engine was sent.",
        "## How it was measured",
        _how(found),
        "## The same choice as lm-evaluation-harness",
        _agreement(found),
        "## The second question of a passage",
        _prefix(found),
    ]
    (folder / "report.md").write_text("\n\n".join(parts) + "\n")


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
                str(asked),
                shown(spread(rates(found.measured, side)), 2),
                f"{given / asked:.0f}",
                f"{100 * sum(one.cached_tokens for one in part) / given:.0f} %",
                f"{sum(one.generated_tokens for one in part) / asked:.1f}",
                f"{right:.2f}",
            ]
        )
    head = ("side", "questions", "a second", "prompt tokens a question", "of them cached", "generated", "accuracy")
    return _table(head, rows)


def _how(found: Findings) -> str:
    generation = found.of(Side.GENERATION)
    asked = sum(one.questions for one in generation)
    length = sum(one.generated_tokens for one in generation) / asked
    return f"""\
- **Items.** The allergy exam, and twelve passages (passages.jsonl) with four questions each; all have four options.
  Each round takes one in {found.rounds} of the questions and passages, so that the rounds together ask each once.
  Within a round all sides get the same ones, one side after another, and ratios are taken within a round.
- **Base model.** The embedded base model without an adapter. It does not bind letters, so accuracies by letter are
  about chance, and no speed depends on them.
- **Concurrency.** {PROMPTS_IN_FLIGHT} prompts in the engine at a time for every side that is not named "one at a time".
  lm-eval's `num_concurrent` and `batch_size` split that number as suited it best in {TRIES} tries each before the
  rounds, in questions per second with scoring options: {_splits(found)}.
- **lm-eval's clock.** It runs inside its `loglikelihood`: tokenizing, asking, reading. Its start, its building of the
  task and its metrics are left out; one process serves all rounds. It asks the gateway's `/v1/completions`, as we ask
  the gateway.
- **Prefix cache.** The domain's system message begins with a number that is the round's and the side's own, so that
  nothing finds another's prompts in the cache. Only our scoring and lm-eval share a number, since they must be sent the
  very same prompt. Ours goes first; what a warm cache gives, it gives to lm-eval. (It gives nothing: vLLM does not read
  the cache where prompt log-probabilities are asked for. The table shows what was read.)
- **Free text.** `/v1/chat/completions` with the prompt of `letters` ("Answer with the letter only."), temperature 0, at
  most {GENERATED_TOKENS} tokens; the first letter that stands alone is the answer. Answers had {length:.1f} tokens on
  average, and {found.unread} of {asked} held no letter. The ratio lives on that length. A base model that really
  answered with one token would be as fast as `letters`, but would tell no probabilities. It lives on concurrency as
  well: in a full batch a decoded token costs little beside the prompts.
- **Warm-up.** Every side is asked up to {WARM_UP} questions before the first round; they are not counted."""


def _splits(found: Findings) -> str:
    best = max(found.tried, key=lambda one: one.rate)
    return ", ".join(
        f"{one.split.requests} x {one.split.prompts} {one.rate:.2f}{' (taken)' if one is best else ''}"
        for one in found.tried
    )


def _agreement(found: Findings) -> str:
    apart = [item for item, same in found.letters.items() if not same]
    lines = [
        f"`letters`: the same letter as lm-eval's greatest log-likelihood on {len(found.letters) - len(apart)} of "
        f"{len(found.letters)} items.{_listed(apart)}"
    ]
    if not found.compared:
        return f"{lines[0]}\n\n`options`: not compared, since the route tells no log-probabilities."
    offsets = [one.offset for one in found.compared]
    widest = max(one.spread for one in found.compared)
    lines.append(
        f"`options`: lm-eval's sums differ from ours by {min(offsets):.1e} to {max(offsets):.1e} (median "
        f"{statistics.median(offsets):.1e}), and within one item's options by {widest:.1e} at most. lm-eval moves the "
        "line feed that ends the chat template's prompt into the answer, so its sums hold that one more "
        "log-probability, which is the same for all options of an item."
        + (
            " The rest is rounding: the sides' batches have other shapes."
            if widest
            else " All else is equal to the bit."
        )
    )
    lines += [
        f"Chosen differently, {name}: {len(found.disagreements(index))}.{_listed(found.disagreements(index))}"
        for index, name in enumerate(NORMALISATIONS)
    ]
    return "\n\n".join(lines)


def _listed(ids: Sequence[str]) -> str:
    return f" Items: {', '.join(ids)}." if ids else ""


def _prefix(found: Findings) -> str:
    rows = []
    for scoring in Scoring:
        part = [pair for pair in found.pairs if pair.scoring is scoring]
        rows.append(
            [
                f"`{scoring.value}`",
                _ms([pair.first_s for pair in part]),
                _ms([pair.cold_s for pair in part]),
                _ms([pair.warm_s for pair in part]),
                f"{statistics.median(pair.prompt_tokens for pair in part):.0f}",
                f"{statistics.median(pair.cached_tokens for pair in part):.0f}",
            ]
        )
    head = ("scoring", "first, cold", "second, cold", "second, after the first", "its prompt tokens", "of them cached")
    return f"""\
One question at a time, medians over the passages of all rounds. What is saved is the second question after the first
against the very same question asked cold, so that the questions' lengths do not enter.

{_table(head, rows)}"""


def _ms(seconds: Sequence[float]) -> str:
    return f"{1000 * statistics.median(seconds):.0f} ms"
