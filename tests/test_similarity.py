import pickle
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("rapidfuzz", reason="the extra `text` is not installed")
pytest.importorskip("rouge_score", reason="the extra `text` is not installed")
pytest.importorskip("sacrebleu", reason="the extra `text` is not installed")

from uadt.answers import MAX_ANSWER
from uadt.similarity import MATCHERS, Bleu, Chrf, EditRatio, RougeL, TokenSortRatio

EVERY = sorted(MATCHERS)


def test_edit_ratio_by_hand() -> None:
    # "glaucom" → "glaucoma": one insertion of 7 + 8 characters: 1 - 1/15.
    assert EditRatio()("glaucom", "glaucoma") == pytest.approx(14 / 15)
    # "ab" → "cd": two deletions and two insertions of 4 characters: 0.
    assert EditRatio()("ab", "cd") == 0


def test_token_sort_ratio_ignores_the_order_of_words() -> None:
    assert TokenSortRatio()("vein retinal occlusion", "retinal vein occlusion") == 1
    assert EditRatio()("vein retinal occlusion", "retinal vein occlusion") < 1


def test_rouge_l_by_hand() -> None:
    # Longest common subsequence "retinal vein occlusion": 3 of 4 words on both sides: F = 3/4.
    value = RougeL()("branch retinal vein occlusion", "central retinal vein occlusion")
    assert value == pytest.approx(0.75)
    # Precision 1/4, recall 1: F = 2 · 1/4 · 1 / (5/4) = 0.4: surplus words cost.
    assert RougeL()("drusen glaucoma cataract uveitis", "drusen") == pytest.approx(0.4)


def test_bleu_by_hand() -> None:
    # Precisions: 3/4 words, 2/3 pairs, 1/2 triples, and no match of one quadruple, which sacrebleu
    # smooths to 1/2 · 1/1; brevity 1: (3/4 · 2/3 · 1/2 · 1/2) ** (1/4) = (1/8) ** (1/4).
    value = Bleu()("branch retinal vein occlusion", "central retinal vein occlusion")
    assert value == pytest.approx(0.125**0.25)


def test_chrf_lies_between_unrelated_and_equal() -> None:
    assert Chrf()("drusen", "drusen") == 1
    assert 0 < Chrf()("druse", "drusen") < 1
    assert Chrf()("abc", "xyz") == 0


@pytest.mark.parametrize("name", EVERY)
def test_the_writing_does_not_matter(name: str) -> None:
    matcher = MATCHERS[name]()
    assert matcher("The Macular Oedemas!", "macular edema") == 1


@pytest.mark.parametrize("name", EVERY)
def test_a_threshold_makes_it_all_or_nothing(name: str) -> None:
    one, other = "branch retinal vein occlusion", "central retinal vein occlusion"
    value = MATCHERS[name]()(one, other)
    assert 0 < value < 1
    assert MATCHERS[name](threshold=value)(one, other) == 1
    assert MATCHERS[name](threshold=value + 0.01)(one, other) == 0


@pytest.mark.parametrize("name", EVERY)
def test_nothing_and_an_essay_are_like_nothing(name: str) -> None:
    matcher = MATCHERS[name]()
    assert matcher("", "drusen") == matcher("drusen", "") == matcher("", "") == 0
    assert matcher("drusen " * MAX_ANSWER, "drusen") == 0


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=25, deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_likeness_is_within_0_and_1(name: str, one: str, other: str) -> None:
    matcher = MATCHERS[name]()
    assert 0 <= matcher(one, other) <= 1


@pytest.mark.parametrize("name", EVERY)
def test_matchers_pickle_and_compare(name: str) -> None:
    matcher = MATCHERS[name](threshold=0.5)
    assert pickle.loads(pickle.dumps(matcher)) == matcher != MATCHERS[name]()


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.5, float("nan")])
def test_a_threshold_is_checked(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"threshold must be within \(0, 1\], got "):
        EditRatio(threshold=threshold)


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("EditRatio", "rapidfuzz"),
        ("TokenSortRatio", "rapidfuzz"),
        ("RougeL", "rouge-score"),
        ("Bleu", "sacrebleu"),
        ("Chrf", "sacrebleu"),
    ],
)
def test_a_missing_package_is_named_with_the_extra_that_holds_it(name: str, package: str) -> None:
    code = (
        f"import sys; sys.modules[{package.replace('-', '_')!r}] = None\n"
        f"from uadt.similarity import {name}; {name}()('a b', 'a c')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f'ImportError: this matcher needs {package}: pip install "uadt[text]"' in done.stderr
