"""The examples in the docstrings of the data and evaluation modules run."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "name", ["backends", "intervals", "records", "scores", "sources", "tables"]
)
def test_examples_in_docstrings(name: str) -> None:
    module = importlib.import_module(f"examples.ophthareason.{name}")
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
