"""What two adapters differ in: what went in, what came out, and how far apart their weights are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.frozen import Frozen
from preceptor_contracts.manifest import AdapterFolder
from pydantic import JsonValue

from preceptor_trainer.registry.columns import aligned
from preceptor_trainer.registry.model_card import read_reports

_LEFT_OUT = ("adapter", "canary", "files", "label_token_ids", "schema_version", "parity.ids_sha256")
"""Differs in any two adapters, or says nothing to a person."""
_LAYER = re.compile(r"layers\.(\d+)\.")


class Difference(Frozen):
    """One field in which two adapters differ."""

    field: str
    """Path in the manifest; under `exam.`, of the newest report."""
    left: JsonValue
    right: JsonValue


class LayerDistance(Frozen):
    """How far apart two adapters' updates of one layer are."""

    layer: int
    distance: float
    """Frobenius norm of the updates' difference over the larger one's norm: 0 alike, about 1.4 unrelated, 2 opposed."""
    left_norm: float
    """Frobenius norm of the update, scale included."""
    right_norm: float


class Differences(Frozen):
    """Two adapters, compared."""

    left: str
    right: str
    fields: tuple[Difference, ...]
    layers: tuple[LayerDistance, ...] = ()
    """Only where weights were compared."""


def compare(left: AdapterFolder, right: AdapterFolder, *, weights: bool = False) -> Differences:
    """Compares manifests and newest reports and, where asked, the weights.

    Raises:
        InvalidInput: The weights do not belong to the same layers.
    """
    a, b = _facts(left), _facts(right)
    keys = dict.fromkeys([*a, *b])
    fields = tuple(Difference(field=key, left=a.get(key), right=b.get(key)) for key in keys if a.get(key) != b.get(key))
    return Differences(
        left=left.path.name,
        right=right.path.name,
        fields=fields,
        layers=_distances(left, right) if weights else (),
    )


def differences_text(differences: Differences) -> str:
    """Lays the fields, and the layers where they were compared, out for a terminal."""
    left, right = differences.left, differences.right
    rows = [("field", left, right)]
    rows += [(each.field, _shown(each.left), _shown(each.right)) for each in differences.fields]
    layers = [("layer", "distance", f"norm {left}", f"norm {right}")] if differences.layers else []
    layers += [
        (str(each.layer), f"{each.distance:.3f}", f"{each.left_norm:.3f}", f"{each.right_norm:.3f}")
        for each in differences.layers
    ]
    return "\n\n".join(aligned(part) for part in (rows, layers) if part)


def _facts(adapter: AdapterFolder) -> dict[str, JsonValue]:
    facts: dict[str, JsonValue] = {}
    _flatten(adapter.manifest.model_dump(mode="json"), "", facts)
    kept = {key: value for key, value in facts.items() if not key.startswith(_LEFT_OUT)}
    reports = read_reports(adapter)
    if reports:
        newest = reports[-1]
        kept |= {
            "exam.exam_sha": newest.exam_sha,
            "exam.n": newest.n,
            "exam.verdict": newest.verdict.value,
            "exam.base.accuracy": round(newest.base.accuracy, 4),
            "exam.adapter.accuracy": round(newest.adapter.accuracy, 4),
            "exam.adapter.ci95": [round(end, 4) for end in newest.adapter.ci95],
            "exam.mcnemar_p": newest.mcnemar_p,
        }
    return kept


def _flatten(value: Mapping[str, JsonValue], prefix: str, into: dict[str, JsonValue]) -> None:
    for key, item in value.items():
        if isinstance(item, dict):
            _flatten(item, f"{prefix}{key}.", into)
        else:
            into[f"{prefix}{key}"] = item


def _distances(left: AdapterFolder, right: AdapterFolder) -> tuple[LayerDistance, ...]:
    """Compares what each adapter adds to the base's weights; A and B alone may differ though their product does not."""
    ours, theirs = _factors(left), _factors(right)
    if ours.keys() != theirs.keys():
        odd = min(ours.keys() ^ theirs.keys())
        raise InvalidInput(
            f"{left.path.name!r} and {right.path.name!r} do not change the same layers: {odd!r}.", code="not_comparable"
        )
    squares: dict[int, list[float]] = {}
    for name in ours:
        found = _LAYER.search(name)
        mine, other = ours[name][1] @ ours[name][0], theirs[name][1] @ theirs[name][0]
        if mine.shape != other.shape:
            raise InvalidInput(f"The adapters have base models of different width: {name!r}.", code="not_comparable")
        sums = squares.setdefault(int(found[1]) if found else -1, [0.0, 0.0, 0.0])
        for at, update in enumerate((mine - other, mine, other)):
            sums[at] += float(update.square().sum())
    return tuple(
        LayerDistance(
            layer=layer,
            distance=(apart / max(mine, other, 1e-30)) ** 0.5,
            left_norm=mine**0.5,
            right_norm=other**0.5,
        )
        for layer, (apart, mine, other) in sorted(squares.items())
    )


def _factors(adapter: AdapterFolder) -> dict[str, tuple[Any, Any]]:
    """Reads A and B of every changed layer, B scaled by alpha / rank."""
    from safetensors.torch import load_file

    from preceptor_trainer.train.training import WEIGHTS

    alpha = adapter.manifest.recipe.get("alpha")
    scale = float(alpha if isinstance(alpha, int | float) else adapter.manifest.rank) / adapter.manifest.rank
    state = load_file(adapter.path / WEIGHTS)
    return {
        name.removesuffix(".lora_A.weight"): (
            tensor.float(),
            state[name.replace(".lora_A.", ".lora_B.")].float() * scale,
        )
        for name, tensor in state.items()
        if name.endswith(".lora_A.weight")
    }


def _shown(value: JsonValue) -> str:
    return "-" if value is None else str(value)
