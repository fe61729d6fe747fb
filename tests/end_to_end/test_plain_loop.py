"""The loop in plain PyTorch learns, and its threshold follows the policy's entropy down."""

import re

from tests.scripts import ROOT, run_script


def test_the_plain_loop_learns() -> None:
    printed = run_script("examples/plain_loop.py")
    found = re.findall(r"step +\d+  reward ([\d.]+)  threshold ([\d.]+) nats", printed)
    rewards = [float(reward) for reward, _ in found]
    thresholds = [float(threshold) for _, threshold in found]
    # By chance one letter of eight is right, or fewer since an answer may end early.
    assert rewards[0] < 0.25
    assert rewards[-1] > 0.6
    # Nine equal choices are ln 9 = 2.197 nats.
    assert 2.0 < thresholds[0] <= 2.2
    assert thresholds[-1] < thresholds[0] / 2


def test_it_is_short() -> None:
    lines = (ROOT / "examples" / "plain_loop.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
