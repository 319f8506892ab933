"""Volumes as the stack fills them, and what is in them as something to compare."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path

from services.volumes.archive import VOLUMES, Manifest
from services.volumes.saving import save

ADAPTER = "allergy-v1-1a2b3c4d"


def fill(root: Path, mark: str = "one") -> Path:
    """Makes the volumes; `mark` tells two fillings apart."""
    empty(root)
    files = {
        "gateway-data/aliases.json": f'{{"aliases": "{mark}"}}',
        "adapters/.versions.json": f'{{"highest": "{mark}"}}',
        "adapters/.archive/sql-v1-00000000.tar.gz": mark,
        f"adapters/{ADAPTER}/adapter_model.safetensors": mark * 1000,
        f"adapters/{ADAPTER}/reports/0123-run.json": "{}",
        f"adapters/{ADAPTER}/preceptor.json": "{}",
        "base-models/sql-full-v1-1a2b3c4d/model.safetensors": mark,
        f"runs/{mark}/events.jsonl": '{"event": "done"}\n',
        f"runs/{mark}/checkpoints/checkpoint-10/weights": mark,
        "runs/generated/review.csv": mark,
        "open-webui-data/cache/blobs/abc": mark,
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "runs/empty").mkdir()
    (root / "open-webui-data/cache/latest").symlink_to("blobs/abc")
    make_database(root / "gateway-data/gateway.db", mark)
    make_database(root / "open-webui-data/webui.db", mark)
    return root


def empty(root: Path) -> Path:
    """Makes volumes that hold nothing."""
    for name in VOLUMES:
        (root / name).mkdir(parents=True)
    return root


def make_database(path: Path, value: str) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE keys (name TEXT)")
        database.execute("INSERT INTO keys VALUES (?)", (value,))
        database.commit()


def rows(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [row[0] for row in database.execute("SELECT name FROM keys ORDER BY rowid")]


def contents(root: Path) -> dict[str, object]:
    """Everything below a folder with its mode and time: text of files and databases, targets of links."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        status = path.lstat()
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_dir():
            found[name] = (oct(status.st_mode), status.st_uid)
        else:
            data: object = rows(path) if path.suffix == ".db" else path.read_bytes()
            found[name] = (oct(status.st_mode), status.st_uid, status.st_mtime, data)
    return found


def saved(root: Path) -> bytes:
    out = io.BytesIO()
    save(root, None, out)
    return out.getvalue()


def manifest_of(archive: bytes) -> Manifest:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        member = tar.getmembers()[-1]
        assert member.name == "manifest.json"
        content = tar.extractfile(member)
        assert content
        found: Manifest = json.loads(content.read())
    return found
