r"""From a parsed answer and a reference to a score.

$$r = w_{\text{format}} \cdot \text{format} + w_{\text{accuracy}} \cdot \text{accuracy}$$

Pure and thread-safe. A completion that is not well formed has no answer: accuracy 0, unless
``lenient``. ``None`` is not 0: the item could not be scored. A reference that cannot be read is an
error, never a free point: call `check_reference` when the data is loaded.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, get_args

from uadt.answers import MAX_ANSWER, clean_answer, find_answer, parse_completion, tag_counts
from uadt.choices import Options, read_letters, read_verdict
from uadt.diagnosis import parse_diagnosis

__all__ = [
    "Matcher",
    "Partial",
    "Score",
    "Scorer",
    "Task",
    "Weights",
    "check_reference",
    "diagnosis",
    "format_reward",
    "multiple_choice",
    "score",
    "single_choice",
    "true_false",
]

Task: TypeAlias = Literal["single_choice", "multiple_choice", "true_false", "diagnosis"]
"""The four kinds of questions in MM-Retinal-Reason."""
Partial: TypeAlias = Literal["jaccard", "f1", "penalised"]
"""Ways to give credit for a part of a multiple choice."""
Matcher: TypeAlias = Callable[[str, str], float | None]
"""A similarity or a judge: ``(answer, truth)`` to a number within [0, 1], or ``None``."""


class Weights(NamedTuple):
    """What the two parts of a score count. Both 1 by default: **ours**, no source gives them."""

    format: float = 1.0
    """Weight of the form."""
    accuracy: float = 1.0
    """Weight of the accuracy."""


class Score(NamedTuple):
    """What a completion earns."""

    total: float | None
    """The weighted sum; ``None`` if the item is unscorable."""
    format: float
    """Form, within [0, 1]."""
    accuracy: float | None
    """Accuracy, within [0, 1]; ``None`` if the item is unscorable."""


def format_reward(text: str, *, graded: bool = False) -> float:
    """Return whether a completion has the form that the prompt asks for.

    Args:
        text: The completion.
        graded: ``False`` for 0 or 1. ``True`` for one fifth for each of the four tags that
            occurs exactly once, and the last fifth for a well-formed completion (**ours**): a
            start for models that never hit the form. A tag written twice earns nothing.

    Returns:
        A number within [0, 1].

    Example:
        >>> format_reward("<think>…</think><answer>B</answer>")
        1.0
        >>> format_reward("<answer>B</answer>"), format_reward("<answer>B</answer>", graded=True)
        (0.0, 0.4)
    """
    well_formed = parse_completion(text).well_formed
    if not graded or well_formed:
        return float(well_formed)
    return sum(count == 1 for count in tag_counts(text)) / 5


def single_choice(
    text: str, truth: str, *, options: Options | None = None, lenient: bool = False
) -> float:
    """Return 1 if a completion names exactly the right option.

    How one is named: `uadt.choices.read_letters`. Two different letters are wrong.

    Args:
        text: The completion.
        truth: The reference, in any form that would be a right answer.
        options: What can be chosen, if known; then an option's own text counts.
        lenient: See `uadt.answers.find_answer`.

    Returns:
        0 or 1.

    Raises:
        ValueError: If the reference does not name exactly one option.

    Example:
        >>> single_choice("<think>…</think><answer>B: Drusen</answer>", "B")
        1.0
    """
    right = _letters_of(truth, options, "single_choice")
    answer = find_answer(text, lenient=lenient) or ""
    return float(read_letters(answer, options=options) == right)


def multiple_choice(
    text: str,
    truth: str,
    *,
    partial: Partial | None = None,
    lenient: bool = False,
    options: Options | None = None,
) -> float:
    r"""Return how well the set of options that a completion names fits.

    Order, case, blanks and repetitions do not matter. With the named set $A$ and the right one
    $R$:

    | ``partial`` | value | all of five named, two right |
    |---|---|---|
    | ``None`` | 1 if $A = R$, else 0 | 0 |
    | ``"jaccard"`` | $\lvert A \cap R\rvert / \lvert A \cup R\rvert$ | 0.4 |
    | ``"f1"`` | $2\lvert A \cap R\rvert / (\lvert A\rvert + \lvert R\rvert)$ | 0.571 |
    | ``"penalised"`` | $\max(0, 2\lvert A \cap R\rvert - \lvert A\rvert) / \lvert R\rvert$ | 0 |

    Penalised takes off one for each wrong. **Trap.** Jaccard and F1 pay for naming everything
    (last column). All choices are **ours**; the authors' scorer is not published.

    Args:
        text: The completion.
        truth: The reference, such as ``"A,B,D"``.
        partial: Credit for a part; see the table.
        lenient: See `uadt.answers.find_answer`.
        options: What can be chosen, if known; then an option's own text counts.

    Returns:
        A number within [0, 1].

    Raises:
        ValueError: If the reference names no option, or ``partial`` is unknown.

    Example:
        >>> multiple_choice("<think>…</think><answer>d, a</answer>", "A,D")
        1.0
        >>> multiple_choice("<think>…</think><answer>A</answer>", "A,D", partial="jaccard")
        0.5
    """
    _one_of("partial", partial, (None, *get_args(Partial)))
    right = _letters_of(truth, options, "multiple_choice")
    named = read_letters(find_answer(text, lenient=lenient) or "", options=options)
    if not named:
        return 0.0
    hits = len(named & right)
    if partial == "jaccard":
        return hits / len(named | right)
    if partial == "f1":
        return 2 * hits / (len(named) + len(right))
    if partial == "penalised":
        return max(0.0, (2 * hits - len(named)) / len(right))
    return float(named == right)


def true_false(
    text: str, truth: str, *, lenient: bool = False, options: Options | None = None
) -> float:
    """Return 1 if a completion gives the right verdict.

    What counts as a verdict: `uadt.choices.read_verdict`.

    Args:
        text: The completion.
        truth: The reference: ``"True"``, ``"no"``, …, or a letter with ``options``.
        lenient: See `uadt.answers.find_answer`.
        options: What the letters stand for, if the question lists ``A: True`` and ``B: False``.

    Returns:
        0 or 1.

    Raises:
        ValueError: If the reference is no verdict, or an option is neither true nor false.

    Example:
        >>> true_false("<think>…</think><answer>False.</answer>", "false")
        1.0
    """
    right = read_verdict(truth, options=options)
    if right is None:
        raise ValueError(f"a reference of true_false must be true or false, got {truth[:80]!r}")
    answer = find_answer(text, lenient=lenient) or ""
    return float(read_verdict(answer, options=options) is right)


def diagnosis(
    text: str,
    truth: str,
    *,
    synonyms: Mapping[str, str] | None = None,
    matcher: Matcher | None = None,
    lenient: bool = False,
) -> float | None:
    """Return whether a completion names the right diagnosis.

    Equal after normalisation and synonyms (`uadt.diagnosis.same_diagnosis`) is 1. Otherwise the
    matcher decides, if there is one; it is asked only about an answer that names something.

    Args:
        text: The completion.
        truth: The name of the diagnosis.
        synonyms: More names, ``{other: preferred}``, beside the shipped table.
        matcher: A similarity (`uadt.similarity`) or a judge, called with the cleaned answer and
            the reference.
        lenient: See `uadt.answers.find_answer`.

    Returns:
        A number within [0, 1], or ``None`` if the matcher failed: it raised, or returned
        ``None`` or anything but a number within [0, 1].

    Raises:
        ValueError: If the reference names nothing.
        ImportError: If the matcher needs a package that is missing: no failure of a judge.

    Example:
        >>> diagnosis("<think>…</think><answer>CRAO</answer>", "Central retinal artery occlusion")
        1.0
    """
    right = parse_diagnosis(truth, synonyms=synonyms)
    if not right.name:
        raise ValueError(
            f"a reference of diagnosis must be a name within {MAX_ANSWER} characters, "
            f"got {truth[:80]!r}"
        )
    answer = clean_answer(find_answer(text, lenient=lenient) or "")
    named = parse_diagnosis(answer, synonyms=synonyms)
    if named.agrees(right):
        return 1.0
    return 0.0 if matcher is None or not named.name else _judged(matcher, answer, truth)


def check_reference(truth: str, *, task: Task, options: Options | None = None) -> None:
    """Refuse a reference that no answer could be compared with.

    Args:
        truth: The reference.
        task: What kind of question it answers.
        options: What can be chosen, if known.

    Raises:
        ValueError: If the reference cannot be read, or the task is unknown.

    Example:
        >>> check_reference("A,C", task="single_choice")
        Traceback (most recent call last):
        ValueError: a reference of single_choice must name exactly one option, got 'A,C'
    """
    Scorer(task=task)("", truth, options=options)


def score(
    text: str,
    truth: str,
    *,
    task: Task,
    weights: Weights | tuple[float, float] = Weights(),  # noqa: B008 - immutable
    options: Options | None = None,
    partial: Partial | None = None,
    synonyms: Mapping[str, str] | None = None,
    matcher: Matcher | None = None,
    lenient: bool = False,
    graded: bool = False,
) -> Score:
    """Score a completion: form, accuracy, and their weighted sum.

    Args:
        text: The completion.
        truth: The reference.
        task: ``"single_choice"``, ``"multiple_choice"``, ``"true_false"`` or ``"diagnosis"``.
        weights: Of form and accuracy.
        options: What can be chosen, for the choices and for true or false with letters.
        partial: Credit for a part of a multiple choice.
        synonyms: More names of diagnoses.
        matcher: A similarity or a judge for diagnoses.
        lenient: Whether a completion that is not well formed can be right.
        graded: Whether the form earns partial credit.

    Returns:
        The three numbers.

    Raises:
        ValueError: If the reference cannot be read, or a setting is unknown.

    Example:
        >>> score("<think>…</think><answer>C</answer>", "B", task="single_choice")
        Score(total=1.0, format=1.0, accuracy=0.0)
    """
    scorer = Scorer(weights=Weights(*weights), partial=partial, synonyms=synonyms,
                    matcher=matcher, lenient=lenient, graded=graded)  # fmt: skip
    return scorer(text, truth, task=task, options=options)


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """`score` with its settings bound: a picklable callable for workers.

    It pickles if its matcher does: a module-level function or one of `uadt.similarity`.

    Example:
        >>> scorer = Scorer(task="multiple_choice", partial="f1")
        >>> scorer("<think>…</think><answer>A</answer>", "A,B").accuracy  # 2 · 1 / (1 + 2)
        0.6666666666666666
    """

    task: Task | None = None
    """What kind of question; ``None`` if each call says."""
    weights: Weights = Weights()  # noqa: RUF009 - immutable
    """Of form and accuracy: finite and not negative."""
    partial: Partial | None = None
    """Credit for a part of a multiple choice."""
    synonyms: Mapping[str, str] | None = None
    """More names of diagnoses."""
    matcher: Matcher | None = None
    """A similarity or a judge for diagnoses."""
    lenient: bool = False
    """Whether a completion that is not well formed can be right."""
    graded: bool = False
    """Whether the form earns partial credit."""

    def __post_init__(self) -> None:
        """Check the settings."""
        _one_of("task", self.task, (None, *get_args(Task)))
        _one_of("partial", self.partial, (None, *get_args(Partial)))
        if not all(0 <= weight < math.inf for weight in self.weights):
            raise ValueError(f"weights must be finite and not negative, got {tuple(self.weights)}")

    def __call__(
        self, text: str, truth: str, *, task: str | None = None, options: Options | None = None
    ) -> Score:
        """Score a completion.

        Args:
            text: The completion.
            truth: The reference.
            task: What kind of question, if not bound.
            options: What can be chosen.

        Returns:
            Total, form and accuracy.

        Raises:
            ValueError: If the reference cannot be read, or the task is unknown.
        """
        kind = self.task if task is None else task
        _one_of("task", kind, get_args(Task))
        if kind == "single_choice":
            accuracy = single_choice(text, truth, options=options, lenient=self.lenient)
        elif kind == "multiple_choice":
            accuracy = multiple_choice(
                text, truth, partial=self.partial, lenient=self.lenient, options=options
            )
        elif kind == "true_false":
            accuracy = true_false(text, truth, lenient=self.lenient, options=options)
        else:
            accuracy = diagnosis(
                text, truth, synonyms=self.synonyms, matcher=self.matcher, lenient=self.lenient
            )
        form = format_reward(text, graded=self.graded)
        if accuracy is None:
            return Score(None, form, None)
        return Score(self.weights.format * form + self.weights.accuracy * accuracy, form, accuracy)


def _one_of(name: str, value: str | None, known: tuple[str | None, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {known}, got {value!r}")


def _letters_of(truth: str, options: Options | None, task: Task) -> frozenset[str]:
    letters = read_letters(truth, options=options)
    wanted = "exactly one option" if task == "single_choice" else "one option or more"
    if not letters or (task == "single_choice" and len(letters) > 1):
        raise ValueError(f"a reference of {task} must name {wanted}, got {truth[:80]!r}")
    return letters


def _judged(matcher: Matcher, answer: str, truth: str) -> float | None:
    try:
        value = matcher(answer, truth)
        return float(value) if value is not None and 0 <= value <= 1 else None
    except ImportError:
        raise
    except Exception:  # a judge is a foreign service: whatever it raises, the item is unscored
        return None
