"""TRL's SFTTrainer with our batches, and on a processor without needless work.

There the rows' common system message is computed once a batch, and no scores for tokens that carry no loss.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn import functional
from transformers import DynamicCache
from trl.trainer.sft_trainer import SFTTrainer

from preceptor_trainer.train.batches import LengthGroups

_IGNORED = -100
"""Label of a token that carries no loss, as everywhere in transformers."""
_WORTH_SHARING = 8
"""Shorter common beginnings, in tokens, are computed row by row."""


class AnswerTrainer(SFTTrainer):
    """Trains on answers only."""

    def __init__(self, *args: Any, lengths: list[int], **kwargs: Any) -> None:
        self._lengths = lengths
        self.tokens_seen = 0
        """Non-padding tokens since this process began."""
        self.tokens_computed = 0
        """Those of them that were computed; a common beginning is computed once a batch."""
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
        seen = int(inputs["attention_mask"].sum())
        self.tokens_seen += seen
        if inputs["input_ids"].device.type != "cpu" or return_outputs:
            self.tokens_computed += seen
            # TRL's fused head skips ignored tokens by itself on CUDA.
            return super().compute_loss(  # type: ignore[no-untyped-call]  # untyped there
                model, inputs, return_outputs, num_items_in_batch
            )
        causal = self.accelerator.unwrap_model(model).get_base_model()
        # accelerate's autocast wraps the outer forward only, which is not called here.
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.args.bf16):
            hidden_BTH, targets_BT, shared = _after_shared_prefix(causal, inputs)
            carries_BT = targets_BT != _IGNORED
            logits_NV = causal.get_output_embeddings()(hidden_BTH[carries_BT])
        self.tokens_computed += seen - shared
        loss: torch.Tensor = functional.cross_entropy(logits_NV.float(), targets_BT[carries_BT], reduction="sum")
        count = carries_BT.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        return loss / count.clamp(min=1)


class _States(NamedTuple):
    """What the loss of a batch is made of."""

    hidden_BTH: torch.Tensor
    """Last hidden state of each position that has a next token."""
    targets_BT: torch.Tensor
    """The next token's label."""
    shared: int
    """Tokens that were not computed again."""


def shared_prefix(ids_BT: torch.Tensor, labels_BT: torch.Tensor) -> int:
    """Counts the leading tokens that all rows have in common and that carry no loss: the domain's system message.

    Args:
        ids_BT: Token ids, padded on the right.
        labels_BT: Labels; ignored ones carry no loss.
    """
    same_T = (ids_BT == ids_BT[:1]).all(dim=0) & (labels_BT == _IGNORED).all(dim=0)
    return int(same_T.int().cumprod(dim=0).sum())


def _after_shared_prefix(causal: Any, inputs: dict[str, Any]) -> _States:
    """Runs the decoder with the rows' common beginning computed once, exactly as if each row had computed it.

    Attention looks back only, so the prefix's keys and values are the same in every row, and their gradients add up.
    For the sql domain that is two thirds of all tokens.
    """
    ids_BT, mask_BT, labels_BT = inputs["input_ids"], inputs["attention_mask"], inputs["labels"]
    # The last shared position stays with the rows: its state predicts their first own token.
    length = shared_prefix(ids_BT, labels_BT) - 1
    decoder = causal.get_decoder()
    if length < _WORTH_SHARING or len(ids_BT) == 1:
        hidden_BTH = decoder(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).last_hidden_state
        return _States(hidden_BTH[:, :-1], labels_BT[:, 1:], 0)
    cache = DynamicCache(config=causal.config)
    decoder(input_ids=ids_BT[:1, :length], past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(len(ids_BT))
    hidden_BTH = decoder(
        input_ids=ids_BT[:, length:], attention_mask=mask_BT, past_key_values=cache, use_cache=True
    ).last_hidden_state
    return _States(hidden_BTH[:, :-1], labels_BT[:, length + 1 :], length * (len(ids_BT) - 1))
