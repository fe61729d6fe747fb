# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
# pyright: reportUntypedBaseClass=false
# verl is not typed.
"""A reward manager for verl whose reward function sees the images of the prompt."""

import functools
import inspect
from typing import Any

from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from uadt.integrations.verl.rewards import compute_score as default_score

__all__ = ["ImageRewardManager"]


class ImageRewardManager(RewardManagerBase):
    """verl's naive manager, with ``extra_info["images"]``: the PIL images of the prompt.

    Its function is ``reward.custom_reward_function`` if one is set, otherwise
    `uadt.integrations.verl.rewards.compute_score`.
    """

    def __init__(
        self,
        config: Any,
        tokenizer: Any,
        compute_score: Any,
        reward_router_address: Any = None,
        reward_model_tokenizer: Any = None,
    ) -> None:
        """Take what verl hands to every manager."""
        super().__init__(config, tokenizer, compute_score)
        chosen = (config.reward.get("custom_reward_function") or {}).get("path")
        self.score: Any = compute_score if chosen else default_score

    async def run_single(self, data: Any) -> dict[str, Any]:
        """Score one completion; of a session with several outputs, the last."""
        item = data[-1:][0]
        response = item.batch["responses"]
        length = int(item.batch["attention_mask"][-response.shape[-1] :].sum())
        tokenizer: Any = self.tokenizer
        text = tokenizer.decode(response[:length], skip_special_tokens=True)
        fields = item.non_tensor_batch
        arguments = {
            "data_source": fields["data_source"],
            "solution_str": text,
            "ground_truth": fields["reward_model"]["ground_truth"],
            "extra_info": {
                **(fields.get("extra_info") or {}),
                "images": _images(fields["raw_prompt"]),
            },
        }
        if inspect.iscoroutinefunction(self.score):
            scored = await self.score(**arguments)
        else:
            call = functools.partial(self.score, **arguments)
            scored = await self.loop.run_in_executor(None, call)
        if not isinstance(scored, dict):
            scored = {"score": scored, "acc": scored}
        return {"reward_score": scored["score"], "reward_extra_info": dict(scored)}


def _images(messages: Any) -> list[Any]:
    return [
        part["image"]
        for message in messages
        if not isinstance(message["content"], str)
        for part in message["content"]
        if part.get("type") == "image"
    ]
