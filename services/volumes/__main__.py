"""`python -m volumes <command>`; archives go through standard input and output.

A folder of the host would have another owner than the volumes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from .archive import VOLUMES, Refused
from .reading import read
from .restoring import is_unfinished, restore, settle
from .saving import save, walk


def look(root: Path) -> dict[str, object]:
    """Tells what the volumes hold, and how much room is beside it."""
    volumes: dict[str, object] = {}
    for name in VOLUMES:
        size, entries = 0, set()
        for path in walk(root / name):
            entries.add(path.relative_to(root / name).parts[0])
            with suppress(FileNotFoundError):
                status = path.lstat()
                size += status.st_size if stat.S_ISREG(status.st_mode) else 0
        volumes[name] = {"entries": sorted(entries), "bytes": size}
    # One disk holds all of Docker's volumes.
    return {"volumes": volumes, "free": shutil.disk_usage(root / VOLUMES[0]).free, "unfinished": is_unfinished(root)}


def main(argv: list[str] | None = None) -> int:
    """Does one thing, or says in a sentence on standard error why not."""
    parser = argparse.ArgumentParser(prog="volumes", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=("look", "save", "verify", "restore", "settle"))
    parser.add_argument("--root", type=Path, default=Path("/volumes"), help="folder of the volumes")
    parser.add_argument("--further", action="store_true", help="save: put in the files of a tar on standard input")
    arguments = parser.parse_args(argv)
    root: Path = arguments.root
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    answers: dict[str, Callable[[], object]] = {
        "look": lambda: look(root),
        "save": lambda: save(root, stdin if arguments.further else None, stdout),
        "verify": lambda: read(stdin),
        "restore": lambda: restore(root, stdin),
        "settle": lambda: settle(root),
    }
    try:
        answer = answers[arguments.command]()
        if answer is not None:
            stdout.write(json.dumps(answer).encode() + b"\n")
        stdout.flush()
    except Refused as error:
        sys.stderr.write(f"volumes: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"volumes: {error.filename or 'The archive'} cannot be used: {error.strerror or error}.\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
