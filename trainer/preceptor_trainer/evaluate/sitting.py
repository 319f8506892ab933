"""All answers to one exam, and what any two sides' answers say of each other. Pure."""

from __future__ import annotations

from typing import NamedTuple

from preceptor_contracts.report import Calibration, Side

from preceptor_trainer.evaluate import statistics
from preceptor_trainer.evaluate.comparing import Judgement, Outcome, outcomes_of
from preceptor_trainer.evaluate.exam import AnswerRow


class Paired(NamedTuple):
    """Two sides on the same questions."""

    n: int
    only_first: tuple[str, ...]
    """Ids of the questions that the first side alone got right, or won."""
    only_second: tuple[str, ...]

    @property
    def difference(self) -> float:
        """The second side's share less the first's."""
        return round((len(self.only_second) - len(self.only_first)) / self.n, 6)

    @property
    def p(self) -> float:
        """McNemar's exact two-sided p."""
        return statistics.mcnemar(len(self.only_first), len(self.only_second))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % bootstrap interval of the difference."""
        return statistics.bootstrap_difference(self.n, len(self.only_first), len(self.only_second))


class Sitting(NamedTuple):
    """What every side answered."""

    rows: tuple[AnswerRow, ...]
    judgements: tuple[Judgement, ...] = ()

    @property
    def sides(self) -> tuple[str, ...]:
        """In the order in which they sat."""
        return tuple(dict.fromkeys(row.side for row in self.rows))

    def score(self, side: str) -> Side:
        """How many answers of a side are right."""
        rows = [row for row in self.rows if row.side == side]
        correct = sum(row.graded.correct for row in rows)
        return Side(
            served=rows[0].served,
            correct=correct,
            accuracy=correct / len(rows),
            ci95=statistics.wilson(correct, len(rows)),
        )

    def pair(self, first: str, second: str) -> Paired:
        """Compares two sides question by question; where a judge compared them, who won counts."""
        right = {(row.side, row.question): row.graded.correct for row in self.rows}
        judged = outcomes_of(self.judgements, first, second)
        only: dict[Outcome, list[str]] = {outcome: [] for outcome in Outcome}
        questions = [row.question for row in self.rows if row.side == first]
        for question in questions:
            one, two = right[first, question], right[second, question]
            plain = Outcome.TIE if one == two else Outcome.FIRST if one else Outcome.SECOND
            only[judged.get(question, plain)].append(question)
        return Paired(len(questions), tuple(only[Outcome.FIRST]), tuple(only[Outcome.SECOND]))

    def calibration(self, side: str) -> Calibration | None:
        """How well a side's probabilities match its hits; None without multiple choice."""
        rows = [row for row in self.rows if row.side == side]
        chosen = [
            (item.probabilities, item.answer_index, item.correct)
            for item in (row.graded for row in rows)
            if item.probabilities is not None and item.answer_index is not None
        ]
        if not chosen:
            return None
        confidences, hits = [max(one[0]) for one in chosen], [one[2] for one in chosen]
        return Calibration(
            served=rows[0].served,
            ece=statistics.expected_calibration_error(confidences, hits),
            brier=statistics.brier([one[0] for one in chosen], [one[1] for one in chosen]),
            bins=statistics.reliability_bins(confidences, hits),
        )
