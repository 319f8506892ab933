"""Makes adapter folders that the registry accepts, against whatever engine is asked for the canary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from preceptor_contracts.domains import Domain
from preceptor_contracts.files import sha256_bytes
from preceptor_contracts.manifest import (
    BaseModelIdentity,
    Canary,
    DatasetSummary,
    Manifest,
    ParityCertificate,
    TrainMetrics,
    hash_files,
    write_manifest,
)
from preceptor_contracts.messages import Message, wire
from preceptor_contracts.prompts import render_chat
from preceptor_contracts.report import Comparison, Report, Side, Verdict

from tests.fakes.engine import END, FakeEngine, template

SHA = sha256_bytes(b"any")
COMPARED = (65, 66, 67, 68, 97, 98, END)


def canary_for(fake: FakeEngine, domain: Domain, name: str) -> Canary:
    """A canary as the fake will answer it."""
    messages = render_chat(domain, [Message(role="user", content="Canary?")])
    ids = template(wire(messages), generation_prompt=True)
    adapter, base = fake.logprobs(name, ids), fake.logprobs("base", ids)
    return Canary(
        messages=messages,
        prompt_ids=ids,
        token_ids=COMPARED,
        adapter_logprobs=tuple(adapter[token] for token in COMPARED),
        base_logprobs=tuple(base[token] for token in COMPARED),
    )


def write_adapter(
    root: Path, name: str, domain: Domain, canary: Canary, *, stop: Sequence[int] = (END,), weights: bytes = b"weights"
) -> Path:
    """Writes a whole adapter folder, manifest last, and returns it."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 16}))
    (folder / "adapter_model.safetensors").write_bytes(weights)
    manifest = Manifest(
        adapter=name,
        domain=domain.name,
        prompt_sha=domain.prompt_sha,
        base_model=BaseModelIdentity(id="fake", revision="1"),
        chat_template_sha=SHA,
        stop_token_ids=tuple(stop),
        rank=16,
        mcq_scoring=domain.mcq.scoring if domain.mcq else None,
        label_token_ids={"A": 65, "B": 66},
        dataset=DatasetSummary(sha256=SHA, records=1, tokens=1, topics={"t": 1}, duplicates_removed=0),
        recipe={},
        libraries={},
        git_rev=None,
        seed=1,
        run_id="run-1",
        created_at=datetime.now(UTC),
        train=TrainMetrics(
            steps=1, tokens=1, seconds=1, tokens_per_second=1, trainable_parameters=1, first_loss=1, final_loss=1
        ),
        parity=ParityCertificate(samples=1, matched=1, ids_sha256=SHA),
        canary=canary,
        files=hash_files(folder),
    )
    write_manifest(folder, manifest)
    return folder


def write_report(folder: Path, domain: str, verdict: Verdict) -> str:
    """Writes a report beside an adapter and returns its file name."""
    base = Side(served=f"{domain}:base", correct=40, accuracy=0.4, ci95=(0.3, 0.5))
    adapter = Side(served=f"{domain}:{folder.name}", correct=80, accuracy=0.8, ci95=(0.7, 0.9))
    scores = Comparison(n=100, base=base, adapter=adapter, difference=0.4, mcnemar_p=0.0001)
    report = Report(
        **dict(scores),
        domain=domain,
        run_id="run-1",
        exam_sha=SHA,
        verdict=verdict,
        reason=f"It is {verdict}.",
        groups={"all": scores},
        topics={"all": scores},
        calibration=(),
        seconds=1,
        engine="fake",
        created_at=datetime.now(UTC),
    )
    file = folder / "reports" / f"{SHA[:12]}-run-1.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(report.model_dump_json())
    return file.name
