"""`python -m preceptor_engine.probe`: exit 0 where vLLM answers."""

from __future__ import annotations

import sys

from preceptor_contracts.probing import exit_code

from preceptor_engine.settings import EngineSettings

if __name__ == "__main__":
    # vLLM answers this once its weights are loaded and its worker lives.
    sys.exit(exit_code(EngineSettings().port, "/health", limit_s=4))
