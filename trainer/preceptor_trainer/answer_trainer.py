"""TRL's SFTTrainer with two changes: our batches, and on a processor no scores for tokens that carry no loss."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from trl.trainer.sft_trainer import SFTTrainer

from preceptor_trainer.batches import LengthGroups

_IGNORED = -100
"""Label of a token that carries no loss, as everywhere in transformers."""


class AnswerTrainer(SFTTrainer):
    """Trains on answers only."""

    def __init__(self, *args: Any, lengths: list[int], **kwargs: Any) -> None:
        self._lengths = lengths
        self.tokens_seen = 0
        """Non-padding tokens since this process began."""
        super().__init__(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroups:
        del train_dataset
        return LengthGroups(
            self._lengths, self.args.train_batch_size * self.args.gradient_accumulation_steps, self.args.seed
        )

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Sums the loss of the answers' tokens and divides by their number."""
        self.tokens_seen += int(inputs["attention_mask"].sum())
        mixed = self.args.bf16 or self.args.fp16
        if inputs["input_ids"].device.type != "cpu" or mixed or return_outputs:
            # TRL's fused head skips ignored tokens by itself on CUDA, and autocast wraps only the outer forward.
            return super().compute_loss(  # type: ignore[no-untyped-call]  # untyped there
                model, inputs, return_outputs, num_items_in_batch
            )
        causal = self.accelerator.unwrap_model(model).get_base_model()
        hidden_BTH = causal.get_decoder()(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
        ).last_hidden_state
        targets_BT = inputs["labels"][:, 1:]
        carries_BT = targets_BT != _IGNORED
        logits_NV = causal.get_output_embeddings()(hidden_BTH[:, :-1][carries_BT])
        loss: torch.Tensor = functional.cross_entropy(logits_NV.float(), targets_BT[carries_BT], reduction="sum")
        count = carries_BT.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        return loss / count.clamp(min=1)
