# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
# verl is not typed.
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

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from uadt.rewards import Scorer, Weights
from uadt.similarity import MATCHERS

__all__ = ["compute_score"]


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    *,
    task: str | None = None,
    weights: Sequence[float] = (1.0, 1.0),
    partial: str | None = None,
    matcher: str | None = None,
    threshold: float | None = None,
    lenient: bool = False,
    graded: bool = False,
    **unused: Any,
) -> dict[str, float]:
    """Score a completion for verl.

    Args:
        data_source: Not read.
        solution_str: The completion, without special tokens.
        ground_truth: The reference.
        extra_info: ``task`` says what kind of question it is, if ``task`` does not; ``options``
            is what can be chosen.
        task: ``"single_choice"``, ``"multiple_choice"``, ``"true_false"`` or ``"diagnosis"``.
        weights: Of form and accuracy.
        partial: Credit for a part of a multiple choice; see `uadt.rewards.multiple_choice`.
        matcher: A similarity for diagnoses, a name of `uadt.similarity.MATCHERS`.
        threshold: From which similarity on an answer is right; ``None`` takes it as it is.
        lenient: Whether a completion that is not well formed can be right.
        graded: Whether the form earns partial credit.
        unused: What verl adds for reward models.

    Returns:
        ``score``, which verl trains on, and ``format``, ``accuracy`` and ``unscorable``, which
        it keeps as extra information and averages in validation. verl needs a number: an
        unscorable item has score 0 and ``unscorable`` 1.

    Raises:
        ValueError: If no task is named, or the reference cannot be read.

    Example:
        >>> compute_score("", "<think>…</think><answer>B</answer>", "B", {"task": "single_choice"})
        {'score': 2.0, 'format': 1.0, 'accuracy': 1.0, 'unscorable': 0.0}
    """
    info = extra_info or {}
    kind = task or info.get("task")
    if not kind:
        raise ValueError(
            "the task must be named, in reward_kwargs or in the data's extra_info.task; "
            f"extra_info holds {sorted(info)}"
        )
    scorer = _scorer(tuple(weights), partial, matcher, threshold, lenient, graded)
    options = info.get("options")
    found = scorer(
        solution_str,
        str(ground_truth),
        task=str(kind),
        options=None if options is None or len(options) == 0 else list(options),
    )
    return {
        "score": 0.0 if found.total is None else float(found.total),
        "format": float(found.format),
        "accuracy": 0.0 if found.accuracy is None else float(found.accuracy),
        "unscorable": float(found.total is None),
    }


@functools.cache
def _scorer(
    weights: tuple[float, ...],
    partial: Any,
    matcher: str | None,
    threshold: float | None,
    lenient: bool,
    graded: bool,
) -> Scorer:
    if matcher is not None and matcher not in MATCHERS:
        raise ValueError(f"matcher must be one of {sorted(MATCHERS)}, got {matcher!r}")
    return Scorer(
        weights=Weights(*weights),
        partial=partial,
        matcher=None if matcher is None else MATCHERS[matcher](threshold=threshold),
        lenient=lenient,
        graded=graded,
    )
