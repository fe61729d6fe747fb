"""The page of a run: what is in it, and that it needs nothing from outside."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uadt.report import QUADRANTS, Section, figures, page, read_diagnostics, report

Row = dict[str, Any]


def rows(steps: int = 4, each: int = 8) -> list[Row]:
    chance = np.random.default_rng(0)
    made: list[Row] = []
    for step in range(1, steps + 1):
        for _ in range(each):
            uncertainty = float(chance.uniform(0.1, 0.5))
            factor = float(np.tanh((uncertainty - 0.3) / 0.3))
            made.append(
                {
                    "step": step,
                    "reward": float(chance.integers(0, 3)),
                    "advantage": float(chance.normal()),
                    "tokens": 20,
                    "uadt/uncertainty": uncertainty,
                    "uadt/threshold": 0.3,
                    "uadt/factor": factor,
                    "uadt/multiplier": 1 + factor / 2,
                }
            )
    return made


class Outline(HTMLParser):
    """Collects tags that do not close, headings, and everything that would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.headings: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "img", "br", "hr", "input"):
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and value and value[:1] != "#":
                self.fetched += [] if value.startswith("data:") else [value]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"{tag} was never opened"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)


def outline(document: str) -> Outline:
    parser = Outline()
    parser.feed(document)
    return parser


def test_the_page_is_whole_and_fetches_nothing() -> None:
    found = outline(report(rows(), title="A run"))
    assert found.open == []
    assert found.fetched == []
    assert found.headings == [
        "A run",
        "Through the steps",
        "Uncertainty and the threshold",
        "The factor against the uncertainty",
        "The four quadrants",
    ]


def test_sections_stand_where_they_were_put() -> None:
    document = report(
        rows(), title="A run", before=[Section(title="First")], after=[Section(title="Last")]
    )
    headings = outline(document).headings
    assert (headings[1], headings[-1]) == ("First", "Last")


def test_words_are_escaped_and_bodies_are_not() -> None:
    document = page(
        title="<script>1</script>",
        lead="a < b",
        facts={"<b>": "<i>"},
        sections=[Section(title="<u>", text="<s>", body="<em>kept</em>")],
    )
    assert "<em>kept</em>" in document
    for word in ("<script>", "<b>", "<i>", "<u>", "<s>"):
        assert word not in document


def test_what_is_missing_is_left_out_of_its_figure() -> None:
    holed = rows()
    for row in holed[::2]:
        row["uadt/uncertainty"] = None  # a completion without tokens
        row["uadt/factor"] = 0.0
    for row in holed:
        del row["uadt/multiplier"]
    drawn = figures(holed)
    assert "Multiplier A′/A" not in drawn["curves"]
    assert "Uncertainty, nats" in drawn["curves"]


def test_a_curve_is_drawn_for_each_quantity_that_is_there() -> None:
    extended = [{**row, "accuracy": 1.0, "format": 1.0} for row in rows()]
    titles = ["Reward", "Well-formed answers", "Right answers", "Length, tokens"]
    for title in titles:
        assert f">{title}<" in figures(extended)["curves"]
    assert ">Right answers<" not in figures(rows())["curves"]


def test_a_numbered_shaping_of_a_chain_is_found() -> None:
    renamed = [
        {name.replace("uadt/", "uadt_2/"): value for name, value in row.items()} for row in rows()
    ]
    assert figures(renamed, shaping="uadt_2").keys() == figures(rows()).keys()
    with pytest.raises(ValueError, match=r"diagnostics must have uadt/uncertainty, got \['adv"):
        figures(renamed)


def test_points_lie_in_their_quadrants() -> None:
    # One completion a quadrant: in the figure of the factor each colour has exactly one point, so
    # the legend's four markers and these make two of each.
    made = rows(steps=1, each=4)
    signs = [(1.0, 0.5), (1.0, -0.5), (-1.0, 0.5), (-1.0, -0.5)]
    for row, (advantage, factor) in zip(made, signs, strict=True):
        row |= {"advantage": advantage, "uadt/factor": factor}
    svg = figures(made)["factor"]
    assert len(re.findall(r"<use ", svg)) >= 8
    for name in QUADRANTS:
        assert name in svg
    made[0]["advantage"] = 0.0  # in no quadrant any more
    assert len(re.findall(r"<use ", figures(made)["factor"])) == len(re.findall(r"<use ", svg)) - 1


def test_the_same_rows_make_the_same_page() -> None:
    assert report(rows(), title="A run") == report(rows(), title="A run")


def test_diagnostics_are_read_in_the_order_of_the_steps(tmp_path: Path) -> None:
    for step in (2, 1, 10):
        line = json.dumps({"step": step, "note": "ω"}, ensure_ascii=False)
        (tmp_path / f"step_{step:06d}.jsonl").write_text(line + "\n", "utf-8")
    assert [row["step"] for row in read_diagnostics(tmp_path)] == [1, 2, 10]


def test_errors_say_what_was_wanted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="diagnostics must have at least one row, got none"):
        figures([])
    with pytest.raises(FileNotFoundError, match=r"must hold \.jsonl files, got none"):
        read_diagnostics(tmp_path)
