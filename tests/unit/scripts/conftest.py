from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.scripts.volumes_fixtures import empty, fill


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """Volumes of a stack that was used."""
    return fill(tmp_path / "volumes")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Volumes of a new machine."""
    return empty(tmp_path / "elsewhere")
