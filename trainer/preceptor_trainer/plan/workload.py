"""How much there is to train on: counted where the records are tokenised, estimated where no tokenizer fits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from preceptor_contracts.domains import Domain
from preceptor_contracts.records import Record, to_example

from preceptor_trainer.prepare.dataset import Dataset
from preceptor_trainer.prepare.split import validation_rows
from preceptor_trainer.recipes import Recipe
from preceptor_trainer.tokens import TokenisedExample, tokenise
from preceptor_trainer.train.batches import count_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Item = TypeVar("Item")
_BYTES_A_TOKEN = 3.2
"""UTF-8 bytes of a record's texts for each of its tokens, chat template included.

Measured with SmolLM2's tokenizer: 3.04 on the domain sql, 3.40 on allergy.
"""


class Workload(NamedTuple):
    """One pass over the records, without those held out for the validation loss."""

    rows: int
    """As many as records, or fewer where they are packed."""
    tokens: int
    longest: int
    """Tokens of the longest record."""
    shared: int
    """Tokens of the beginning that all prompts have in common."""
    answer: int
    """Tokens of a mean answer; 0 where that is unknown."""
    is_estimated: bool = False
    """Whether the tokens were counted by another tokenizer than the base model's, or by none."""


def of_dataset(dataset: Dataset, recipe: Recipe) -> Workload:
    """Counts a prepared dataset, as `train` will divide it."""
    return _of_tokens(dataset.tokenised, [record.topic for record in dataset.records], recipe)


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
    topics = [record.topic for record in records]
    examples = [to_example(domain, record) for record in records]
    if tokenizer is not None:
        tokenised = [tokenise(tokenizer, example, record.id) for example, record in zip(examples, records, strict=True)]
        return _of_tokens(tokenised, topics, recipe)._replace(is_estimated=not own)
    texts = [[*(message.content for message in example.prompt), example.answer] for example in examples]
    lengths = [math.ceil(sum(len(text.encode()) for text in each) / _BYTES_A_TOKEN) for each in texts]
    trained = _trained(lengths, topics, recipe)
    return Workload(count_rows(trained, recipe), sum(trained), max(trained), 0, 0, is_estimated=True)


def _of_tokens(tokenised: Sequence[TokenisedExample], topics: Sequence[str], recipe: Recipe) -> Workload:
    trained = _trained(tokenised, topics, recipe)
    lengths = [example.length for example in trained]
    return Workload(
        rows=count_rows(lengths, recipe),
        tokens=sum(lengths),
        longest=max(lengths),
        shared=_shared([example.prompt_ids for example in trained]),
        answer=sum(len(example.answer_ids) for example in trained) // len(trained),
    )


def _trained(items: Sequence[Item], topics: Sequence[str], recipe: Recipe) -> list[Item]:
    held_out = validation_rows(topics, recipe.validation_share, recipe.seed)
    return [item for at, item in enumerate(items) if at not in held_out]


def _shared(prompts: list[list[int]]) -> int:
    # The least and the greatest differ no later than any other two.
    least, greatest = min(prompts), max(prompts)
    pairs = enumerate(zip(least, greatest, strict=False))
    return next((at for at, (left, right) in pairs if left != right), min(len(least), len(greatest)))
