"""Validation loss of an adapter, the same way for every trainer: mean negative log-likelihood of answers."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from preceptor_contracts.domains import find_domain
from preceptor_contracts.frozen import read_jsonl
from preceptor_contracts.records import RECORDS, to_example

from bench.trainer.data import BASE, ROOT


def validation_loss(adapter: Path, domain: str, records: Path) -> float:
    """Computes the loss in float32, row by row, with nothing of our trainer's shortcuts.

    Args:
        adapter: Folder with PEFT's files.
        domain: Renders the records.
        records: Rows that nobody trained on.

    Returns:
        Nats a token of the answers, end-of-turn token included.
    """
    import torch
    from peft import PeftModel
    from preceptor_trainer.tokens import load_tokenizer, tokenise
    from transformers import AutoModelForCausalLM

    folder, tokenizer = find_domain(ROOT / "domains", domain), load_tokenizer(str(BASE))
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    adapted: Any = PeftModel.from_pretrained(base, str(adapter)).eval()
    total, count = 0.0, 0
    with torch.inference_mode():
        for record in read_jsonl(records, RECORDS):
            row = tokenise(tokenizer, to_example(folder.domain, record), record.id)
            ids_T = torch.tensor([*row.prompt_ids, *row.answer_ids])
            logits_TV = adapted(input_ids=ids_T[None]).logits[0].float()
            at = len(row.prompt_ids)
            total += float(torch.nn.functional.cross_entropy(logits_TV[at - 1 : -1], ids_T[at:], reduction="sum"))
            count += len(row.answer_ids)
    return total / count


def main() -> None:
    """Prints the loss as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("domain")
    parser.add_argument("records", type=Path)
    arguments = parser.parse_args()
    sys.stdout.write(json.dumps({"loss": validation_loss(arguments.adapter, arguments.domain, arguments.records)}))


if __name__ == "__main__":
    main()
