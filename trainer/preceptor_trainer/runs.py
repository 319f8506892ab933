"""The run directory: the one truth about a run, readable and resumable after a kill at any moment."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.files import Sha256, sync_folder, write_atomic
from preceptor_contracts.frozen import Frozen, read_json
from preceptor_contracts.manifest import BaseModelIdentity, DatasetSummary
from preceptor_contracts.messages import Text
from preceptor_contracts.served_names import DomainName
from pydantic import BaseModel, JsonValue, TypeAdapter, ValidationError

from preceptor_trainer.locks import only_one
from preceptor_trainer.recipes import Recipe


class Stage(StrEnum):
    """What a run goes through, in this order."""

    PREPARE = "prepare"
    PLAN = "plan"
    TRAIN = "train"
    PUBLISH = "publish"
    EVALUATE = "evaluate"
    PROMOTE = "promote"


class RunSpec(Frozen):
    """`spec.json`: everything resolved, enough to repeat the run."""

    schema_version: int = 1
    run_id: Text
    domain: DomainName
    prompt_sha: Sha256
    exam_sha: Sha256
    data: str
    """File that the records were read from."""
    dataset: DatasetSummary
    recipe: Recipe
    base_model: BaseModelIdentity
    base_source: str
    """Folder or Hugging Face id that the weights are loaded from."""
    chat_template_sha: Sha256
    seed: int
    device: str
    """`cpu` or `cuda`."""
    device_name: str
    threads: int
    libraries: dict[str, str]
    git_rev: str | None
    created_at: datetime


class Event(BaseModel):
    """One line of `events.jsonl`; further keys depend on the event."""

    model_config = {"extra": "allow", "frozen": True}

    time: datetime
    stage: Stage
    event: str
    result: JsonValue = None
    """Of event `done`: what the stage found, read back by later stages."""

    def number(self, name: str) -> float:
        """Reads a further key that holds a number."""
        return float((self.model_extra or {})[name])

    def text(self, name: str) -> str:
        """Reads a further key that holds text."""
        return str((self.model_extra or {})[name])


Result = TypeVar("Result", bound=BaseModel)


def new_run_id(domain: str) -> str:
    """Makes `<domain>-<UTC date>-<time>-<4 hex digits>`."""
    return f"{domain}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


class RunDir:
    """One run on disk. Stage completion is read from the events, never kept beside them.

    Args:
        path: Its folder.
        spec: Its `spec.json`.
        writes: False in processes that only train beside the one that keeps the run.
    """

    def __init__(self, path: Path, spec: RunSpec, *, writes: bool = True) -> None:
        self.path = path
        self.spec = spec
        self.writes = writes

    @classmethod
    def create(cls, root: Path, spec: RunSpec, prepared: Path) -> RunDir:
        """Makes a prepared folder the run's directory, whole or not at all.

        Args:
            root: Folder of all runs.
            spec: Written as `spec.json`.
            prepared: Folder on the same file system that holds `dataset.jsonl`; it is renamed.
        """
        path = root / spec.run_id
        write_atomic(prepared / "spec.json", spec.model_dump_json(indent=2) + "\n")
        prepared.rename(path)
        sync_folder(root)
        return cls(path, spec)

    @classmethod
    def open(cls, root: Path, run_id: str, *, writes: bool = True) -> RunDir:
        """Opens a run by id.

        Raises:
            InvalidInput: No such run; the hint names the newest ones.
        """
        known = sorted((path.parent for path in root.glob("[!.]*/spec.json")), key=lambda path: path.stat().st_mtime)
        path = next((path for path in known if path.name == run_id), None)
        if path is None:
            newest = ", ".join(folder.name for folder in known[:-4:-1]) or "none"
            raise InvalidInput(
                f"There is no run {run_id!r} in {root}.", code="unknown_run", hint=f"Newest runs: {newest}."
            )
        return cls(path, read_json(path / "spec.json", RunSpec), writes=writes)

    @property
    def id(self) -> str:
        """The run's name."""
        return self.spec.run_id

    @property
    def checkpoints(self) -> Path:
        """Where training keeps what it can resume from."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The trained weights, before they are published; there only when whole."""
        return self.path / "adapter"

    @property
    def weights(self) -> Path:
        """The same after method `full`: a whole base model."""
        return self.path / "weights"

    def record(self, stage: Stage, event: str, **fields: JsonValue) -> None:
        """Appends one line and flushes it."""
        if not self.writes:
            return
        line = {"time": datetime.now(UTC).isoformat(), "stage": stage.value, "event": event, **fields}
        text = json.dumps(line, ensure_ascii=False) + "\n"
        path = self.path / "events.jsonl"
        with path.open("ab+") as stream:
            # A kill may have left half a line; without a break, this one would be lost with it.
            if stream.tell() and _last_byte(stream.fileno()) != b"\n":
                text = "\n" + text
            stream.write(text.encode())
            stream.flush()
            os.fsync(stream.fileno())

    def finish(self, stage: Stage, result: BaseModel) -> None:
        """Marks a stage done and keeps what it found."""
        self.record(stage, "done", result=result.model_dump(mode="json"))

    def events(self, stage: Stage | None = None, event: str | None = None) -> list[Event]:
        """Reads the events in order, leaving out half-written lines and, where asked, other stages or kinds."""
        path = self.path / "events.jsonl"
        if not path.is_file():
            return []
        read = []
        for line in path.read_bytes().split(b"\n"):
            try:
                item = Event.model_validate_json(line)
            except ValidationError:
                continue
            if (stage is None or item.stage is stage) and (event is None or item.event == event):
                read.append(item)
        return read

    def is_done(self, stage: Stage) -> bool:
        """Tells whether a stage finished."""
        return bool(self.events(stage, "done"))

    def result(self, stage: Stage, kind: type[Result]) -> Result:
        """Returns what a finished stage found.

        Raises:
            InvalidInput: The stage has not finished.
        """
        done = self.events(stage, "done")
        if not done:
            raise InvalidInput(
                f"Run {self.id!r} has not finished stage {stage.value!r}.",
                hint=f"Run `preceptor-trainer resume {self.id}`.",
            )
        return TypeAdapter(kind).validate_python(done[-1].result)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keeps a second process from working on the same run; the kernel frees it when this one dies.

        Raises:
            PreceptorError: Another process is at it.
        """
        with only_one(self.path, doing=f"working on run {self.id!r}", code="run_busy"):
            yield


def _last_byte(handle: int) -> bytes:
    return os.pread(handle, 1, os.fstat(handle).st_size - 1)
