"""How much there is to train on: counted where the records are tokenised, estimated where no tokenizer fits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from preceptor_contracts.domains import Domain
from preceptor_contracts.records import Record, to_example

from preceptor_trainer.prepare.dataset import Prepared
from preceptor_trainer.prepare.split import validation_rows
from preceptor_trainer.recipes import Recipe
from preceptor_trainer.tokens import tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTES_A_TOKEN = 3.2
"""UTF-8 bytes of a record's texts for each of its tokens, chat template included.

Measured with SmolLM2's tokenizer: 3.04 on the domain sql, 3.40 on allergy.
"""


class Workload(NamedTuple):
    """One pass over the records."""

    records: int
    tokens: int
    longest: int
    """Tokens of the longest record."""
    shared: int
    """Tokens of the beginning that all prompts have in common."""
    answer: int
    """Tokens of a mean answer; 0 where that is unknown."""
    is_estimated: bool
    """Whether the tokens were counted by another tokenizer than the base model's, or by none."""

    def less_validation(self, topics: Sequence[str], recipe: Recipe) -> Workload:
        """Takes away the share that is held out for the validation loss.

        Args:
            topics: One for each record, in the dataset's order.
            recipe: Says how much, and by which seed.
        """
        left = self.records - len(validation_rows(topics, recipe.validation_share, recipe.seed))
        return self._replace(records=left, tokens=round(self.tokens * left / self.records))


def of_prepared(prepared: Prepared, recipe: Recipe) -> Workload:
    """What stage prepare counted, less what the recipe holds out."""
    dataset, lengths = prepared.dataset, prepared.lengths
    answer = lengths.answer_tokens // dataset.records
    counted = Workload(dataset.records, dataset.tokens, lengths.longest, lengths.shared, answer, is_estimated=False)
    topics = [topic for topic, count in dataset.topics.items() for _ in range(count)]
    # Hand-made summaries name no topics; then nothing is known about the split either.
    return counted.less_validation(topics, recipe) if len(topics) == dataset.records else counted


def of_records(
    domain: Domain, records: Sequence[Record], recipe: Recipe, tokenizer: PreTrainedTokenizerBase | None, *, own: bool
) -> Workload:
    """Counts records as they are read, before anything is removed.

    Args:
        domain: Renders them.
        records: At least one.
        recipe: Says what is held out.
        tokenizer: The best there is; None where there is none, and then bytes are counted.
        own: Whether it is the base model's own.
    """
    examples = [to_example(domain, record) for record in records]
    if tokenizer is None:
        texts = [[*(message.content for message in example.prompt), example.answer] for example in examples]
        lengths = [math.ceil(sum(len(text.encode()) for text in each) / _BYTES_A_TOKEN) for each in texts]
        shared = answer = 0
    else:
        tokenised = [tokenise(tokenizer, example, record.id) for example, record in zip(examples, records, strict=True)]
        lengths = [example.length for example in tokenised]
        shared = _shared([example.prompt_ids for example in tokenised])
        answer = sum(len(example.answer_ids) for example in tokenised) // len(records)
    counted = Workload(len(records), sum(lengths), max(lengths), shared, answer, is_estimated=not own)
    return counted.less_validation([record.topic for record in records], recipe)


def _shared(prompts: list[list[int]]) -> int:
    # The least and the greatest differ no later than any other two.
    least, greatest = min(prompts), max(prompts)
    pairs = enumerate(zip(least, greatest, strict=False))
    return next((at for at, (left, right) in pairs if left != right), min(len(least), len(greatest)))
