"""TRL's SFTTrainer with our batches, and on a processor without needless work.

There no padding is computed, the records' common system message once a batch (`side_by_side`), and no scores for tokens
that carry no loss.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch.nn import functional
from trl.trainer.sft_trainer import SFTTrainer

from preceptor_trainer.train import side_by_side
from preceptor_trainer.train.batches import IGNORED, RowLoader
from preceptor_trainer.train.checkpoints import whole_checkpoint
from preceptor_trainer.train.lora_product import use_lora_product


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
        if self.args.use_cpu and self.args.world_size == 1:
            causal = self._causal(self.model)
            side_by_side.prepare(causal)
            use_lora_product(causal)

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
        several = self.args.world_size > 1
        causal = self._causal(model)
        # An architecture may do more to its scores than multiply by the head; ours are known not to.
        known = side_by_side.is_known(causal.config)
        if inputs["input_ids"].device.type != "cpu" or several or return_outputs or not known:
            self._add(seen, seen, training)
            # TRL's fused head skips ignored tokens by itself on CUDA, and its forward is what sums gradients over
            # processes.
            return super().compute_loss(  # type: ignore[no-untyped-call]  # untyped there
                model, inputs, return_outputs, num_items_in_batch
            )
        # accelerate's autocast wraps the outer forward only, which is not called here.
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.args.bf16):
            states = _states(causal, inputs)
            carries_N = states.targets_N != IGNORED
            logits_NV = causal.get_output_embeddings()(states.hidden_NH[carries_N])
        self._add(seen, seen - states.spared, training)
        loss: torch.Tensor = functional.cross_entropy(logits_NV.float(), states.targets_N[carries_N], reduction="sum")
        count = carries_N.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        return loss / count.clamp(min=1)

    def _causal(self, model: Any) -> Any:
        unwrapped = self.accelerator.unwrap_model(model)
        return unwrapped.get_base_model() if isinstance(unwrapped, PeftModel) else unwrapped

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
        # One process vouches for the folder: the others would see files come and go while it writes.
        with whole_checkpoint(folder) if self.args.should_save else nullcontext():
            super()._save_checkpoint(model, trial)  # type: ignore[no-untyped-call]  # untyped there

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes none: a checkpoint needs no README, and the adapter gets ours."""


class _States(NamedTuple):
    """What the loss of a batch is made of; N tokens, H their width."""

    hidden_NH: torch.Tensor
    """Last hidden states."""
    targets_N: torch.Tensor
    """The label of each token's successor."""
    spared: int
    """Tokens that were not computed again."""


def _states(causal: Any, inputs: dict[str, Any]) -> _States:
    """Runs the decoder: over records side by side where it can be given them so, else over the padded batch."""
    ids_BT, labels_BT = inputs["input_ids"], inputs["labels"]
    if side_by_side.fits(causal.config, ids_BT.shape[1]):
        batch = side_by_side.lay_out(side_by_side.records_of(inputs))
        return _States(side_by_side.hidden_states(causal, batch), batch.targets_N, batch.spared)
    hidden_BTH = causal.get_decoder()(
        input_ids=ids_BT,
        attention_mask=inputs.get("attention_mask"),
        position_ids=inputs.get("position_ids"),
        use_cache=False,
    ).last_hidden_state
    return _States(hidden_BTH[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten(), 0)
