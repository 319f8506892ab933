"""`merge`: the adapter worked into 16-bit weights of its base model, proven equal before it is kept."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

from preceptor_contracts.base_models import IDENTITY
from preceptor_contracts.errors import InvalidInput, PreceptorError
from preceptor_contracts.files import canonical_json, sha256_bytes, sha256_file, write_atomic
from preceptor_contracts.frozen import Frozen
from preceptor_contracts.manifest import AdapterFolder, BaseModelIdentity, Canary

from preceptor_trainer.canary import ask
from preceptor_trainer.export.bases import Base, load_weights, open_base, with_adapter
from preceptor_trainer.export.places import check_place, written_whole
from preceptor_trainer.registry.model_card import MERGED, card_of
from preceptor_trainer.settings import TrainerSettings
from preceptor_trainer.tokens import load_tokenizer

Precision = Literal["auto", "bfloat16", "float16", "float32"]
TOLERANCE = 1e-3
"""Largest difference of a logit, in float32, between base with adapter and merged weights."""
_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
_SMALL_FILES = 64 * 2**20
"""Room for tokenizer and configuration, in bytes."""


class Merged(NamedTuple):
    """Merged weights in memory, in float32."""

    weights: Any
    logits_TV: Any
    """Of the canary's prompt, every position."""
    deviation: float
    """Largest difference of a logit from base with adapter."""


class MergeReport(Frozen):
    """What a merge made, and how near it came."""

    adapter: str
    out: str
    dtype: str
    bytes: int
    logit_deviation: float
    """Largest, in float32, before rounding; merged against base with adapter."""
    canary_deviation: float
    """Mean, in nats: as reread from disk against the manifest's canary."""
    canary_separation: float
    """Nats between adapter and base; a quarter of it is allowed."""
    seconds: float


def merge_in_memory(base: Base, adapter: AdapterFolder) -> Merged:
    """Works the adapter into its base model in float32 and compares every logit of the canary's prompt.

    Raises:
        PreceptorError: They differ by more than `TOLERANCE`, or weights became infinite.
    """
    prompt = adapter.manifest.canary.prompt_ids
    adapted = with_adapter(load_weights(base, exact=True), adapter.path)
    check_canary(ask(adapted, adapter.manifest.canary), adapter.manifest.canary, "The adapter on its base model")
    before_TV = prompt_logits(adapted, prompt)
    try:
        # Checks each layer for infinities before it keeps it.
        merged = adapted.merge_and_unload(safe_merge=True).eval()
    except ValueError as error:
        raise PreceptorError(f"{adapter.path.name!r} cannot be merged: {error}", code="merge_failed") from error
    after_TV = prompt_logits(merged, prompt)
    deviation = float((after_TV - before_TV).abs().max())
    if not deviation <= TOLERANCE:
        raise PreceptorError(
            f"Merged weights answer otherwise than base with adapter: a logit differs by {deviation:.2g}, allowed are "
            f"{TOLERANCE}.",
            code="merge_failed",
            hint="Nothing was written. Serve the adapter itself, which needs no merging.",
        )
    return Merged(merged, after_TV, deviation)


def merge(settings: TrainerSettings, adapter: AdapterFolder, out: Path, precision: Precision) -> MergeReport:
    """Writes merged weights as a base model of their own: a folder that transformers and vLLM load.

    Args:
        settings: Name the base model.
        adapter: Verified.
        out: Folder to make.
        precision: Of the written weights; `auto` is the base model's own where that has 16 bits, else bfloat16.

    Raises:
        InvalidInput: The base model is another one or quantised, or `out` exists.
        PreceptorError: The result does not answer as the adapter does; nothing is left then.
    """
    started = time.monotonic()
    base = open_base(settings, adapter.manifest)
    dtype = _resolve(base, precision)
    check_place(out, bytes_needed=base.parameters * _BYTES[dtype] + _SMALL_FILES)
    merged = merge_in_memory(base, adapter)
    with written_whole(out, is_folder=True) as partial:
        _save(merged.weights, partial, dtype)
        load_tokenizer(base.source).save_pretrained(partial)
        card = card_of(settings, adapter, MERGED._replace(name=out.name, precision=dtype))
        write_atomic(partial / "README.md", card)
        _identify(partial, adapter, dtype)
        # Gives the memory back before the weights are loaded again.
        merged = merged._replace(weights=None, logits_TV=None)
        observed = _reread(partial, base, adapter.manifest.canary)
    return MergeReport(
        adapter=adapter.path.name,
        out=str(out),
        dtype=dtype,
        bytes=sum(path.stat().st_size for path in out.rglob("*")),
        logit_deviation=merged.deviation,
        canary_deviation=adapter.manifest.canary.deviation(observed),
        canary_separation=adapter.manifest.canary.separation,
        seconds=round(time.monotonic() - started, 1),
    )


def prompt_logits(weights: Any, prompt_ids: tuple[int, ...]) -> Any:
    """Returns the logits of every position of a prompt, float32, (T, V)."""
    import torch

    with torch.inference_mode():
        return weights(input_ids=torch.tensor([list(prompt_ids)])).logits[0].float()


def check_canary(observed: tuple[float, ...], canary: Canary, who: str) -> None:
    """Makes sure that an answer is the adapter's.

    Raises:
        PreceptorError: It is not.
    """
    if not canary.passes(observed):
        raise PreceptorError(
            f"{who} does not answer as trained: the canary is off by {canary.deviation(observed):.3f} nats, allowed "
            f"are {canary.separation / 4:.3f}.",
            code="canary_failed",
            hint="Nothing was kept. Check BASE_MODEL and the adapter's files.",
        )


def _resolve(base: Base, precision: Precision) -> str:
    if precision != "auto":
        return precision
    stored = str(getattr(base.config, "dtype", None) or "").removeprefix("torch.")
    return stored if stored in ("bfloat16", "float16") else "bfloat16"


def _save(weights: Any, folder: Path, dtype: str) -> None:
    import torch

    rounded = weights.to(getattr(torch, dtype))
    broken = [name for name, tensor in rounded.state_dict().items() if not torch.isfinite(tensor).all()]
    if broken:
        raise InvalidInput(
            f"{dtype} cannot hold the weights of {broken[0]!r}.", code="out_of_range", hint="Take --dtype bfloat16."
        )
    rounded.save_pretrained(folder)


def _identify(folder: Path, adapter: AdapterFolder, dtype: str) -> None:
    """Gives the weights a name of their own, so that no adapter of the old base model is served on them."""
    hashes = {path.name: sha256_file(path) for path in sorted(folder.glob("*.safetensors"))}
    identity = BaseModelIdentity(
        id=f"{adapter.manifest.base_model.id}+{adapter.path.name}",
        revision=f"merged-{dtype}-{sha256_bytes(canonical_json(hashes).encode())}",
    )
    write_atomic(folder / IDENTITY, identity.model_dump_json(indent=2) + "\n")


def _reread(folder: Path, base: Base, canary: Canary) -> tuple[float, ...]:
    """Asks the written weights the canary: rounded as they are, computed in float32 where that fits."""
    reread = load_weights(base._replace(source=str(folder)), exact=False)
    observed = ask(reread, canary)
    check_canary(observed, canary, "What was written")
    return observed
