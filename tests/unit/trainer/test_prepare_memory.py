"""Memory of the whole preparation, measured in a process of its own: it must not grow with the file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.trainer.fixtures import write_domain

MEASURE = """
import resource, sys
from pathlib import Path
from preceptor_contracts.domains import find_domain
from preceptor_trainer.prepare.dataset import Given, prepare, read_exam
from preceptor_trainer.prepare.report import Length
import datasketch

folder = find_domain(Path(sys.argv[1]), "plants")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
given = Given(folder.domain, Path(sys.argv[2]), read_exam(folder), Length(1024, 0.0, 7))
outcome = prepare(given, Path(sys.argv[3]), None)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(outcome.report.records, outcome.report.bad_rows, (after - before) * 1024)
"""


def _write(path: Path, rows: int) -> int:
    passage = " ".join(f"{'word' * 15}{number}" for number in range(75))
    with path.open("w", encoding="utf-8") as stream:
        for number in range(rows):
            row = {"question": f"{passage} question {number}?", "answer": f"Answer {number}. {passage}"}
            stream.write(json.dumps(row) + "\n")
    return path.stat().st_size


@pytest.mark.timeout(300)
def test_preparing_thirty_megabytes_takes_a_few(tmp_path: Path) -> None:
    write_domain(tmp_path / "domains")
    size = _write(tmp_path / "big.jsonl", 3500)
    (tmp_path / "work").mkdir()
    arguments = [str(tmp_path / name) for name in ("domains", "big.jsonl", "work")]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, check=True, timeout=280
    )
    records, bad, grown = (int(part) for part in done.stdout.split())
    assert (records, bad) == (3500, 0)
    assert size > 30_000_000
    assert grown < 15_000_000
