"""Candidate records from documents or topics, and accepted ones into the training data."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from preceptor_contracts.domains import DomainFolder, find_domain
from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.prompts import require_mcq

from preceptor_trainer.commands import options
from preceptor_trainer.commands.options import BROKEN, DomainArgument
from preceptor_trainer.generate import accepting
from preceptor_trainer.generate.asking import Agenda, Asked, Generator, make_agenda
from preceptor_trainer.generate.candidates import WorkDir
from preceptor_trainer.generate.prompting import Kind
from preceptor_trainer.generate.proposing import propose, require_readable
from preceptor_trainer.generate.sources import Source, read_documents, read_topics
from preceptor_trainer.generate.spreadsheet import SEPARATORS
from preceptor_trainer.stages import Workshop
from preceptor_trainer.terminal import Terminal

if TYPE_CHECKING:
    from preceptor_trainer.generate.endpoint import Target

_SHOWN = 10

DocumentsOption = Annotated[
    list[Path] | None, typer.Option(help="File or folder of .txt, .md, .rst, .html; may be given several times.")
]
TopicsOption = Annotated[str, typer.Option(help="Topics, comma-separated.")]
TopicsFileOption = Annotated[Path | None, typer.Option(help="Topics, one a line.")]
KindOption = Annotated[Kind, typer.Option(help="Kind of the records.")]
CountOption = Annotated[int, typer.Option(min=1, max=50, help="Records wanted of each chunk or topic, at most.")]
ChunkOption = Annotated[int, typer.Option(min=200, help="Longest chunk of a document, in characters.")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Send so many requests and no more, for a first look.")]
RetryOption = Annotated[bool, typer.Option("--retry-failed", help="Ask again about what was given up.")]
PaceOption = Annotated[float | None, typer.Option(min=0, help="Requests begun a minute; 0: no limit.")]
ConcurrencyOption = Annotated[int | None, typer.Option(min=1, max=64, help="Requests under way at once.")]
TokensOption = Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens; else the endpoint's own.")]
OutOption = Annotated[Path | None, typer.Option(help="Folder of candidates and review.csv.")]
SeparatorOption = Annotated[str | None, typer.Option(help="Of review.csv's columns: ',' or ';' or 'tab'.")]
AcceptOption = Annotated[Path | None, typer.Option(help="A reviewed file, whose accepted rows become records.")]
DataOption = Annotated[
    Path | None, typer.Option(help="Records that the domain has, in place of its train.jsonl; none is repeated.")
]
IntoOption = Annotated[Path | None, typer.Option(help="With --accept: JSONL in place of the domain's train.jsonl.")]


class _Pace(NamedTuple):
    """Options that win over settings."""

    requests_per_minute: float | None
    concurrency: int | None
    max_tokens: int | None


class _Place(NamedTuple):
    """Where candidates lie, and what they are held against."""

    work: WorkDir
    folder: DomainFolder
    existing: Path
    """Records that the domain has."""
    separator: str | None
    options: list[str]
    """That another command has to give again."""


def generate(
    domain: DomainArgument,
    documents: DocumentsOption = None,
    topics: TopicsOption = "",
    topics_file: TopicsFileOption = None,
    kind: KindOption = Kind.CHAT,
    count: CountOption = 5,
    chunk_characters: ChunkOption = 4000,
    limit: LimitOption = None,
    retry_failed: RetryOption = False,
    requests_per_minute: PaceOption = None,
    concurrency: ConcurrencyOption = None,
    max_tokens: TokensOption = None,
    out: OutOption = None,
    separator: SeparatorOption = None,
    data: DataOption = None,
    accept: AcceptOption = None,
    into: IntoOption = None,
) -> int:
    """Has another language model write candidate records, for people to review; --accept takes them in."""
    shop = options.open_shop()
    folder = find_domain(shop.settings.domains_dir, domain)
    work = WorkDir(out or shop.settings.generated_dir / domain)
    again = [*(["--out", str(out)] if out else []), *(["--data", str(data)] if data else [])]
    place = _Place(work, folder, _existing(folder, data), _separator(separator), again)
    if accept:
        if documents or topics or topics_file:
            raise InvalidInput("--accept takes no documents and no topics.", hint="Generate and accept one by one.")
        return _take_in(shop.terminal, place, accept, into)
    if into:
        raise InvalidInput("--into goes with --accept.")
    if kind is Kind.MCQ:
        require_mcq(folder.domain)
    sources = _sources(shop.terminal, documents or [], topics, topics_file, chunk_characters)
    target = _target(shop, _Pace(requests_per_minute, concurrency, max_tokens))
    with work.exclusive():
        require_readable(work, folder, place.existing)
        lines = work.read()
        if lines.unreadable:
            shop.terminal.say(f"{lines.unreadable} line(s) of files in {work.path} cannot be read and are passed over.")
        agenda = make_agenda(folder.domain, sources, lines.answered, kind=kind, count=count, retry_failed=retry_failed)
        agenda = agenda._replace(jobs=agenda.jobs[:limit])
        _announce(shop.terminal, agenda, target)
        generator = Generator(domain, work, target)
        try:
            if agenda.jobs:
                with shop.terminal.progress("generate", len(agenda.jobs)) as tick:
                    generator.run(agenda.jobs, tick, concurrency=concurrency or shop.settings.generator_concurrency)
        except KeyboardInterrupt:
            shop.terminal.say("Run the same command again to go on: nothing is asked twice.")
            raise
        finally:
            # After a failure or Ctrl-C too: what was paid for can be reviewed.
            _tell_asked(shop.terminal, generator.result())
            _tell_proposed(shop.terminal, place)
    asked = generator.result()
    return BROKEN if asked.failures and not asked.answered else 0


def _existing(folder: DomainFolder, data: Path | None) -> Path:
    if data is not None and not data.is_file():
        raise InvalidInput(f"--data {str(data)!r} is no file.", hint="Name the file that you train on.")
    return data or folder.train


def _separator(written: str | None) -> str | None:
    separator = "\t" if written == "tab" else written
    if separator is not None and separator not in tuple(SEPARATORS):
        raise InvalidInput(f"--separator {written!r} is not ',' or ';' or 'tab'.")
    return separator


def _sources(
    terminal: Terminal, documents: list[Path], topics: str, topics_file: Path | None, budget: int
) -> tuple[Source, ...]:
    read = read_documents(documents, budget=budget)
    named = read_topics(topics, topics_file)
    if read.skipped:
        more = ", ..." if len(read.skipped) > _SHOWN else ""
        terminal.say(f"{len(read.skipped)} file(s) not read or empty: {', '.join(read.skipped[:_SHOWN])}{more}")
    if not read.sources and not named:
        raise InvalidInput(
            "There is nothing to generate from.", hint="Give --documents FILE_OR_FOLDER, --topics or --topics-file."
        )
    terminal.say(f"{len(read.sources)} chunk(s) of {read.files} document(s), {len(named)} topic(s).")
    return (*read.sources, *named)


def _target(shop: Workshop, pace: _Pace) -> Target:
    from preceptor_trainer.generate.endpoint import Target

    settings = shop.settings
    url, served = settings.generator()
    asked_pace = pace.requests_per_minute
    return Target(
        url=str(url),
        host=f"{url.host}:{url.port}",
        served=served,
        key=settings.generator_api_key,
        requests_per_minute=settings.generator_requests_per_minute if asked_pace is None else asked_pace,
        timeout_s=settings.generator_timeout_s,
        max_tokens=pace.max_tokens,
    )


def _announce(terminal: Terminal, agenda: Agenda, target: Target) -> None:
    before = f"{agenda.answered_before} answered before"
    if agenda.given_up_before:
        before += f", {agenda.given_up_before} given up before (--retry-failed asks again)"
    terminal.say(f"{len(agenda.jobs)} request(s) to {target.served!r} at {target.host}; {before}.")


def _tell_asked(terminal: Terminal, asked: Asked) -> None:
    if not asked.answered and not asked.failures:
        return
    terminal.say(
        f"{asked.answered} answered, {len(asked.failures)} given up; {asked.candidates} candidates, "
        f"{asked.dropped} unusable; {asked.prompt_tokens} prompt and {asked.answer_tokens} answer tokens."
    )
    for line in asked.failures[:_SHOWN]:
        terminal.say(f"Given up after {line.asked}: {line.origin}: {line.failure}")
    if len(asked.failures) > _SHOWN:
        terminal.say(f"... and {len(asked.failures) - _SHOWN} more, in candidates.jsonl.")


def _tell_proposed(terminal: Terminal, place: _Place) -> None:
    work, domain = place.work, place.folder.domain.name
    if not work.candidates.is_file():
        return
    proposed = propose(work, place.folder, place.existing, place.separator)
    screened = proposed.screened
    terminal.say(
        f"Left out: {screened.exam} repeat an exam question, {screened.training} a training record, "
        f"{screened.others} another candidate."
    )
    terminal.say(
        f"{work.review}: {proposed.rows} to review, {proposed.new} of them new, "
        f"{proposed.doubtful} of these with evidence that is not in the document."
    )
    if proposed.rows:
        terminal.say("Write yes or no in column accept, correct what needs it, then:")
        terminal.say(
            shlex.join(["preceptor-trainer", "generate", domain, "--accept", str(work.review), *place.options])
        )


def _take_in(terminal: Terminal, place: _Place, accept: Path, into: Path | None) -> int:
    work, folder = place.work, place.folder
    if not work.candidates.is_file():
        raise InvalidInput(f"{work.candidates} does not exist, so nothing was ever generated there.")
    with work.exclusive():
        require_readable(work, folder, place.existing)
        _tell_accepted(terminal, accepting.accept(work, folder, accept, place.existing, into))
        _tell_proposed(terminal, place)
    return 0


def _tell_accepted(terminal: Terminal, accepted: accepting.Accepted) -> None:
    before = f", {accepted.there_before} stood there before" if accepted.there_before else ""
    terminal.say(
        f"{accepted.appended} record(s) appended to {accepted.into}{before}; {accepted.rejected} rejected, "
        f"{accepted.undecided} not decided."
    )
    for name, other in accepted.repeats:
        terminal.say(f"Left out: {name} repeats {other}.")
