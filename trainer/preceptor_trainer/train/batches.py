"""Which records share a batch: like lengths together, the same order for the same seed, on resume too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

_POOL = 50
"""Batches sorted by length together; transformers' LengthGroupedSampler takes as many."""


class LengthGroups(Sampler[int]):
    """Yields record positions so that consecutive runs of `batch_size` have like lengths.

    transformers' own sampler draws from the global random state, which a resumed process has not at the same point;
    here an epoch's order depends on seed and epoch alone, so a resumed run sees each record as often as any other.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Picks the order of pass `epoch`, from 0; the Trainer calls it."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        order = torch.randperm(len(self._lengths), generator=generator).tolist()
        pool = self._batch_size * _POOL
        batches: list[list[int]] = []
        for start in range(0, len(order), pool):
            alike = sorted(order[start : start + pool], key=lambda position: self._lengths[position])
            batches += [alike[at : at + self._batch_size] for at in range(0, len(alike), self._batch_size)]
        # A short batch in the middle would shift all after it across the loader's batch boundaries.
        full = [batch for batch in batches if len(batch) == self._batch_size]
        short = [batch for batch in batches if len(batch) < self._batch_size]
        shuffled = [full[at] for at in torch.randperm(len(full), generator=generator).tolist()]
        yield from (position for batch in [*shuffled, *short] for position in batch)
