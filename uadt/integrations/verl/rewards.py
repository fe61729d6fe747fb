"""`uadt.rewards` as verl wants it: a function, and a manager that also sees the images.

The function::

    reward.custom_reward_function.path=pkg://uadt.integrations.verl.rewards
    reward.custom_reward_function.name=compute_score
    '+reward.custom_reward_function.reward_kwargs={partial: f1}'

The manager, which hands ``extra_info["images"]`` to the same function or to one of yours::

    reward.reward_manager.source=importlib
    reward.reward_manager.module.path=pkg://uadt.integrations.verl.reward_manager
    reward.reward_manager.name=ImageRewardManager
"""

from uadt.integrations.reward_functions import compute_score

__all__ = ["compute_score"]
"""The entry of `uadt.integrations.reward_functions`; its settings go under ``reward_kwargs``."""
