"""Which records share a row, a step and a forward pass: settled by the seed, on resume and on any number of GPUs.

An optimizer step's rows are settled first, and only then divided into forward passes over the processes. So neither
halving the batch nor adding a GPU changes what a step is made of.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Sampler

from preceptor_trainer.recipes import Recipe
from preceptor_trainer.tokens import TokenisedExample

IGNORED = -100
"""Label of a token that carries no loss, as everywhere in transformers."""
_POOL = 50
"""Batches sorted by length together; transformers' LengthGroupedSampler takes as many."""

Row = tuple[int, ...]
"""Records that share a row, by position: one, or several where they are packed; none where a process has no work."""


class Division(NamedTuple):
    """How a step's rows are spread over forward passes."""

    batch_size: int
    """Rows a forward pass and process, at most."""
    accumulation: int
    """Forward passes a step and process."""

    @classmethod
    def of(cls, step_rows: int, batch_size: int, ranks: int) -> Division:
        """Takes as few forward passes as `batch_size` allows, and then as few rows each."""
        accumulation = math.ceil(step_rows / (ranks * batch_size))
        return cls(math.ceil(step_rows / (ranks * accumulation)), accumulation)


def count_rows(lengths: Sequence[int], recipe: Recipe) -> int:
    """Rows of one pass: as many as records, or fewer where they are packed; the same in every pass."""
    return len(_pack(range(len(lengths)), lengths, recipe.max_length)) if recipe.batching == "packed" else len(lengths)


class StepBatches(Sampler[list[Row]]):
    """Yields this process's forward passes, each a list of rows.

    transformers' own samplers draw from the global random state, which a resumed process has not at the same point;
    here a pass's order depends on seed and epoch alone, so a resumed run sees each record as often as any other.

    Args:
        lengths: Tokens of each record.
        recipe: Says how rows are made and how many a step has.
        batch_size: Rows a forward pass, which may be fewer than the recipe's.
        rank: Of this process.
        ranks: Processes in all.
    """

    def __init__(
        self, lengths: Sequence[int], recipe: Recipe, batch_size: int, *, rank: int = 0, ranks: int = 1
    ) -> None:
        self._lengths = lengths
        self._recipe = recipe
        self._step_rows = recipe.batch_size * recipe.accumulation
        self._batch_size = batch_size
        self._rank = rank
        self._ranks = ranks
        self._epoch = 0
        self._rows = count_rows(lengths, recipe)

    def set_epoch(self, epoch: int) -> None:
        """Picks the order of pass `epoch`, from 0; the Trainer calls it."""
        self._epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(self._rows, self._step_rows)
        return whole * self._passes(self._step_rows) + (self._passes(rest) if rest else 0)

    def __iter__(self) -> Iterator[list[Row]]:
        for rows in self.steps():
            passes = self._passes(len(rows)) * self._ranks
            cuts = [len(rows) * at // passes for at in range(passes + 1)]
            for at in range(self._rank, passes, self._ranks):
                # A process without a row computes an empty one: the others wait for it where gradients are summed.
                yield rows[cuts[at] : cuts[at + 1]] or [()]

    def steps(self) -> list[list[Row]]:
        """The rows of every step of the pass, in order."""
        generator = torch.Generator().manual_seed(self._recipe.seed + self._epoch)
        order = torch.randperm(len(self._lengths), generator=generator).tolist()
        if self._recipe.batching == "packed":
            rows = _pack(order, self._lengths, self._recipe.max_length)
            mixed = [tuple(rows[at]) for at in torch.randperm(len(rows), generator=generator).tolist()]
            return [mixed[at : at + self._step_rows] for at in range(0, len(mixed), self._step_rows)]
        steps = self._alike(order, generator) if self._recipe.batching == "length" else self._shuffled(order)
        return [[(position,) for position in step] for step in steps]

    def _passes(self, rows: int) -> int:
        return Division.of(rows, self._batch_size, self._ranks).accumulation

    def _shuffled(self, order: list[int]) -> list[list[int]]:
        """Any records share a step; within it those of like length share a forward pass, which changes no gradient."""
        cuts = range(0, len(order), self._step_rows)
        return [sorted(order[at : at + self._step_rows], key=lambda position: self._lengths[position]) for at in cuts]

    def _alike(self, order: list[int], generator: torch.Generator) -> list[list[int]]:
        size = self._step_rows
        steps: list[list[int]] = []
        for start in range(0, len(order), size * _POOL):
            alike = sorted(order[start : start + size * _POOL], key=lambda position: self._lengths[position])
            steps += [alike[at : at + size] for at in range(0, len(alike), size)]
        # Only the last may be short: the Trainer counts on that.
        full = [step for step in steps if len(step) == size]
        short = [step for step in steps if len(step) < size]
        return [*(full[at] for at in torch.randperm(len(full), generator=generator).tolist()), *short]


def _pack(order: Sequence[int], lengths: Sequence[int], room: int) -> list[list[int]]:
    """Best fit decreasing: the longest first, each into the fullest row that still has room.

    `order` decides only between records of one length, so the number of rows does not depend on it.

    Args:
        order: Positions of the records.
        lengths: Tokens of each record.
        room: Tokens a row.
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # Tokens left and the row, sorted.
    for position in sorted(order, key=lambda position: -lengths[position]):
        at = bisect_left(free, (lengths[position], 0))
        if at == len(free):
            rows.append([position])
            insort(free, (room - lengths[position], len(rows) - 1))
        else:
            left, row = free.pop(at)
            rows[row].append(position)
            insort(free, (left - lengths[position], row))
    return rows


class Examples:
    """The records of a row, as torch's loader asks for them."""

    def __init__(self, examples: Sequence[TokenisedExample]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, row: Row) -> list[TokenisedExample]:
        return [self._examples[position] for position in row]


class RowLoader(DataLoader[Any]):
    """Loads forward passes.

    Args:
        examples: What the rows' positions mean.
        batches: The forward passes.
        packed: Whether rows hold several records.
        pad_id: Fills rows up.
    """

    def __init__(
        self, examples: Sequence[TokenisedExample], batches: StepBatches | list[list[Row]], *, packed: bool, pad_id: int
    ) -> None:
        super().__init__(
            Examples(examples),  # type: ignore[arg-type]  # torch asks for its own class and needs two methods
            batch_sampler=batches,
            collate_fn=lambda rows: collate(rows, packed=packed, pad_id=pad_id),
            # Its own, or beginning a pass would draw from the state that a resume restores.
            generator=torch.Generator().manual_seed(0),
        )

    def set_epoch(self, epoch: int) -> None:
        """Hands the epoch to the batches."""
        if isinstance(self.batch_sampler, StepBatches):
            self.batch_sampler.set_epoch(epoch)


def collate(rows: Sequence[Sequence[TokenisedExample]], *, packed: bool, pad_id: int) -> dict[str, Any]:
    """Makes tensors of rows: `input_ids`, `labels`, and what keeps records and padding apart.

    Packed rows carry positions that begin again with each record and no mask: from that transformers builds a mask that
    is block-diagonal, so that no record sees another.

    Args:
        rows: Records of each row.
        packed: Whether rows hold several records.
        pad_id: Fills rows up.
    """
    # Two tokens are the fewest that have a next one.
    width = max(2, *(sum(example.length for example in row) for row in rows))
    ids_BT = torch.full((len(rows), width), pad_id)
    labels_BT = torch.full((len(rows), width), IGNORED)
    positions_BT = torch.arange(width).repeat(len(rows), 1)
    tokens = 0
    for at, row in enumerate(rows):
        start = 0
        for example in row:
            end = start + example.length
            ids_BT[at, start:end] = torch.tensor([*example.prompt_ids, *example.answer_ids])
            labels_BT[at, start + len(example.prompt_ids) : end] = torch.tensor(example.answer_ids)
            positions_BT[at, start:] -= positions_BT[at, start].item()
            start = end
        positions_BT[at, start:] -= positions_BT[at, start].item() if start < width else 0
        tokens += start
    batch = {"input_ids": ids_BT, "labels": labels_BT, "tokens": tokens}
    if packed:
        return {**batch, "position_ids": positions_BT}
    # An empty row attends to its padding: attention to nothing is no number.
    lengths_B = torch.tensor([sum(example.length for example in row) or width for row in rows])
    return {**batch, "attention_mask": (torch.arange(width) < lengths_B[:, None]).long()}
