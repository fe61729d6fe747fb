"""EDGE-GRPO (2507.21848) and SEED-GRPO (2505.12346): two ways to trust what is certain.

The numbers marked with a repository and a commit were printed by that code on these inputs.
"""

import math

import pytest
import torch

from tests.shaping.batches import rollout_of, sine_entropy
from uadt.shaping import EDGE, SEED
from uadt.types import EmptyState, Rollout

NOTHING = EmptyState()


def test_edge_equals_the_authors_code() -> None:
    # ZhangXJ199/EDGE-GRPO@cbe13ca: _get_per_token_logps(EDA=True), then the line of EDA.
    # Every position counts there, so the mask changes nothing.
    rollout = Rollout(
        mask=torch.tensor([[True] * 4, [True, True, False, False], [True] * 4]),
        entropy=sine_entropy(),
    )
    shaped = EDGE(faithful_to="code")(torch.tensor([1.0, -0.5, 0.25]), rollout, NOTHING)
    expected = torch.tensor([0.95383191, -0.49239257, 0.26705199])
    torch.testing.assert_close(shaped.advantage, expected)


def test_edge_of_the_paper_leaves_padding_out() -> None:
    # Masked means (.2 + .4) / 2 = .3 and .9, batch .6: 2 and 2/3. With padding of 1: .533, .967.
    entropy = torch.tensor([[0.2, 0.4, 1.0], [0.9, 1.0, 1.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    rollout = Rollout(mask=mask, entropy=entropy)
    ones = torch.ones(2)
    paper = EDGE()(ones, rollout, NOTHING).advantage
    torch.testing.assert_close(paper, torch.tensor([2.0, 2 / 3]))
    code = EDGE(faithful_to="code")(ones, rollout, NOTHING).advantage
    mean = (1.6 / 3 + 2.9 / 3) / 2
    torch.testing.assert_close(code, torch.tensor([mean / (1.6 / 3), mean / (2.9 / 3)]))


def test_edge_stays_finite_where_the_code_explodes() -> None:
    rollout = rollout_of([[0.0], [0.5]])
    ones = torch.ones(2)
    assert EDGE()(ones, rollout, NOTHING).advantage.tolist() == [25.0, 0.5]  # .25 / .01
    code = EDGE(faithful_to="code")(ones, rollout, NOTHING).advantage
    assert math.isinf(float(code[0]))


def test_no_gradient_reaches_the_entropy_where_the_code_lets_it() -> None:
    entropy = torch.tensor([[0.2], [0.6]], requires_grad=True)
    rollout = Rollout(mask=torch.ones(2, 1, dtype=torch.bool), entropy=entropy)
    assert not EDGE(faithful_to="code")(torch.ones(2), rollout, NOTHING).advantage.requires_grad


def test_edge_is_the_opposite_of_uadt_where_the_answer_is_right() -> None:
    rollout = rollout_of([[0.2], [0.6]])  # certain, uncertain
    shaped = EDGE()(torch.ones(2), rollout, NOTHING).advantage
    assert float(shaped[0]) > 1 > float(shaped[1])


@pytest.mark.parametrize(
    ("shaping", "expected"),
    [
        # Two answers 3:1, SE = .5623, log 4 = 1.3863, x = .5 · .4056 = .2028
        (SEED(), 1 - 0.2028),
        (SEED(gain="exponential"), math.exp(-0.2028)),
        (SEED(gain="focal", gamma=2.0), (1 - 0.2028) ** 2),
    ],
)
def test_each_gain_of_seed_by_hand(shaping: SEED, expected: float) -> None:
    rollout = rollout_of([[1.0]] * 5, group=[0, 0, 0, 0, 1], clusters=[7, 7, 7, 2, 7])
    shaped = shaping(torch.tensor([1.0, -1.0, 2.0, 1.0, 1.0]), rollout, NOTHING).advantage
    signs = torch.tensor([1.0, -1.0, 2.0, 1.0])
    torch.testing.assert_close(shaped[:4], signs * expected, atol=1e-4, rtol=0)
    assert float(shaped[4]) == 1.0  # a group of one


def test_all_different_answers_with_alpha_one_are_not_learned_from() -> None:
    rollout = rollout_of([[1.0]] * 3, group=[0] * 3, clusters=[0, 1, 2])
    shaped = SEED(alpha=1.0)(torch.ones(3), rollout, NOTHING).advantage
    torch.testing.assert_close(shaped, torch.zeros(3), atol=1e-6, rtol=0)


def test_seed_counts_only_completions_with_tokens() -> None:
    rollout = Rollout(
        mask=torch.tensor([[True], [True], [False]]),
        group=torch.zeros(3, dtype=torch.int64),
        extra={"cluster": torch.tensor([4, 4, 5])},
    )
    shaped = SEED()(torch.ones(3), rollout, NOTHING)
    assert shaped.advantage.tolist() == [1.0, 1.0, 1.0]
    assert math.isnan(float(shaped.info["seed/uncertainty"][2]))


def test_clusters_may_come_as_floats_as_reward_functions_return_them() -> None:
    whole = rollout_of([[1.0]] * 3, group=[0] * 3, clusters=[0, 0, 1])
    floats = Rollout(
        mask=whole.mask, group=whole.group, extra={"cluster": torch.tensor([0.0, 0, 1])}
    )
    ours = SEED()(torch.ones(3), floats, NOTHING).advantage
    assert torch.equal(ours, SEED()(torch.ones(3), whole, NOTHING).advantage)
