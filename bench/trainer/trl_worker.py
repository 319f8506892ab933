"""A plain TRL script: SFTTrainer with its defaults, in a process of its own. Writes `result.json`."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from bench.trainer.data import BASE, Hyperparameters


def main() -> None:
    """Trains, saves the adapter, and says how long the training loop took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--no-checkpointing", action="store_true")
    arguments = parser.parse_args()

    from datasets import load_dataset
    from peft import LoraConfig
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    told = Hyperparameters()
    trainer = SFTTrainer(
        model=str(BASE),
        args=SFTConfig(
            output_dir=str(arguments.out),
            per_device_train_batch_size=told.batch_size,
            num_train_epochs=1,
            learning_rate=told.learning_rate,
            lr_scheduler_type=told.scheduler,
            warmup_steps=told.warmup_steps,
            seed=told.seed,
            # The base weights are loaded and computed in float32 by everybody: decision 4.
            bf16=False,
            model_init_kwargs={"dtype": "float32"},
            use_cpu=True,
            save_strategy="no",
            report_to=[],
            # On is TRL's default.
            gradient_checkpointing=not arguments.no_checkpointing,
        ),
        train_dataset=load_dataset("json", data_files=str(arguments.messages), split="train"),
        peft_config=LoraConfig(
            r=told.rank, lora_alpha=told.alpha, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.0
        ),
    )
    started = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - started
    trainer.save_model()
    (arguments.out / "result.json").write_text(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
