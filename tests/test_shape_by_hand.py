"""The example computes each number twice and stops if the two differ; here it runs."""

import runpy
from pathlib import Path

import pytest
import torch

EXAMPLE = Path(__file__).parents[1] / "examples" / "shape_by_hand.py"


def test_the_example_agrees_with_its_own_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    names = runpy.run_path(str(EXAMPLE))
    printed = capsys.readouterr().out
    assert printed.count("── ") == 9  # one an arrow
    # 1/√2 (1 + ½ tanh ⅓) = 0.7071 * 1.16074
    assert "A′[0] = +0.7071 + 0.5 · (+0.3215) · 0.7071 = +0.8208" in printed
    assert "A′[1] = −0.7071 + 0.5 · (−0.3215) · 0.7071 = -0.8208" in printed
    assert int(names["mask"].sum()) == 6  # six tokens


def test_its_comparison_can_fail() -> None:
    same = runpy.run_path(str(EXAMPLE))["same"]
    with pytest.raises(AssertionError):
        same(torch.tensor([0.5]), [0.50001])
