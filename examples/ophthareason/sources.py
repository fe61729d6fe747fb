"""The 45 public data sets of MM-Retinal-Reason, as data.

``sources.csv`` is the table of the authors' README (*stated*), one row a data set. Articles of
PubMed Central are the source of the complex questions and no data set; they count as in-domain.
"""

import csv
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from examples.ophthareason.records import UNKNOWN

__all__ = ["PUBMED_CENTRAL", "Source", "domain_of", "sources"]

PUBMED_CENTRAL = "PubMed Central"


class Source(NamedTuple):
    """One public data set."""

    modality: str
    """``CFP``, ``FFA`` or ``OCT``."""
    source: str
    """Its name in the authors' README."""
    domain: str
    """``in-domain`` or ``out-of-domain``."""
    note: str
    """What else is known, mostly nothing."""


@cache
def sources() -> tuple[Source, ...]:
    """Return the table, in the order of the authors' README."""
    with (Path(__file__).parent / "sources.csv").open(newline="", encoding="utf-8") as handle:
        return tuple(Source(**row) for row in csv.DictReader(handle))


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def domain_of(source: str) -> str:
    """Say whether a source is in-domain or out-of-domain.

    Case and punctuation do not matter; otherwise the name must be the table's. One image may be in
    several data sets, written ``idrid;idrid_lesions``: the names that the table knows decide.

    Args:
        source: A name, as a record or a table of images states it.

    Returns:
        ``in-domain``, ``out-of-domain``, or ``unknown`` if no name is known or two known ones
        disagree.

    Example:
        >>> domain_of("IDRiD"), domain_of("OCTA-500"), domain_of("my own clinic")
        ('out-of-domain', 'in-domain', 'unknown')
    """
    table = {_key(row.source): row.domain for row in sources()} | {
        _key(PUBMED_CENTRAL): "in-domain"
    }
    domains = {table[_key(name)] for name in source.split(";") if _key(name) in table}
    return domains.pop() if len(domains) == 1 else UNKNOWN
