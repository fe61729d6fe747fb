"""From an answer to a choice: letters of options, true or false.

Total and linear like `uadt.answers`; standard library only.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from uadt.answers import clean_answer, fold, names_nothing, strip_lead

__all__ = ["Options", "option_letters", "parse_options", "read_letters", "read_verdict"]

Options: TypeAlias = Mapping[str, str] | Sequence[str]
"""What can be chosen: ``{"A": "Drusen", "B": …}``, or the texts in order, ``["Drusen", …]``."""

_LIST = re.compile(r"[\w\s,;/&+()\[\]{}.:|、'\"]*")
_FIRST = re.compile(r"[(\[]?([A-Za-z])(?:[)\].:]+|\s[-–—]\s|\s(?=\())\s?")
_HEAD = re.compile(r"(?<=[\s,;/&])[(\[]?([A-Z])(?:[)\].:]+|\s[-–—]\s)\s?")
_CAPITAL = re.compile(r"(?<![^\W_])(?<!['’-])[A-Z](?![^\W_]|['’-][^\W_])")
_OPTION = re.compile(r"\s{0,8}[(\[]?([A-Z])\s?[)\].:]\s{0,8}(\S.*)")

_VERDICTS = {
    **dict.fromkeys(("true", "t", "yes", "y", "correct"), True),
    **dict.fromkeys(("false", "f", "no", "n", "incorrect"), False),
}
_VERDICT = re.compile(r"[(\[]?([A-Za-z]+)[)\]]?(?=\s?(?:[.,;:!()\n–—-]|$))")
# Words that contradict a verdict later on; "no" and letters only where they stand alone: "True, no
# lesion" and the end of "don't." contradict nothing.
_LATER = re.compile(
    r"\b(true|yes|correct|false|incorrect|(?:no|(?<!\w['’])[tfyn])(?=\s?(?:[.,;:!)\n]|$)))\b",
    re.IGNORECASE,
)


def option_letters(options: Options | None) -> dict[str, str]:
    """Return the options by their letter.

    Args:
        options: By letter, or the texts in the order A, B, …

    Returns:
        Upper-case letter to text; empty for ``None``.

    Raises:
        ValueError: If a key is not one of the letters A to Z, or there are more than 26.

    Example:
        >>> option_letters(["Drusen", "Glaucoma"])
        {'A': 'Drusen', 'B': 'Glaucoma'}
    """
    if options is None:
        return {}
    if isinstance(options, str):
        raise ValueError(
            f"options must be texts by letter, or a list of texts, got the string "
            f"{options[:60]!r}; uadt.choices.parse_options reads them from a question"
        )
    if not isinstance(options, Mapping):
        if len(options) > 26:
            raise ValueError(f"options must be at most 26, got {len(options)}")
        return {chr(ord("A") + index): text for index, text in enumerate(options)}
    for letter in options:
        if not re.fullmatch("[A-Z]", letter):
            raise ValueError(f"options must have the keys A to Z, got {letter!r}")
    return dict(options)


def parse_options(question: str) -> dict[str, str]:
    r"""Read the options out of a question that lists one a line.

    Args:
        question: The question, with lines such as ``A: Drusen``, ``B. Glaucoma``, ``(C) None``.

    Returns:
        The options by letter; empty unless there are at least two, lettered A, B, … in order.

    Example:
        >>> parse_options("Which finding fits?\nA: Drusen\nB: Normal retina")
        {'A': 'Drusen', 'B': 'Normal retina'}
    """
    options: dict[str, str] = {}
    for line in question.splitlines():
        match = _OPTION.fullmatch(line)
        if match and match.group(1) == chr(ord("A") + len(options)):
            options[match.group(1)] = match.group(2).strip()
    return options if len(options) > 1 else {}


def read_letters(answer: str, *, options: Options | None = None) -> frozenset[str] | None:
    """Return the letters that an answer names.

    Read are bare letters in any list form (``B``, ``(B)``, ``b.``, ``A,B,D``, ``A and B``,
    ``ABD``), letters with their text (``B: Chorioretinitis``), and, where the options are known,
    an option's own text, alone or beside its letter. A lead such as ``The answer is`` is passed
    over, and ``N/A`` names nothing. Letters written together reach to J unless the options are
    known: ``PDR`` is no list. Beside a letter with text, every capital that stands alone counts as
    one more letter, unless the text is that option's own: so ``D: Vitamin A deficiency`` names A
    and D until the options are given.

    Args:
        answer: What `find_answer` returned.
        options: What can be chosen, if known.

    Returns:
        Upper-case letters, or ``None`` if the answer is of no such form, is longer than
        `uadt.answers.MAX_ANSWER`, names a letter that is no option, or joins a letter to the
        text of another option.

    Raises:
        ValueError: If the options are not lettered A to Z.

    Example:
        >>> sorted(read_letters("b, A"))
        ['A', 'B']
        >>> read_letters("drusen", options=["Glaucoma", "Drusen"])
        frozenset({'B'})
        >>> read_letters("A: Drusen", options=["Glaucoma", "Drusen"]) is None
        True
    """
    known = option_letters(options)
    own = _own_texts(known)
    text = clean_answer(answer)
    for part in (text, strip_lead(text)):
        if fold(part) in own:
            return frozenset(own[fold(part)])
    text = strip_lead(text)
    if names_nothing(text):
        return None
    letters = (
        _bare_letters(text, known) or _headed_letters(text, known, own) or _named_texts(text, own)
    )
    if letters is None or (known and not letters <= known.keys()):
        return None
    return letters


def _own_texts(known: Mapping[str, str]) -> dict[str, str]:
    # Folded text → letter, without the texts that two options share.
    own: dict[str, str] = {}
    shared: set[str] = {""}
    for letter, text in known.items():
        key = fold(text)
        if key in own:
            shared.add(key)
        own[key] = letter
    return {key: letter for key, letter in own.items() if key not in shared}


def _bare_letters(text: str, known: Mapping[str, str]) -> frozenset[str] | None:
    if not _LIST.fullmatch(text):
        return None
    words = [word for word in re.findall(r"[^\W_]+", text) if word not in ("and", "both", "Both")]
    # Without options, later letters than J would make options of AMD, PDR, TRUE and NO.
    if len(words) == 1 and re.fullmatch("[A-Z]{2,26}" if known else "[A-J]{2,10}", words[0]):
        letters = frozenset(words[0])
        return letters if len(letters) == len(words[0]) else None
    if words and all(re.fullmatch("[A-Za-z]", word) for word in words):
        return frozenset(word.upper() for word in words)
    return None


def _headed_letters(
    text: str, known: Mapping[str, str], own: Mapping[str, str]
) -> frozenset[str] | None:
    first = _FIRST.match(text)
    if first is None:  # "B Drusen" and "Drusen, B" are read only where that is B's own text
        words = fold(text).upper().split(" ")
        for letter, rest in ((words[0], words[1:]), (words[-1], words[:-1])):
            if len(letter) == 1 and own.get(" ".join(rest).lower()) == letter:
                return frozenset(letter)
        return None
    letter, rest = first.group(1).upper(), text[first.end() :]
    if own.get(fold(rest), letter) != letter:
        return None
    if fold(rest) in own:
        return frozenset(letter)
    heads = [first, *_HEAD.finditer(text, first.end())]
    ends = [*(head.start() for head in heads[1:]), len(text)]
    letters: set[str] = set()
    for head, end in zip(heads, ends, strict=True):
        letter, segment = head.group(1).upper(), text[head.end() : end]
        segment = re.sub(r"(?:[\s,;/&]|\band)+$", "", segment)
        letters.add(letter)
        owner = own.get(fold(segment))
        if owner is None:
            capitals = frozenset(_CAPITAL.findall(segment))
            letters |= capitals & known.keys() if known else capitals
        elif owner != letter:
            return None
    return frozenset(letters)


def _named_texts(text: str, own: Mapping[str, str]) -> frozenset[str] | None:
    # Options named by their texts alone; a text may itself hold a comma or an "and".
    for separator in (r"[\n;]", r"[\n;,]", r"[\n;,]|\band\b"):
        keys = [key for key in map(fold, re.split(separator, text)) if key]
        if keys and all(key in own for key in keys):
            return frozenset(own[key] for key in keys)
    return None


def read_verdict(answer: str, *, options: Options | None = None) -> bool | None:
    """Return whether an answer says true or false.

    Read are ``true``, ``yes``, ``correct``, ``T`` and their opposites in any case, alone, after a
    lead (``The statement is false.``), after a letter (``A: True``; with options it must be the
    letter's own text), or before a reason (``True, because …``). An answer that gives
    both verdicts gives none.

    Args:
        answer: What `find_answer` returned.
        options: What the letters stand for, if the question lists ``A: True`` and ``B: False``.

    Returns:
        The verdict, or ``None`` if there is none.

    Raises:
        ValueError: If an option is neither true nor false.

    Example:
        >>> read_verdict("False."), read_verdict("true or false")
        (False, None)
        >>> read_verdict("B", options=["True", "False"])
        False
    """
    known = option_letters(options)
    meaning: dict[str, bool] = {}
    for letter, option in known.items():
        if fold(option) not in _VERDICTS:
            raise ValueError(f"options of true or false must say which, got {letter}: {option!r}")
        meaning[letter] = _VERDICTS[fold(option)]
    text = strip_lead(clean_answer(answer))
    if names_nothing(text):
        return None
    letters = read_letters(text, options=known) if known else None
    if letters is not None:
        verdicts = {meaning[letter] for letter in letters}
        return verdicts.pop() if len(verdicts) == len(letters) == 1 else None
    head = None if known else _FIRST.match(text)
    if head and head.group(1).lower() not in _VERDICTS and _VERDICT.match(text, head.end()):
        text = text[head.end() :]  # an option's letter; "T. F." has none
    match = _VERDICT.match(text)
    verdict = _VERDICTS.get(match.group(1).lower()) if match else None
    if match is None or verdict is None:
        return None
    later = {_VERDICTS[word.lower()] for word in _LATER.findall(text[match.end() :])}
    return None if (not verdict) in later else verdict
