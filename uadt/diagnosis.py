"""When two names of a diagnosis mean the same: spelling, synonyms, side.

Standard library only. The table of synonyms, ``ophthalmic_terms.json``, ships with the package.
It holds names and abbreviations that mean one thing in ophthalmology; those that mean two
(``PED``, ``GA``, ``RD``) are left out. It serves rewards and evaluation, never a clinic.
"""

import json
import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple

from uadt.answers import MAX_ANSWER, clean_answer, fold, names_nothing, strip_lead

__all__ = ["Diagnosis", "normalise", "parse_diagnosis", "same_diagnosis", "shipped_terms"]

_PLURALS = {
    "bullae": "bulla",
    "emboli": "embolus",
    "haemangiomata": "hemangioma",
    "hemangiomata": "hemangioma",
    "maculae": "macula",
    "metastases": "metastasis",
    "naevi": "nevus",
    "nevi": "nevus",
    "scotomata": "scotoma",
    "synechiae": "synechia",
    "thrombi": "thrombus",
}
_SPELLINGS = (
    (re.compile(r"ae|oe"), "e"),  # haemorrhage, oedema
    (re.compile(r"\b(tum|col|hum|vap)our"), r"\1or"),
    (re.compile(r"is(ation|ed|ing)\b"), r"iz\1"),  # vascularisation
    (re.compile(r"\b(cent|fib|lit)re(s?)\b"), r"\1er\2"),
    (re.compile(r"sulph"), "sulf"),
    (re.compile(r"\bgrey"), "gray"),
)
# Written together, with a hyphen, or apart: non-proliferative, sub-retinal, micro-aneurysm.
_PREFIXES = frozenset(
    ("non", "sub", "pre", "post", "neo", "micro", "macro", "pseudo", "retro", "intra", "epi")
).union(("peri", "para", "chorio", "vitreo", "kerato", "hyper", "hypo", "poly", "multi", "pan"))
_NUMERALS = {"i": "1", "ii": "2", "iii": "3", "iv": "4", "v": "5", "vi": "6"}
_BEFORE_NUMERAL = frozenset(("type", "grade", "stage", "zone", "class", "nerve", "cn"))
_BEFORE_LETTER = frozenset(("vitamin", "type", "group", "hepatitis", "stage", "grade"))

_EYE = r"(?: ?(?:sided|eyed?))?"
_BOTH = re.compile(rf"\b(?:left and right|right and left|both(?= eye)|bilateral|ou\b){_EYE}\b")
_LEFT = re.compile(rf"\b(?:left|os){_EYE}\b")
_RIGHT = re.compile(rf"\b(?:right|od){_EYE}\b")
_ONE = re.compile(rf"\bunilateral{_EYE}\b")
_DANGLING = re.compile(r"\b(?:of|in|on|affecting|involving|and)(?= *(?:$|\|))|\|")
_GLOSS = re.compile(r"([^()\[\]]+)[(\[]([^()\[\]]*)[)\]]([^()\[\]]*)")


class Diagnosis(NamedTuple):
    """A diagnosis, normalised."""

    name: str
    """Words of the name, synonyms replaced; ``""`` if the text names nothing."""
    side: str | None
    """``"left"``, ``"right"``, ``"both"``, ``"one"``, or ``None`` where no side is given."""

    def agrees(self, other: "Diagnosis") -> bool:
        """Return whether two diagnoses have one name, and sides that do not contradict each other.

        Args:
            other: Another diagnosis.

        Returns:
            Whether they agree; an empty name agrees with nothing.
        """
        return self.name == other.name != "" and _sides_agree(self.side, other.side)


def normalise(text: str) -> str:
    """Reduce a name to words that do not depend on how it is written.

    Case, accents and punctuation go; articles go; British becomes American spelling; plurals
    become singular; hyphenated prefixes join their word; Roman numerals become digits; the
    possessive *'s* goes. The words are for comparison, not for reading.

    Args:
        text: A name; longer than `uadt.answers.MAX_ANSWER` characters it names nothing.

    Returns:
        The words.

    Example:
        >>> normalise("The Non-proliferative diabetic retinopathies, Stage II")
        'nonproliferative diabetic retinopathy stage 2'
        >>> normalise("Haemorrhages") == normalise("hemorrhage")
        True
    """
    if len(text) > MAX_ANSWER:
        return ""
    text = re.sub(r"['’‘`´]s\b", "", unicodedata.normalize("NFKC", text), flags=re.IGNORECASE)
    words: list[str] = []
    prefix = ""
    for word in fold(text).split(" "):
        if word in ("the", "an") or (
            word == "a" and not (words and words[-1] in _BEFORE_LETTER) and not prefix
        ):
            continue
        if word in _PREFIXES:
            prefix += word
            continue
        if word in _NUMERALS and (len(word) > 1 or (words and words[-1] in _BEFORE_NUMERAL)):
            word = _NUMERALS[word]
        words.append(prefix + _singular(_american(_PLURALS.get(word, word))))
        prefix = ""
    return " ".join([*words, prefix]).strip()


def _american(word: str) -> str:
    for pattern, replacement in _SPELLINGS:
        word = pattern.sub(replacement, word)
    return word


def _singular(word: str) -> str:
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "xes", "sses")):
        return word[:-2]
    return word[:-1]


@lru_cache(maxsize=1)
def shipped_terms() -> Mapping[str, tuple[str, ...]]:
    """Return the shipped table.

    Returns:
        Preferred name to its other names and abbreviations.

    Example:
        >>> "CRAO" in shipped_terms()["central retinal artery occlusion"]
        True
    """
    text = files("uadt").joinpath("ophthalmic_terms.json").read_text(encoding="utf-8")
    return {name: tuple(others) for name, others in json.loads(text).items()}


@lru_cache(maxsize=1)
def _shipped() -> dict[str, str]:
    table: dict[str, str] = {}
    for name, others in shipped_terms().items():
        for other in (name, *others):
            table[normalise(other)] = normalise(name)
    return table


@lru_cache(maxsize=32)
def _extended(synonyms: tuple[tuple[str, str], ...]) -> tuple[dict[str, str], int]:
    table = _shipped()
    if synonyms:
        table = dict(table)
        for other, name in synonyms:
            key = normalise(name)
            table[normalise(other)] = table.get(key, key)
        table.pop("", None)
    return table, max(key.count(" ") + 1 for key in table)


def _preferred(name: str, table: Mapping[str, str], longest: int) -> str:
    # Leftmost longest names become the preferred ones, also inside a longer name ("severe NPDR").
    words = name.split(" ")
    result: list[str] = []
    at = 0
    while at < len(words):
        for length in range(min(longest, len(words) - at), 0, -1):
            known = table.get(" ".join(words[at : at + length]))
            if known is not None:
                result.append(known)
                at += length
                break
        else:
            result.append(words[at])
            at += 1
    return " ".join(result)


def _split_side(name: str) -> tuple[str, str | None]:
    sides: set[str] = set()
    for side, pattern in (("both", _BOTH), ("left", _LEFT), ("right", _RIGHT), ("one", _ONE)):
        name, count = pattern.subn("|", name)
        if count:
            sides.add(side)
    name = " ".join(_DANGLING.sub(" ", name).split())
    if {"left", "right"} <= sides or "both" in sides:
        return name, "both"
    return name, min(sides, default=None)  # "left" or "right" says more than "one"


def parse_diagnosis(text: str, *, synonyms: Mapping[str, str] | None = None) -> Diagnosis:
    """Read a name of a diagnosis.

    A lead such as ``The most likely diagnosis is`` goes, and so does a gloss that says
    the name again, ``age-related macular degeneration (AMD)``. What only holds the place of a name
    (``N/A``, ``unknown``) is an empty one.

    Args:
        text: The name.
        synonyms: More names, each with the one it stands for, ``{"sugar eye": "DR"}``. They
            extend the shipped table and win over it.

    Returns:
        The name and the side.

    Example:
        >>> parse_diagnosis("Left eye CRAO")
        Diagnosis(name='central retinal artery occlusion', side='left')
    """
    table, longest = _extended(tuple(sorted((synonyms or {}).items())))

    def read(part: str) -> Diagnosis:
        # Synonyms first: the name of DUSN holds a side, and so it is split off on both ends.
        return Diagnosis(*_split_side(_preferred(normalise(part), table, longest)))

    text = strip_lead(clean_answer(text))
    if names_nothing(text):
        return Diagnosis("", None)
    whole = read(text)
    if (match := _GLOSS.fullmatch(text)) is None:
        return whole
    before, gloss, after = match.groups()
    name, again = read(before + after), read(gloss)
    initials = "".join(word[0] for word in re.split(r"[\s-]+", before.casefold()) if word)
    if (again.name in ("", name.name) or gloss.casefold() == initials) and _sides_agree(
        name.side, again.side
    ):
        return Diagnosis(name.name, name.side or again.side)
    return whole


def _sides_agree(one: str | None, other: str | None) -> bool:
    if one is None or other is None or one == other:
        return True
    return "one" in (one, other) and "both" not in (one, other)


def same_diagnosis(answer: str, truth: str, *, synonyms: Mapping[str, str] | None = None) -> bool:
    """Return whether two names mean the same diagnosis.

    They do if their normalised names are equal, synonyms replaced, and their sides do not
    contradict each other: a side that only one of them gives is ignored.

    Args:
        answer: One name.
        truth: The other.
        synonyms: See `parse_diagnosis`.

    Returns:
        Whether they mean the same; an empty name never does.

    Example:
        >>> same_diagnosis("CRAO of the left eye", "central retinal artery occlusions")
        True
        >>> same_diagnosis("CRAO, left eye", "CRAO, right eye")
        False
    """
    named = parse_diagnosis(answer, synonyms=synonyms)
    return named.agrees(parse_diagnosis(truth, synonyms=synonyms))
