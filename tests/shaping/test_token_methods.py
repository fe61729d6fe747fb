"""Entropy advantage (2506.14758) and 80/20 (2506.01939): by hand, and the scope that is hidden.

The numbers marked with a repository and a commit were printed by that code on these inputs.
"""

import pytest
import torch

from tests.shaping.batches import random_batch, rollout_of, sine_entropy
from uadt.shaping import EntropyAdvantage, HighEntropyTokens
from uadt.types import EmptyState, Rollout

NOTHING = EmptyState()


def test_entropy_advantage_by_hand() -> None:
    rollout = rollout_of([[0.5, 3.0], [0.5, 3.0], [0.5]])
    advantage = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [0.0, 7.0]])
    shaped = EntropyAdvantage(alpha=0.4, kappa=2.0)(advantage, rollout, NOTHING)
    # .4 · .5 = .2; .4 · 3 = 1.2, but at most 1 / 2. Wrong: −1 + .2, −1 + .5. Nothing of nothing.
    expected = torch.tensor([[1.2, 1.5], [-0.8, -0.5], [0.0, 7.0]])
    torch.testing.assert_close(shaped.advantage, expected)


def test_an_entropy_below_zero_earns_nothing_and_costs_nothing() -> None:
    # Half precision gave −.1 nats: without a floor A′ would be 1 − .04, a malus for being sure.
    rollout = rollout_of([[-0.1, 0.5]])
    shaped = EntropyAdvantage()(torch.tensor([[1.0, -1.0]]), rollout, NOTHING)
    torch.testing.assert_close(shaped.advantage, torch.tensor([[1.0, -0.8]]))
    assert shaped.info["entropy_advantage/bonus"][0, 0] == 0.0


def test_kappa_above_one_keeps_every_sign() -> None:
    advantage, rollout = random_batch(3)
    shaped = EntropyAdvantage(alpha=1e6, kappa=1.001)(advantage, rollout, NOTHING)
    assert torch.equal(shaped.advantage.sign(), advantage.sign())
    with pytest.raises(ValueError, match=r"kappa must be above 1, got 1\.0"):
        EntropyAdvantage(kappa=1.0)


def test_each_scope_keeps_its_own_tokens() -> None:
    # .5 quantile. Batch: of .1 .2 .3 | .4 .6 it is .3. Row 0: .2; row 1: .5.
    rollout = rollout_of([[0.1, 0.2, 0.3], [0.4, 0.6]], group=[4, 4])
    ones = torch.ones(2, 3)
    kept = {
        scope: HighEntropyTokens(fraction=0.5, scope=scope)(ones, rollout, NOTHING).advantage
        for scope in ("batch", "group", "sequence")
    }
    assert kept["batch"].tolist() == [[0, 0, 1], [1, 1, 1]]  # the last is padding, let be
    assert kept["group"].tolist() == kept["batch"].tolist()
    assert kept["sequence"].tolist() == [[0, 1, 1], [0, 1, 1]]
    assert HighEntropyTokens(scope="group").signals == {"entropy", "group"}
    assert HighEntropyTokens().signals == {"entropy"}


def test_nothing_is_no_fraction_to_keep() -> None:
    with pytest.raises(ValueError, match=r"fraction must be above 0, got 0\.0"):
        HighEntropyTokens(fraction=0.0)


def test_another_prompt_moves_the_batch_quantile_but_not_the_groups() -> None:
    alone = rollout_of([[0.1, 0.2, 0.3]], group=[0])
    beside = rollout_of([[0.1, 0.2, 0.3], [8.0, 9.0, 9.5]], group=[0, 1])
    of_group, of_batch = HighEntropyTokens(scope="group"), HighEntropyTokens()
    for shaping, same in ((of_group, True), (of_batch, False)):
        one = shaping(torch.ones(1, 3), alone, NOTHING).advantage
        two = shaping(torch.ones(2, 3), beside, NOTHING).advantage
        assert torch.equal(one, two[:1]) is same


def test_high_entropy_tokens_equal_trls() -> None:
    # trl 1.16.0, GRPOTrainer.get_high_entropy_mask(entropies, mask, threshold=0.8) on one rank
    rollout = Rollout(
        mask=torch.tensor([[True] * 4, [True] * 3 + [False], [True] + [False] * 3]),
        entropy=sine_entropy(),
    )
    kept = HighEntropyTokens(fraction=0.2)(torch.ones(3, 4), rollout, NOTHING)
    expected = [[True, False, False, False], [False, False, True, False], [False] * 4]
    assert ((kept.advantage == 1) & rollout.mask).tolist() == expected
