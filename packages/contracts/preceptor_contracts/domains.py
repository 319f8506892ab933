"""A domain: the folder `domains/<name>/`. Data that humans write; read here, rendered in `prompts`."""

from __future__ import annotations

import os
import re
import string
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.files import Sha256, canonical_json, sha256_bytes
from preceptor_contracts.frozen import Frozen, read_yaml
from preceptor_contracts.mcq import Scoring
from preceptor_contracts.messages import Text
from preceptor_contracts.served_names import RAW_BASE, DomainName

FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
"""A file beside `domain.yaml`; never a path."""

RecipeName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=60)]
"""A file under `trainer/recipes/` without `.yaml`."""
_APOSTROPHES = re.compile("[\u2018\u2019\u02bc\u00b4`]")


def _placeholders(template: str) -> set[str]:
    """Names between braces; refuses everything but plain `{name}` and doubled braces."""
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"not a template: {error}; write a literal brace twice") from error
    names = set()
    for _, name, spec, conversion in pieces:
        if name is None:
            continue
        if not name.isidentifier() or spec or conversion:
            raise ValueError(f"{{{name}}} is not a plain placeholder; write a literal brace twice")
        names.add(name)
    return names


def _template(value: str, required: set[str], allowed: set[str]) -> str:
    names = _placeholders(value)
    if unknown := names - allowed:
        known = ", ".join(sorted(f"{{{name}}}" for name in allowed)) or "none"
        raise ValueError(f"unknown placeholder {{{min(unknown)}}}; known here: {known}")
    if missing := required - names:
        raise ValueError(f"placeholder {{{min(missing)}}} is missing")
    return value


class McqLayout(Frozen):
    """How a multiple-choice item becomes the user's turn. Templates take `{name}`; literal braces are doubled."""

    scoring: Scoring
    """Fits the base model that the domain is trained on; copied into every manifest."""
    passage: str = "{passage}\n\n"
    """Put before the body when an item has a passage, so that questions on one passage share a prefix."""
    letters: str = "{question}\n\n{options}\n\nAnswer with the letter only."
    """Body for scoring `letters`."""
    options: str = "{question}"
    """Body for scoring `options`: the options are not shown, each is scored as the answer."""

    explain: str | None = "{question}\n\n{options}\n\nThe answer is {answer}\n\nSay in two or three sentences why."
    """Body that asks why an option was chosen; None where nobody shall be told reasons. Nothing is trained on it, so it
    is no part of `Domain.prompt_sha`."""

    @field_validator("passage")
    @classmethod
    def _passage(cls, value: str) -> str:
        return _template(value, {"passage"}, {"passage"})

    @field_validator("letters")
    @classmethod
    def _letters(cls, value: str) -> str:
        return _template(value, {"question", "options"}, {"question", "options"})

    @field_validator("options")
    @classmethod
    def _options(cls, value: str) -> str:
        return _template(value, {"question"}, {"question"})

    @field_validator("explain")
    @classmethod
    def _explain(cls, value: str | None) -> str | None:
        return value and _template(value, {"question", "answer"}, {"question", "options", "answer"})


class SafetyRule(Frozen):
    """A message shown before any answer when a user's text matches."""

    name: DomainName
    message: Text
    patterns: Annotated[tuple[Text, ...], Field(min_length=1)]
    """Regular expressions, matched anywhere, ignoring case."""
    instead: bool = False
    """The message is the whole answer: nothing is generated that could speak against it."""

    @field_validator("patterns")
    @classmethod
    def _compile(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
        return patterns

    def matches(self, text: str) -> bool:
        """Tells whether any pattern occurs in `text`; any apostrophe is a plain one, any white space one space."""
        folded = " ".join(_APOSTROPHES.sub("'", text).split())
        return any(re.search(pattern, folded, re.IGNORECASE) for pattern in self.patterns)


class Domain(Frozen):
    """`domain.yaml`."""

    name: DomainName
    title: Text
    description: Text
    system: Text
    """Template of the system message; it takes no placeholders."""
    mcq: McqLayout | None = None
    """None where the domain has no multiple choice."""
    safety: tuple[SafetyRule, ...] = ()
    disclaimer: str = ""
    examples: tuple[Text, ...] = ()
    """Questions that a page may offer to a newcomer."""
    recipe: RecipeName
    """Default recipe."""
    epochs: Annotated[float, Field(gt=0, le=50)] | None = None
    """Passes over the records; None leaves it to the recipe."""
    grader: Literal["mcq", "sql", "exact", "keypoints", "judge", "mixed"] = "mixed"
    """Kind of all exam questions; `mixed` lets each question name its own."""
    database: FileName | None = None
    """SQL script that builds the SQLite database which grader `sql` executes queries on."""
    max_answer_tokens: Annotated[int, Field(ge=1, le=4096)] = 256
    """Limit on an answer's length, in tokens, where the client gives none."""

    @field_validator("system")
    @classmethod
    def _system(cls, value: str) -> str:
        return _template(value, set(), set())

    @field_validator("name")
    @classmethod
    def _not_the_base(cls, name: str) -> str:
        if name == RAW_BASE:
            raise ValueError(f"{name!r} is the served name of the raw base model")
        return name

    @model_validator(mode="after")
    def _grader_has_its_parts(self) -> Domain:
        if self.grader == "sql" and self.database is None:
            raise ValueError("grader 'sql' needs `database`")
        if self.grader == "mcq" and self.mcq is None:
            raise ValueError("grader 'mcq' needs `mcq`")
        return self

    @property
    def prompt_sha(self) -> Sha256:
        """Hash of all that shapes a prompt: an adapter trained under another one is not servable under this."""
        layout = self.mcq.model_dump(mode="json", exclude={"explain"}) if self.mcq else None
        shaping = {"system": self.system, "mcq": layout}
        return sha256_bytes(canonical_json(shaping).encode())

    def triggered(self, text: str) -> tuple[SafetyRule, ...]:
        """Returns the safety rules that `text` sets off."""
        return tuple(rule for rule in self.safety if rule.matches(text))


class DomainFolder(Frozen):
    """A domain and where its files are."""

    path: Path
    domain: Domain

    @property
    def train(self) -> Path:
        """Training records, JSONL."""
        return self.path / "train.jsonl"

    @property
    def exam(self) -> Path:
        """Held-out questions, JSONL."""
        return self.path / "exam.jsonl"

    @property
    def database(self) -> Path:
        """SQL script of the graded database; only where grader is `sql`."""
        if self.domain.database is None:
            raise InvalidInput(f"domain {self.domain.name!r} has no database.")
        return self.path / self.domain.database


def load_domain(path: Path) -> DomainFolder:
    """Reads `path/domain.yaml`.

    Raises:
        InvalidInput: Missing, malformed, or its `name` is not the folder's.
    """
    domain = read_yaml(path / "domain.yaml", Domain)
    if domain.name != path.name:
        raise InvalidInput(
            f"{path / 'domain.yaml'}: name {domain.name!r} is not its folder's name {path.name!r}.",
            hint="Rename the folder or the domain.",
        )
    return DomainFolder(path=path, domain=domain)


def load_domains(root: Path) -> dict[str, DomainFolder]:
    """Reads every folder under `root` that holds a `domain.yaml`, by name.

    Raises:
        InvalidInput: One of them is wrong, or may not be read.
    """
    if not root.is_dir():
        raise InvalidInput(f"{root} is not a folder of domains.", hint="Point DOMAINS_DIR at the folder.")
    return {path.name: load_domain(path) for path in _folders(root)}


def _folders(root: Path) -> list[Path]:
    """Folders with a `domain.yaml`. One that may not be looked into is no domain less: it would be missed silently."""
    found = []
    for path in _entries(root):
        try:
            if (path / "domain.yaml").is_file():
                found.append(path)
        except PermissionError as error:
            # A disk's `lost+found` and the like are only for root, and no domain.
            if re.fullmatch(r"[\w-]+", path.name):
                raise _unreadable(root, path) from error
    return found


def _entries(root: Path) -> list[Path]:
    try:
        return sorted(root.iterdir())
    except PermissionError as error:
        raise _unreadable(root, root) from error
    except (FileNotFoundError, NotADirectoryError):
        return []


def _unreadable(root: Path, path: Path) -> InvalidInput:
    told = f"{path} may not be read by this process (user {os.getuid()})."
    return InvalidInput(told, hint=f"Let it: chmod -R a+rX {root}")


def find_domain(root: Path, name: str) -> DomainFolder:
    """Reads one domain by name.

    Raises:
        InvalidInput: No such domain, and the hint lists those there are; or a folder may not be read.
    """
    known = [path.name for path in _folders(root)]
    if name not in known:
        raise InvalidInput(
            f"There is no domain {name!r}.",
            code="unknown_domain",
            hint=f"Known domains: {', '.join(known) or 'none'}. A domain is a folder with a domain.yaml in {root}.",
        )
    return load_domain(root / name)
