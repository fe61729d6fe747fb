"""GTPO and GRPO-S (2508.04349): by hand, and beside the paper-exact copy.

The numbers marked with a repository and a commit were printed by that code on these inputs.
"""

import math

import torch

from tests.shaping.batches import rollout_of
from uadt.shaping import GRPOS, GTPO
from uadt.types import EmptyState

NOTHING = EmptyState()


GTPO_ENTROPY = [[0.5, 1.5, 0.2], [1.0, 0.4], [2.0, 0.8, 1.2], [0.3], [0.6, 2.5, 0.1]]
GTPO_REWARD = [1.0, 1.0, 0.0, 0.0, 1.0]


def test_gtpo_equals_the_paper_exact_copy() -> None:
    # teilomillet/textpolicy@e88fc30: compute_gtpo_shaped_rewards, normalize_gtpo_advantages.
    # It takes all episodes for one group, and divides by sqrt(var + 1e-8).
    shaped_reward = [
        1.0714285, 1.1022727, 1.1333333, 1.1428572, 1.0272727, -1.0260869, -1.1, -1.1,
        -1.1739130, 1.0857143, 1.1704545, 1.0666666,
    ]  # fmt: skip
    advantage = [
        -0.6525227, 0.0519080, 0.7612802, 0.9787896, -1.6609690, 1.4142121, 0.0, 0.0,
        -1.4142097, -0.3262587, 1.6090665, -0.7612775,
    ]  # fmt: skip
    rollout = rollout_of(GTPO_ENTROPY, reward=GTPO_REWARD, group=[0] * 5)
    shaped = GTPO()(torch.zeros(5, 3), rollout, NOTHING)
    mask = rollout.mask
    found = shaped.info["gtpo/shaped_reward"][mask]
    torch.testing.assert_close(found, torch.tensor(shaped_reward))
    torch.testing.assert_close(
        shaped.advantage[mask], torch.tensor(advantage), atol=1e-5, rtol=1e-5
    )


def test_gtpo_makes_the_mean_of_each_class_zero_and_the_weights_cancel() -> None:
    rollout = rollout_of(GTPO_ENTROPY, reward=GTPO_REWARD, group=[0] * 5)
    correct = torch.tensor(GTPO_REWARD)[:, None].bool() & rollout.mask
    shaped = GTPO()(torch.zeros(5, 3), rollout, NOTHING).advantage
    for members in (correct, rollout.mask & ~correct):
        assert abs(float(shaped[members].mean())) < 1e-6
    assert float(shaped[correct].min()) < 0 < float(shaped[rollout.mask & ~correct].max())
    # With rewards of 0 and 1 a z-score by class forgets both weights.
    other = GTPO(alpha_1=7.0, alpha_2=2.0)(torch.zeros(5, 3), rollout, NOTHING).advantage
    torch.testing.assert_close(other, shaped, atol=1e-4, rtol=1e-4)


def test_gtpo_looks_at_one_group_at_a_time() -> None:
    first = rollout_of(GTPO_ENTROPY, reward=GTPO_REWARD, group=[0] * 5)
    both = rollout_of(
        [*GTPO_ENTROPY, [0.9, 0.1], [0.2]], reward=[*GTPO_REWARD, 1.0, 0.0], group=[0] * 5 + [9] * 2
    )
    one = GTPO()(torch.zeros(5, 3), first, NOTHING).advantage
    two = GTPO()(torch.zeros(7, 3), both, NOTHING).advantage
    assert torch.equal(one, two[:5])


def test_a_position_without_entropy_is_shared_equally() -> None:
    rollout = rollout_of([[0.0], [0.0], [0.0]], reward=[1.0, 1.0, 0.0], group=[0] * 3)
    shaped = GTPO()(torch.ones(3, 1), rollout, NOTHING)
    torch.testing.assert_close(
        shaped.info["gtpo/shaped_reward"].flatten(), torch.tensor([1.1, 1.1, -1.1])
    )
    assert shaped.advantage.flatten().tolist() == [0.0, 0.0, 0.0]


def test_grpo_s_by_hand() -> None:
    rollout = rollout_of(
        [[0.5, 1.5], [3.0], [0.5], [0.25], [9.9]],
        reward=[1.0, 1.0, 0.0, 0.0, 1.0],
        group=[0, 0, 0, 0, 1],
    )
    shaped = GRPOS()(torch.zeros(5), rollout, NOTHING)
    # H̄ = (1, 3 | .5, .25): shares 1/4, 3/4 of 2; inverses 2, 4, so 1/3, 2/3 of 2.
    rewards = [1 + 0.1 * 0.5, 1 + 0.1 * 1.5, -1 - 0.1 * 2 / 3, -1 - 0.1 * 4 / 3]
    torch.testing.assert_close(
        shaped.info["grpo_s/shaped_reward"], torch.tensor([*rewards, 1.1]), atol=1e-6, rtol=1e-6
    )
    mean = sum(rewards) / 4
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / 3)
    expected = torch.tensor([(r - mean) / std for r in rewards] + [0.0])
    torch.testing.assert_close(shaped.advantage, expected, atol=1e-5, rtol=1e-5)
    # The table: uncertain and correct above certain and correct; wrong the other way in size.
    assert shaped.advantage[1] > shaped.advantage[0]
    assert shaped.advantage[2] > shaped.advantage[3]
    tokens = GRPOS()(torch.zeros(5, 2), rollout, NOTHING).advantage
    assert torch.equal(tokens[0], shaped.advantage[0].expand(2))
    assert float(tokens[1, 1]) == 0.0  # padding is let be
