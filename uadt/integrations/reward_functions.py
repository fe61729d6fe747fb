"""`uadt.rewards` in the signatures of the stacks; no stack is imported.

| stack | entry | unscorable items |
|---|---|---|
| verl 0.9 | `compute_score` | score 0 and ``unscorable`` 1 in the extra info |
| TRL, Unsloth, ms-swift | `BatchReward` | ``None`` |
| OpenRLHF | `OpenRLHFReward` | reward 0 and ``unscorable`` 1 in the extra logs |
| EasyR1 | `easyr1_compute_score` | overall 0 and ``unscorable`` 1 |
| AReaL | `areal_reward` | 0 |
| slime | `slime_reward` | 0 |
| RLinf | `rlinf_reward` | 0 |

What a stack hands over beside the completion is one *item*: the reference and, where there is a
place for them, the task and the options. A stack with a place for one string only takes the item
as JSON: ``{"truth": "B", "task": "single_choice", "options": {"A": "Drusen", "B": "Glaucoma"}}``.
A reference that cannot be read is a ``ValueError`` in every entry.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, NamedTuple, cast

from uadt.rewards import Matcher, Score, Scorer, Task, Weights
from uadt.similarity import MATCHERS

__all__ = [
    "BatchReward",
    "Item",
    "OpenRLHFReward",
    "areal_reward",
    "compute_score",
    "easyr1_compute_score",
    "make_scorer",
    "parse_item",
    "rlinf_reward",
    "slime_reward",
]

_END_TOKENS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<end_of_turn>", "</s>", "<eos>")


class Item(NamedTuple):
    """What a completion is compared with."""

    truth: str
    """The reference."""
    task: str | None = None
    """The task; ``None`` if the scorer has it."""
    options: dict[str, str] | None = None
    """The options by letter, if known."""


def parse_item(truth: object, task: object = None, options: object = None) -> Item:
    """Read the reference, task and options as tables and configurations hold them.

    Args:
        truth: The reference: a string, a Boolean, or a JSON object with ``truth`` and perhaps
            ``task`` and ``options``.
        task: The task, if it has a place of its own; wins over the one in the object.
        options: A mapping, a sequence (an array as well), a JSON text of either, or ``None``.
            Letters without a text are left out: columns of Arrow fill them in.

    Returns:
        The item.

    Raises:
        ValueError: If it is no JSON or lacks ``truth``.

    Example:
        >>> parse_item('{"truth": "B", "task": "single_choice"}')
        Item(truth='B', task='single_choice', options=None)
        >>> parse_item("B", "single_choice", {"A": "Drusen", "B": "Glaucoma", "C": None}).options
        {'A': 'Drusen', 'B': 'Glaucoma'}
    """
    if isinstance(truth, str) and truth.lstrip().startswith("{"):
        held = json.loads(truth)
        if "truth" not in held:
            raise ValueError(f"a reference as JSON must have the key 'truth', got {sorted(held)}")
        held = {
            **held,
            **{k: v for k, v in (("task", task), ("options", options)) if v is not None},
        }
        return parse_item(held["truth"], held.get("task"), held.get("options"))
    if isinstance(options, str):
        options = json.loads(options) if options else None
    return Item(str(truth), None if task is None else str(task), _by_letter(options))


def _by_letter(options: object) -> dict[str, str] | None:
    if options is None:
        return None
    if isinstance(options, Mapping):
        pairs: Iterable[tuple[object, object]] = cast("Mapping[object, object]", options).items()
    else:
        texts = list(cast("Iterable[object]", options))
        pairs = ((chr(ord("A") + index), text) for index, text in enumerate(texts))
    return {str(letter): str(text) for letter, text in pairs if text is not None} or None


def make_scorer(
    *,
    task: str | None = None,
    format_weight: float = 1.0,
    accuracy_weight: float = 1.0,
    partial: str | None = None,
    synonyms: Mapping[str, str] | None = None,
    matcher: str | None = None,
    matcher_threshold: float | None = None,
    lenient: bool = False,
    graded: bool = False,
) -> Scorer:
    """Build a scorer from plain settings, as a configuration file holds them.

    Args:
        task: The task, if all items have the same.
        format_weight: Weight of the form.
        accuracy_weight: Weight of the accuracy.
        partial: Credit for a part of a multiple choice.
        synonyms: More names of diagnoses.
        matcher: A name in `uadt.similarity.MATCHERS`, or a judge as ``package.module:function``.
        matcher_threshold: Likeness from which an answer is right; ``None`` for graded credit.
        lenient: Whether a completion that is not well formed can be right.
        graded: Whether the form earns partial credit.

    Returns:
        The scorer.

    Example:
        >>> make_scorer(task="diagnosis", matcher="chrf", matcher_threshold=0.9).matcher
        Chrf(threshold=0.9)
    """
    compare: Matcher | None = None
    if matcher is not None and ":" in matcher:
        module, _, name = matcher.partition(":")
        compare = getattr(import_module(module), name)
    elif matcher is not None:
        if matcher not in MATCHERS:
            raise ValueError(f"matcher must be one of {sorted(MATCHERS)}, got {matcher!r}")
        compare = MATCHERS[matcher](threshold=matcher_threshold)
    return Scorer(
        task=cast("Task | None", task), weights=Weights(format_weight, accuracy_weight),
        partial=cast("Any", partial), synonyms=None if synonyms is None else dict(synonyms),
        matcher=compare, lenient=lenient, graded=graded,
    )  # fmt: skip


def _numbers(score: Score) -> dict[str, float]:
    # For stacks that take numbers only: unscorable is 0, and says so.
    return {
        "score": 0.0 if score.total is None else score.total,
        "format": score.format,
        "accuracy": 0.0 if score.accuracy is None else score.accuracy,
        "unscorable": float(score.accuracy is None),
    }


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: object,
    extra_info: Mapping[str, Any] | None = None,
    **settings: Any,
) -> dict[str, float]:
    """Score one completion for verl.

    ``reward.custom_reward_function.path=pkg://uadt.integrations.reward_functions`` and
    ``….name=compute_score``; settings of `make_scorer` go under ``….reward_kwargs``.

    Args:
        data_source: Not used: the task says how to score.
        solution_str: The completion.
        ground_truth: The reference; see `parse_item`.
        extra_info: ``task`` and ``options``, if the data has them.
        **settings: See `make_scorer`; what verl's reward loop adds is passed over.

    Returns:
        ``score``, ``format``, ``accuracy``, ``unscorable``: numbers, the same keys for each item.

    Example:
        >>> compute_score("x", "<think>…</think><answer>B</answer>", "B", {"task": "single_choice"})
        {'score': 2.0, 'format': 1.0, 'accuracy': 1.0, 'unscorable': 0.0}
    """
    extra = extra_info or {}
    item = parse_item(ground_truth, extra.get("task"), extra.get("options"))
    for name in ("reward_router_address", "reward_model_tokenizer"):
        settings.pop(name, None)
    scorer = make_scorer(**settings)
    return _numbers(scorer(solution_str, item.truth, task=item.task, options=item.options))


@dataclass(frozen=True, kw_only=True)
class BatchReward:
    """Score a batch for TRL, Unsloth and ms-swift.

    ``GRPOTrainer(reward_funcs=BatchReward(scorer=Scorer(task="single_choice")), …)``; for ms-swift,
    a plugin with ``orms["uadt"] = lambda *_, **__: BatchReward(…)``. Picklable.

    Example:
        >>> reward = BatchReward(scorer=Scorer(task="single_choice"))
        >>> reward(completions=["<think>…</think><answer>B</answer>", "B"], ground_truth=["B", "B"])
        [2.0, 0.0]
    """

    scorer: Scorer = field(default_factory=Scorer)
    """How to score; without a task, each row needs one."""
    part: str = "total"
    """``"total"``, ``"format"`` or ``"accuracy"``: for trainers that weigh and log parts."""
    truth_column: str = "ground_truth"
    """Column of the references; see `parse_item`."""
    task_column: str = "task"
    """Column of the tasks; may be missing."""
    options_column: str = "options"
    """Column of the options; may be missing."""

    def __post_init__(self) -> None:
        """Check the part."""
        if self.part not in Score._fields:
            raise ValueError(f"part must be one of {Score._fields}, got {self.part!r}")

    @property
    def __name__(self) -> str:
        """The name under which a trainer logs it."""
        return f"uadt_{self.part}"

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Score completions.

        Args:
            completions: Texts, or lists of messages, of which the last one counts.
            **columns: The columns of the data set, and whatever else the trainer passes.

        Returns:
            A number a completion; ``None`` where it is unscorable.

        Raises:
            ValueError: If the column of references is missing, or a reference cannot be read.
        """
        if self.truth_column not in columns:
            raise ValueError(
                f"the data must have the column {self.truth_column!r}, got {sorted(columns)}"
            )
        nothing = [None] * len(completions)
        tasks = columns.get(self.task_column, nothing)
        options = columns.get(self.options_column, nothing)
        rows = zip(completions, columns[self.truth_column], tasks, options, strict=True)
        scores: list[float | None] = []
        for completion, *row in rows:
            item = parse_item(*row)
            text = _text_of(completion)
            score = self.scorer(text, item.truth, task=item.task, options=item.options)
            scores.append(getattr(score, self.part))
        return scores


def _text_of(completion: Any) -> str:
    # A text, or messages whose content is a text or a list of parts.
    if isinstance(completion, str):
        return completion
    content: Any = completion[-1]["content"] if completion else ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content or ())


@dataclass(frozen=True, kw_only=True)
class OpenRLHFReward:
    """Score for OpenRLHF (``--reward.remote_url rewards.py``).

    In that file: ``reward_func = OpenRLHFReward(scorer=…)``. The label is the reference or an item
    as JSON. A query holds the prompt and special tokens; both are cut off.
    """

    scorer: Scorer = field(default_factory=Scorer)
    """How to score; without a task, each label needs one."""

    def __call__(
        self, queries: Sequence[str], prompts: Sequence[str], labels: Sequence[object], **_: object
    ) -> dict[str, Any]:
        """Score completions.

        Args:
            queries: Prompt and completion, special tokens included.
            prompts: The prompts.
            labels: The references; see `parse_item`.
            **_: Not used.

        Returns:
            ``rewards``, ``scores`` (the accuracies, by which OpenRLHF filters) and ``extra_logs``.
        """
        import torch  # OpenRLHF wants tensors; everything else here works without

        rows: list[dict[str, float]] = []
        for query, prompt, label in zip(queries, prompts, labels, strict=True):
            item = parse_item(label)
            text = _without_prompt(query, prompt)
            score = self.scorer(text, item.truth, task=item.task, options=item.options)
            rows.append(_numbers(score))
        names = _numbers(Score(0.0, 0.0, 0.0))
        columns = {name: torch.tensor([row[name] for row in rows]) for name in names}
        rewards, accuracy = columns.pop("score"), columns["accuracy"]
        return {"rewards": rewards, "scores": accuracy, "extra_logs": columns}


def _without_prompt(query: str, prompt: str) -> str:
    # The stack cuts a long prompt on the left: find what is left of it.
    head = query[: min(32, len(prompt))]
    at = prompt.find(head)
    while at >= 0 and not query.startswith(prompt[at:]):
        at = prompt.find(head, at + 1)
    if at < 0:
        raise ValueError(f"a query must hold its prompt, got {query[:80]!r}")
    text = query[len(prompt) - at :]
    end = len(text)
    while True:
        stripped = next((end - len(t) for t in _END_TOKENS if text.endswith(t, 0, end)), end)
        while stripped and text[stripped - 1].isspace():
            stripped -= 1
        if stripped == end:
            return text[:end]
        end = stripped


def easyr1_compute_score(reward_input: Any, **settings: Any) -> Any:
    """Score one completion or a batch for EasyR1.

    Args:
        reward_input: ``response`` and ``ground_truth`` (or an item as JSON), or a list.
        **settings: See `make_scorer`.

    Returns:
        ``overall``, ``format``, ``accuracy``, ``unscorable``; a list of these for a list.

    Example:
        >>> row = {"response": "<think>…</think><answer>B</answer>", "ground_truth": "B"}
        >>> easyr1_compute_score(row, task="single_choice")
        {'overall': 2.0, 'format': 1.0, 'accuracy': 1.0, 'unscorable': 0.0}
    """
    if not isinstance(reward_input, Mapping):
        return [easyr1_compute_score(row, **settings) for row in reward_input]
    row = cast("Mapping[str, Any]", reward_input)
    numbers = compute_score("", row["response"], row["ground_truth"], None, **settings)
    return {"overall": numbers.pop("score"), **numbers}


def areal_reward(prompt: str, completions: str, *_: object, **row: Any) -> float:
    """Score one completion for AReaL.

    Args:
        prompt: Not used.
        completions: The completion.
        *_: Token ids, not used.
        **row: The row of the data: ``ground_truth`` (or ``answer``), ``task``, ``options``.

    Returns:
        The reward; 0 if unscorable.

    Example:
        >>> areal_reward("", "<think>…</think><answer>B</answer>", answer="B", task="single_choice")
        2.0
    """
    truth = row["ground_truth"] if "ground_truth" in row else row["answer"]
    return compute_score("", completions, truth, row)["score"]


async def slime_reward(args: object, sample: Any, **_: object) -> Any:
    """Score a sample, or a list of samples, for slime (``--custom-rm-path``).

    Args:
        args: Not used.
        sample: With ``response``, ``label`` and ``metadata`` (``task``, ``options``), or a list.

    Returns:
        The reward, or a list of rewards; 0 if unscorable.
    """
    if isinstance(sample, list):
        return [await slime_reward(args, one) for one in cast("list[Any]", sample)]
    return compute_score("", sample.response, sample.label, sample.metadata or {})["score"]


def rlinf_reward(completions: Sequence[str], answers: Sequence[object]) -> list[float]:
    """Score a batch for RLinf (``get_reward``).

    Args:
        completions: The completions.
        answers: The items, as JSON.

    Returns:
        A reward a completion; 0 if unscorable.

    Example:
        >>> item = '{"truth": "CRAO", "task": "diagnosis"}'
        >>> rlinf_reward(["<think>…</think><answer>CRAO</answer>"], [item])
        [2.0]
    """
    return [
        compute_score("", completion, answer)["score"]
        for completion, answer in zip(completions, answers, strict=True)
    ]
