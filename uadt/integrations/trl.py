# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportPrivateUsage=false
# transformers and TRL annotate loosely, and TRL's hooks are methods with an underscore.
"""TRL: a `GRPOTrainer` whose advantages pass through a shaping.

The hook lies after TRL's own scoring, so the baseline, its scaling and everything else stay TRL's.
For rewards see `uadt.integrations.reward_functions.BatchReward`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl.trainer.grpo_trainer import GRPOTrainer

from uadt.integrations.rows import Rows
from uadt.integrations.shaper import Shaper
from uadt.shaping import UADT
from uadt.types import Shaping

__all__ = ["UADTGRPOTrainer"]

_OFFERS = ("entropy", "logprob", "reward", "group", "task")

_FORWARD = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)
"""What a vision-language model needs besides tokens; TRL keeps it in the batch."""


class UADTGRPOTrainer(GRPOTrainer):
    """TRL's `GRPOTrainer` with shaped advantages; strength 0 is the stock trainer, bit for bit.

    The entropy is that of the policy that is being trained, at the sampling temperature, when the
    completions are scored. Where TRL runs the old policy for its log-probabilities anyway
    (generation and optimisation out of step, ``num_iterations > 1``, or vLLM with
    ``vllm_importance_sampling_correction``), the entropies come from that pass; else from one pass
    of our own without gradient, per generation batch.

    It is cooperative: ``class Mine(UADTGRPOTrainer, SomeGRPOTrainer)`` shapes the advantages of any
    subclass of `GRPOTrainer` that scores in ``_generate_and_score_completions``.

    The state moves once per generation batch, not per micro-batch or epoch, and an evaluation
    neither shapes nor moves it. It lies in each checkpoint as ``uadt_state.json`` and comes back
    with ``train(resume_from_checkpoint=...)``. On several processes all of them hold the same
    state, and each group is whole however its rows are spread. TRL logs ``advantages`` in its
    table of completions before they are shaped.

    Args:
        args: What the trainer below takes.
        shaping: What shapes the advantages; ``UADT()`` if it is None.
        task_column: The column of the data set that names the task, for a shaping that keeps
            numbers per task.
        per_token: True for a shaping that gives every token its own advantage: TRL's one a
            completion is spread over its tokens first.
        kwargs: What the trainer below takes.

    Raises:
        MissingSignalError: If the shaping reads something that TRL does not have: it has
            ``entropy``, ``logprob``, ``reward``, ``group`` and the task's column.
    """

    def __init__(
        self,
        *args: Any,
        shaping: Shaping | None = None,
        task_column: str = "task",
        per_token: bool = False,
        **kwargs: Any,
    ) -> None:
        """Take the shaping, and pass on the rest."""
        # Before super().__init__, which may call the overrides below.
        self.shaper = Shaper(shaping or UADT(), stack="TRL", offers=_OFFERS)
        self._task_column, self._per_token = task_column, per_token
        self._captured: list[tuple[Tensor, Tensor | None]] | None = None
        self._rewards: Tensor | None = None
        super().__init__(*args, **kwargs)

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        capture = self._captured
        if capture is not None and model is self.model and not torch.is_grad_enabled():
            # Costs nothing: TRL's fused head computes the entropy either way.
            kwargs["compute_entropy"] = True
            result = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
            capture.append(result[:2])
            return result
        return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        self._rewards = super()._calculate_rewards(*args, **kwargs)
        return self._rewards

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self._captured = []
        try:
            batch = super()._generate_and_score_completions(inputs)
            captured = self._captured
        finally:
            self._captured = None
        if not cast("torch.nn.Module", self.model).training:
            return batch  # an evaluation must not move the state
        rows = self._rows(batch, inputs, captured)
        (batch["advantages"],), scalars = self.shaper.shape([rows])
        for name, value in scalars.items():
            self._metrics["train"][name].append(value)
        return batch

    def _rows(
        self,
        batch: Mapping[str, Any],
        inputs: Sequence[Mapping[str, Any]],
        captured: Sequence[tuple[Tensor, Tensor | None]],
    ) -> Rows:
        """Rename what TRL's batch holds."""
        logprob, entropy = self._old_policy(batch, captured)
        mask = batch["completion_mask"].bool()
        if batch.get("tool_mask") is not None:
            mask = mask & batch["tool_mask"].bool()  # what a tool wrote is not the policy's
        count = len(mask)
        first = self.accelerator.process_index * count
        reward = None
        if self.shaper.wants("reward"):
            rewards = cast("Tensor", self._rewards)  # those of all processes
            own = rewards[first : first + count]
            reward = (own * self.reward_weights.to(own.device)).nansum(dim=1)
            # No reward function could score it: TRL's advantage is 0, and it is nobody's evidence.
            mask = mask & ~own.isnan().all(dim=1, keepdim=True)
        task = None
        if self.shaper.wants("task") and self._task_column in inputs[0]:
            task = [str(row[self._task_column]) for row in inputs]
        places = torch.arange(first, first + count, device=mask.device)
        advantage = batch["advantages"]
        if self._per_token:
            advantage = advantage[:, None].expand(mask.shape)
        return Rows(
            advantage=advantage,
            mask=mask,
            entropy=entropy,
            logprob=logprob,
            reward=reward,
            group=places // cast("int", self.num_generations),
            task=task,
        )

    def _old_policy(
        self, batch: Mapping[str, Any], captured: Sequence[tuple[Tensor, Tensor | None]]
    ) -> tuple[Tensor, Tensor | None]:
        """Return log-probabilities and entropies, from TRL's own pass if it made one."""
        old = batch.get("old_per_token_logps")
        for logprob, entropy in captured:
            # By identity: with PEFT and a reference, the reference's pass uses self.model too.
            if logprob is old:
                return logprob, entropy
        device = self.accelerator.device
        devices = [device] if device.type == "cuda" else []
        # Dropout must not draw from the stream that the stock trainer would go on with.
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            result = self._get_per_token_logps_and_entropies(
                self.model,
                torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
                torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
                batch["completion_ids"].size(1),
                batch_size=self.args.per_device_train_batch_size,
                compute_entropy=True,
                **{name: batch[name] for name in _FORWARD if batch.get(name) is not None},
            )
        return result[0], result[1]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.args.should_save:
            name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            # First, so that a checkpoint that is complete for TRL is complete for us.
            self.shaper.save(Path(self._get_output_dir(trial=trial)) / name)
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.shaper.load(Path(checkpoint))
