# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# verl is not typed.
"""What is said, and when a run ends, where prompts fail in verl's rollout.

A prompt fails when its reward function raises, or its server does. In the sync mode verl trains on
the completions that are left. In the asynchronous modes it replaces the prompt by another one, for
ever: a reward function that always raises is then a run that never ends.
"""

import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

__all__ = ["FAILURES", "count_groups_of_one", "end_after_failures"]

FAILURES = 64
"""After how many failed prompts, with none between them that did not fail, a run ends (ours)."""

_logger = logging.getLogger(__name__)


def end_after_failures(buffer: Any) -> None:
    """Let a replay buffer of verl raise after `FAILURES` failed prompts in a row.

    Args:
        buffer: verl's; a sampler of the user's own may lack the method, and is left as it is.
    """
    evict = getattr(buffer, "_evict_terminal_groups", None)
    if evict is None:
        return
    failed, known = 0, set[str]()

    def counted(global_steps: int, partition_id: str, reasons: Any) -> Any:
        nonlocal failed, known
        finished = set(buffer.finished_keys[partition_id])
        if finished - known:
            failed = 0
        known = finished
        failed += len(reasons[2])
        if failed >= FAILURES:
            raise RuntimeError(
                f"{failed} prompts in a row have failed, and none came through: the log has the "
                "errors of the reward function or the rollout"
            )
        return evict(global_steps, partition_id, reasons)

    buffer._evict_terminal_groups = counted


def count_groups_of_one(keys: Sequence[str]) -> int:
    """Count the groups of which one session is left, and say so in the log.

    An estimator that compares the members of a group has nothing to compare such a completion with;
    verl's GRPO takes its reward as it is for its advantage.

    Args:
        keys: verl's names of the rows, ``prompt_session_output``, without padding.

    Returns:
        How many.

    Example:
        >>> count_groups_of_one(["a_0_0", "a_1_0", "b_2_0", "b_2_1"])
        1
    """
    sessions: dict[str, set[str]] = defaultdict(set)
    for key in keys:
        prompt, session, _ = key.rsplit("_", 2)
        sessions[prompt].add(session)
    alone = sum(len(found) == 1 for found in sessions.values())
    if alone:
        _logger.warning(
            "%d of %d groups have a single completion, the others failed: verl's GRPO takes its "
            "reward as it is for its advantage",
            alone,
            len(sessions),
        )
    return alone
