"""Makes everything that development and the demo need, as often as you like: `make setup`.

Two environments (`.venv`: our members and the tools; `.venv-engine`: vLLM), `.env` with fresh keys, and the embedded
base model. Nothing but the standard library: this runs before anything is installed. An environment's stamp is
written last and names all that went into it: a killed set-up starts that environment again, an unchanged one costs
nothing.

TORCH_INDEX (environment) is asked for torch besides the default index: PyTorch's CPU index unless set. On a CUDA
machine run `make clean`, then `make setup TORCH_INDEX=` to get the CUDA build.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PYTHON = (3, 11)
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
LOG = ROOT / "data/setup.log"
LOCK = ROOT / "data/setup.lock"
STAMP = ".preceptor-stamp"
SECRETS = (
    *("GATEWAY_API_KEY", "GATEWAY_ADMIN_KEY", "ENGINE_API_KEY"),
    *("POSTGRES_PASSWORD", "WEBUI_SECRET_KEY", "GRAFANA_ADMIN_PASSWORD"),
)
SHOWN_LOG_LINES = 25


class SetupFailed(Exception):
    """A sentence for the person who ran this."""


class Environment(NamedTuple):
    """One virtual environment."""

    folder: str
    requirements: str
    members: tuple[str, ...]

    @property
    def path(self) -> Path:
        """Where it is."""
        return ROOT / self.folder

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.path / "bin/python"


DEV = Environment(
    ".venv",
    "requirements/dev.txt",
    ("packages/contracts", "services/engine", "services/gateway", "services/ui", "trainer"),
)
ENGINE = Environment(".venv-engine", "requirements/engine.txt", ("packages/contracts", "services/engine"))
TORCH = "requirements/torch.txt"


def say(text: str) -> None:
    """Prints at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def ensure_python() -> None:
    """Goes on under Python 3.11, looking for it on PATH if need be."""
    if sys.version_info[:2] == PYTHON:
        return
    found = shutil.which("python3.11")
    if found:
        version = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout
        if version.startswith("Python 3.11."):
            os.execv(found, [found, *sys.argv])
    raise SetupFailed(
        f"Preceptor needs Python 3.11 and this is {sys.version.split()[0]} ({sys.executable}). "
        "Install python3.11, or run `make setup PYTHON=/path/to/python3.11`."
    )


def run(*command: str | Path, held: Sequence[int] = ()) -> None:
    """Runs a command, its output going to the log.

    Raises:
        SetupFailed: It failed; carries the end of what it wrote.
    """
    environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1", "TQDM_DISABLE": "1"}
    with LOG.open("ab") as log:
        log.write(f"\n$ {' '.join(map(str, command))}\n".encode())
        log.flush()
        begin = log.tell()
        # A child that outlives a killed set-up keeps the lock, so that the next one waits for it.
        done = subprocess.run(
            [str(part) for part in command],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=held,
            check=False,
        )
    if done.returncode:
        with LOG.open("rb") as log:
            log.seek(begin)
            tail = log.read().decode(errors="replace").rstrip().splitlines()[-SHOWN_LOG_LINES:]
        shown = "\n".join(f"    {line}" for line in tail)
        raise SetupFailed(
            f"{Path(command[0]).name} ended with {done.returncode}:\n{shown}\n"
            f"All of it is in {LOG.relative_to(ROOT)}. Mend the cause and run `make setup` again."
        )


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    """Prints one line: what is done, and the seconds it took."""
    say(f"{title} ... ")
    began = time.monotonic()
    try:
        yield
    except BaseException:
        say("failed\n")
        raise
    say(f"{time.monotonic() - began:.1f} s\n")


@contextlib.contextmanager
def locked() -> Iterator[IO[bytes]]:
    """Lets one set-up work at a time."""
    LOCK.parent.mkdir(exist_ok=True)
    with LOCK.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another set-up works here; waiting for it to end.\n")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


def wanted_stamp(environment: Environment) -> str:
    """Hashes all that decides what the environment holds, its own place included (scripts in it name that)."""
    files = [Path(__file__), ROOT / TORCH, ROOT / environment.requirements]
    for member in environment.members:
        pyproject = ROOT / member / "pyproject.toml"
        if not pyproject.is_file():
            raise SetupFailed(f"{member}/pyproject.toml is missing, so {member} cannot be installed. Restore the file.")
        files.append(pyproject)
    digest = hashlib.sha256(f"{sys.version}\n{environment.path}\n".encode())
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def is_whole(environment: Environment) -> bool:
    """Says whether a finished set-up of this Python, in this place, left it; older requirements are no harm."""
    config = environment.path / "pyvenv.cfg"
    version = ".".join(map(str, sys.version_info[:3]))
    return (
        (environment.path / STAMP).is_file()
        and environment.python.exists()
        and config.is_file()
        and f"version = {version}\n" in config.read_text()
        and f" {environment.path}\n" in config.read_text()
    )


def torch_arguments() -> list[str]:
    """Where pip looks for torch besides the default index; an index that cannot be reached must not be asked twice."""
    index = os.environ.get("TORCH_INDEX", TORCH_INDEX)
    return ["--retries", "0", "--timeout", "15", "--extra-index-url", index] if index else []


def make_environment(environment: Environment, held: Sequence[int]) -> None:
    """Brings one environment up to date."""
    stamp = environment.path / STAMP
    wanted = wanted_stamp(environment)
    whole = is_whole(environment)
    if whole and stamp.read_text() == wanted:
        say(f"{environment.folder} is up to date\n")
        return
    if not whole:
        # Half-copied packages look installed to pip and uv: without a stamp there is nothing to build upon.
        with step(f"{environment.folder}: new environment"):
            run(sys.executable, "-m", "venv", "--clear", environment.path, held=held)
    stamp.unlink(missing_ok=True)
    pip = (environment.python, "-m", "pip", "install", "--no-input", "--disable-pip-version-check")
    uv = DEV.path / "bin/uv"
    if environment is DEV:
        with step(f"{environment.folder}: uv"):
            run(*pip, pinned("uv"), held=held)
    install = (uv, "pip", "install", "--python", environment.python, "--no-deps")
    with step(f"{environment.folder}: {environment.requirements}"):
        run(*install, "--requirement", environment.requirements, held=held)
    # Only pip finds the CPU build in a folder of wheels, and uv gives up on an index that cannot be reached. What torch
    # needs is there by now, so nothing but torch (and CUDA's libraries with the CUDA build) is looked up here.
    with step(f"{environment.folder}: torch"):
        run(*pip, *torch_arguments(), "--requirement", TORCH, held=held)
    with step(f"{environment.folder}: members"):
        editable = [part for member in environment.members for part in ("--editable", member)]
        run(*install, "--build-constraints", DEV.requirements, *editable, held=held)
    stamp.write_text(wanted)


def pinned(package: str) -> str:
    """Finds `package==version` in dev.txt."""
    for line in (ROOT / DEV.requirements).read_text().splitlines():
        if line.startswith(f"{package}=="):
            return line
    raise SetupFailed(f"{DEV.requirements} does not pin {package}. Run `make lock`.")


def make_env_file() -> None:
    """Makes `.env` from its example and fills the keys that are empty; everything else in it is the owner's."""
    target = (ROOT / ".env").resolve()
    is_new = not target.exists()
    before = (ROOT / ".env.example" if is_new else target).read_bytes().decode()
    text = before
    for name in SECRETS:
        text = fill(text, name)
    if text == before and not is_new:
        return
    with step(".env: keys"):
        partial = target.with_name(f".env.{os.getpid()}.partial")
        try:
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
                stream.write(text.encode())
                if not is_new:
                    os.fchmod(stream.fileno(), target.stat().st_mode & 0o777)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


def fill(text: str, name: str) -> str:
    """Gives `name` a fresh secret in the text of an env file, unless it has a value."""
    if value_of(text, name):
        return text
    line = f"{name}={secrets.token_urlsafe(32)}"
    filled, count = assignment(name).subn(line, text)
    return filled if count else f"{text.rstrip()}\n{line}\n"


def value_of(text: str, name: str) -> str:
    """Reads a value from the text of an env file, well enough for names and keys; the last one counts."""
    values = [match["value"].strip("'\"") for match in assignment(name).finditer(text)]
    return values[-1] if values else ""


def assignment(name: str) -> re.Pattern[str]:
    """Matches a whole `NAME=value  # comment` but for the line's end."""
    return re.compile(rf"^[ \t]*(?:export[ \t]+)?{name}[ \t]*=[ \t]*(?P<value>[^\s#]*)[^\r\n]*", re.MULTILINE)


def make_base_model(held: Sequence[int]) -> None:
    """Materialises the embedded base model, if it is the one in use."""
    wanted = os.environ.get("BASE_MODEL") or value_of((ROOT / ".env").read_text(), "BASE_MODEL") or "embedded"
    if wanted != "embedded":
        say(f"base model {wanted!r}: the engine loads it when it starts\n")
        return
    with step("base model"):
        run(ENGINE.path / "bin/preceptor-engine", "materialise", held=held)


def main(argv: list[str] | None = None) -> int:
    """Runs every step that has something to do."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only-secrets", action="store_true", help="fill in what .env lacks, and no more")
    parser.add_argument("--no-base-model", action="store_true", help="leave the embedded base model for later")
    arguments = parser.parse_args(argv)
    began = time.monotonic()
    try:
        ensure_python()
        with locked() as lock:
            if arguments.only_secrets:
                make_env_file()
                return 0
            LOG.write_bytes(b"")
            held = [lock.fileno()]
            make_environment(DEV, held)
            make_environment(ENGINE, held)
            make_env_file()
            if not arguments.no_base_model:
                make_base_model(held)
    except SetupFailed as failure:
        sys.stderr.write(f"{failure}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("Stopped. Run `make setup` again: it goes on from here.\n")
        return 130
    say(f"Set up in {time.monotonic() - began:.1f} s.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
