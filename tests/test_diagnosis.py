import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_answers import TEXTS
from uadt.answers import MAX_ANSWER
from uadt.diagnosis import Diagnosis, normalise, parse_diagnosis, same_diagnosis, shipped_terms

NAMES = sorted({name for name, others in shipped_terms().items() for name in (name, *others)})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Glaucoma", "glaucoma"),
        ("  the   GLAUCOMA.  ", "glaucoma"),
        ("ﬂuid", "fluid"),  # a ligature
        ("Behçet’s disease", "behcet disease"),  # accent, possessive
        ("Coats' disease", "coat disease"),  # a name that looks like a plural, on both sides
        ("haemorrhages", "hemorrhage"),
        ("macular oedema", "macular edema"),
        ("ischaemic", "ischemic"),
        ("tumours", "tumor"),
        ("vascularisation", "vascularization"),
        ("grey fibres of the centre", "gray fiber of center"),
        ("dystrophies", "dystrophy"),
        ("patches", "patch"),
        ("naevi", "nevus"),
        ("iritis", "iritis"),  # no plural
        ("Non-proliferative", "nonproliferative"),
        ("non proliferative", "nonproliferative"),
        ("sub-retinal micro-aneurysms", "subretinal microaneurysm"),
        ("type II", "type 2"),
        ("neurofibromatosis type I", "neurofibromatosis type 1"),
        ("I", "i"),  # a numeral only where a number is expected
        ("vitamin A deficiency", "vitamin a deficiency"),  # a letter, not an article
        ("a case of a cataract", "case of cataract"),
        ("non", "non"),
        ("the", ""),
        ("!?", ""),
        ("", ""),
        ("x" * (MAX_ANSWER + 1), ""),
    ],
)
def test_a_name_is_reduced_to_its_words(text: str, words: str) -> None:
    assert normalise(text) == words


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("AMD", "Age-related macular degeneration"),
        ("ARMD", "age related macular degenerations"),
        ("Age-related macular degeneration (AMD)", "AMD"),
        ("wet AMD", "Neovascular age-related macular degeneration"),
        ("CRAO", "central retinal artery occlusion"),
        ("GCA", "temporal arteritis"),
        ("PDR", "Proliferative diabetic retinopathy"),
        ("severe NPDR", "Severe non-proliferative diabetic retinopathy"),
        ("No apparent diabetic retinopathy", "no DR"),
        ("CNV secondary to pathologic myopia", "choroidal neovascularisation secondary to "
         "pathologic myopia"),  # a known name inside a longer one
        ("CN III palsy", "oculomotor nerve palsy"),
        ("The most likely diagnosis is giant-cell arteritis.", "GCA"),
        ("**Stargardt disease**", "fundus flavimaculatus"),
        ("Foo bar baz (FBB)", "foo bar baz"),  # a gloss by initials, in no table
        ("drusen ()", "drusen"),
        ("BRVO", "branch retinal vein occlusion of the left eye"),
        ("branch retinal vein occlusion (BRVO) of the left eye", "BRVO OS"),
        ("left-sided uveitis", "uveitis, left eye"),
        ("PDR in both eyes", "bilateral PDR"),
        ("cataract OU", "cataracts of the right and left eyes"),
        ("unilateral uveitis", "uveitis of the right eye"),
        ("DUSN of the left eye", "diffuse unilateral subacute neuroretinitis"),
    ],
)  # fmt: skip
def test_names_that_mean_the_same(one: str, other: str) -> None:
    assert same_diagnosis(one, other)
    assert same_diagnosis(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("CRAO", "CRVO"),
        ("NPDR", "PDR"),
        ("diabetic retinopathy", "no diabetic retinopathy"),
        ("mild NPDR", "severe NPDR"),
        ("wet AMD", "dry AMD"),
        ("neurofibromatosis type 1", "neurofibromatosis type 2"),
        ("CRAO, left eye", "CRAO, right eye"),
        ("uveitis OD", "bilateral uveitis"),
        ("unilateral uveitis", "bilateral uveitis"),
        ("glaucoma (AMD)", "glaucoma"),  # a gloss that says something else
        ("AMD, glaucoma", "AMD"),  # a list is no name
        ("AMD AMD", "AMD"),
        ("left eye", "left eye"),  # a side is no name
        ("", ""),
        ("the", "a"),
    ],
)
def test_names_that_do_not(one: str, other: str) -> None:
    assert not same_diagnosis(one, other)
    assert not same_diagnosis(other, one)


@pytest.mark.parametrize("abbreviation", ["PED", "GA", "RD", "ME", "MS", "ON", "PMD"])
def test_abbreviations_with_two_meanings_are_left_out(abbreviation: str) -> None:
    # PED: pigment epithelial detachment, persistent epithelial defect; GA: geographic, gyrate
    # atrophy; RD: retinal detachment, retinal dystrophy; …
    assert normalise(abbreviation) not in {normalise(name) for name in NAMES}


def test_the_shipped_table_is_large_and_unambiguous() -> None:
    assert sum(len(others) for others in shipped_terms().values()) >= 150
    meanings: dict[str, str] = {}
    for name, others in shipped_terms().items():
        for other in (name, *others):
            words = normalise(other)
            assert words
            assert meanings.setdefault(words, name) == name, other


def test_every_shipped_name_is_read_as_its_preferred_name() -> None:
    for name, others in shipped_terms().items():
        for other in others:
            assert same_diagnosis(other, name), other
            assert parse_diagnosis(other).side == ("one" if other == "DUSN" else None), other


def test_synonyms_extend_the_table_and_win_over_it() -> None:
    own = {"sugar eye": "DR", "RD": "retinal detachment", "CRAO": "something else"}
    assert same_diagnosis("Sugar eyes", "diabetic retinopathy", synonyms=own)
    assert not same_diagnosis("sugar eye", "diabetic retinopathy")
    assert same_diagnosis("RD", "Retinal detachment", synonyms=own)
    assert not same_diagnosis("CRAO", "central retinal artery occlusion", synonyms=own)
    assert same_diagnosis("CRAO", "central retinal artery occlusion")  # nothing stays behind


def test_a_side_is_read() -> None:
    assert parse_diagnosis("CRAO of the left eye") == Diagnosis(
        "central retinal artery occlusion", "left"
    )
    assert parse_diagnosis("uveitis, left eye and right eye") == Diagnosis("uveitis", "both")


@settings(deadline=None)
@given(TEXTS)
def test_reading_a_diagnosis_is_total(text: str) -> None:
    parsed = parse_diagnosis(text)
    assert parsed.side in (None, "left", "right", "both", "one")
    assert same_diagnosis(text, text) == bool(parsed.name)


@settings(deadline=None)
@given(st.sampled_from(NAMES), st.sampled_from(["the {}", "{}.", " {} ", "{} OS", "Diagnosis: {}"]))
def test_what_stands_around_a_name_does_not_matter(name: str, around: str) -> None:
    assert same_diagnosis(around.format(name), name)
    assert same_diagnosis(around.format(name).upper(), name)
