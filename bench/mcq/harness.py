"""lm-evaluation-harness as a process: the same prompts in, its log-likelihoods out."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from preceptor_contracts.domains import Domain
from preceptor_contracts.prompts import mcq_candidates, render_mcq
from preceptor_contracts.served_names import RAW_BASE

from bench.environments import MCQ
from bench.mcq.items import Item
from bench.mcq.load import SPLITS, Split
from bench.mcq.stack import TOKENIZER, USE_KEY, Stack


class Endpoint(NamedTuple):
    """A `/v1/completions` and what it takes to ask it."""

    url: str
    key: str


def endpoint(stack: Stack) -> Endpoint:
    """What lm-eval talks to: the gateway."""
    return Endpoint(f"{stack.gateway_url}/v1/completions", USE_KEY)


class Evaluated(NamedTuple):
    """What lm-eval says of one file of docs."""

    seconds: float
    """Inside its `loglikelihood`: tokenizing, asking, reading."""
    accuracy: float
    """Its `acc`: the option with the greatest sum."""
    logprobs: dict[str, tuple[float, ...]]
    """Sums per option, by the item's id."""


class Harness:
    """One lm-eval process, kept for a whole run."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self._folder = folder
        self._asked = 0
        self.split: Split = SPLITS[0]
        """What `evaluate` runs with; `Rounds.choose_split` finds the best."""
        self.version = str(self._read()["lm_eval"])

    def evaluate(self, domain: Domain, items: Sequence[Item]) -> Evaluated:
        """Lets lm-eval score the candidates that our own scoring of this domain scores, behind the same messages."""
        docs = self._folder / f"docs-{self._asked}.jsonl"
        self._asked += 1
        docs.write_text("".join(json.dumps(doc_of(domain, item)) + "\n" for item in items))
        system = render_mcq(domain, items[0].mcq)[0].content
        assert self._process.stdin is not None  # a pipe, see below
        command = {"docs": str(docs), "system": system, **self.split._asdict()}
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        logprobs = {doc["id"]: tuple(doc["logprobs"]) for doc in answer["docs"]}
        return Evaluated(answer["seconds"], answer["accuracy"]["acc"], logprobs)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # a pipe, see below
        line = self._process.stdout.readline()
        if not line:
            tail = (self._folder / "lm-eval.log").read_text(errors="replace")[-3000:]
            raise RuntimeError(f"lm-eval ended with {self._process.wait()}:\n{tail}")
        read: dict[str, Any] = json.loads(line)
        return read


def doc_of(domain: Domain, item: Item) -> dict[str, object]:
    """One line of lm-eval's file: the user's turn, the candidates, the right one."""
    user = render_mcq(domain, item.mcq)[-1]
    return {
        "id": item.id,
        "prompt": user.content,
        "options": list(mcq_candidates(domain, item.mcq)),
        "answer": item.mcq.answer,
    }


@contextmanager
def running_harness(stack: Stack, folder: Path) -> Iterator[Harness]:
    """Starts lm-eval, which ends when its stdin does."""
    where = endpoint(stack)
    command = [
        *(str(MCQ.python), str(Path(__file__).with_name("lm_eval_worker.py"))),
        *("--url", where.url, "--served", RAW_BASE, "--tokenizer", str(TOKENIZER)),
    ]
    env = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "OPENAI_API_KEY": where.key,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    with (folder / "lm-eval.log").open("ab") as log:
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        yield Harness(process, folder)
    finally:
        assert process.stdin is not None  # a pipe, see above
        process.stdin.close()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
