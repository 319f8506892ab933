"""Writes report.md and rounds.csv: every figure and every pass or fail is computed from the measurements."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.goal import Goal
from bench.spread import Spread, shown, spread
from bench.trainer.contestants import Contestant
from bench.trainer.rounds import Measured

BASE_PARAMETERS = 134_515_008
"""SmolLM2-135M's, tied embeddings once."""
LOSS_TOLERANCE = 0.05
"""Validation losses count as equal up to this share of the rival's."""
RACES = ((Contestant.TRL, 1.5), (Contestant.FACTORY, 1.3))
"""Against whom, and issue 4's goal for the ratio of tokens/s."""
LEAST_MATRIX_SHARE = 0.7


class Findings(NamedTuple):
    """All rounds of a run together."""

    measured: tuple[Measured, ...]

    @property
    def domains(self) -> list[str]:
        """In the order in which they were trained on."""
        return list(dict.fromkeys(one.domain for one in self.measured))

    def of(self, domain: str, contestant: Contestant, value: Callable[[Measured], float]) -> list[float]:
        """One value a round."""
        return [value(one) for one in self.measured if one.domain == domain and one.contestant is contestant]

    def ratios(self, domain: str, rival: Contestant, value: Callable[[Measured], float]) -> Spread:
        """Ours over a rival's, round by round."""
        ours, theirs = self.of(domain, Contestant.OURS, value), self.of(domain, rival, value)
        return spread([mine / other for mine, other in zip(ours, theirs, strict=True)])


def matrix_share(one: Measured) -> float:
    """4 x base parameters x the records' tokens a second, over the machine's matrix rate: what the goal names."""
    return 4 * BASE_PARAMETERS * one.rate / one.matrix_flops


def computed_matrix_share(one: Measured) -> float:
    """The same for the tokens that were computed."""
    return matrix_share(one) * one.computed_share


def goals(found: Findings) -> list[Goal]:
    """Holds the findings against issue 4's goals."""
    rows = []
    for domain in found.domains:
        for rival, least in RACES:
            seen = found.ratios(domain, rival, lambda one: one.rate)
            measure = f"{domain}: tokens/s against {rival.value}"
            rows.append(Goal(measure, f"{shown(seen, 2)}x", f">= {least:g}x", seen.median >= least))
            losses = found.ratios(domain, rival, lambda one: one.loss)
            rows.append(
                Goal(
                    f"{domain}: final validation loss against {rival.value}",
                    f"{shown(losses, 3)}x",
                    f"equal: <= {1 + LOSS_TOLERANCE:g}x",
                    losses.median <= 1 + LOSS_TOLERANCE,
                )
            )
        for words, value in (("", matrix_share), (", computed tokens only", computed_matrix_share)):
            share = spread(found.of(domain, Contestant.OURS, value))
            percent = Spread(*(100 * part for part in share))
            measure = f"{domain}: share of the float32 matrix rate{words}"
            wanted = f">= {100 * LEAST_MATRIX_SHARE:.0f} %"
            rows.append(Goal(measure, f"{shown(percent, 0)} %", wanted, share.median >= LEAST_MATRIX_SHARE))
        memory = found.ratios(domain, Contestant.TRL, lambda one: one.peak_bytes)
        rows.append(
            Goal(f"{domain}: peak memory against plain TRL", f"{shown(memory, 2)}x", "<= 1x", memory.median <= 1)
        )
    rows.append(Goal("QLoRA memory against bf16 LoRA, tokens/s and MFU on a GPU", "no GPU at hand", "", None))
    return rows


def write_report(folder: Path, found: Findings, machine: Mapping[str, str]) -> None:
    """Writes report.md and rounds.csv."""
    with (folder / "rounds.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*Measured._fields, "tokens_per_second"])
        for one in found.measured:
            writer.writerow([*(round(value, 5) if isinstance(value, float) else value for value in one), one.rate])
    rounds = len({one.round for one in found.measured})
    parts = [
        "# Training, side by side",
        "Written by `make bench-trainer`; edits are lost. Ratios are the result: absolute figures are this "
        f"machine's. Each is the median of {rounds} rounds, with the range.",
        _table(("measure", "result", "goal", ""), [[*goal[:3], goal.word] for goal in goals(found)]),
        "## Where",
        _table(("", ""), list(machine.items())),
        "## What each did",
        *(_domain(found, domain) for domain in found.domains),
        _HOW,
    ]
    (folder / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _domain(found: Findings, domain: str) -> str:
    rows = []
    for contestant in dict.fromkeys(one.contestant for one in found.measured):

        def seen(value: Callable[[Measured], float], who: Contestant = contestant) -> Spread:
            return spread(found.of(domain, who, value))

        rows.append(
            [
                contestant.value,
                shown(seen(lambda one: one.rate), 0),
                f"{100 * seen(matrix_share).median:.0f} %",
                f"{100 * seen(computed_matrix_share).median:.0f} %",
                f"{seen(lambda one: one.loss).median:.4f}",
                f"{seen(lambda one: one.peak_bytes).median / 1e9:.2f} GB",
            ]
        )
    head = ("trainer", "tokens/s", "matrix rate", "computed only", "validation loss", "peak memory")
    return f"### {domain}\n\n{_table(head, rows)}"


_HOW = """## How it was measured

- One process a training, one after the other, alone; rounds go over domains and trainers, ratios are taken inside a
  round.
- Same base model, same records, one pass, LoRA rank 16 and alpha 32 on all linear layers, batch 8, AdamW at 1e-3,
  cosine, one warm-up step, float32 unless the row says bfloat16. No trainer writes checkpoints.
- Seconds are the training loop's, as each trainer reports it; loading is nobody's. Tokens are those of the records,
  prompts and answers, without padding: the same for all.
- `matrix rate` is 4 x base parameters x these tokens a second over the float32 rate of a 1024 x 1024 product
  measured before the trainings of a round. Ours may pass 100 %: a domain's system message, which all rows of a batch
  begin with, is computed once a batch and not once a row. `computed only` leaves out what was spared.
- The validation loss is computed afterwards by one and the same script, in float32, on records that nobody trained
  on. All trainers shuffle; losses differ by the order of records and of sums.
- Peak memory is the largest resident set of the process.
- LLaMA-Factory has no setting for float32; its float32 rows read a configuration that names it. Without that it takes
  bfloat16 from the base model's configuration, which this processor has units for: its `bfloat16` row.
- LLaMA-Factory imports torchaudio, whose build does not fit this torch; an empty module stands in for it."""


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows)])
