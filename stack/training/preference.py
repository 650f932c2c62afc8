"""Direct preference optimisation (Rafailov et al. 2023) on transformers' Trainer.

TRL's collator and its fused head, which gives log-probabilities without holding all logits, are used; its
DPOTrainer (1.16) is not: it adds a second, frozen copy of an adapter that training goes on from, refuses an
adapter on the output head, and knows neither a bound on rewards nor a margin. Here the reference's
log-probabilities are columns of the data, computed by `reference_logps` before the first step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor
from transformers import Trainer
from trl.models.activation_offloading import get_act_offloading_ctx_manager
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model

from stack.schemas.post_training import DPOAlignmentConfig
from stack.training.dtypes import compute_dtype
from stack.training.efficiency import offloads_activations
from stack.training.plan import Plan

if TYPE_CHECKING:
    from datasets import Dataset

_IGNORED = -100


class Preferences(NamedTuple):
    """Of each pair; all [pairs]."""

    loss: Tensor
    chosen: Tensor  # rewards
    rejected: Tensor


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    config: DPOAlignmentConfig,
) -> Preferences:
    """DPO (Rafailov et al. 2023, eq. 7), conservative when epsilon > 0 (Mitchell 2023, eq. 4).

    All are [pairs]: log-probabilities summed over the response's tokens, in nats. An answer's reward is
    reward_scale times the policy's less the reference's, within reward_clip where that is above 0; the chosen
    answer's should be greater by gamma.
    """
    chosen = _reward(policy_chosen - ref_chosen, config)
    rejected = _reward(policy_rejected - ref_rejected, config)
    logits = chosen - rejected - config.gamma
    loss = -(1 - config.epsilon) * F.logsigmoid(logits) - config.epsilon * F.logsigmoid(-logits)
    return Preferences(loss, chosen.detach(), rejected.detach())


def _reward(log_ratio: Tensor, config: DPOAlignmentConfig) -> Tensor:
    reward = config.reward_scale * log_ratio
    return reward.clamp(-config.reward_clip, config.reward_clip) if config.reward_clip > 0 else reward


def reference_logps(
    plan: Plan, model: Any, rows: Dataset, progress: Callable[[int], None]
) -> tuple[list[float], list[float]]:
    """Of each row's chosen and rejected answer, by the model as it is, summed over tokens, in nats.

    `progress` is told how many rows are done. The same rows give the same numbers.
    """
    prepare_policy(model)
    model.eval()
    collate = DataCollatorForPreference(pad_token_id=0)  # which one does not matter: it is masked
    found: dict[int, tuple[float, float]] = {}
    for batch in _batches(rows, plan.training.data_config.batch_size):
        chosen, rejected = _without_gradients(plan, model, collate([rows[index] for index in batch]))
        found |= dict(zip(batch, zip(chosen, rejected, strict=True), strict=True))
        progress(len(found))
    model.train()
    return [found[i][0] for i in range(len(rows))], [found[i][1] for i in range(len(rows))]


def _batches(rows: Dataset, size: int) -> list[list[int]]:
    """Rows of like length together, so that little is padded."""
    lengths = [
        len(prompt) + max(len(chosen), len(rejected))
        for prompt, chosen, rejected in zip(
            rows["prompt_ids"], rows["chosen_ids"], rows["rejected_ids"], strict=True
        )
    ]
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    return [order[start : start + size] for start in range(0, len(order), size)]


@torch.no_grad()
def _without_gradients(plan: Plan, model: Any, inputs: dict[str, Tensor]) -> tuple[list[float], list[float]]:
    device = model.device
    dtype = compute_dtype(plan, device)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        chosen, rejected = response_logps(model, {k: v.to(device) for k, v in inputs.items()})
    return chosen.tolist(), rejected.tolist()


def prepare_policy(model: Any) -> None:
    """Log-probabilities without logits, and no dropout: the reference is to be the policy as it begins."""
    disable_dropout_in_model(model)
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    add_fused_lm_head(base)


def response_logps(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the chosen and of the rejected answers, both [pairs] in nats.

    `inputs` is what the collator gives: ids and masks are [2 * pairs, tokens], the chosen half first.
    """
    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, _IGNORED)
    outputs = model(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        labels=labels,
        fused_lm_head=True,
    )
    chosen, rejected = outputs.log_probs.float().sum(-1).chunk(2)
    return chosen, rejected


class PreferenceTrainer(Trainer):
    """DPO over rows with prompt_ids, chosen_ids, rejected_ids, ref_chosen_logps and ref_rejected_logps.

    Metrics are means over the pairs since the last log: rewards/chosen, rewards/rejected, rewards/margins
    (without gamma), rewards/accuracies (the share whose chosen reward is the greater, ties by half),
    logps/chosen and logps/rejected; chosen_loss is that of the chosen answers, in nats per token, as SFT has
    it. Those of an evaluation begin with eval_.
    """

    loss_is_scaled_for_ga = False

    def __init__(self, plan: Plan, processing_class: Any, **arguments: Any) -> None:
        assert plan.alignment is not None
        self._alignment = plan.alignment
        pad = processing_class.pad_token_id
        collator = DataCollatorForPreference(pad_token_id=0 if pad is None else pad)
        self._policy = arguments["model"]
        prepare_policy(self._policy)
        super().__init__(data_collator=collator, processing_class=processing_class, **arguments)
        self._sums: dict[bool, Tensor | None] = {True: None, False: None}  # by whether it trains
        self._offloading = (
            get_act_offloading_ctx_manager(self._policy) if offloads_activations(plan) else None
        )

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = [  # type: ignore[assignment]  # where it is None at first
            "prompt_ids",
            "chosen_ids",
            "rejected_ids",
            "ref_chosen_logps",
            "ref_rejected_logps",
        ]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean over the batch's pairs."""
        chosen, rejected = response_logps(model, inputs)
        found = dpo_loss(
            chosen, rejected, inputs["ref_chosen_logps"], inputs["ref_rejected_logps"], self._alignment
        )
        tokens = inputs["completion_mask"].chunk(2)[0].sum()
        self._note(found, chosen.detach(), rejected.detach(), tokens)
        loss = found.loss.mean()
        return (loss, {}) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        if self._offloading is None:
            return super().training_step(*args, **kwargs)
        with self._offloading:
            return super().training_step(*args, **kwargs)

    @torch.no_grad()
    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: Sequence[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        with self.compute_loss_context_manager():
            return self.compute_loss(model, self._prepare_inputs(inputs)), None, None

    def _note(self, found: Preferences, chosen: Tensor, rejected: Tensor, tokens: Tensor) -> None:
        """Add a batch to the sums of `METRICS`; to its pairs, and the tokens of its chosen answers."""
        margins = found.chosen - found.rejected
        values = [
            found.loss.detach(),
            found.chosen,
            found.rejected,
            margins,
            (margins.sign() + 1) / 2,
            chosen,
            rejected,
        ]
        counts = [torch.tensor(float(len(margins)), device=margins.device), tokens.float()]
        sums = torch.stack([*(value.sum() for value in values), *counts])
        before = self._sums[self._policy.training]
        self._sums[self._policy.training] = sums if before is None else before + sums

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        training = self._policy.training
        sums, self._sums[training] = self._sums[training], None
        if sums is not None:
            *totals, pairs, tokens = self.accelerator.reduce(sums, "sum").tolist()
            means = {name: total / pairs for name, total in zip(METRICS, totals, strict=True)}
            means["chosen_loss"] = -means["logps/chosen"] * pairs / tokens
            loss = means.pop("loss")
            if training:
                logs |= means
            else:  # transformers' mean counts a last, smaller batch as a whole one
                logs |= {"eval_loss": loss, **{f"eval_{name}": mean for name, mean in means.items()}}
        super().log(logs, start_time)


METRICS = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
)
