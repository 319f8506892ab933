"""What candidates are made from: chunks of documents, or bare topics."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.frozen import read_text

HTML = frozenset({".html", ".htm"})
READABLE = frozenset({".txt", ".md", ".markdown", ".rst", *HTML})
"""Endings of documents that are read."""
_READABLE = ", ".join(sorted(READABLE))
_CUTS = ((r"\n\s*\n", "\n\n"), (r"\n", "\n"), (r"(?<=[.!?])\s+", " "), (r"\s+", " "))
"""Where a text may be cut, best first: between paragraphs, lines, sentences, words; with what joins them again."""
_BLOCKS = re.compile(
    "address|article|aside|blockquote|br|d[dlt]|div|fig(caption|ure)|footer|h[1-6r]|header|li|main|nav|[ou]l|p|pre|section|"
    "t(able|[dhr])"
)
_UNSEEN = frozenset({"script", "style", "noscript", "template", "title"})


class Source(NamedTuple):
    """What one request is about."""

    origin: str
    """For people: `guide.md#2` for a document's second chunk, `topic: moss` for a topic."""
    text: str = ""
    """The chunk; empty for a topic."""
    topic: str = ""
    """Empty for a chunk: the generator names it."""


class Documents(NamedTuple):
    """What a list of files and folders holds."""

    sources: tuple[Source, ...]
    files: int
    skipped: tuple[str, ...]
    """Files in folders that are not read, and empty ones."""


def read_documents(paths: Sequence[Path], *, budget: int) -> Documents:
    """Reads files, and folders with all that is below them, and cuts them into chunks.

    Args:
        paths: Files and folders.
        budget: Longest chunk, in characters.

    Raises:
        InvalidInput: A path that is not there, is no text, or whose ending is not read.
    """
    sources: list[Source] = []
    skipped: list[str] = []
    files = 0
    for path in paths:
        for file in _files(path):
            name = file.relative_to(path).as_posix() if file != path else file.name
            if file.suffix.casefold() not in READABLE:
                if file == path:
                    raise InvalidInput(
                        f"{path}: documents that end in {path.suffix!r} are not read.",
                        hint=f"Readable: {_READABLE}. Turn it into text first, e.g. a PDF with pdftotext.",
                    )
                skipped.append(name)
                continue
            text = read_text(file)
            chunks = split(html_text(text) if file.suffix.casefold() in HTML else text, budget)
            files += bool(chunks)
            if not chunks:
                skipped.append(name)
            sources += [Source(f"{name}#{number}", chunk) for number, chunk in enumerate(chunks, start=1)]
    return Documents(tuple(sources), files, tuple(skipped))


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    below = (file for file in path.rglob("*") if file.is_file())
    return sorted(file for file in below if not any(part.startswith(".") for part in file.relative_to(path).parts))


def read_topics(listed: str, file: Path | None) -> tuple[Source, ...]:
    """Reads topics, comma-separated or one a line of a file; repeated ones count once.

    Raises:
        InvalidInput: The file cannot be read.
    """
    named = [*listed.split(","), *(read_text(file).splitlines() if file else [])]
    topics: dict[str, str] = {}
    for topic in (" ".join(name.split()) for name in named):
        if topic:
            topics.setdefault(topic.casefold(), topic)
    return tuple(Source(f"topic: {topic}", topic=topic) for topic in topics.values())


def split(text: str, budget: int) -> list[str]:
    """Cuts a text into chunks of at most `budget` characters, as few and at as natural places as they can be."""
    return _split(text.replace("\r\n", "\n").strip(), budget, _CUTS)


def _split(text: str, budget: int, cuts: Sequence[tuple[str, str]]) -> list[str]:
    if len(text) <= budget:
        return [text] if text else []
    if not cuts:
        return [text[start : start + budget] for start in range(0, len(text), budget)]
    pattern, glue = cuts[0]
    chunks: list[str] = []
    for part in _parts(re.split(pattern, text), budget, cuts[1:]):
        if chunks and len(chunks[-1]) + len(glue) + len(part) <= budget:
            chunks[-1] += glue + part
        else:
            chunks.append(part)
    return chunks


def _parts(pieces: Iterable[str], budget: int, cuts: Sequence[tuple[str, str]]) -> Iterable[str]:
    for piece in pieces:
        yield from _split(piece.strip(), budget, cuts)


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in _UNSEEN
        if _BLOCKS.fullmatch(tag):
            self.pieces.append("\n\n")

    def handle_endtag(self, tag: str) -> None:
        self._hidden = max(0, self._hidden - (tag in _UNSEEN))
        if _BLOCKS.fullmatch(tag):
            self.pieces.append("\n\n")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.pieces.append(re.sub(r"\s+", " ", data))


def html_text(html: str) -> str:
    """The words of a page that a reader sees, its blocks as paragraphs."""
    reader = _Text()
    reader.feed(html)
    reader.close()
    paragraphs = (" ".join(part.split()) for part in "".join(reader.pieces).split("\n\n"))
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)
