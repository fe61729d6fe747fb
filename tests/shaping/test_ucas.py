"""UCAS (2510.10649): by hand, beside the authors' code, and its quirks.

The numbers marked with a repository and a commit were printed by that code on these inputs.
"""

import math

import pytest
import torch

from tests.shaping.batches import NAN
from uadt.shaping import UCAS
from uadt.types import EmptyState, Rollout

NOTHING = EmptyState()


UCAS_MASK = torch.tensor(
    [[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0], [1, 1, 1]], dtype=torch.bool
)
UCAS_CERTAINTY = torch.tensor(
    [[3.0, 5.0, 2.0], [6.0, 4.5, NAN], [1.5, NAN, NAN], [2.5, 7.0, 3.5], [4.0, 4.0, NAN],
     [5.5, 1.0, 6.5]]
)  # fmt: skip
UCAS_LOGIT = torch.tensor(
    [[12.0, 18.5, 9.0], [20.0, 15.0, NAN], [7.0, NAN, NAN], [11.0, 25.0, 13.0],
     [16.0, 14.0, NAN], [22.0, 5.0, 24.0]]
)  # fmt: skip
UCAS_ROLLOUT = Rollout(
    mask=UCAS_MASK,
    group=torch.tensor([0, 0, 0, 1, 1, 1]),
    extra={"self_certainty": UCAS_CERTAINTY, "logit": UCAS_LOGIT},
)
# Rewards (1, 0, 1 | 1, 1, 1), standardised with the sample deviation sqrt(1/3).
UCAS_GRPO = torch.tensor([1 / 3, -2 / 3, 1 / 3, 0.0, 0.0, 0.0]) / (math.sqrt(1 / 3) + 1e-6)


def test_ucas_equals_the_authors_code() -> None:
    # xvolcano02/UCAS@b122ff2, compute_ucas_advantage; lse − mean z = KL(U ‖ p) + log 32
    expected = [
        [0.46127176, 0.44502175, 0.46877176], [-1.35955834, -1.34705830, 0.0],
        [0.76189488, 0.0, 0.0], [-0.015, -0.05, -0.02], [-0.0275, -0.0225, 0.0],
        [-0.0425, 0.0, -0.0475],
    ]  # fmt: skip
    shaping = UCAS(faithful_to="code", vocab_size=32)
    advantage = UCAS_GRPO[:, None].expand(6, 3)
    shaped = shaping(advantage, UCAS_ROLLOUT, NOTHING).advantage
    torch.testing.assert_close(
        shaped[UCAS_MASK], torch.tensor(expected)[UCAS_MASK], atol=1e-6, rtol=1e-5
    )


def test_without_the_division_in_the_baseline_the_code_leaves_the_certainty_undivided() -> None:
    # The same call with norm_adv_by_std_in_grpo=False. The gains are of another order:
    # ĉ is (10, 10.5, 1.5) + (3, 2, 1) · log 32 minus the mean, so e^(.35 · 3.17), e^(.25 · 9.30).
    expected = [
        [0.05445509, 0.03820509, 0.06195509], [-2.05703712, -2.04453731, 0.0],
        [3.40310073, 0.0, 0.0], [-0.015, -0.05, -0.02], [-0.0275, -0.0225, 0.0],
        [-0.0425, 0.0, -0.0475],
    ]  # fmt: skip
    centred = torch.tensor([1 / 3, -2 / 3, 1 / 3, 0.0, 0.0, 0.0])[:, None].expand(6, 3)
    shaping = UCAS(faithful_to="code", vocab_size=32, standardise=False)
    shaped = shaping(centred, UCAS_ROLLOUT, NOTHING).advantage
    torch.testing.assert_close(
        shaped[UCAS_MASK], torch.tensor(expected)[UCAS_MASK], atol=1e-6, rtol=1e-5
    )


def test_the_code_lets_the_certainty_of_a_group_of_one_be() -> None:
    # The same call with groups (0, 0, 0 | 1, 1 | 2) and rewards (1, 0, 1 | 1, 0 | 1): the last one
    # keeps its reward as advantage, times e^(−.25 · (13 + 3 log 32)), minus the tax.
    expected = [
        [0.46127176, 0.44502175, 0.46877176], [-1.35955834, -1.3470583, 0.0],
        [0.76189488, 0.0, 0.0], [0.57753122, 0.54253119, 0.57253122],
        [-0.57957995, -0.57457995, 0.0], [0.0, 0.00288192, 0.0],
    ]  # fmt: skip
    rollout = Rollout(
        mask=UCAS_MASK, group=torch.tensor([0, 0, 0, 1, 1, 2]), extra=UCAS_ROLLOUT.extra
    )
    grpo = torch.cat([UCAS_GRPO[:3], torch.tensor([0.5, -0.5]) / (math.sqrt(0.5) + 1e-6)])
    advantage = torch.cat([grpo, torch.ones(1)])[:, None].expand(6, 3)
    code = UCAS(faithful_to="code", vocab_size=32)(advantage, rollout, NOTHING).advantage
    torch.testing.assert_close(
        code[UCAS_MASK], torch.tensor(expected)[UCAS_MASK], atol=1e-6, rtol=1e-5
    )
    paper = UCAS(penalty=0.0)(advantage, rollout, NOTHING)
    assert float(paper.info["ucas/certainty"][5]) == 0.0
    assert paper.advantage[5].tolist() == [1.0, 1.0, 1.0]


def test_an_advantage_of_nothing_stays_finite_beside_an_infinite_gain() -> None:
    # A group of one with a certainty that no float32 exponential holds, as the code would let it.
    rollout = Rollout(
        mask=torch.ones(1, 2, dtype=torch.bool),
        group=torch.zeros(1, dtype=torch.int64),
        extra={"self_certainty": torch.full((1, 2), 1e4)},
    )
    shaping = UCAS(faithful_to="code", vocab_size=32, penalty=0.0)
    assert shaping(torch.zeros(1, 2), rollout, NOTHING).advantage.tolist() == [[0.0, 0.0]]


def test_the_codes_sum_is_not_masked_and_ours_is() -> None:
    # The same call with self-certainties of (0 0 0 | 0 0 1 | 0 8 .5) at padding and log 32 beside
    # each, as without use_remove_padding: the first three gave A · W of .6669965, −1.7297523 and
    # .6669965 (and, with padding of 0, .4787717, −1.3220583 and .7668949). To get the former, one
    # has to count the padding as tokens.
    padding = torch.zeros(6, 3)
    padding[1, 2], padding[2, 1], padding[2, 2], padding[4, 2] = 1.0, 8.0, 0.5, 2.0
    certainty = UCAS_CERTAINTY.masked_fill(~UCAS_MASK, 0.0) + padding
    advantage = UCAS_GRPO[:, None].expand(6, 3)
    shaping = UCAS(faithful_to="code", vocab_size=32, penalty=0.0)
    for mask, expected in (
        (torch.ones_like(UCAS_MASK), [0.6669965, -1.7297523, 0.6669965]),
        (UCAS_MASK, [0.4787717, -1.3220583, 0.7668949]),
    ):
        rollout = Rollout(mask=mask, group=UCAS_ROLLOUT.group, extra={"self_certainty": certainty})
        shaped = shaping(advantage, rollout, NOTHING).advantage[:3, 0]
        torch.testing.assert_close(shaped, torch.tensor(expected), atol=1e-6, rtol=1e-5)


def test_the_code_taxes_completions_without_advantage_and_we_need_not() -> None:
    advantage = UCAS_GRPO[:, None].expand(6, 3)
    code = UCAS(faithful_to="code", vocab_size=32)(advantage, UCAS_ROLLOUT, NOTHING).advantage
    paper = UCAS()(advantage, UCAS_ROLLOUT, NOTHING).advantage
    solved = torch.tensor([3, 4])  # all three of the group are right, and are pushed down
    assert float(code[solved][UCAS_MASK[solved]].max()) < 0
    assert torch.equal(paper[3:], torch.zeros(3, 3))


def test_the_sum_with_its_offset_follows_length_and_the_mean_does_not() -> None:
    # The same certainty a token, one and three tokens: the mean cannot tell them apart.
    rollout = Rollout(
        mask=torch.tensor([[True] * 3, [True, False, False]]),
        group=torch.zeros(2, dtype=torch.int64),
        extra={"self_certainty": torch.full((2, 3), 2.0)},
    )
    ones = torch.ones(2, 3)
    paper = UCAS(penalty=0.0)(ones, rollout, NOTHING)
    code = UCAS(penalty=0.0, faithful_to="code", vocab_size=32)(ones, rollout, NOTHING)
    assert paper.info["ucas/certainty"].tolist() == [0.0, 0.0]
    half = 1 / math.sqrt(2)
    torch.testing.assert_close(code.info["ucas/certainty"], torch.tensor([half, -half]))
    # Without log V a token, only the sum of what differs would count: another number.
    bare = UCAS(penalty=0.0, faithful_to="code", vocab_size=1)
    mixed = Rollout(
        mask=torch.tensor([[True] * 3, [True, False, False], [True, True, False]]),
        group=torch.zeros(3, dtype=torch.int64),
        extra={"self_certainty": torch.tensor([[2.0] * 3, [9.0, 0, 0], [1.0, 1.0, 0]])},
    )
    with_offset = UCAS(penalty=0.0, faithful_to="code", vocab_size=10**5)
    three = torch.ones(3, 3)
    assert bare(three, mixed, NOTHING).info["ucas/certainty"].argmax() == 1
    assert with_offset(three, mixed, NOTHING).info["ucas/certainty"].argmax() == 0


def test_the_authors_constants_are_arguments() -> None:
    certain = Rollout(
        mask=torch.ones(2, 1, dtype=torch.bool),
        group=torch.zeros(2, dtype=torch.int64),
        extra={"self_certainty": torch.tensor([[1.0], [3.0]])},
    )
    shaping = UCAS(alpha_positive=1.0, alpha_negative=2.0, penalty=0.0)
    shaped = shaping(torch.tensor([[1.0], [-1.0]]), certain, NOTHING).advantage
    z = 1 / math.sqrt(2)
    torch.testing.assert_close(
        shaped, torch.tensor([[math.exp(z)], [-math.exp(2 * z)]]), atol=1e-5, rtol=1e-5
    )


def test_entropy_may_stand_for_certainty_if_one_says_so() -> None:
    entropy = torch.tensor([[3.0], [1.0]])
    group = torch.zeros(2, dtype=torch.int64)
    ours = Rollout(mask=entropy > 0, group=group, entropy=entropy)
    theirs = Rollout(mask=entropy > 0, group=group, extra={"self_certainty": -entropy})
    ones = torch.ones(2, 1)
    shaping = UCAS(certainty="entropy", penalty=0.0)
    assert shaping.signals == {"entropy", "group"}
    torch.testing.assert_close(
        shaping(ones, ours, NOTHING).advantage,
        UCAS(penalty=0.0)(ones, theirs, NOTHING).advantage,
    )


def test_the_codes_form_wants_a_vocabulary() -> None:
    with pytest.raises(ValueError, match="log V a token, so vocab_size must be positive, got None"):
        UCAS(faithful_to="code")
