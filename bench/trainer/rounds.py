"""The plan: every contestant in every round, one after the other, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from preceptor_contracts.files import sha256_file
from preceptor_trainer.train.weights import WEIGHTS

from bench.trainer.contestants import Contestant, train
from bench.trainer.data import ROOT, Material


class Measured(NamedTuple):
    """One contestant on one domain in one round."""

    round: int
    domain: str
    contestant: Contestant
    tokens: int
    seconds: float
    loss: float
    """On records that nobody trained on, nats a token of the answers."""
    peak_bytes: int
    computed_share: float
    matrix_flops: float
    """Float32 matrix rate measured before the round's trainings of this domain, FLOP/s."""

    @property
    def rate(self) -> float:
        """Tokens of prompts and answers a second."""
        return self.tokens / self.seconds


def run_rounds(
    materials: Sequence[Material],
    contestants: Sequence[Contestant],
    folder: Path,
    *,
    rounds: int,
    say: Callable[[str], None],
) -> Iterator[Measured]:
    """Trains everything; rounds go over domains and contestants, so that a slow minute slows everybody down.

    Args:
        materials: One a domain.
        contestants: Who trains.
        folder: Gets a new folder a training.
        rounds: How often each trains.
        say: Told of each result.
    """
    losses: dict[tuple[str, str], float] = {}
    for number in range(1, rounds + 1):
        for material in materials:
            flops = _matrix_rate()
            for contestant in contestants:
                out = folder / f"{number}-{material.domain}-{contestant.name.lower()}"
                trained = train(contestant, material, out)
                # The same seed gives most trainers the same weights again, and these the same loss.
                weights = (material.domain, sha256_file(trained.adapter / WEIGHTS))
                if weights not in losses:
                    losses[weights] = _loss(trained.adapter, material)
                measured = Measured(
                    round=number,
                    domain=material.domain,
                    contestant=contestant,
                    tokens=material.tokens,
                    seconds=trained.seconds,
                    loss=losses[weights],
                    peak_bytes=trained.peak_bytes,
                    computed_share=trained.computed_share,
                    matrix_flops=flops,
                )
                say(
                    f"  {material.domain} {contestant.value:42} {measured.rate:6.1f} tokens/s, loss {measured.loss:.4f}"
                )
                yield measured


def _loss(adapter: Path, material: Material) -> float:
    arguments = [str(adapter), material.domain, str(material.validation)]
    return float(json.loads(_ask("bench.trainer.loss", *arguments))["loss"])


def _matrix_rate() -> float:
    """In a process of its own, as the trainers': this one must not hold torch's threads."""
    return float(_ask("bench.trainer.matrix_rate"))


def _ask(module: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.strip().splitlines()[-1]
