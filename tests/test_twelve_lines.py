"""The README's twelve lines are those of the example, and they do what the README says."""

import math
import re
import runpy
from pathlib import Path

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]


def test_the_readme_shows_the_example_and_nothing_else() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"## Twelve lines\n+```python\n(.*?)```", readme, re.DOTALL)
    assert shown is not None
    example = (ROOT / "examples" / "twelve_lines.py").read_text(encoding="utf-8")
    assert example.endswith('"""\n\n' + shown.group(1))
    lines = [line for line in shown.group(1).splitlines() if line]
    assert len(lines) <= 12


def test_the_twelve_lines_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    names = runpy.run_path(str(ROOT / "examples" / "twelve_lines.py"))
    logits, shaped = names["logits"], names["shaped"]

    # H = -sum p log p in double precision; U is the mean over the six tokens.
    p = torch.softmax(logits.double(), dim=-1)
    uncertainty: Tensor = -(p * p.log()).sum(dim=-1).mean(dim=-1)
    # The first batch is its own threshold; omega = tanh((U - theta) / theta).
    threshold = uncertainty.mean()
    factor = torch.tanh((uncertainty - threshold) / threshold)
    torch.testing.assert_close(shaped.info["uadt/factor"].double(), factor, atol=1e-5, rtol=0)

    # Each group is (1, 0): mean 1/2, sample deviation sqrt(1/2), so A is +-sqrt(1/2), but for eps.
    advantage = math.sqrt(0.5) * torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    expected = advantage + 0.5 * factor * advantage.abs()
    torch.testing.assert_close(shaped.advantage.double(), expected, atol=1e-5, rtol=0)

    assert str(shaped.advantage) in capsys.readouterr().out
