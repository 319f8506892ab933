"""Exams without a run: any served names side by side, adapters against each other, and perplexity on a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from preceptor_contracts.domains import DomainFolder, find_domain
from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.served_names import RAW_BASE, adapter_domain

from preceptor_trainer.commands import options
from preceptor_trainer.commands.options import DomainArgument
from preceptor_trainer.disk import full_disk_told
from preceptor_trainer.runs import new_run_id
from preceptor_trainer.stages import Workshop

AdaptersArgument = Annotated[list[str], typer.Argument(help="Adapters of one domain, e.g. allergy-v3-1a2b3c4d.")]
ServedOption = Annotated[list[str], typer.Option(help="A served name; may stand there several times.")]
SomeServedOption = Annotated[list[str] | None, typer.Option("--served", help="A served name; may stand there again.")]
ExamOption = Annotated[Path | None, typer.Option(help="An exam in place of the domain's exam.jsonl.")]
OutOption = Annotated[
    Path | None, typer.Option(help="Folder for answers and standings; else one under RUNS_DIR/exams.")
]
TextOption = Annotated[Path, typer.Option(help="A UTF-8 text that nothing was trained on.")]
WindowOption = Annotated[int, typer.Option(help="Tokens of a request; less than the engine's context.")]
StrideOption = Annotated[int, typer.Option(help="Tokens that the next window begins later.")]


def exam(domain: DomainArgument, served: ServedOption, exam: ExamOption = None, out: OutOption = None) -> int:
    """Has any served names sit a domain's exam side by side, and tests every pair."""
    shop = options.open_shop()
    folder = find_domain(shop.settings.domains_dir, domain)
    words = ["exam", domain, *(word for name in served for word in ("--served", name))]
    return _sit(shop, folder, served, words, exam, out)


def compare(adapters: AdaptersArgument, exam: ExamOption = None, out: OutOption = None) -> int:
    """Compares adapters of one domain with each other and with their base model, as served."""
    shop = options.open_shop()
    domains = {name: adapter_domain(name) for name in adapters}
    for name, domain in domains.items():
        if domain is None:
            raise InvalidInput(f"{name!r} is not an adapter's name.", hint="Names look like 'allergy-v3-1a2b3c4d'.")
    if len(found := sorted({str(domain) for domain in domains.values()})) > 1:
        raise InvalidInput(
            f"The adapters are of several domains: {', '.join(found)}.",
            hint="Each domain has its own exam; compare adapters of one.",
        )
    folder = find_domain(shop.settings.domains_dir, found[0])
    served = [f"{found[0]}:{RAW_BASE}", *(f"{found[0]}:{adapter}" for adapter in adapters)]
    return _sit(shop, folder, served, ["compare", *adapters], exam, out)


def perplexity(
    domain: DomainArgument,
    text: TextOption,
    served: SomeServedOption = None,
    window: WindowOption = 1024,
    stride: StrideOption = 512,
) -> int:
    """Measures how well served names foretell a text: each token is scored once, by a sliding window."""
    from preceptor_trainer.evaluate.side_by_side import foretell

    shop = options.open_shop()
    folder = find_domain(shop.settings.domains_dir, domain)
    foretell(shop, folder, served or [f"{domain}:{RAW_BASE}"], text, window=window, stride=stride)
    return 0


def _sit(
    shop: Workshop, folder: DomainFolder, served: list[str], words: list[str], exam: Path | None, out: Path | None
) -> int:
    from preceptor_trainer.evaluate.side_by_side import sit_side_by_side

    # An exam's folder is called like a run.
    out = out or shop.settings.runs_dir / "exams" / new_run_id(folder.domain.name)
    shop = options.begin(shop, out, [*words, *(("--exam", str(exam)) if exam else ()), "--out", str(out)])
    with full_disk_told(shop.go_on):
        sit_side_by_side(shop, folder, served, exam=exam or folder.exam, out=out)
    return 0
