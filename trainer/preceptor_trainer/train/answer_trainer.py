"""TRL's SFTTrainer with our batches, and on a processor without needless work.

There the rows' common system message is computed once a batch, and no scores for tokens that carry no loss.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch.nn import functional
from transformers import DynamicCache
from trl.trainer.sft_trainer import SFTTrainer

from preceptor_trainer.train.batches import IGNORED, RowLoader
from preceptor_trainer.train.checkpoints import whole_checkpoint

_WORTH_SHARING = 8
"""Shorter common beginnings, in tokens, are computed row by row."""


class AnswerTrainer(SFTTrainer):
    """Trains on answers only.

    Args:
        args: TRL's own.
        batches: Forward passes of this process.
        held_out: Forward passes of the validation loss, the same in every process; None: there is none.
        kwargs: TRL's own.
    """

    def __init__(self, *args: Any, batches: RowLoader, held_out: RowLoader | None = None, **kwargs: Any) -> None:
        self._batches = batches
        self._held_out = held_out
        self.tokens_seen = 0
        """Non-padding tokens trained on since this process began, of all processes."""
        self.tokens_computed = 0
        """Those of them that were computed; a common beginning is computed once a batch."""
        super().__init__(*args, **kwargs)

    def get_train_dataloader(self) -> RowLoader:
        """Returns the settled batches: accelerate, which would divide them over processes, has nothing left to do."""
        return self._batches

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measures the validation loss: the mean over the answers' tokens of all records held out, not over batches."""
        del args, kwargs
        held_out: Any = self._held_out
        trained: Any = self.model
        trained.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for batch in held_out:
                inputs = self._prepare_inputs(batch)
                carrying = int((inputs["labels"][:, 1:] != IGNORED).sum())
                with self.compute_loss_context_manager():
                    total += float(self.compute_loss(trained, inputs)) * carrying
                count += carrying
        metrics = {"eval_loss": total / count}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Sums the loss of the answers' tokens and divides by their number."""
        training = bool(model.training)
        seen = self._count(inputs.pop("tokens"), training)
        ids_BT = inputs["input_ids"]
        mixed, several = self.args.bf16 or self.args.fp16, self.args.world_size > 1
        if ids_BT.device.type != "cpu" or mixed or several or return_outputs:
            self._add(seen, seen, training)
            # TRL's fused head skips ignored tokens by itself on CUDA, autocast wraps only the outer forward, and so
            # does what sums gradients over processes.
            return super().compute_loss(  # type: ignore[no-untyped-call]  # untyped there
                model, inputs, return_outputs, num_items_in_batch
            )
        unwrapped = self.accelerator.unwrap_model(model)
        causal: Any = unwrapped.get_base_model() if isinstance(unwrapped, PeftModel) else unwrapped
        # Recomputing activations drops the cache that a shared beginning lies in.
        share = "position_ids" not in inputs and not self.args.activation_checkpointing
        hidden_BTH, targets_BT, shared = (_after_shared_prefix if share else _row_by_row)(causal, inputs)
        self._add(seen, seen - shared, training)
        carries_BT = targets_BT != IGNORED
        logits_NV = causal.get_output_embeddings()(hidden_BTH[carries_BT])
        loss: torch.Tensor = functional.cross_entropy(logits_NV.float(), targets_BT[carries_BT], reduction="sum")
        count = carries_BT.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        return loss / count.clamp(min=1)

    def _count(self, tokens: int, training: bool) -> int:
        if self.args.world_size == 1 or not training:
            return tokens
        return int(self.accelerator.gather(torch.tensor([tokens], device=self.accelerator.device)).sum())

    def _add(self, seen: int, computed: int, training: bool) -> None:
        if training:
            self.tokens_seen += seen
            self.tokens_computed += computed

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Saves a checkpoint that survives a power cut, or none at all.

        Raises:
            PreceptorError: It cannot be written; what was begun is removed.
        """
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        with whole_checkpoint(folder):
            super()._save_checkpoint(model, trial)  # type: ignore[no-untyped-call]  # untyped there

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes none: a checkpoint needs no README, and the adapter gets ours."""


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
    same_T = (ids_BT == ids_BT[:1]).all(dim=0) & (labels_BT == IGNORED).all(dim=0)
    return int(same_T.int().cumprod(dim=0).sum())


def _row_by_row(causal: Any, inputs: dict[str, Any]) -> _States:
    """Runs the decoder over whole rows; packed ones carry positions in place of a mask."""
    hidden_BTH = causal.get_decoder()(
        input_ids=inputs["input_ids"],
        attention_mask=inputs.get("attention_mask"),
        position_ids=inputs.get("position_ids"),
        use_cache=False,
    ).last_hidden_state
    return _States(hidden_BTH[:, :-1], inputs["labels"][:, 1:], 0)


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
        return _row_by_row(causal, inputs)
    cache = DynamicCache(config=causal.config)
    decoder(input_ids=ids_BT[:1, :length], past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(len(ids_BT))
    hidden_BTH = decoder(
        input_ids=ids_BT[:, length:], attention_mask=mask_BT, past_key_values=cache, use_cache=True
    ).last_hidden_state
    return _States(hidden_BTH[:, :-1], labels_BT[:, length + 1 :], length * (len(ids_BT) - 1))
