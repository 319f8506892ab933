"""Manifests of other versions of Preceptor are read, or refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from preceptor_contracts.errors import ManifestInvalid
from preceptor_contracts.manifest import MANIFEST, read_adapter

FIRST = json.loads((Path(__file__).parent / "first_manifest.json").read_text())
"""As the first Preceptor wrote them: without what the dataset's summary got later."""


def written(folder: Path, **changes: Any) -> Path:
    adapter = folder / str(FIRST["adapter"])
    adapter.mkdir()
    (adapter / MANIFEST).write_text(json.dumps({**FIRST, **changes}))
    return adapter


def test_a_manifest_of_the_first_preceptor_is_read(tmp_path: Path) -> None:
    manifest = read_adapter(written(tmp_path)).manifest
    assert manifest.adapter == FIRST["adapter"]
    assert manifest.dataset.leaks is None


@pytest.mark.parametrize("version", [0, 2, "1.1", None])
def test_another_version_is_told_as_one(tmp_path: Path, version: object) -> None:
    folder = written(tmp_path, schema_version=version, something_new=True)
    with pytest.raises(ManifestInvalid, match=rf"version {version!r}; this Preceptor reads version 1") as caught:
        read_adapter(folder)
    assert "train again" in caught.value.hint


def test_a_broken_manifest_of_this_version_names_the_field(tmp_path: Path) -> None:
    with pytest.raises(ManifestInvalid, match="rank"):
        read_adapter(written(tmp_path, rank="many"))


@pytest.mark.parametrize("is_folder", [True, False])
def test_a_manifest_that_is_not_there_is_refused_too(tmp_path: Path, is_folder: bool) -> None:
    """It may go between the look at the folder and the reading."""
    folder = written(tmp_path)
    (folder / MANIFEST).unlink()
    if is_folder:
        (folder / MANIFEST).mkdir()
    with pytest.raises(ManifestInvalid):
        read_adapter(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", '"text"'])
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    folder = written(tmp_path)
    (folder / MANIFEST).write_text(text)
    with pytest.raises(ManifestInvalid):
        read_adapter(folder)
