"""`python -m bench.trainer`: trains with everybody, round by round, and writes the report."""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from bench import machine
from bench.environments import TRAINER
from bench.trainer.contestants import Contestant
from bench.trainer.data import make_material
from bench.trainer.report import Findings, goals, write_report
from bench.trainer.rounds import run_rounds


def say(text: str) -> None:
    """Prints at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _facts(load: float, seconds: float) -> Mapping[str, str]:
    pinned = machine.pinned
    return {
        "processor": machine.processor(),
        "load a core before the start": machine.load_words(load),
        "Python": platform.python_version(),
        "Preceptor and plain TRL": f"TRL {pinned('trainer', 'trl')}, transformers {pinned('trainer', 'transformers')}",
        "LLaMA-Factory": f"{pinned('bench-trainer', 'llamafactory')}, "
        f"transformers {pinned('bench-trainer', 'transformers')}",
        "base model": "SmolLM2-135M-Instruct",
        "commit": machine.commit(),
        "seconds in all": f"{seconds:.0f}",
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.trainer", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--records", type=int, default=64, help="records to train on, a multiple of 8")
    parser.add_argument("--domains", nargs="+", default=["sql", "allergy"])
    parser.add_argument("--only", nargs="+", choices=[one.name for one in Contestant], help="for a try; needs --out")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder for the report")
    arguments = parser.parse_args()
    began, load = time.monotonic(), machine.load_per_core()
    TRAINER.make()
    contestants = [Contestant[name] for name in arguments.only] if arguments.only else list(Contestant)
    with tempfile.TemporaryDirectory(prefix="preceptor-bench-trainer-") as name:
        root = Path(name)
        materials = [
            make_material(root / domain, domain, train=arguments.records, validation=48) for domain in arguments.domains
        ]
        found = Findings(tuple(run_rounds(materials, contestants, root, rounds=arguments.rounds, say=say)))
    if arguments.only:
        return
    write_report(arguments.out, found, _facts(load, time.monotonic() - began))
    for goal in goals(found):
        say(f"{goal.measure}: {goal.result} (goal {goal.wanted}): {goal.word}")


if __name__ == "__main__":
    main()
