"""Questions about phantoms, with exact answers: the miniature's stand-in for MM-Retinal-Reason.

Three kinds, as in the paper: single choice (which lesion, or which grade), multiple choice (which
lesions) and complex (a history and a picture, and the name of a diagnosis). Every kind is balanced,
so that a model that does not look at the picture cannot do better than about one in four.

The traces for stage 2 come from a *teacher that makes mistakes* (`Teacher`), as traces distilled
from a language model do. Imitation learns the mistakes too; a reward for right answers can remove
them. That is what stage 3 has to win here, and it is *ours*: nothing of it is in the paper.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, Literal

from examples.ophthareason.phantom import GRADES, KINDS, Phantom, draw, usual_count

__all__ = [
    "CUP",
    "DIAGNOSES",
    "FINDINGS",
    "HISTORIES",
    "NOTHING",
    "SHOWN_GRADES",
    "PhantomItem",
    "Teacher",
    "caption",
    "caption_of",
    "grade_of",
    "pose",
    "record",
    "weighed",
]

Task = Literal["single_choice", "multiple_choice", "diagnosis"]

CUP = "large cup"
FINDINGS = (*KINDS, CUP)
"""What a trace lists, in its order."""
NOTHING = "none of these"

HISTORIES = {
    "diabetes": "has had diabetes for {years} years",
    "high blood pressure": "has had high blood pressure for {years} years",
    "sudden loss of sight": "reports a sudden loss of sight {years} hours ago",
}
"""The name of a history in a trace, and the words of a vignette."""

_RETINOPATHY = {
    "diabetes": "diabetic retinopathy",
    "high blood pressure": "hypertensive retinopathy",
    "sudden loss of sight": "retinal vein occlusion",
}
_AGE, _CUP, _CLEAR = "macular degeneration", "glaucoma", "normal retina"
DIAGNOSES = (*_RETINOPATHY.values(), _AGE, _CUP, _CLEAR)
"""The answers of complex items."""

SHOWN_GRADES = tuple(GRADES[grade] for grade in (0, 1, 2, 4))
"""The grades that a small picture can show; the options of a question of grade."""
_LETTERS = "ABCD"


@dataclass(kw_only=True)  # not frozen: omegaconf fills it field by field
class Teacher:
    """How often the writer of the stage-2 traces errs, and in which way. All *ours*.

    A teacher without mistakes (all zero) is the default.
    """

    letter: float = 0.0
    """Single choice of a lesion: names the letter of another option, within ``[0, 1]``."""
    grade: float = 0.0
    """Grades one step too low where there is something to grade, within ``[0, 1]``."""
    forgets: float = 0.0
    """Multiple choice: leaves one of several present lesions out, within ``[0, 1]``."""
    history: float = 0.0
    """Complex: calls every retinopathy diabetic and takes drusen for normal, within ``[0, 1]``."""

    def __post_init__(self) -> None:
        """Refuse what is no probability."""
        for name in ("letter", "grade", "forgets", "history"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be within [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PhantomItem:
    """One question, its picture, its right answer and the trace that the teacher wrote."""

    phantom: Phantom
    task: Task
    topic: str
    """What single-choice items ask for: ``lesion`` or ``grade``; else the task's own name."""
    question: str
    answer: str
    """The right answer: a letter, letters with commas, or a diagnosis."""
    reason: str
    """The teacher's thought."""
    taught: str
    """The teacher's answer: ``answer`` unless it erred."""


def caption(phantom: Phantom, *, disc_first: bool = False) -> str:
    """List every finding with yes or no: always the same number of words.

    Example:
        >>> from examples.ophthareason.phantom import draw
        >>> caption(draw(1, counts={"drusen": 5}))[:34]
        'microaneurysms no, haemorrhages no'
    """
    return caption_of(_present(phantom), disc_first=disc_first)


def caption_of(findings: set[str], *, disc_first: bool = False) -> str:
    """List every finding with yes or no, given the names of those that are there."""
    names = FINDINGS[::-1] if disc_first else FINDINGS
    return ", ".join(f"{name} {'yes' if name in findings else 'no'}" for name in names) + "."


def grade_of(findings: set[str]) -> str:
    """Return the grade of an eye with these findings, without severe retinopathy."""
    if "neovascularisation" in findings:
        return SHOWN_GRADES[3]
    if findings & {"haemorrhages", "hard exudates", "soft exudates"}:
        return SHOWN_GRADES[2]
    return SHOWN_GRADES["microaneurysms" in findings]


def weighed(options: Sequence[str], chosen: Iterable[str], *, backwards: bool = False) -> str:
    """Go through the options and say yes or no to each: always the same number of words.

    A trace that walks through the options only has to copy them one after the other; one that names
    the letter of a finding has to search them, which so small a model learns last of all.

    Args:
        options: The names of the options, A first.
        chosen: Those to which the answer is yes.
        backwards: Whether to begin with the last option.

    Returns:
        One sentence.

    Example:
        >>> weighed(["drusen", "large cup"], ["large cup"])
        'A drusen no, B large cup yes.'
    """
    yes = set(chosen)
    said = [
        f"{letter} {name} {'yes' if name in yes else 'no'}"
        for letter, name in zip(ascii_uppercase, options, strict=False)
    ]
    return ", ".join(reversed(said) if backwards else said) + "."


def pose(
    seed: int,
    *,
    teacher: Teacher | None = None,
    task: Task | None = None,
    size: int = 112,
    difficulty: float = 0.0,
) -> PhantomItem:
    """Make the item of this seed.

    Args:
        seed: Decides question, picture and the teacher's mistakes; equal arguments, equal item.
        teacher: Who writes the trace; one without mistakes by default.
        task: The kind of question; by default the seed decides, each a third of the items.
        size: Side of the picture in pixels.
        difficulty: As in `draw`.

    Returns:
        The item.

    Example:
        >>> item = pose(4, task="diagnosis")
        >>> item.answer in DIAGNOSES, item.answer == item.taught
        (True, True)
    """
    chance = random.Random(f"item {seed}")
    drawn = chance.choice(("single_choice", "multiple_choice", "diagnosis"))
    kind: Task = task or drawn
    style = random.Random(f"teacher {seed}")
    plan = _Plan(seed, chance, style, teacher or Teacher(), size, difficulty)
    if kind == "single_choice":
        return plan.lesion() if chance.random() < 0.5 else plan.grade()
    return plan.several() if kind == "multiple_choice" else plan.diagnosis()


def record(item: PhantomItem, image: str, *, split: str, taught: bool = False) -> dict[str, Any]:
    """Return the item as an MM-Retinal-Reason record that says that it is synthetic.

    Args:
        item: The item.
        image: Path of its picture, relative to the root of the records.
        split: ``train`` or ``test``.
        taught: Whether the answer is the teacher's, as in the traces of stage 2, and not the right
            one.

    Returns:
        A record in the published form.
    """
    return {
        "image": [image],
        "conversations": [
            {"from": "human", "value": item.question},
            {"from": "gpt", "value": item.taught if taught else item.answer},
        ],
        "reason": item.reason,
        "pmcid": "SYNTHETIC",
        "title": "SYNTHETIC fundus phantom, not a patient",
        "caption": caption(item.phantom),
        "id": f"phantom-{item.phantom.seed}",
        "task": item.task,
        "modality": "CFP",
        "source": f"synthetic phantom {item.topic}",
        "domain": "unknown",
        "split": split,
    }


def _present(phantom: Phantom) -> set[str]:
    present = {kind for kind in KINDS if phantom.count(kind)}
    return present | {CUP} if phantom.large_cup else present


@dataclass(frozen=True, slots=True)
class _Plan:
    """What the four kinds of item share: a seed, its chances and the teacher."""

    seed: int
    chance: random.Random
    style: random.Random
    teacher: Teacher
    size: int
    difficulty: float

    def lesion(self) -> PhantomItem:
        """One of eight answers is right; the options that are not offered may be there too."""
        pool = [*FINDINGS, NOTHING]
        right = self.chance.choice(pool)
        wrong = self.chance.sample([name for name in pool if name != right], 3)
        rest = [name for name in FINDINGS if name != right and name not in wrong]
        also = {self.chance.choice(rest)} if NOTHING not in (right, *wrong) else set[str]()
        if self.chance.random() < 0.5:
            also = set[str]()
        findings = also | ({right} if right != NOTHING else set[str]())
        options = self._shuffled([right, *wrong])
        said = right
        if self._errs(self.teacher.letter):
            said = self.style.choice(wrong)
        question = self.chance.choice(("Which finding does this eye show?", "What is seen here?"))
        return self._choice("lesion", findings, question, options, [right], [said])

    def grade(self) -> PhantomItem:
        """The grade of retinopathy, with the four that a small picture can show as options."""
        right = self.chance.choice(SHOWN_GRADES)
        some = self.chance.choice
        findings = {
            SHOWN_GRADES[0]: set[str](),
            SHOWN_GRADES[1]: {"microaneurysms"},
            SHOWN_GRADES[2]: {some(("haemorrhages", "hard exudates", "soft exudates"))},
            SHOWN_GRADES[3]: {"neovascularisation"},
        }[right]
        if right in SHOWN_GRADES[2:] and self.chance.random() < 0.5:
            findings = findings | {"microaneurysms"}
        options = self._shuffled(list(SHOWN_GRADES))
        said = right
        if self._errs(self.teacher.grade):
            said = SHOWN_GRADES[max(0, SHOWN_GRADES.index(right) - 1)]
        question = self.chance.choice(
            ("Which grade of diabetic retinopathy is this?", "What is the grade of retinopathy?")
        )
        return self._choice("grade", findings, question, options, [right], [said])

    def several(self) -> PhantomItem:
        """Any one to three of four offered lesions, every set as likely as another."""
        offered = self.chance.sample(KINDS, 4)
        sets = self.chance.randrange(1, 15)  # never all four: a trace stays short
        present = [name for place, name in enumerate(offered) if sets >> place & 1]
        options = self._shuffled(offered)
        said = list(present)
        if len(said) > 1 and self._errs(self.teacher.forgets):
            said.remove(self.style.choice(said))
        question = self.chance.choice(
            ("Select every lesion that is present.", "Which lesions are visible?")
        )
        return self._choice("multiple_choice", set(present), question, options, present, said)

    def diagnosis(self) -> PhantomItem:
        """History and picture: the same picture means another disease with another history."""
        history = self.chance.choice(list(HISTORIES))
        sight = self.chance.choice(("bleeding", "drusen", "cup", "clear"))
        findings = {
            "bleeding": {"haemorrhages"},
            "drusen": {"drusen"},
            "cup": {CUP},
            "clear": set[str](),
        }[sight]
        if sight == "bleeding" and self.chance.random() < 0.5:
            findings = findings | {self.chance.choice(("hard exudates", "soft exudates"))}
        answer = {"bleeding": _RETINOPATHY[history], "drusen": _AGE, "cup": _CUP, "clear": _CLEAR}
        right = answer[sight]
        said = right
        if self._errs(self.teacher.history):
            said = {"bleeding": _RETINOPATHY["diabetes"], "drusen": _CLEAR}.get(sight, right)
        who = self.chance.choice(("man", "woman"))
        past = HISTORIES[history].format(years=self.chance.randint(2, 20))
        age = self.chance.randint(40, 79)
        question = f"A {age}-year-old {who} {past}. What is the most likely diagnosis?"
        phantom = self._eye(findings)
        reason = f"{caption(phantom, disc_first=self._backwards())} With {history} this is {said}."
        return PhantomItem(
            phantom=phantom,
            task="diagnosis",
            topic="diagnosis",
            question=question,
            answer=right,
            reason=reason,
            taught=said,
        )

    def _choice(
        self,
        topic: str,
        findings: set[str],
        question: str,
        options: list[str],
        right: list[str],
        said: list[str],
    ) -> PhantomItem:
        def letters(names: list[str]) -> str:
            return ",".join(sorted(_LETTERS[options.index(name)] for name in names))

        phantom = self._eye(findings)
        lines = [f"{letter}: {name}" for letter, name in zip(_LETTERS, options, strict=True)]
        return PhantomItem(
            phantom=phantom,
            task="multiple_choice" if topic == "multiple_choice" else "single_choice",
            topic=topic,
            question="\n".join([question, *lines]),
            answer=letters(right),
            reason=f"{weighed(options, said, backwards=self._backwards())} So {letters(said)}.",
            taught=letters(said),
        )

    def _eye(self, findings: set[str]) -> Phantom:
        counts = {
            # Three haemorrhages cannot lie in all four quadrants: the grade stays.
            kind: min(3, usual_count(self.chance, kind))
            if kind == "haemorrhages"
            else usual_count(self.chance, kind)
            for kind in KINDS
            if kind in findings
        }
        wide = CUP in findings
        cup = self.chance.uniform(0.74, 0.84) if wide else self.chance.uniform(0.25, 0.4)
        return draw(
            self.seed, counts=counts, cup_ratio=cup, size=self.size, difficulty=self.difficulty
        )

    def _backwards(self) -> bool:
        return self.style.random() < 0.5

    def _errs(self, probability: float) -> bool:
        return self.style.random() < probability

    def _shuffled(self, names: Sequence[str]) -> list[str]:
        return self.chance.sample(names, len(names))
