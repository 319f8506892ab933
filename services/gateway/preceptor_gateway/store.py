"""Which adapter each alias points at: one JSON file, replaced atomically, written by the gateway alone."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from preceptor_contracts.files import write_atomic
from preceptor_contracts.frozen import Frozen, read_json
from preceptor_contracts.served_names import AdapterName, DomainName
from preceptor_contracts.wire_aliases import AliasMove, MoveKind
from pydantic import Field

_KEPT = 50
"""Moves remembered per alias, and entries of its history."""


class Move(Frozen):
    """One change of an alias."""

    adapter: AdapterName | None
    """None where the alias was taken back to pointing at nothing."""
    at: datetime
    report: str | None = None
    """File name of the report that the move rests on."""


class Alias(Frozen):
    """An alias with its past; the last move is the present one."""

    moves: tuple[Move, ...] = ()
    """What a rollback goes back through; it takes the last one away."""
    history: tuple[AliasMove, ...] = ()
    """Everything that happened, rollbacks too, oldest first."""

    @property
    def promoted(self) -> str | None:
        """The adapter that the alias points at."""
        return self.moves[-1].adapter if self.moves else None

    @property
    def previous(self) -> str | None:
        """The adapter that a rollback would restore."""
        return self.moves[-2].adapter if len(self.moves) > 1 else None

    @property
    def can_step_back(self) -> bool:
        """True where a rollback has somewhere to go; what it restores may be nothing."""
        return len(self.moves) > 1

    @property
    def past(self) -> tuple[AliasMove, ...]:
        """The history, oldest first; of a file of an earlier version, which has none, the moves."""
        return self.history or tuple(
            AliasMove(at=move.at, kind=MoveKind.PROMOTE, adapter=move.adapter, report=move.report)
            for move in self.moves
        )

    def then(self, moves: tuple[Move, ...], kind: MoveKind) -> Alias:
        """The alias after one more event."""
        now = moves[-1]
        entry = AliasMove(at=datetime.now(UTC), kind=kind, adapter=now.adapter, report=now.report)
        return Alias(moves=moves[-_KEPT:], history=(*self.past, entry)[-_KEPT:])


class AliasFile(Frozen):
    """The file's content."""

    aliases: dict[DomainName, Alias] = Field(default_factory=dict)
    pinned: tuple[AdapterName, ...] = ()
    """Adapters wanted in the engine though not promoted."""


class AliasStore:
    """Reads once, answers from memory, writes through."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._content = read_json(path, AliasFile) if path.exists() else AliasFile()

    def alias(self, domain: str) -> Alias:
        """The alias of a domain; an empty one where it was never promoted."""
        return self._content.aliases.get(domain, Alias())

    @property
    def pinned(self) -> tuple[str, ...]:
        """Adapters wanted in the engine though not promoted."""
        return self._content.pinned

    def wanted(self) -> frozenset[str]:
        """Every adapter that every engine should hold: promoted, one step back (for an instant rollback), pinned."""
        aliases = self._content.aliases.values()
        names = {name for alias in aliases for name in (alias.promoted, alias.previous) if name}
        return frozenset(names | set(self.pinned))

    def move(self, domain: str, adapter: str | None, report: str | None, kind: MoveKind = MoveKind.PROMOTE) -> Alias:
        """Points an alias at an adapter, or at nothing; doing it again changes nothing."""
        alias = self.alias(domain)
        if alias.promoted == adapter:
            return alias
        move = Move(adapter=adapter, at=datetime.now(UTC), report=report)
        return self._save_alias(domain, alias.then((*alias.moves, move), kind))

    def step_back(self, domain: str) -> Alias:
        """Undoes the last move."""
        alias = self.alias(domain)
        return self._save_alias(domain, alias.then(alias.moves[:-1], MoveKind.ROLLBACK))

    def pin(self, adapter: str) -> None:
        """Wants an adapter in the engine."""
        if adapter not in self.pinned:
            self._save(self._content.model_copy(update={"pinned": (*self.pinned, adapter)}))

    def unpin(self, adapter: str) -> None:
        """Wants an adapter no longer."""
        rest = tuple(name for name in self.pinned if name != adapter)
        if rest != self.pinned:
            self._save(self._content.model_copy(update={"pinned": rest}))

    def _save_alias(self, domain: str, alias: Alias) -> Alias:
        self._save(self._content.model_copy(update={"aliases": {**self._content.aliases, domain: alias}}))
        return alias

    def _save(self, content: AliasFile) -> None:
        # The file first: what clients see must never be ahead of what a restart would restore.
        write_atomic(self._path, content.model_dump_json(indent=2) + "\n")
        self._content = content
