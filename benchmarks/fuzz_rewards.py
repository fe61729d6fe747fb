"""Fuzz the parsers and rewards, guided by coverage; the command is in docs/rewards.md.

Each input is scored as it is and as the answer of a well-formed completion, for each task, strictly
and leniently. It fails on an exception, on a score outside [0, 1], on accuracy without form in the
strict reading, and on an input that takes more than two seconds of processor time.
"""

import sys
import time
from importlib import import_module
from typing import Any

atheris: Any = import_module("atheris")  # no dependency: installed by hand for this script

with atheris.instrument_imports(include=["uadt"]):
    from uadt.answers import find_answer, parse_completion
    from uadt.choices import parse_options, read_letters, read_verdict
    from uadt.diagnosis import same_diagnosis
    from uadt.rewards import Task, score

TRUTHS: dict[Task, str] = {
    "single_choice": "B",
    "multiple_choice": "A,C",
    "true_false": "True",
    "diagnosis": "CRAO",
}
OPTIONS = {"A": "Drusen", "B": "Vitamin A deficiency", "C": "Haemorrhage, dot", "D": "CRAO"}
VERDICTS = {"A": "True", "B": "False"}


def fuzz_one(data: bytes) -> None:
    """Check one input."""
    text = data.decode("utf-8", "surrogateescape")
    started = time.process_time()
    for form in (text, f"<think>t</think><answer>{text}</answer>"):
        for lenient in (False, True):
            answer = find_answer(form, lenient=lenient)
            assert answer is None or answer in form
            for task, truth in TRUTHS.items():
                for options in (None, VERDICTS if task == "true_false" else OPTIONS):
                    total, shape, accuracy = score(
                        form, truth, task=task, lenient=lenient, options=options, graded=True
                    )
                    assert accuracy is not None
                    assert 0 <= accuracy <= 1
                    assert 0 <= shape <= 1
                    assert total == accuracy + shape
                    assert lenient or parse_completion(form).well_formed or not accuracy
        read_letters(form, options=OPTIONS)
        read_verdict(form)
        parse_options(form)
        same_diagnosis(form, "CRAO")
    assert time.process_time() - started < 2


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
