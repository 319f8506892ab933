"""Token ids of a whole dataset on disk, mapped into memory as they are read; and what their lengths are."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray
from preceptor_contracts.files import sha256_bytes, sha256_file, write_atomic
from preceptor_contracts.frozen import Frozen, read_json

from preceptor_trainer.prepare.lines import Lines
from preceptor_trainer.tokens import TokenisedExample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_IDS, _ROWS, _SEAL = "tokens.i32", "tokens.rows.npy", "tokens.json"


class _Seal(Frozen):
    """Written last: what the token files beside it were made of."""

    dataset_sha: str
    tokenizer_sha: str
    ids_sha: str
    shared: int


class TokenWriter:
    """Writes token ids one example after the other; 8 bytes of memory each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / _SEAL).unlink(missing_ok=True)
        self._stream = (folder / _IDS).open("wb")
        self._lengths = array("I")
        self._least: list[int] | None = None
        self._most: list[int] = []

    def add(self, example: TokenisedExample) -> None:
        """Takes one more example."""
        self._stream.write(np.asarray([*example.prompt_ids, *example.answer_ids], dtype=np.int32).tobytes())
        self._lengths.extend((len(example.prompt_ids), len(example.answer_ids)))
        # The least and the greatest prompt differ no later than any other two do.
        if self._least is None or example.prompt_ids < self._least:
            self._least = example.prompt_ids
        if example.prompt_ids > self._most:
            self._most = example.prompt_ids

    def discard(self) -> None:
        """Ends the writing without a result."""
        self._stream.close()

    def close(self, dataset_sha: str, tokenizer_sha: str) -> None:
        """Makes the files whole: synced, and sealed with what they were made of."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        np.save(self._folder / _ROWS, np.frombuffer(self._lengths, dtype=np.uint32).reshape(-1, 2))
        pairs = zip(self._least or [], self._most, strict=False)
        shared = next((at for at, (one, two) in enumerate(pairs) if one != two), len(self._least or []))
        seal = _Seal(
            dataset_sha=dataset_sha,
            tokenizer_sha=tokenizer_sha,
            ids_sha=sha256_file(self._folder / _IDS),
            shared=shared,
        )
        write_atomic(self._folder / _SEAL, seal.model_dump_json() + "\n")


class Counts(NamedTuple):
    """Token counts, one of each a record."""

    prompts: NDArray[np.int64]
    answers: NDArray[np.int64]

    @property
    def whole(self) -> NDArray[np.int64]:
        """Prompt and answer."""
        return self.prompts + self.answers


class Tokenised(Sequence[TokenisedExample]):
    """The examples' token ids; each is made when it is asked for.

    Args:
        folder: Where they were written.
        lines: The records, for their ids.
    """

    def __init__(self, folder: Path, lines: Lines) -> None:
        self._lines = lines
        rows = np.load(folder / _ROWS).astype(np.int64)
        self.counts = Counts(rows[:, 0], rows[:, 1])
        self._ends = np.cumsum(self.counts.whole)
        self._ids = np.memmap(folder / _IDS, dtype=np.int32, mode="r")
        self.shared = read_json(folder / _SEAL, _Seal).shared
        """Tokens that all prompts begin with."""

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, at: int) -> TokenisedExample: ...

    @overload
    def __getitem__(self, at: slice) -> list[TokenisedExample]: ...

    def __getitem__(self, at: int | slice) -> TokenisedExample | list[TokenisedExample]:
        if isinstance(at, slice):
            return [self[position] for position in range(*at.indices(len(self)))]
        position = range(len(self))[at]
        end, prompt = int(self._ends[position]), int(self.counts.prompts[position])
        begin = end - prompt - int(self.counts.answers[position])
        ids = self._ids[begin:end].tolist()
        return TokenisedExample(json.loads(self._lines[position])["id"], ids[:prompt], ids[prompt:])

    def __iter__(self) -> Iterator[TokenisedExample]:
        return (self[position] for position in range(len(self)))


def is_sealed(folder: Path, dataset_sha: str, tokenizer_sha: str) -> bool:
    """Tells whether whole token files of this dataset and this tokenizer are there."""
    if not (folder / _SEAL).is_file() or not (folder / _IDS).is_file():
        return False
    seal = read_json(folder / _SEAL, _Seal)
    made_of = (seal.dataset_sha, seal.tokenizer_sha, seal.ids_sha)
    return made_of == (dataset_sha, tokenizer_sha, sha256_file(folder / _IDS))


def tokenizer_sha(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hashes all that decides what ids a text becomes: chat template, vocabulary and rules."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return sha256_bytes(f"{tokenizer.chat_template}\0{tokenizer.eos_token}\0{rules}".encode())


def histogram(lengths: Iterable[int], longest: int) -> dict[int, int]:
    """Counts lengths by doubling bounds.

    Returns:
        Upper bound of each bin (inclusive) to the number of lengths in it, up to the bin of `longest`.
    """
    bounds = [16]
    while bounds[-1] < longest:
        bounds.append(2 * bounds[-1])
    counts, _ = np.histogram(np.fromiter(lengths, dtype=np.int64), bins=[0, *(bound + 1 for bound in bounds)])
    return {bound: int(count) for bound, count in zip(bounds, counts, strict=True)}
