"""The table of data sets is the one that the authors published."""

import pytest

from examples.ophthareason.sources import domain_of, sources

# The README's rows, as printed there, with Cataract from its first edition.
README = {
    ("CFP", "in-domain"): "PAPILA, PARAGUAY, ARIA, APTOS, HRF, DeepDRID, G1020, AMD, PALM, ORIGA, "
    "Drishti-GS1, CHAKSU, Cataract, FUND-OCT",
    ("CFP", "out-of-domain"): "MESSIDOR, IDRID, RFMid, STARE, ROC, Retina, SUSTech-SYSU, JICHI, "
    "EYEPACS, LAG, FIVES, E-ophta, REFUGE, DR1-2, ScarDat, ACRIMA, OIA-DDR",
    ("FFA", "in-domain"): "Angiographic",
    ("FFA", "out-of-domain"): "MPOS",
    ("OCT", "in-domain"): "GOALS, GAMMA1, STAGE1, STAGE2, OIMHS, OCTA_500, "
    "Large_Dataset_of_Labeled_OCT, DUKE_DME, glaucoma_detection, RetinalOCT_C8",
    ("OCT", "out-of-domain"): "OCTDL, OCTID",
}


def test_the_table_matches_the_readme() -> None:
    table: dict[tuple[str, str], list[str]] = {}
    for row in sources():
        table.setdefault((row.modality, row.domain), []).append(row.source)
    assert {key: ", ".join(names) for key, names in table.items()} == README


def test_the_counts_are_the_published_ones() -> None:
    # "45 public datasets": 14 + 17 colour, 1 + 1 angiography, 10 + 2 tomography.
    assert [len(names.split(", ")) for names in README.values()] == [14, 17, 1, 1, 10, 2]
    assert len(sources()) == len({row.source for row in sources()}) == 45


@pytest.mark.parametrize(
    ("name", "domain"),
    [
        ("IDRID", "out-of-domain"),
        ("idrid", "out-of-domain"),
        ("idrid;idrid_lesions", "out-of-domain"),  # the second name is not in the table
        ("idrid_lesions", "unknown"),
        ("PubMed Central", "in-domain"),
        ("IDRID;APTOS", "unknown"),  # they disagree
        ("", "unknown"),
        ("unknown", "unknown"),
    ],
)
def test_domain(name: str, domain: str) -> None:
    assert domain_of(name) == domain
