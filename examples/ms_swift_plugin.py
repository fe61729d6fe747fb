# pyright: reportMissingImports=false
# ms-swift wants another TRL than the one that is checked beside it.
"""ms-swift: a GRPO trainer with shaped advantages, and a reward of `uadt`, as an external plug-in.

    swift rlhf --rlhf_type grpo --external_plugins ms_swift_plugin.py --reward_funcs uadt …

Copy the file and edit the two constants. It serves ms-swift's HF trainer; its Megatron and Ray
trainers have tables of their own. Keep it out of a folder with a file ``trl.py``: ms-swift imports
a plug-in by its file's name, with its folder first on the path.

What it needs: ``pip install uadt ms-swift "trl<1" msgspec``.
"""

from pathlib import Path
from typing import Any

import torch
from swift.rewards import ORM, orms
from swift.rlhf_trainers import GRPOTrainer
from swift.trainers import TrainerFactory
from torch import Tensor

from uadt import UADT
from uadt.integrations.reward_functions import BatchReward
from uadt.integrations.rows import Rows
from uadt.integrations.shaper import Shaper
from uadt.rewards import Scorer

SHAPING = UADT(strength=0.5)
REWARD = BatchReward(scorer=Scorer(task="single_choice"), truth_column="solution")


class Reward(ORM):
    """Scores a batch; every column of the data set arrives by its name."""

    def __call__(self, completions: list[str], **columns: Any) -> list[float | None]:
        """Return one score a completion."""
        return REWARD(completions=completions, **columns)


class UADTGRPOTrainer(GRPOTrainer):
    """ms-swift's trainer; the state moves once per generation batch, however it is split."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Start the state before the trainer, which may call the overrides."""
        self.shaper = Shaper(SHAPING, stack="ms-swift", offers=["entropy", "logprob"])
        self._captured: list[tuple[Any, Tensor]] | None = None
        super().__init__(*args, **kwargs)

    def _get_per_token_logps_and_entropies(
        self, model: Any, model_inputs: Any, grpo_batch: Any, **kwargs: Any
    ) -> Any:
        captured = self._captured
        if captured is None or model is not self.model or torch.is_grad_enabled():
            return super()._get_per_token_logps_and_entropies(
                model, model_inputs, grpo_batch, **kwargs
            )
        kwargs["compute_entropy"] = True
        logprob, entropy = super()._get_per_token_logps_and_entropies(
            model, model_inputs, grpo_batch, **kwargs
        )
        # The first pass over a batch is the policy's. With an adapter, a reference's comes second.
        if not any(batch is grpo_batch for batch, _ in captured):
            captured.append((grpo_batch, entropy))
        return logprob, entropy

    def _prepare_batch_inputs(self, *args: Any, **kwargs: Any) -> Any:
        # The pass of the old policy runs in here, always; its entropies would be dropped.
        self._captured = []
        try:
            batches = super()._prepare_batch_inputs(*args, **kwargs)
            self._entropies = self._captured
        finally:
            self._captured = None
        return batches

    def _postprocess_batch(self, samples: Any, batches: Any) -> None:
        super()._postprocess_batch(samples, batches)  # fills in the advantages, (B, T)
        if not self.model.training:
            return  # an evaluation must not move the state
        held = [batch["grpo_batch"] for batch in batches]
        entropies = [
            next(entropy for batch, entropy in self._entropies if batch is one) for one in held
        ]
        shaped, scalars = self.shaper.shape(
            [
                Rows(
                    advantage=batch.advantages,
                    mask=batch.completion_mask.bool(),
                    entropy=entropy,
                    logprob=batch.old_per_token_logps,
                )
                for batch, entropy in zip(held, entropies, strict=True)
            ]
        )
        for batch, advantages in zip(held, shaped, strict=True):
            batch.advantages = advantages
        for name, value in scalars.items():
            self._metrics["train"][name].append(value)

    def _save_checkpoint(self, model: Any, trial: Any, **kwargs: Any) -> Any:
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial))
            self.shaper.save(folder / f"checkpoint-{self.state.global_step}")
        return super()._save_checkpoint(model, trial, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.shaper.load(Path(checkpoint))


orms["uadt"] = Reward
TrainerFactory.TRAINER_MAPPING["grpo"] = f"{__name__}.UADTGRPOTrainer"
