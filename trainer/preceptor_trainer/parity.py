"""The parity certificate: what was trained on is, id for id, what the engine is sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from preceptor_contracts.domains import Domain
from preceptor_contracts.errors import PreceptorError
from preceptor_contracts.files import canonical_json, sha256_bytes
from preceptor_contracts.manifest import ParityCertificate
from preceptor_contracts.mcq import McqItem
from preceptor_contracts.messages import Message
from preceptor_contracts.records import (
    ChatRecord,
    McqQuestion,
    McqRecord,
    Question,
    Record,
    question_prompt,
    to_example,
)

from preceptor_trainer.concurrently import each
from preceptor_trainer.gateway import Gateway
from preceptor_trainer.tokens import prompt_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RECORDS_COMPARED = 32
"""Training records in a certificate, beside every exam question."""


class Sample(NamedTuple):
    """A prompt to compare."""

    name: str
    messages: tuple[Message, ...]
    """As contracts render it, for training."""
    mcq: McqItem | None
    """What a client would send: an item, or else `turns`."""
    turns: tuple[Message, ...]


def spread(rows: Sequence[Record], count: int) -> list[Record]:
    """Picks up to `count` rows, evenly over the whole file."""
    step = max(1, len(rows) // count)
    return list(rows[::step][:count])


def exam_sample(domain: Domain, question: Question) -> Sample:
    """Makes a sample of an exam question."""
    messages = question_prompt(domain, question)
    item = question if isinstance(question, McqQuestion) else None
    return Sample(f"exam question {question.id!r}", messages, item, messages[1:])


def record_sample(domain: Domain, record: Record) -> Sample:
    """Makes a sample of a training record."""
    messages = to_example(domain, record).prompt
    item = record if isinstance(record, McqRecord) else None
    # A conversation is sent as it was written: the domain's system message must be joined to its own again.
    turns = record.messages[:-1] if isinstance(record, ChatRecord) else messages[1:]
    return Sample(f"record {record.id!r}", messages, item, turns)


async def certify(
    gateway: Gateway,
    domain: Domain,
    samples: Sequence[Sample],
    tokenizer: PreTrainedTokenizerBase,
    *,
    concurrency: int,
) -> ParityCertificate:
    """Compares messages and ids of every sample with what the gateway would send to the engine.

    Raises:
        PreceptorError: One differs; it is named, with the place.
    """

    async def compare(sample: Sample) -> list[int]:
        if sample.mcq is not None:
            served = await gateway.render_mcq(domain.name, sample.mcq)
        else:
            served = await gateway.render_messages(domain.name, sample.turns)
        ours = prompt_ids(tokenizer, sample.messages)
        if served.messages != sample.messages:
            raise _mismatch(f"{sample.name} is rendered to other messages by the gateway than by the trainer")
        if list(served.token_ids) != ours:
            pairs = enumerate(zip(ours, served.token_ids, strict=False))
            place = next((at for at, (left, right) in pairs if left != right), min(len(ours), len(served.token_ids)))
            raise _mismatch(f"{sample.name} has other token ids in the engine, from position {place} on")
        return ours

    compared = await each(samples, compare, limit=concurrency)
    return ParityCertificate(
        samples=len(samples), matched=len(compared), ids_sha256=sha256_bytes(canonical_json(compared).encode())
    )


def _mismatch(what: str) -> PreceptorError:
    return PreceptorError(
        f"{what}; nothing was published.",
        code="parity_broken",
        hint="Make sure that engine, gateway and trainer use the same BASE_MODEL and domains, then publish again.",
    )
