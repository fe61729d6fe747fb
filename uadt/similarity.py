"""How alike an answer and a reference are, for answers that are right without being equal.

Thin wrappers over rapidfuzz, rouge-score and sacrebleu (``pip install "uadt[text]"``), each a
*matcher*: a picklable callable ``(answer, truth) -> float`` within [0, 1] for
`uadt.rewards.diagnosis`. Both texts are normalised first (see `uadt.diagnosis.normalise`).

**Trap.** Graded similarity pays for words that diagnoses share: *branch* and *central retinal
vein occlusion* are 75 % alike by ROUGE-L. For training, give a ``threshold`` or use synonyms
alone; graded values are for evaluation. Measures that ignore surplus words (token *set* ratio,
partial ratio) are left out: an answer that lists everything would win.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from uadt.diagnosis import normalise

__all__ = ["MATCHERS", "Bleu", "Chrf", "EditRatio", "RougeL", "TokenSortRatio"]


def _missing(package: str, error: ImportError) -> ImportError:
    return ImportError(f'this matcher needs {package}: pip install "uadt[text]" ({error})')


@dataclass(frozen=True, kw_only=True)
class _Matcher:
    threshold: float | None = None
    """``None`` for the graded value; or a number in (0, 1]: at least that alike is 1, less is 0."""

    def __post_init__(self) -> None:
        """Check the threshold."""
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise ValueError(f"threshold must be within (0, 1], got {self.threshold}")

    def __call__(self, answer: str, truth: str) -> float:
        """Compare two texts.

        Args:
            answer: What was answered.
            truth: The reference.

        Returns:
            Likeness within [0, 1]; 0 or 1 with a threshold. An empty or overlong text is
            like nothing.

        Raises:
            ImportError: If the library behind the matcher is not installed.
        """
        answer, truth = normalise(answer), normalise(truth)
        if not answer or not truth:
            return 0.0
        value = min(max(self._compare(answer, truth), 0.0), 1.0)
        return value if self.threshold is None else float(value >= self.threshold)

    def _compare(self, answer: str, truth: str) -> float:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class EditRatio(_Matcher):
    r"""Insertions and deletions between the characters, normalised (rapidfuzz ``ratio``).

    $$1 - \frac{\text{insertions} + \text{deletions}}{|a| + |b|}$$

    Example:
        >>> EditRatio()("glaucoma", "glaucom")  # 1 - 1 / (8 + 7)
        0.9333333333333333
    """

    def _compare(self, answer: str, truth: str) -> float:
        try:
            from rapidfuzz.distance import Indel
        except ImportError as error:
            raise _missing("rapidfuzz", error) from error
        return Indel.normalized_similarity(answer, truth)


@dataclass(frozen=True, kw_only=True)
class TokenSortRatio(_Matcher):
    """`EditRatio` after sorting the words (rapidfuzz ``token_sort_ratio``).

    Example:
        >>> TokenSortRatio()("occlusion of retinal vein", "retinal vein occlusion of")
        1.0
    """

    def _compare(self, answer: str, truth: str) -> float:
        try:
            from rapidfuzz.fuzz import token_sort_ratio
        except ImportError as error:
            raise _missing("rapidfuzz", error) from error
        return token_sort_ratio(answer, truth) / 100


@dataclass(frozen=True, kw_only=True)
class RougeL(_Matcher):
    """F-measure of the longest common subsequence of words (rouge-score, no stemmer).

    Example:
        >>> RougeL()("branch vein occlusion", "branch retinal vein occlusion")  # 2 · ¾ / (1 + ¾)
        0.8571428571428571
    """

    def _compare(self, answer: str, truth: str) -> float:
        try:
            from rouge_score.rouge_scorer import RougeScorer
        except ImportError as error:
            raise _missing("rouge-score", error) from error
        scorer: Any = RougeScorer(["rougeL"])
        return float(scorer.score(truth, answer)["rougeL"].fmeasure)


@dataclass(frozen=True, kw_only=True)
class Bleu(_Matcher):
    """Sentence BLEU with the effective order (sacrebleu's defaults otherwise).

    Example:
        >>> Bleu()("drusen", "drusen")
        1.0
    """

    def _compare(self, answer: str, truth: str) -> float:
        try:
            from sacrebleu.metrics.bleu import BLEU
        except ImportError as error:
            raise _missing("sacrebleu", error) from error
        return BLEU(effective_order=True).sentence_score(answer, [truth]).score / 100


@dataclass(frozen=True, kw_only=True)
class Chrf(_Matcher):
    """F-score of character n-grams, chrF2 (sacrebleu): kinder than BLEU to short names.

    Example:
        >>> Chrf()("drusen", "drusen")
        1.0
    """

    def _compare(self, answer: str, truth: str) -> float:
        try:
            from sacrebleu.metrics.chrf import CHRF
        except ImportError as error:
            raise _missing("sacrebleu", error) from error
        return CHRF().sentence_score(answer, [truth]).score / 100


MATCHERS: Mapping[str, Callable[..., _Matcher]] = MappingProxyType(
    {
        "edit_ratio": EditRatio,
        "token_sort_ratio": TokenSortRatio,
        "rouge_l": RougeL,
        "bleu": Bleu,
        "chrf": Chrf,
    }
)
"""Every name that a configuration may use."""
