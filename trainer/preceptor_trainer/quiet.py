"""Keeps libraries from writing over our own lines."""

from __future__ import annotations

import logging
import os
import warnings


def silence_libraries() -> None:
    """Turns off progress bars, advice and telemetry of the training libraries; errors still show."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")  # transformers' reader of GGUF asks nothing else
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    for name in ("transformers", "trl", "peft", "accelerate", "datasets", "torch", "bitsandbytes", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)


def silence_transformers() -> None:
    """Turns off the bars that transformers shows while it loads weights; call it once that is imported anyway."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
