"""What a person sees: bars on a terminal, plain lines in a log. The same facts go to `events.jsonl`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LINE_EVERY_S = 10.0


class Tick(Protocol):
    """Reports progress: how much is done, and a note such as the loss."""

    def __call__(self, done: int, note: str = "") -> None:
        """Shows `done` of the total."""


ShowProgress = Callable[[str, int], AbstractContextManager[Tick]]
"""Begins to show progress: a label and the total."""


@contextmanager
def untold(label: str, total: int) -> Iterator[Tick]:
    """Shows nothing."""

    def tick(done: int, note: str = "") -> None:
        del done, note

    del label, total
    yield tick


class Terminal:
    """Writes to one console; the pipeline and its stages share it."""

    def __init__(self, console: Console | None = None) -> None:
        # Records and paths may hold brackets, which Rich would read as markup.
        self._console = console or Console(markup=False, highlight=False, emoji=False)

    def say(self, text: str) -> None:
        """Writes one line, never wrapped, so that logs can be searched."""
        self._console.print(text, soft_wrap=True)

    def show(self, what: RenderableType) -> None:
        """Writes a table."""
        self._console.print(what)

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Tick]:
        """Shows progress until the block ends; the tick may be called as often as one likes."""
        if self._console.is_terminal:
            with self._bar() as bar:
                task = bar.add_task(label, total=total, note="")
                yield lambda done, note="": bar.update(task, completed=done, note=note)
        else:
            yield self._lines(label, total)

    def _bar(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
        )

    def _lines(self, label: str, total: int) -> Tick:
        started = last = time.monotonic()

        def tick(done: int, note: str = "") -> None:
            nonlocal last
            now = time.monotonic()
            if done < total and now - last < _LINE_EVERY_S:
                return
            last = now
            self.say(f"{label} {done}/{total} after {now - started:.0f} s{'  ' + note if note else ''}")

        return tick
