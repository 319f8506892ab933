"""An adapter's manifest, `preceptor.json`: written last, by rename, so that its presence means a whole adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import AwareDatetime, Field, JsonValue, model_validator

from preceptor_contracts.errors import InvalidInput, ManifestInvalid
from preceptor_contracts.files import Sha256, sha256_file, write_atomic
from preceptor_contracts.frozen import Frozen, read_json
from preceptor_contracts.mcq import Scoring
from preceptor_contracts.messages import Message, Text
from preceptor_contracts.served_names import AdapterName, DomainName, adapter_domain

MANIFEST = "preceptor.json"
SCHEMA_VERSION: Final = 1
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
"""Endings of weights that run code when loaded; an adapter folder with one is refused."""
TokenIds = Annotated[tuple[int, ...], Field(min_length=1)]


class BaseModelIdentity(Frozen):
    """Which base model an adapter was trained on."""

    id: Text
    """Hugging Face id, folder name, or the embedded base model's name."""
    revision: str
    """Commit, or the SHA-256 of the file that the weights came from."""


class LeakedPair(Frozen):
    """A training record and the exam question that it gives away; ids only, for manifests are public."""

    record: str
    question: str
    method: Literal["exact", "near", "ngram"]
    """Same words, nearly the same words, or the exam question inside a longer text."""
    share: Annotated[float, Field(ge=0, le=1)]
    """Jaccard share of word 4-grams, or of words where that is greater."""


class LeakSummary(Frozen):
    """Exam questions that were trained on because somebody allowed it: what they score measures memory."""

    pairs: Annotated[int, Field(ge=1)]
    records: Annotated[int, Field(ge=1)]
    """Training records that give a question away."""
    questions: Annotated[int, Field(ge=1)]
    """Exam questions given away."""
    first: tuple[LeakedPair, ...]
    """The first of the pairs."""


class DatasetSummary(Frozen):
    """What the adapter was trained on."""

    sha256: Sha256
    records: Annotated[int, Field(ge=1)]
    tokens: Annotated[int, Field(ge=1)]
    """Prompt and answer tokens of one pass."""
    topics: dict[str, int]
    """Records per topic."""
    duplicates_removed: Annotated[int, Field(ge=0)]
    """Exact ones: the same but for case and white space."""
    near_duplicates_removed: Annotated[int, Field(ge=0)] = 0
    contradictions: Annotated[int, Field(ge=0)] = 0
    """Pairs of records that answer one question differently, kept because somebody allowed it."""
    leaks: LeakSummary | None = None
    """None where no exam question was found among the records."""


class TrainMetrics(Frozen):
    """What training cost and where it ended."""

    steps: int
    tokens: int
    """Non-padding tokens seen, all passes."""
    seconds: float
    tokens_per_second: float
    trainable_parameters: int
    first_loss: float
    final_loss: float


class ParityCertificate(Frozen):
    """Proof that the ids trained on are the ids served: trainer's ids against the engine's `/tokenize`."""

    samples: Annotated[int, Field(ge=1)]
    matched: Annotated[int, Field(ge=0)]
    ids_sha256: Sha256
    """Hash of the canonical JSON of all compared id lists, in order."""

    @model_validator(mode="after")
    def _all_match(self) -> ParityCertificate:
        if self.matched != self.samples:
            raise ValueError(f"only {self.matched} of {self.samples} prompts have the same token ids as served")
        return self


class Canary(Frozen):
    """A prompt whose first answer token tells this adapter from its base model.

    An adapter can load without effect (vllm#34186); comparing logprobs over `token_ids` shows it.
    """

    messages: Annotated[tuple[Message, ...], Field(min_length=1)]
    """Rendered; sent as they are."""
    prompt_ids: TokenIds
    token_ids: TokenIds
    """Vocabulary ids that are compared."""
    adapter_logprobs: tuple[float, ...]
    """Natural logs, as the trainer computed them in float32 with the adapter."""
    base_logprobs: tuple[float, ...]
    """The same without the adapter."""

    @model_validator(mode="after")
    def _same_length(self) -> Canary:
        if not len(self.token_ids) == len(self.adapter_logprobs) == len(self.base_logprobs):
            raise ValueError("token_ids, adapter_logprobs and base_logprobs differ in length")
        return self

    @property
    def separation(self) -> float:
        """Mean absolute difference between adapter and base, in nats."""
        return _distance(self.adapter_logprobs, self.base_logprobs)

    def deviation(self, observed: tuple[float, ...]) -> float:
        """Mean absolute difference between `observed` and the adapter, in nats."""
        return _distance(observed, self.adapter_logprobs)

    def passes(self, observed: tuple[float, ...]) -> bool:
        """True where `observed` is far nearer to the adapter than the base is.

        A quarter of the separation leaves room for a bf16 engine, whose logprobs differ from float32 by ~0.05.
        """
        return self.deviation(observed) <= self.separation / 4


def _distance(left: tuple[float, ...], right: tuple[float, ...]) -> float:
    return sum(abs(a - b) for a, b in zip(left, right, strict=True)) / len(right)


class Manifest(Frozen):
    """All that serving, judging and repeating an adapter needs.

    A field that a later Preceptor added has a default, so that what an earlier one wrote is read.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    adapter: AdapterName
    domain: DomainName
    prompt_sha: Sha256
    """`Domain.prompt_sha` at training."""
    base_model: BaseModelIdentity
    chat_template_sha: Sha256
    stop_token_ids: TokenIds
    """Sent with every request: vLLM ignores an adapter's own end-of-turn token."""
    rank: Annotated[int, Field(ge=1)]
    """LoRA rank, unitless."""
    mcq_scoring: Scoring | None
    label_token_ids: dict[str, int]
    """First token of each answer label A, B, ...; what scoring `letters` compares."""
    dataset: DatasetSummary
    recipe: dict[str, JsonValue]
    """Resolved."""
    libraries: dict[str, str]
    git_rev: str | None
    seed: int
    run_id: Text
    created_at: AwareDatetime
    train: TrainMetrics
    parity: ParityCertificate
    canary: Canary
    files: Annotated[dict[str, Sha256], Field(min_length=1)]
    """Every other file of the folder, by name, reports excepted."""

    @model_validator(mode="after")
    def _names_agree(self) -> Manifest:
        if adapter_domain(self.adapter) != self.domain:
            raise ValueError(f"adapter {self.adapter!r} is not of domain {self.domain!r}")
        return self


class AdapterFolder(NamedTuple):
    """A whole adapter on disk."""

    path: Path
    manifest: Manifest


def hash_files(folder: Path) -> dict[str, str]:
    """Hashes every file of an adapter folder but the manifest and the reports."""
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST and "reports" not in path.relative_to(folder).parts[:1]
    }


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Makes the folder an adapter. Call it last.

    Raises:
        InvalidInput: There is a manifest already; adapters are immutable.
    """
    path = folder / MANIFEST
    if path.exists():
        raise InvalidInput(f"{path} exists; adapters are immutable.", hint="Train a new version.")
    write_atomic(path, manifest.model_dump_json(indent=2) + "\n")


def read_adapter(folder: Path) -> AdapterFolder:
    """Reads an adapter's manifest without touching the weights; `verify_files` does that.

    Raises:
        ManifestInvalid: No manifest, a malformed one, or one of another folder.
    """
    if not (folder / MANIFEST).is_file():
        raise ManifestInvalid(
            f"{folder.name!r} has no {MANIFEST}: its training did not finish.", hint="Publish its run again."
        )
    try:
        manifest = read_json(folder / MANIFEST, Manifest)
    except InvalidInput as error:
        raise _misread(folder, error) from error
    if manifest.adapter != folder.name:
        raise ManifestInvalid(
            f"Folder {folder.name!r} holds the manifest of {manifest.adapter!r}.", hint="Give the folder its own name."
        )
    return AdapterFolder(folder, manifest)


def _misread(folder: Path, error: InvalidInput) -> ManifestInvalid:
    """A manifest of another version is told as one, whatever else does not fit."""
    try:
        version = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["schema_version"]
    except (OSError, ValueError, KeyError, TypeError):
        version = SCHEMA_VERSION
    if version == SCHEMA_VERSION:
        return ManifestInvalid(error.message, hint="Train again with this version of the trainer.")
    return ManifestInvalid(
        f"{folder.name!r} has a manifest of version {version!r}; this Preceptor reads version {SCHEMA_VERSION}.",
        hint="Use the Preceptor that wrote it, or a newer one; or train again from its run's records.",
    )


def verify_files(adapter: AdapterFolder) -> None:
    """Compares every file with its hash in the manifest.

    Raises:
        ManifestInvalid: A file is missing, altered, extra, a link, or pickled.
    """
    for path in sorted(adapter.path.rglob("*")):
        if path.is_symlink():
            raise ManifestInvalid(f"{adapter.manifest.adapter!r}: {path.name!r} is a link.", hint="Copy the file in.")
        if path.suffix.lower() in PICKLED:
            raise ManifestInvalid(
                f"{adapter.manifest.adapter!r}: {path.name!r} is a pickle, which runs code when loaded.",
                hint="Use safetensors.",
            )
    actual, expected = hash_files(adapter.path), adapter.manifest.files
    for name in sorted(actual.keys() | expected.keys()):
        if actual.get(name) != expected.get(name):
            what = "is missing" if name not in actual else "is not in the manifest" if name not in expected else None
            raise ManifestInvalid(
                f"{adapter.manifest.adapter!r}: file {name!r} {what or 'was altered after training'}.",
                hint="Restore the folder from a backup or train again.",
            )
