"""`python -m preceptor_trainer.oneshot`: the image's entry, where a domain's name alone means `run`.

So `docker compose run --rm trainer allergy --data /data/mine.csv` and `docker compose run --rm trainer plan allergy`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from preceptor_trainer import cli


def arguments(given: Sequence[str]) -> list[str]:
    """Puts `run` before what names no command and no option."""
    commands = {one.name or getattr(one.callback, "__name__", "") for one in cli.app.registered_commands}
    commands |= {str(one.name) for one in cli.app.registered_groups}
    is_domain = bool(given) and not given[0].startswith("-") and given[0] not in commands
    return ["run", *given] if is_domain else list(given)


if __name__ == "__main__":
    sys.exit(cli.main(arguments(sys.argv[1:])))
