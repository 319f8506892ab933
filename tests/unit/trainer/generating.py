"""What the tests of `generate` share: a domain about plants, an endpoint by script, and the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from preceptor_trainer import cli
from preceptor_trainer.settings import TrainerSettings
from preceptor_trainer.stages import Workshop
from preceptor_trainer.terminal import Terminal
from pydantic import AnyHttpUrl, SecretStr
from rich.console import Console
from starlette.responses import Response

from tests.fakes.completions import Body, Completions, records
from tests.unit.trainer.fixtures import write_domain

KEY = "sk-s3cret-of-nobody"
MOSS = "Moss is green all year. It drinks through its leaves, for it has no roots."
FERN = "A young fern is curled up like a snail. It opens in the month of May."


class Bench:
    """One domain, one endpoint, one terminal; `run` is the command line."""

    def __init__(self, root: Path, endpoint: Completions, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self.endpoint = endpoint
        self.folder = write_domain(root / "domains")
        self.work = root / "generated" / "plants"
        self.review = self.work / "review.csv"
        self.train = self.folder / "train.jsonl"
        self.settings = TrainerSettings(
            domains_dir=root / "domains",
            generated_dir=root / "generated",
            generator_url=AnyHttpUrl(endpoint.url),
            generator_name="g",
            generator_api_key=SecretStr(KEY),
            generator_requests_per_minute=0,
        )
        self.seen = ""
        """All that was ever printed."""
        self._capsys = capsys

    def open_shop(self) -> Workshop:
        return Workshop(self.settings, Terminal(Console(width=400, markup=False, highlight=False)))

    def run(self, *arguments: object) -> tuple[int, str]:
        """Runs the command; returns its exit code and what it printed."""
        code = cli.main(["generate", "plants", *map(str, arguments)])
        captured = self._capsys.readouterr()
        self.seen += captured.out + captured.err
        return code, captured.out + captured.err

    def document(self, name: str, text: str) -> Path:
        path = self.root / name
        path.write_text(text, encoding="utf-8")
        return path

    def rows(self) -> list[dict[str, str]]:
        with self.review.open(encoding="utf-8-sig", newline="") as stream:
            return list(csv.DictReader(stream))

    def mark(self, *marks: str, path: Path | None = None, separator: str = ",", **changes: Any) -> Path:
        """Writes the marks, row by row, and changes to the first row, as a spreadsheet would."""
        rows = self.rows()
        for row, mark in zip(rows, marks, strict=False):
            row["accept"] = mark
        rows[0].update(changes)
        path = path or self.review
        with path.open("w", encoding="utf-8-sig", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), delimiter=separator)
            writer.writeheader()
            writer.writerows(rows)
        return path

    def trained(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.train.read_text(encoding="utf-8").splitlines()]

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.work / "candidates.jsonl").read_text().splitlines()]


def item(question: str, answer: str = "An answer.", evidence: str = "", topic: str = "Plants", **more: Any) -> Body:
    return {"topic": topic, "evidence": evidence, "question": question, "answer": answer, **more}


def about_the_text(body: Body) -> Response:
    """One good record on the text or topic of the request, in words of its own."""
    prompt = body["messages"][-1]["content"]
    if "Moss is green" in prompt:
        return records(
            item("How does moss drink without having roots?", "Through its leaves.", "It drinks through its leaves")
        )
    if "young fern" in prompt:
        return records(item("When do the curled leaves of ferns unroll?", "In May.", "It opens in the month of May."))
    topic = prompt.rsplit(": ", 1)[1]
    return records(item(f"Why would somebody grow {topic} beside a pond?", f"Because {topic} likes water."))


def everything_under(root: Path) -> bytes:
    return b"".join(path.read_bytes() for path in root.rglob("*") if path.is_file())
