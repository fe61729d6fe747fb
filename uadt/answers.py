r"""From what a policy wrote to what it answered.

A completion has the form of the published prompt (*stated*),
``<think>…</think><answer>…</answer>``. Every function here is total (any string, no exception) and
takes time linear in the length of the text; nothing that a model wrote is executed. Standard
library only; `uadt.choices` reads letters and verdicts.
"""

import re
import unicodedata
from itertools import islice
from typing import NamedTuple

__all__ = [
    "MAX_ANSWER",
    "Completion",
    "clean_answer",
    "find_answer",
    "fold",
    "names_nothing",
    "parse_completion",
    "strip_lead",
    "tag_counts",
]

MAX_ANSWER = 1000
"""Characters. A longer answer names nothing (**ours**): it is an essay, not an answer."""

_TAG = re.compile(r"</?(?:think|answer)>", re.IGNORECASE | re.ASCII)
_FORM = ("<think>", "</think>", "<answer>", "</answer>")

# Characters without a glyph: soft hyphen, zero-width, bidirectional marks, variation selectors,
# byte order mark.
_INVISIBLE = re.compile(
    "[\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_FENCE = re.compile(r"```(?:\w*\n)?(.*)```", re.DOTALL)
# Marks of Markdown, LaTeX and HTML that change how a letter looks, and marks of a list's lines.
_MARKUP = re.compile(
    r"[*`$]+|(?<!\w)_+|_+(?!\w)|\\[()\[\]]|</?(?:b|i|u|em|strong|code)>"
    r"|^[ \t]*(?:[->#•·–]+[ \t]+|[0-9]{1,2}[.)][ \t]+)",
    re.IGNORECASE | re.MULTILINE,
)
_COMMAND = re.compile(r"\\(?:boxed|text|mathrm|textbf|mathbf)\{([^{}]*)\}")
_QUOTED = re.compile("[\"'“‘«]([^\"'“”‘’«»]+)[\"'”’»]")
_NOTHING = re.compile(
    r"n\s?[./]\s?a\.?|(?:na|nan|null|nil|tba|tbd|todo|unknown|undetermined|unspecified"
    r"|not (?:applicable|available|given|known|reported|specified|stated))\W{0,3}",
    re.IGNORECASE,
)
_LEAD = re.compile(
    r"(?:(?:so|therefore|thus|hence),?\s)?(?:(?:the|my)\s)?"
    r"(?:(?:final|correct|best|right|likely|most likely|primary|probable)\s){0,3}"
    r"(?:answers?|options?|choices?|letters?|statement|diagnosis)\b"
    r"(?:\s(?:is|are)\b)?\s?[:=]?\s?",
    re.IGNORECASE,
)


class Completion(NamedTuple):
    """The parts of a completion."""

    think: str | None
    """The thought, stripped of white space; ``None`` if the completion is not well formed."""
    answer: str | None
    """The answer, stripped of white space; ``None`` if the completion is not well formed."""
    well_formed: bool
    """Whether it is ``<think>…</think><answer>…</answer>`` and nothing else but white space."""


_BROKEN = Completion(None, None, False)


def parse_completion(text: str) -> Completion:
    """Split a completion into thought and answer, strictly.

    Well formed is one ``<think>…</think>`` followed by one ``<answer>…</answer>``, in lower case,
    with only white space before, between and after. A second tag anywhere breaks the form, in
    whatever case and also inside the thought: a completion that answers twice has not answered.
    An empty thought or answer is well formed (``None`` and ``""`` differ); an empty answer names
    nothing.

    Args:
        text: What the policy wrote, special tokens already removed. If the chat template has
            written ``<think>`` itself, put it in front again.

    Returns:
        The parts; all ``None`` if it is not well formed.

    Example:
        >>> parse_completion("<think>Deposits at the macula.</think> <answer>B</answer>")
        Completion(think='Deposits at the macula.', answer='B', well_formed=True)
        >>> parse_completion("<answer>B</answer>")
        Completion(think=None, answer=None, well_formed=False)

    References:
        The tags: the authors' evaluation prompt (*stated*), ``eval/eval.py`` of
        lxirich/OphthaReason@58f0eaa. That a second tag breaks the form is **ours**.
    """
    found = list(islice(_TAG.finditer(text), len(_FORM) + 1))  # a fifth tag settles it
    if tuple(tag.group() for tag in found) != _FORM:
        return _BROKEN
    think, end_think, answer, end_answer = found
    outside = (
        text[: think.start()],
        text[end_think.end() : answer.start()],
        text[end_answer.end() :],
    )
    if any(part.strip() for part in outside):
        return _BROKEN
    return Completion(
        text[think.end() : end_think.start()].strip(),
        text[answer.end() : end_answer.start()].strip(),
        True,
    )


def tag_counts(text: str) -> tuple[int, int, int, int]:
    """Count the four tags, in lower case, in the order of the form.

    Args:
        text: What the policy wrote.

    Returns:
        How often ``<think>``, ``</think>``, ``<answer>`` and ``</answer>`` occur.

    Example:
        >>> tag_counts("<answer>B</answer><answer>C")
        (0, 0, 2, 1)
    """
    think, end_think, answer, end_answer = (text.count(tag) for tag in _FORM)
    return think, end_think, answer, end_answer


def find_answer(text: str, *, lenient: bool = False) -> str | None:
    r"""Return what a completion gives as its answer.

    Strict: the answer of a well-formed completion, else none. Lenient (for evaluation of models
    that were not trained on the form): reading starts after the last ``</think>``, ends where
    another thought is opened, and takes the last complete answer element, else the last
    ``\boxed{…}``. What stands inside a thought is never an answer.

    Args:
        text: What the policy wrote.
        lenient: Whether the form may be broken.

    Returns:
        The answer, stripped of white space, or ``None``.

    Example:
        >>> find_answer("So it is <answer>B</answer>.") is None
        True
        >>> find_answer("So it is <answer>B</answer>.", lenient=True)
        'B'
        >>> find_answer(r"<think>\boxed{A}?</think> It is \boxed{B}.", lenient=True)
        'B'
    """
    if not lenient:
        return parse_completion(text).answer
    start, end = 0, len(text)
    tags = [(tag.group().lower(), tag.start(), tag.end()) for tag in _TAG.finditer(text)]
    for name, _, after in tags:
        start = after if name == "</think>" else start
    end = next((at for name, at, _ in tags if at >= start and name == "<think>"), len(text))
    answer, opened = None, None
    for name, at, after in tags:
        if start <= at < end:
            if name == "</answer>" and opened is not None:
                answer = text[opened:at]
            opened = after if name == "<answer>" else None
    if answer is None:
        answer = _last_boxed(text[start:end])
    return None if answer is None else answer.strip()


def _last_boxed(text: str) -> str | None:
    # One pass with a stack, so that a megabyte of unclosed boxes costs no more than it is long.
    stack: list[int | None] = []
    last = None
    for match in re.finditer(r"\\boxed\{|[{}]", text):
        if match.group() == "}":
            opened = stack.pop() if stack else None
            if opened is not None:
                last = (opened, match.start())
        else:
            stack.append(match.end() if len(match.group()) > 1 else None)
    return None if last is None else text[last[0] : last[1]]


def clean_answer(answer: str) -> str:
    r"""Take off what surrounds an answer without being part of it.

    Compatibility forms become plain ones (full-width letters, ligatures), characters without a
    glyph vanish, control characters and runs of blanks become one space. Markup goes wherever it
    stands: emphasis, bullets and numbers of lists, ``$``, ``\boxed{…}``; so do a code fence and
    quotation marks around the whole answer.

    Args:
        answer: What `find_answer` returned.

    Returns:
        The cleaned answer; ``""`` if it was longer than `MAX_ANSWER`.

    Example:
        >>> clean_answer("**（Ｂ）**: `Drusen`")
        '(B): Drusen'
    """
    if len(answer) > MAX_ANSWER:
        return ""
    text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", answer))
    text = _CONTROL.sub(" ", text).replace("。", ".").strip()
    for _ in range(8):
        inner = fence.group(1).strip() if (fence := _FENCE.fullmatch(text)) else text
        inner = _COMMAND.sub(r"\1", _MARKUP.sub("", inner)).strip()
        if match := _QUOTED.fullmatch(inner):
            inner = match.group(1).strip()
        if inner == text:
            break
        text = inner
    return re.sub(r"\s*\n\s*", "\n", re.sub(r"[^\S\n]+", " ", text))


def fold(text: str) -> str:
    """Reduce a text to its words: no case, accents or punctuation, single spaces.

    Args:
        text: Any text; only the first `MAX_ANSWER` characters are read.

    Returns:
        The words.

    Example:
        >>> fold("Stargardt’s  disease (FULL-WIDTH ＡＢＣ), Sjögren")
        'stargardt s disease full width abc sjogren'
    """
    text = unicodedata.normalize("NFKD", _INVISIBLE.sub("", text[:MAX_ANSWER])).casefold()
    text = "".join(mark for mark in text if not unicodedata.combining(mark))
    return " ".join(re.findall(r"[^\W_]+", text))


def strip_lead(text: str) -> str:
    """Pass over words that announce an answer.

    Args:
        text: What `clean_answer` returned.

    Returns:
        What follows the lead, cleaned again.

    Example:
        >>> strip_lead("The correct answer is: **B**")
        'B'
    """
    for _ in range(3):  # "The answer is: option B"
        if (match := _LEAD.match(text)) is None:
            break
        text = clean_answer(text[match.end() :])
    return text


def names_nothing(text: str) -> bool:
    """Tell whether a text only holds the place of an answer: ``N/A``, ``unknown``, ``TBD``.

    Args:
        text: What `clean_answer` returned.

    Returns:
        Whether it names nothing. *None* is not among them: it can be an answer.

    Example:
        >>> names_nothing("n.a."), names_nothing("none")
        (True, False)
    """
    return _NOTHING.fullmatch(text) is not None
