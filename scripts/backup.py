"""Saves what the Compose stack keeps in volumes to one file, and puts it back: `make backup`, `make restore FILE=...`.

The archive is written and read by services/volumes in a container; here is what only the host can do. Nothing but the
standard library: who has only Docker has no environment of ours. `python3 -m scripts.backup`, in the checkout.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from scripts.setup import say, step
from scripts.stack import (
    IN_VOLUMES,
    ROOT,
    BackupFailed,
    Container,
    Stack,
    call,
    find_stack,
    look,
    reason,
    start,
    stop,
)

BACKUPS = ROOT / "data/backups"
ENV, DUMP = ".env", "postgres.sql"
# Those that use the volumes, and the page, in the order in which they are started.
USERS = ("engine", "gateway", "ui", "open-webui")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
POSTGRES = ("--username", "preceptor", "--dbname", "preceptor")
# Tables of a newer version, which the dump knows nothing of, would be in the way of its migrations.
CLEAR = b"DROP SCHEMA public CASCADE; CREATE SCHEMA public AUTHORIZATION pg_database_owner;\n"


def backup(target: Path, *, with_env: bool) -> None:
    """Writes a backup of the stack, which may run meanwhile.

    Args:
        target: File to make.
        with_env: Put `.env` in, which holds all keys.

    Raises:
        BackupFailed: Nothing was saved.
    """
    if target.exists():
        raise BackupFailed(f"{_shown(target)} exists; nothing is overwritten. Choose another FILE=.")
    stack = find_stack()
    found = look()
    if found["unfinished"]:
        raise BackupFailed("A restore broke off, and the volumes hold half of it. Run `make restore FILE=...` again.")
    if not any(volume["entries"] for volume in found["volumes"].values()):
        raise BackupFailed("The volumes are empty: there is nothing to save.")
    needed = sum(volume["bytes"] for volume in found["volumes"].values())
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    try:
        with _further(stack, with_env=with_env) as further, step("Saving the volumes"):
            _write(partial, further)
        with step("Reading the archive again"):
            manifest = _verify(partial)
        partial.rename(target)
    except OSError as error:
        if error.errno not in FULL:
            raise
        partial.unlink(missing_ok=True)
        free = shutil.disk_usage(target.parent).free
        raise BackupFailed(
            f"No room is left in {_shown(target.parent)}: up to {_gib(needed)} are needed and {_gib(free)} are free. "
            "Make room, or name a file on another disk: make backup FILE=..."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    _tell(target, manifest, stack)


def restore(archive: Path, *, force: bool) -> None:
    """Puts a backup in the place of what the volumes hold.

    Args:
        archive: A backup.
        force: Replace what is there.

    Raises:
        BackupFailed: It could not; what the volumes hold then was said.
    """
    with step(f"Reading {_shown(archive)}"):
        manifest = _verify(archive)
    _bring_env(archive, manifest)
    stack = find_stack()
    _check_database(stack, manifest)
    _check_volumes(look(), manifest, force=force)
    if busy := sorted({each.service for each in stack.running if each.is_one_off}):
        raise BackupFailed(f"{' and '.join(map(repr, busy))} is at work in the volumes. Wait for its end, or stop it.")
    stopped = [each for service in USERS for each in stack.running if each.service == service]
    is_restored = False
    try:
        stop(stopped)
        with step("Restoring the volumes"), archive.open("rb") as stream:
            call(*IN_VOLUMES, "restore", stdin=stream, doing="Restoring the volumes")
        is_restored = True
        if DUMP in manifest["files"]:
            _restore_postgres(stack, archive)
    except BaseException:
        _give_up(stopped, is_restored=is_restored)
        raise
    say(f"The volumes are as they were at {manifest['made_at']}.\n")
    start(stopped)
    if not stopped:
        say("Nothing ran, so nothing was started. Start the stack: docker compose up -d --wait\n")


@contextmanager
def _further(stack: Stack, *, with_env: bool) -> Iterator[IO[bytes]]:
    """Gives a tar of what is in no volume: PostgreSQL's dump and, where asked for, `.env`."""
    files = {ENV: (ROOT / ENV).read_bytes()} if with_env else {}
    if stack.database == "postgres":
        postgres = stack.one("postgres")
        if not postgres:
            raise BackupFailed(
                "Keys are in service 'postgres', which does not run. Start it: docker compose up -d --wait postgres"
            )
        with step("Saving PostgreSQL"):
            dump = ("docker", "exec", postgres.id, "pg_dump", *POSTGRES, "--no-owner", "--no-privileges")
            files[DUMP] = call(*dump, doing="Saving PostgreSQL")
    # It has no name on disk, for it holds keys.
    with tempfile.TemporaryFile() as stream:
        with tarfile.open(fileobj=stream, mode="w") as tar:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(data), 0o600
                tar.addfile(member, io.BytesIO(data))
        stream.seek(0)
        yield stream


def _write(partial: Path, further: IO[bytes]) -> None:
    """Lets the container write the archive, and keeps it on disk.

    Raises:
        BackupFailed: The container failed.
        OSError: The disk did.
    """
    partial.unlink(missing_ok=True)
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    command = (*IN_VOLUMES, "save", "--further")
    with open(handle, "wb") as out, tempfile.TemporaryFile() as log:
        with subprocess.Popen(command, cwd=ROOT, stdin=further, stdout=subprocess.PIPE, stderr=log) as process:
            try:
                while chunk := process.stdout.read(2**20) if process.stdout else b"":
                    out.write(chunk)
                out.flush()
                os.fsync(out.fileno())
            except BaseException:
                process.terminate()
                raise
        if process.returncode:
            log.seek(0)
            raise BackupFailed(f"Saving the volumes failed: {reason(log.read())}")


def _verify(archive: Path) -> dict[str, Any]:
    """Reads an archive to its end, where its manifest is.

    Raises:
        BackupFailed: It is no whole archive of ours.
    """
    command = (sys.executable, "-m", "services.volumes", "verify")
    with archive.open("rb") as stream:
        manifest: dict[str, Any] = json.loads(call(*command, stdin=stream, doing=f"Reading {_shown(archive)}"))
    return manifest


def _tell(target: Path, manifest: dict[str, Any], stack: Stack) -> None:
    """Says what is in the archive and what is not."""
    say("".join(f"{remark}\n" for remark in manifest["remarks"]))
    held = [f"{name} ({size['files']} files, {_gib(size['bytes'])})" for name, size in manifest["volumes"].items()]
    held += [name for name in (DUMP, ENV) if name in manifest["files"]]
    say(f"{_shown(target)} ({_gib(target.stat().st_size)}) holds {', '.join(held)}.\n")
    if stack.database == "elsewhere":
        say("Keys are in a database of your own, which is not inside: save it with pg_dump.\n")
    if ENV in manifest["files"]:
        say("It holds .env, and with it every secret: keep it as you keep a password. domains/ is not inside.\n")
    else:
        say(".env with its secrets is not inside, nor is domains/: keep them elsewhere. ENV=1 puts .env in.\n")


def _bring_env(archive: Path, manifest: dict[str, Any]) -> None:
    """Takes `.env` out of an archive that has one, where there is none; one that is there stays."""
    if ENV not in manifest["files"]:
        return
    if (ROOT / ENV).exists():
        say(f"The .env that is here stays. To see the archive's: tar -xzOf {_shown(archive)} {ENV}\n")
        return
    partial = ROOT / f"{ENV}.{os.getpid()}.partial"
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(_member(archive, ENV))
        partial.rename(ROOT / ENV)
    finally:
        partial.unlink(missing_ok=True)
    say("There was no .env: it is the archive's now.\n")


def _check_database(stack: Stack, manifest: dict[str, Any]) -> None:
    """Sees that keys go back to the kind of database that they came from."""
    has_dump = DUMP in manifest["files"]
    if has_dump != (stack.database == "postgres"):
        saved, here = ("service 'postgres'", "something else") if has_dump else ("no service", "service 'postgres'")
        raise BackupFailed(
            f"The backup has keys from {saved}, and STACK_DATABASE_URL in .env names {here}. Set it as it was then."
        )


def _check_volumes(found: dict[str, Any], manifest: dict[str, Any], *, force: bool) -> None:
    """Sees that nothing is replaced that nobody gave up, and that there is room."""
    there = []
    for name in manifest["volumes"]:
        entries = found["volumes"][name]["entries"]
        more = f" and {len(entries) - 3} more" if len(entries) > 3 else ""
        if entries:
            there.append(f"{name} ({', '.join(entries[:3])}{more})")
    # What is there after a restore that broke off is neither the old nor the new.
    if there and not force and not found["unfinished"]:
        raise BackupFailed(f"The volumes are not empty: {'; '.join(there)}. Save them first; FORCE=1 replaces them.")
    needed = sum(volume["bytes"] for volume in manifest["volumes"].values())
    if found["free"] < needed:
        raise BackupFailed(
            f"Restoring needs {_gib(needed)} beside what is there; {_gib(found['free'])} are free on Docker's disk. "
            "Make room: `docker system df` shows what takes it."
        )


def _restore_postgres(stack: Stack, archive: Path) -> None:
    """Replaces PostgreSQL's rows, all of them or none."""
    with step("Restoring PostgreSQL"):
        postgres = stack.one("postgres")
        if not postgres:
            call("docker", "compose", "up", "-d", "--wait", "--no-deps", "postgres", doing="Starting postgres")
            postgres = find_stack().one("postgres")
        if not postgres:
            raise BackupFailed("Service 'postgres' does not run. Read `docker compose logs postgres`.")
        load = ("psql", *POSTGRES, "--quiet", "--single-transaction", "--set", "ON_ERROR_STOP=1")
        rows = CLEAR + _member(archive, DUMP)
        call("docker", "exec", "--interactive", postgres.id, *load, stdin=rows, doing="Restoring PostgreSQL")


def _give_up(stopped: Sequence[Container], *, is_restored: bool) -> None:
    """Leaves the volumes with all of the old or all of the new, and starts what ran before."""
    try:
        answer = call(*IN_VOLUMES, "settle", doing="Settling the volumes")
        is_new = is_restored or json.loads(answer.splitlines()[-1])
        say(f"The volumes hold what {'the backup holds' if is_new else 'they held before'}.\n")
        start(stopped)
    except BackupFailed as failure:
        say(f"{failure}\nSome services may be stopped. Mend the cause and run `make restore` again.\n")


def _member(archive: Path, name: str) -> bytes:
    """Reads a file that is no volume's; those are at the beginning."""
    with tarfile.open(archive, "r:gz") as tar:
        content = next((tar.extractfile(member) for member in tar if member.name == name), None)
        return content.read() if content else b""


def _gib(count: float) -> str:
    """Writes a number of bytes for people."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:.1f} MiB"


def _shown(path: Path) -> str:
    """A path as somebody in the checkout would type it."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


@contextmanager
def _alone() -> Iterator[None]:
    """Keeps a second backup or restore out; the kernel lets go when this process dies."""
    handle = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise BackupFailed("Another backup or restore is at work. Wait for its end.") from error
    finally:
        os.close(handle)


def _chosen(file: str) -> Path:
    """The backup to restore.

    Raises:
        BackupFailed: None was named, or it is not there.
    """
    newest = sorted(BACKUPS.glob("*.tar.gz"))[-1:]
    known = f" The newest one here is {_shown(newest[0])}." if newest else ""
    if not file:
        raise BackupFailed(f"Say which backup: make restore FILE=<file>.{known}")
    if not Path(file).is_file():
        raise BackupFailed(f"There is no file {file!r}.{known}")
    return Path(file).absolute()


def main(argv: list[str] | None = None) -> int:
    """Backs up or restores, or says in a sentence why not."""
    parser = argparse.ArgumentParser(prog="backup", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=("backup", "restore"))
    parser.add_argument("--file", default="", help="the archive; of a backup, one named by the time unless given")
    parser.add_argument("--env", default="", help="1: put .env into the backup")
    parser.add_argument("--force", default="", help="1: replace what the volumes hold")
    arguments = parser.parse_args(argv)
    try:
        if not hasattr(tarfile, "data_filter"):
            raise BackupFailed(f"This needs Python 3.11.4 or newer, and is {sys.version.split()[0]}: make PYTHON=...")
        with _alone():
            if arguments.command == "backup":
                named = arguments.file or BACKUPS / time.strftime("preceptor-%Y%m%dT%H%M%SZ.tar.gz", time.gmtime())
                # Just 1: make passes an ENV on that stands in the environment for another reason.
                backup(Path(named).absolute(), with_env=arguments.env == "1")
            else:
                restore(_chosen(arguments.file), force=arguments.force == "1")
    except BackupFailed as failure:
        sys.stderr.write(f"{failure}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"{error.filename or 'The disk'} cannot be used: {error.strerror or error}.\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("Stopped.\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
