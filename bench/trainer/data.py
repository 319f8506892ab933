"""The same records for every trainer, in the form that each of them reads, and what all of them train with."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import NamedTuple

from preceptor_contracts.domains import DomainFolder, find_domain
from preceptor_contracts.files import canonical_json
from preceptor_contracts.frozen import read_jsonl
from preceptor_contracts.records import RECORDS, Record, to_example
from preceptor_trainer.tokens import load_tokenizer, tokenise

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "data/base-models/SmolLM2-135M-Instruct"
SEED = 7


class Hyperparameters(NamedTuple):
    """What all trainers are told; the shipped CPU recipe's values."""

    rank: int = 16
    alpha: int = 32
    learning_rate: float = 1e-3
    scheduler: str = "cosine"
    warmup_steps: int = 1
    batch_size: int = 8
    seed: int = SEED


class Material(NamedTuple):
    """One domain's records on disk."""

    domain: str
    records: Path
    """Our own JSONL."""
    messages: Path
    """JSONL of `prompt` and `completion`, both lists of messages: TRL's conversational form."""
    sharegpt: Path
    """LLaMA-Factory's `sharegpt` form, a `dataset_info.json` beside it."""
    validation: Path
    """Our own JSONL; nobody trains on it."""
    size: int
    """Records to train on."""
    tokens: int
    """Of these records, prompts and answers, without padding."""


def make_material(folder: Path, domain: str, *, train: int, validation: int) -> Material:
    """Draws records of a domain and writes them in every form.

    Args:
        folder: Gets the files.
        domain: Name of a shipped domain.
        train: Records to train on, a multiple of the batch size.
        validation: Records held out.
    """
    source = find_domain(ROOT / "domains", domain)
    rows = list(read_jsonl(source.train, RECORDS))
    random.Random(SEED).shuffle(rows)
    held_out, trained = rows[:validation], rows[validation : validation + train]
    tokenizer = load_tokenizer(str(BASE))
    folder.mkdir(parents=True)
    material = Material(
        domain,
        folder / "records.jsonl",
        folder / "messages.jsonl",
        folder / "sharegpt.jsonl",
        folder / "validation.jsonl",
        len(trained),
        sum(tokenise(tokenizer, to_example(source.domain, row), row.id).length for row in trained),
    )
    _write(material.records, [row.model_dump(mode="json") for row in trained])
    _write(material.validation, [row.model_dump(mode="json") for row in held_out])
    conversations = [_conversation(source, row) for row in trained]
    _write(material.messages, [{"prompt": turns[:-1], "completion": turns[-1:]} for turns in conversations])
    _write(material.sharegpt, [{"messages": turns} for turns in conversations])
    (folder / "dataset_info.json").write_text(json.dumps({"bench": _SHAREGPT}))
    return material


_SHAREGPT = {
    "file_name": "sharegpt.jsonl",
    "formatting": "sharegpt",
    "columns": {"messages": "messages"},
    "tags": {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    },
}


def _conversation(source: DomainFolder, record: Record) -> list[dict[str, str]]:
    example = to_example(source.domain, record)
    turns = [{"role": message.role, "content": message.content} for message in example.prompt]
    return [*turns, {"role": "assistant", "content": example.answer}]


def _write(path: Path, rows: list[dict[str, object]] | list[dict[str, list[dict[str, str]]]]) -> None:
    path.write_text("".join(canonical_json(row) + "\n" for row in rows), encoding="utf-8")
