"""Each published method: by hand, against the authors' numbers, and its quirks.

The numbers marked with a repository and a commit were printed by that code on these inputs.
"""

import math

import pytest
import torch
from torch import Tensor

from tests.shaping.batches import random_batch
from uadt.entropy import token_entropy
from uadt.shaping import (
    EDGE,
    GRPOS,
    GTPO,
    SEED,
    STARE,
    UCAS,
    EntropyAdvantage,
    HighEntropyTokens,
    StareState,
)
from uadt.types import EmptyState, Rollout

NAN = math.nan
NOTHING = EmptyState()


def rollout_of(
    rows: list[list[float]],
    *,
    reward: list[float] | None = None,
    group: list[int] | None = None,
    clusters: list[int] | None = None,
) -> Rollout:
    """Return a rollout of ragged entropies, padded with NaN."""
    width = max(map(len, rows))
    entropy = torch.tensor([row + [NAN] * (width - len(row)) for row in rows])
    return Rollout(
        mask=~entropy.isnan(),
        entropy=entropy,
        reward=None if reward is None else torch.tensor(reward),
        group=None if group is None else torch.tensor(group),
        extra={} if clusters is None else {"cluster": torch.tensor(clusters)},
    )


# --- Entropy advantage (2506.14758)


def test_entropy_advantage_by_hand() -> None:
    rollout = rollout_of([[0.5, 3.0], [0.5, 3.0], [0.5]])
    advantage = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [0.0, 7.0]])
    shaped = EntropyAdvantage(alpha=0.4, kappa=2.0)(advantage, rollout, NOTHING)
    # .4 · .5 = .2; .4 · 3 = 1.2, but at most 1 / 2. Wrong: −1 + .2, −1 + .5. Nothing of nothing.
    expected = torch.tensor([[1.2, 1.5], [-0.8, -0.5], [0.0, 7.0]])
    torch.testing.assert_close(shaped.advantage, expected)


def test_kappa_above_one_keeps_every_sign() -> None:
    advantage, rollout = random_batch(3)
    shaped = EntropyAdvantage(alpha=1e6, kappa=1.001)(advantage, rollout, NOTHING)
    assert torch.equal(shaped.advantage.sign(), advantage.sign())
    with pytest.raises(ValueError, match=r"kappa must be above 1, got 1\.0"):
        EntropyAdvantage(kappa=1.0)


# --- High-entropy minority tokens (2506.01939)


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
        entropy=_sine_entropy(),
    )
    kept = HighEntropyTokens(fraction=0.2)(torch.ones(3, 4), rollout, NOTHING)
    expected = [[True, False, False, False], [False, False, True, False], [False] * 4]
    assert ((kept.advantage == 1) & rollout.mask).tolist() == expected


# --- GTPO and GRPO-S (2508.04349)

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


# --- UCAS (2510.10649)

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


# --- EDGE-GRPO (2507.21848)


def _sine_entropy() -> Tensor:
    """Return the entropies of logits 3 · sin(1 + i + 2t + 5v) at temperature .8."""
    logits = [
        [[3 * math.sin(1 + i + 2 * t + 5 * v) for v in range(5)] for t in range(4)]
        for i in range(3)
    ]
    return token_entropy(torch.tensor(logits), temperature=0.8)


def test_edge_equals_the_authors_code() -> None:
    # ZhangXJ199/EDGE-GRPO@cbe13ca: _get_per_token_logps(EDA=True), then the line of EDA.
    # Every position counts there, so the mask changes nothing.
    rollout = Rollout(
        mask=torch.tensor([[True] * 4, [True, True, False, False], [True] * 4]),
        entropy=_sine_entropy(),
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
    advantage = torch.ones(2, requires_grad=True)
    rollout = Rollout(mask=torch.ones(2, 1, dtype=torch.bool), entropy=entropy)
    EDGE()(advantage, rollout, NOTHING).advantage.sum().backward()
    assert entropy.grad is None
    assert advantage.grad is not None  # it is the advantage's own, and untouched


def test_edge_is_the_opposite_of_uadt_where_the_answer_is_right() -> None:
    rollout = rollout_of([[0.2], [0.6]])  # certain, uncertain
    shaped = EDGE()(torch.ones(2), rollout, NOTHING).advantage
    assert float(shaped[0]) > 1 > float(shaped[1])


# --- SEED-GRPO (2505.12346)


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


# --- STARE (2606.19236)

STARE_LOGPROB = -torch.tensor(
    [[0.1, 2.0, 0.3, 1.1], [0.7, 0.2, 3.0, 0.0], [0.05, 0.9, 0.4, 2.2], [1.7, 0.6, 0.0, 0.0]]
)
STARE_MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]]).bool()
STARE_ADVANTAGE = torch.tensor([0.8, 1.2, -0.5, -0.9])[:, None].expand(4, 4)


@pytest.mark.parametrize("variant", ["O1", "C2"])
def test_stare_equals_the_authors_code_over_six_steps(variant: str) -> None:
    # hp-luo/STARE@bffb9e7: STAREController(0.25, 1.1, 0.9, adaptive=True, alpha=0.01) and
    # compute_stare_token_weights(top_p_ratio=0.3); of 7 and 6 tokens 3 and 2 are chosen.
    steps = [
        # mean entropy, gate, W, M after the update
        (0.125, True, 1.11, 0.89),
        (0.0625, True, 1.12, 0.88),
        (0.1875, True, 1.13, 0.87),
        (0.375, False, 1.12, 0.88),
        (0.25, False, 1.12, 0.88),  # sgn(0) = 0, and the gate is strict
        (0.03125, True, 1.13, 0.87),
    ]
    kind = "C2" if variant == "C2" else "O1"
    shaping = STARE(fraction=0.3, target=0.25, variant=kind, adaptive=True)
    state = shaping.init()
    for entropy, gate, up, down in steps:
        values = torch.full((4, 4), entropy)
        rollout = Rollout(mask=STARE_MASK, logprob=STARE_LOGPROB, entropy=values)
        shaped = shaping(STARE_ADVANTAGE, rollout, state)
        state = shaped.state
        assert (state.up, state.down) == pytest.approx((up, down))
        w = up if gate else 1.0
        m = down if gate and variant == "C2" else 1.0
        expected = [[1, w, 1, w], [1, 1, w, 1], [1, 1, 1, m], [m, 1, 1, 1]]
        torch.testing.assert_close(shaped.info["stare/multiplier"], torch.tensor(expected))
        assert float(shaped.info["stare/gate"]) == gate


def test_stares_choice_does_not_depend_on_micro_batches_as_the_codes_does() -> None:
    # Chosen over the whole batch, 1 of 4 correct tokens; over halves it would be 1 of 2, twice.
    logprob = -torch.tensor([[3.0, 2.0], [0.2, 0.1]])
    rollout = Rollout(
        mask=torch.ones(2, 2, dtype=torch.bool), logprob=logprob, entropy=torch.full((2, 2), 0.1)
    )
    shaping = STARE(fraction=0.25)
    whole = shaping(torch.ones(2, 2), rollout, shaping.init()).info["stare/multiplier"]
    torch.testing.assert_close(whole, torch.tensor([[1.1, 1.0], [1.0, 1.0]]))
    halves = [
        shaping(
            torch.ones(1, 2),
            Rollout(mask=rollout.mask[i], logprob=logprob[i], entropy=torch.full((1, 2), 0.1)),
            shaping.init(),
        ).info["stare/multiplier"]
        for i in (slice(0, 1), slice(1, 2))
    ]
    torch.testing.assert_close(torch.cat(halves), torch.tensor([[1.1, 1.0], [1.1, 1.0]]))


def test_the_controllers_weights_stop_at_their_limits() -> None:
    shaping = STARE(adaptive=True, step=0.3)
    low = Rollout(mask=STARE_MASK, logprob=STARE_LOGPROB, entropy=torch.zeros(4, 4))
    state = shaping.init()
    for _ in range(3):
        state = shaping(STARE_ADVANTAGE, low, state).state
    assert state == StareState(up=1.5, down=0.5)
    high = Rollout(mask=STARE_MASK, logprob=STARE_LOGPROB, entropy=torch.ones(4, 4))
    for _ in range(3):
        state = shaping(STARE_ADVANTAGE, high, state).state
    assert state == StareState(up=1.0, down=1.0)


def test_without_adaptation_the_state_never_moves() -> None:
    shaping = STARE()
    rollout = Rollout(mask=STARE_MASK, logprob=STARE_LOGPROB, entropy=torch.zeros(4, 4))
    assert shaping(STARE_ADVANTAGE, rollout, shaping.init()).state == StareState(1.1, 0.9)


def test_a_batch_without_tokens_moves_no_controller() -> None:
    shaping = STARE(adaptive=True)
    rollout = Rollout(
        mask=torch.zeros(4, 4, dtype=torch.bool),
        logprob=STARE_LOGPROB,
        entropy=torch.zeros(4, 4),
    )
    shaped = shaping(STARE_ADVANTAGE, rollout, StareState(1.2, 0.8))
    assert shaped.state == StareState(1.2, 0.8)
    assert torch.equal(shaped.advantage, STARE_ADVANTAGE)
