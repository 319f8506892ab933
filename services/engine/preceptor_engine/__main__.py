"""`preceptor-engine serve | materialise | show`."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from functools import partial

from preceptor_contracts.base_models import EMBEDDED
from preceptor_contracts.errors import PreceptorError
from preceptor_contracts.frozen import describe
from pydantic import ValidationError

from preceptor_engine.launch import launch_here
from preceptor_engine.materialise import materialise
from preceptor_engine.settings import EngineSettings
from preceptor_engine.supervise import Supervisor, open_requests


def main(argv: list[str] | None = None) -> int:
    """Runs one subcommand; `serve` becomes vLLM, or with ENGINE_HAND_OFF watches over it."""
    parser = argparse.ArgumentParser(prog="preceptor-engine", description=__doc__)
    parser.add_argument("command", choices=["serve", "materialise", "show"], help="show prints the launch and ends")
    command = parser.parse_args(argv).command
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        settings = EngineSettings()
        if command in {"serve", "materialise"} and settings.base_model == EMBEDDED:
            materialise(settings.base_models_dir)
        if command == "materialise":
            return 0
        launch = launch_here(settings)
    except ValidationError as error:
        sys.stderr.write(
            f"A setting is wrong: {describe(error, of_settings=True)}. Mend it in .env or the environment.\n"
        )
        return 2
    except PreceptorError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if command == "show":
        sys.stdout.write(shlex.join(launch.argv) + "\n")
        return 0
    if settings.hand_off:
        count = partial(open_requests, settings.port)
        return Supervisor(launch, settings.adapters_dir, drain_s=settings.drain_s, open_requests=count).run()
    os.execvpe(launch.argv[0], launch.argv, {**os.environ, **launch.env})


if __name__ == "__main__":
    sys.exit(main())
