import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="the zoo draws with matplotlib")

from examples import zoo

ADVANTAGE, ROLLOUT = zoo.synthetic_batch()
SHAPED = zoo.shape_all(ADVANTAGE, ROLLOUT)
RIGHT = torch.tensor(zoo.REWARD) > 0
UNSURE = torch.tensor(zoo.UNSURE)
FIRST = torch.arange(8) < 4


def sizes(name: str) -> torch.Tensor:
    return zoo.size_ratio(SHAPED[name], ADVANTAGE, ROLLOUT.mask)


def test_the_made_up_policy_is_less_sure_where_it_says_so() -> None:
    assert ROLLOUT.entropy is not None
    means = (ROLLOUT.entropy * ROLLOUT.mask).sum(-1) / ROLLOUT.mask.sum(-1)
    assert float(means[UNSURE].min()) > float(means[~UNSURE].max())


@pytest.mark.parametrize(
    ("name", "louder", "quieter"),
    [
        # the completions whose size the 2×2 table of each docstring says goes up, and down
        ("UADT", RIGHT & UNSURE | ~RIGHT & ~UNSURE, RIGHT & ~UNSURE),
        ("UADT, symmetric", UNSURE, ~UNSURE),
        ("EDGE-GRPO", ~UNSURE, RIGHT & UNSURE),
        ("UCAS", RIGHT & UNSURE | ~RIGHT & ~UNSURE, RIGHT & ~UNSURE | ~RIGHT & UNSURE),
        ("Entropy advantage", RIGHT, ~RIGHT),
        ("STARE, C2", RIGHT & UNSURE, ~RIGHT),
    ],
)
def test_the_picture_says_what_the_tables_say(
    name: str, louder: torch.Tensor, quieter: torch.Tensor
) -> None:
    assert float(sizes(name)[louder].min()) > 1
    assert float(sizes(name)[quieter].max()) < 1


def test_seed_is_quieter_where_answers_differ_more() -> None:
    # four answers of four: log 4 / log 4; 3:1: .5623 / 1.3863
    assert sizes("SEED-GRPO")[FIRST].tolist() == pytest.approx([0.5] * 4)
    assert sizes("SEED-GRPO")[~FIRST].tolist() == pytest.approx([0.797] * 4, abs=1e-3)


def test_eighty_twenty_keeps_a_fifth_of_the_tokens() -> None:
    kept = (SHAPED["80/20"] != 0) & ROLLOUT.mask
    assert float(kept.sum() / ROLLOUT.mask.sum()) == pytest.approx(0.2, abs=0.01)


def test_the_command_draws_and_prints_every_shaping(tmp_path: Path) -> None:
    out = tmp_path / "zoo.png"
    run = subprocess.run(
        [sys.executable, "examples/zoo.py", "--out", str(out)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert out.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    lines = run.stdout.splitlines()
    assert [line[:24].strip() for line in lines[1:-1]] == [name for name, _, _ in zoo.ZOO]
