"""Asks the generator about every source once, and remembers every answer as it comes: the main path of `generate`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from preceptor_contracts.domains import Domain
from preceptor_contracts.files import sha256_bytes

from preceptor_trainer.concurrently import each
from preceptor_trainer.generate.candidates import Answered, Candidate, WorkDir, make_candidate
from preceptor_trainer.generate.prompting import Job, Kind, make_job
from preceptor_trainer.generate.sources import Source
from preceptor_trainer.terminal import Tick

if TYPE_CHECKING:
    from preceptor_trainer.generate.endpoint import Endpoint, Method, Target

ATTEMPTS = 3
"""Times that a source is asked about until an answer can be used."""


class Agenda(NamedTuple):
    """Requests to send, and those that need not be."""

    jobs: tuple[Job, ...]
    answered_before: int
    given_up_before: int


class Asked(NamedTuple):
    """What one run of the command got."""

    answered: int
    failures: tuple[Answered, ...]
    candidates: int
    dropped: int
    """Questions in answers that could not be used."""
    prompt_tokens: int
    answer_tokens: int


def make_agenda(
    domain: Domain,
    sources: Sequence[Source],
    earlier: Sequence[Answered],
    *,
    kind: Kind,
    count: int,
    retry_failed: bool = False,
) -> Agenda:
    """Writes one request a source and strikes out those that were sent before.

    Args:
        domain: Shapes the requests.
        sources: Chunks and topics; the same chunk twice is asked about once.
        earlier: Lines of `candidates.jsonl`.
        kind: Of the records wanted.
        count: Records wanted of each source, at most.
        retry_failed: Requests that were given up are sent again.
    """
    jobs = {job.sha: job for job in (make_job(domain, source, kind, count) for source in sources)}
    good = {line.job for line in earlier if not line.failure}
    given_up = {line.job for line in earlier if line.failure} - good
    struck = good if retry_failed else good | given_up
    return Agenda(
        tuple(job for sha, job in jobs.items() if sha not in struck),
        len(good & jobs.keys()),
        len(given_up & jobs.keys()),
    )


class Generator:
    """Sends an agenda's requests and remembers the answers.

    Args:
        domain: Name that ids of candidates begin with.
        work: Where answers are remembered.
        target: Whom to ask.
    """

    def __init__(self, domain: str, work: WorkDir, target: Target) -> None:
        self._domain = domain
        self._work = work
        self._target = target
        self._done: list[Answered] = []

    def run(self, jobs: Sequence[Job], tick: Tick, *, concurrency: int) -> None:
        """Sends all requests; what is answered when it fails or is stopped is kept, see `result`.

        Raises:
            PreceptorError: The endpoint cannot go on.
        """
        asyncio.run(self._run(jobs, tick, concurrency))

    def result(self) -> Asked:
        """Counts what was answered so far."""
        failures = tuple(line for line in self._done if line.failure)
        return Asked(
            answered=len(self._done) - len(failures),
            failures=failures,
            candidates=sum(len(line.candidates) for line in self._done),
            dropped=sum(len(line.dropped) for line in self._done),
            prompt_tokens=sum(line.prompt_tokens for line in self._done),
            answer_tokens=sum(line.answer_tokens for line in self._done),
        )

    async def _run(self, jobs: Sequence[Job], tick: Tick, concurrency: int) -> None:
        from preceptor_trainer.generate.endpoint import METHODS, connect

        method = self._known_method()
        async with connect(self._target, method or METHODS[0], has_answered=method is not None) as endpoint:

            async def one(job: Job) -> None:
                line = await self._ask(endpoint, job)
                self._work.remember(line)
                self._done.append(line)
                got = self.result()
                tick(len(self._done), f"{got.candidates} candidates, {got.prompt_tokens + got.answer_tokens} tokens")

            # Alone: a wrong key or a refused way of asking costs one request, not as many as may be under way.
            await one(jobs[0])
            await each(jobs[1:], one, limit=concurrency)

    def _known_method(self) -> Method | None:
        """How this endpoint wanted to be asked when it answered last; None where it never did."""
        from preceptor_trainer.generate.endpoint import METHODS

        whom = (self._target.host, self._target.served)
        used = [
            line.method for line in self._work.read().answered if (line.host, line.served) == whom and not line.failure
        ]
        return next((method for method in METHODS if used and method == used[-1]), None)

    async def _ask(self, endpoint: Endpoint, job: Job) -> Answered:
        asked = prompt_tokens = answer_tokens = 0
        while True:
            asked += 1
            reply = await endpoint.ask(job.messages, job.schema)
            prompt_tokens += reply.prompt_tokens
            answer_tokens += reply.answer_tokens
            made = [make_candidate(self._domain, job, item) for item in reply.items]
            candidates = tuple(one for one in made if isinstance(one, Candidate))
            dropped = tuple(one for one in made if isinstance(one, str))
            failure = reply.failure or ("" if candidates else f"no record could be used: {dropped[0]}")
            if not failure or not reply.worth_repeating or asked == ATTEMPTS:
                break
        return Answered(
            job=job.sha,
            chunk_sha=sha256_bytes(job.source.text.encode()) if job.source.text else "",
            origin=job.source.origin,
            kind=job.kind,
            host=self._target.host,
            served=self._target.served,
            method=endpoint.method,
            asked=asked,
            prompt_tokens=prompt_tokens,
            answer_tokens=answer_tokens,
            at=datetime.now(UTC),
            candidates=candidates,
            dropped=dropped,
            failure=failure,
        )
