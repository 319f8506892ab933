"""Runs lm-evaluation-harness; started by `harness.py` with .venv-bench-mcq's Python, so it imports nothing of ours.

One process serves the whole benchmark, so that imports and the tokenizer are paid before any clock runs. A command is a
line of JSON on stdin (`docs`: a JSONL file, `system`: the system message, `requests` in flight of so many `prompts`),
the answer a line on the original stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import lm_eval
import yaml
from lm_eval.models.openai_completions import LocalCompletionsAPI


class Timed(LocalCompletionsAPI):  # type: ignore[misc]  # lm_eval lives in the other environment
    """`local-completions`, unchanged but for a clock."""

    seconds = 0.0

    def loglikelihood(self, *args: Any, **kwargs: Any) -> Any:
        """What it does for its numbers: tokenizing, asking, reading. Building the task and its metrics is not in it."""
        began = time.perf_counter()
        try:
            return super().loglikelihood(*args, **kwargs)
        finally:
            self.seconds = time.perf_counter() - began


def evaluate(lm: Timed, command: dict[str, Any], number: int) -> dict[str, Any]:
    """Evaluates one file and returns each doc's log-likelihoods."""
    task = yaml.safe_load(Path(__file__).with_name("task.yaml").read_text())
    # A name per file: `datasets` must not answer from what it built for the last one.
    task |= {"task": f"bench{number}", "dataset_kwargs": {"data_files": {"test": command["docs"]}}}
    # Where its constructor puts `num_concurrent` and `batch_size`.
    lm._concurrent, lm._batch_size = command["requests"], command["prompts"]
    results = lm_eval.simple_evaluate(
        model=lm,
        tasks=[task],
        system_instruction=command["system"],
        apply_chat_template=True,
        bootstrap_iters=0,
    )
    scores = results["results"][task["task"]]
    samples = sorted(results["samples"][task["task"]], key=lambda sample: int(sample["doc_id"]))
    return {
        "seconds": lm.seconds,
        "accuracy": {name: scores[f"{name},none"] for name in ("acc", "acc_norm", "acc_bytes")},
        "docs": [
            {"id": sample["doc"]["id"], "logprobs": [float(answer[0]) for answer in sample["filtered_resps"]]}
            for sample in samples
        ],
    }


def main() -> None:
    """Answers commands until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--served", required=True)
    parser.add_argument("--tokenizer", required=True)
    arguments = parser.parse_args()
    # Whatever the libraries print goes to the log; only answers reach the parent.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    lm = Timed(
        base_url=arguments.url,
        model=arguments.served,
        tokenizer=arguments.tokenizer,
        tokenizer_backend="huggingface",
        max_retries=1,
    )
    version = {"lm_eval": lm_eval.__version__}
    print(json.dumps(version), file=answers, flush=True)
    for number, line in enumerate(sys.stdin):
        print(json.dumps(evaluate(lm, json.loads(line), number)), file=answers, flush=True)


if __name__ == "__main__":
    main()
