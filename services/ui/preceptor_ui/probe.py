"""`python -m preceptor_ui.probe`: exit 0 where the pages answer."""

from __future__ import annotations

import os
import sys

from preceptor_contracts.probing import exit_code

if __name__ == "__main__":
    # Not by `load_settings`, which wants a key: Gradio's imports are not worth a probe's second either.
    sys.exit(exit_code(int(os.environ.get("UI_PORT") or 7860), "/", method="HEAD"))
