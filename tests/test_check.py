"""Mistakes that people make, made on purpose; and honest rollouts that must pass."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from uadt.baselines import (
    group_advantage,
    maxrl_advantage,
    quantile_advantage,
    rloo_advantage,
    weighted_reinforce,
)
from uadt.check import check_rollout
from uadt.entropy import token_statistics
from uadt.types import Rollout

ROWS, WIDTH, VOCABULARY = 32, 60, 40


def _honest(
    seed: int = 0,
    *,
    rows: int = ROWS,
    varentropy: bool = True,
    temperature: float = 1.0,
    of: float = 1.0,
) -> tuple[Tensor, Rollout]:
    """Sample from random distributions, from certain to uncertain ones; padded with zeros.

    ``of`` is the temperature that the entropies are computed at.
    """
    g = torch.Generator().manual_seed(seed)
    spread = 6 * torch.rand(rows, WIDTH, 1, generator=g)
    logits = spread * torch.randn(rows, WIDTH, VOCABULARY, generator=g)
    p = (logits / temperature).softmax(-1).view(-1, VOCABULARY)
    ids = torch.multinomial(p, 1, generator=g).view(rows, WIDTH)
    sampled = token_statistics(logits, ids, temperature=temperature)
    assert sampled.logprob is not None
    said = token_statistics(logits, temperature=of)
    length = torch.randint(20, WIDTH, (rows, 1), generator=g)
    mask = torch.arange(WIDTH) < length
    reward = torch.randint(0, 2, (rows,), generator=g).float()
    group = torch.arange(4).repeat(rows // 4)
    rollout = Rollout(
        mask=mask,
        entropy=said.entropy * mask,
        logprob=sampled.logprob * mask,
        reward=reward,
        group=group,
        extra={"varentropy": said.varentropy * mask} if varentropy else {},
    )
    return group_advantage(reward, group), rollout


# --- honest rollouts ------------------------------------------------------------------------


@pytest.mark.parametrize("varentropy", [True, False])
def test_a_hundred_honest_rollouts_pass(varentropy: bool) -> None:
    for seed in range(100):
        check_rollout(*_honest(seed, varentropy=varentropy))


@pytest.mark.parametrize("poison", [math.nan, 0.0])
def test_padding_may_be_nan_and_advantages_by_token(poison: float) -> None:
    advantage, rollout = _honest()
    assert rollout.entropy is not None
    by_token = advantage.unsqueeze(-1).expand(ROWS, WIDTH).masked_fill(~rollout.mask, poison)
    entropy = rollout.entropy.masked_fill(~rollout.mask, poison)
    check_rollout(by_token, replace(rollout, entropy=entropy))


def test_computed_padding_passes() -> None:
    # A stack that computes entropies for padding too leaves noise behind the mask.
    advantage, rollout = _honest()
    assert rollout.entropy is not None
    noise = torch.rand(ROWS, WIDTH, generator=torch.Generator().manual_seed(1)) + 0.1
    check_rollout(
        advantage, replace(rollout, entropy=torch.where(rollout.mask, rollout.entropy, noise))
    )


def test_few_certain_tokens_pass() -> None:
    # p = 0.999 everywhere, and no surprise among a hundred tokens: rare surprises are not seen,
    # so the mean of -log p lies below the entropy in every such sample.
    p = torch.tensor(0.999, dtype=torch.float64)
    entropy = -(p * p.log() + (1 - p) * (1 - p).log())
    rollout = Rollout(
        mask=torch.ones(4, 25, dtype=torch.bool),
        entropy=entropy.expand(4, 25),
        logprob=p.log().expand(4, 25),
    )
    check_rollout(torch.zeros(4), rollout)


def test_the_true_zeros_of_a_sure_policy_pass() -> None:
    # Every completion ends in the same three tokens, which float32 cannot tell from certain.
    advantage, rollout = _honest()
    length = rollout.mask.sum(-1, keepdim=True)
    sure = torch.arange(WIDTH) >= length - 3
    assert rollout.entropy is not None
    assert rollout.logprob is not None
    for mask in (rollout.mask, torch.ones_like(rollout.mask)):
        tail = sure if mask is rollout.mask else torch.arange(WIDTH).expand(ROWS, -1) >= WIDTH - 12
        live = torch.rand(ROWS, WIDTH, generator=torch.Generator().manual_seed(2)) + 0.1
        entropy = torch.where(mask & ~tail, live, 0.0)
        check_rollout(advantage, Rollout(mask=mask, entropy=entropy, logprob=-entropy))


def test_a_policy_that_repeats_itself_passes() -> None:
    # A learnt loop gives the same logits again and again, to the last bit, after different starts.
    advantage, rollout = _honest()
    start = torch.arange(ROWS).unsqueeze(-1) % 20
    noise = torch.rand(ROWS, WIDTH, generator=torch.Generator().manual_seed(3)) + 0.1
    entropy = torch.where(torch.arange(WIDTH) < start, noise, 0.4)
    mask = torch.ones_like(rollout.mask)
    check_rollout(advantage, Rollout(mask=mask, entropy=entropy, logprob=-entropy))


def test_rows_without_tokens_and_groups_of_one_pass() -> None:
    advantage, rollout = _honest()
    mask = rollout.mask.clone()
    mask[3] = False
    group = (
        torch.cat([rollout.group[:-1], torch.tensor([99])]) if rollout.group is not None else None
    )
    assert group is not None
    assert rollout.reward is not None
    advantage = group_advantage(rollout.reward, group)
    check_rollout(advantage, replace(rollout, mask=mask, group=group))


@pytest.mark.parametrize("width", [0, 1])
def test_the_smallest_rollouts_pass(width: int) -> None:
    rollout = Rollout(
        mask=torch.ones(1, width, dtype=torch.bool),
        entropy=torch.ones(1, width),
        logprob=-torch.ones(1, width),
        group=torch.tensor([0]),
    )
    check_rollout(torch.zeros(1), rollout)
    check_rollout(torch.zeros(1, width), rollout)


def test_every_group_mean_passes_and_other_baselines_say_so() -> None:
    _, rollout = _honest()
    assert rollout.reward is not None
    assert rollout.group is not None
    reward, group = rollout.reward, rollout.group
    for baseline in (group_advantage, rloo_advantage, maxrl_advantage):
        check_rollout(baseline(reward, group), rollout)
    for other in (
        quantile_advantage(reward, group, quantile=0.4),
        weighted_reinforce(reward, positive=0.1),
        torch.rand(ROWS),
    ):
        with pytest.raises(ValueError, match="not group-centred"):
            check_rollout(other, rollout)
        check_rollout(other, rollout, group_centred=False)


@given(
    lengths=st.lists(st.integers(1, 8), min_size=1, max_size=6),
    left=st.booleans(),
    zeros=st.floats(0.0, 0.9),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=150, deadline=None)
def test_padding_on_either_side_passes(
    lengths: list[int], left: bool, zeros: float, seed: int
) -> None:
    # Some tokens are certain, to the last bit; mask and values are padded on the same side.
    places, length = torch.arange(8), torch.tensor(lengths)[:, None]
    mask = places >= 8 - length if left else places < length
    g = torch.Generator().manual_seed(seed)
    values = torch.rand(mask.shape, generator=g) + 0.1
    # The certain ones lie inside, where they hide no end: what hides ends, other tests pin.
    first_and_last = (mask & ~mask.roll(1, -1)) | (mask & ~mask.roll(-1, -1))
    first_and_last[:, 0] |= mask[:, 0]
    first_and_last[:, -1] |= mask[:, -1]
    certain = (torch.rand(mask.shape, generator=g) < zeros) & ~first_and_last
    entropy = values.masked_fill(certain | ~mask, 0.0)
    check_rollout(torch.zeros(len(lengths)), Rollout(mask=mask, entropy=entropy))


# --- mistakes -------------------------------------------------------------------------------


def _complaint(advantage: Tensor, rollout: Rollout) -> str:
    with pytest.raises(ValueError, match="this rollout cannot be right") as caught:
        check_rollout(advantage, rollout)
    return str(caught.value)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shift", [1, 2])
def test_a_mask_shifted_to_the_right(seed: int, shift: int) -> None:
    advantage, rollout = _honest(seed)
    mask = rollout.mask.roll(shift, -1)
    mask[:, :shift] = False
    words = _complaint(advantage, replace(rollout, mask=mask))
    assert f"mask is shifted by {shift} to the right of entropy" in words


@pytest.mark.parametrize("seed", range(5))
def test_a_mask_shifted_to_the_left_or_without_the_last_token(seed: int) -> None:
    advantage, rollout = _honest(seed)
    mask = rollout.mask.roll(-1, -1)
    mask[:, -1] = False
    words = _complaint(advantage, replace(rollout, mask=mask))
    assert "mask ends 1 before entropy in every row: shifted to the left, or the end-of" in words


# Three completions of 1, 2 and 4 tokens in 5 places.
_RIGHT = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]], dtype=torch.bool)
_LEFT = torch.tensor([[0, 0, 0, 0, 1], [0, 0, 0, 1, 1], [0, 1, 1, 1, 1]], dtype=torch.bool)


@pytest.mark.parametrize(
    ("mask", "alive", "words"),
    [
        (_RIGHT, _LEFT, "mask on the right, entropy on the left"),
        (_LEFT, _RIGHT, "mask on the left, entropy on the right"),
    ],
)
@pytest.mark.parametrize("padding", [0.0, math.nan])
def test_padding_on_opposite_sides(mask: Tensor, alive: Tensor, words: str, padding: float) -> None:
    entropy = torch.full(alive.shape, 0.5).masked_fill(~alive, padding)
    said = _complaint(torch.zeros(3), Rollout(mask=mask, entropy=entropy))
    assert f"mask and entropy are padded on opposite sides: {words}; cut both alike" in said
    # It is not called counted padding, or a shift, as well; NaN inside the mask is named too.
    assert said.count("\n- ") == (1 if padding == 0.0 else 2)


def test_padding_on_opposite_sides_where_all_begin_with_a_certain_token() -> None:
    # A "<think>" that a policy always writes has the entropy and the log-probability 0.
    advantage, rollout = _honest()
    assert rollout.logprob is not None
    length = rollout.mask.sum(-1, keepdim=True)
    inside = torch.arange(WIDTH) > WIDTH - length  # all but the first token, moved to the right
    logprob = torch.full((ROWS, WIDTH), -0.5).masked_fill(~inside, 0.0)
    said = _complaint(advantage, Rollout(mask=rollout.mask, logprob=logprob))
    assert "mask and logprob are padded on opposite sides: mask on the right" in said


def test_padding_that_counts() -> None:
    advantage, rollout = _honest()
    everywhere = replace(rollout, mask=torch.ones_like(rollout.mask))
    assert "padding counts: mask ends at the same place" in _complaint(advantage, everywhere)


def test_padding_of_nan_that_counts() -> None:
    advantage, rollout = _honest()
    assert rollout.entropy is not None
    entropy = rollout.entropy.masked_fill(~rollout.mask, math.nan)
    words = _complaint(
        advantage, replace(rollout, mask=torch.ones_like(rollout.mask), entropy=entropy)
    )
    assert "entropy must be finite where mask is True, got NaN or infinity in rows [0, 1" in words


@pytest.mark.parametrize("seed", range(5))
def test_a_mask_of_other_rows(seed: int) -> None:
    advantage, rollout = _honest(seed)
    words = _complaint(advantage, replace(rollout, mask=rollout.mask.flip(0)))
    assert "rows of entropy and mask are out of step" in words


@pytest.mark.parametrize("varentropy", [True, False])
def test_entropies_of_other_rows(varentropy: bool) -> None:
    advantage, rollout = _honest(varentropy=varentropy)
    assert rollout.entropy is not None
    full = replace(rollout, mask=rollout.mask & rollout.mask.flip(0))
    words = _complaint(advantage, replace(full, entropy=rollout.entropy.flip(0)))
    assert "entropy and logprob are not of the same tokens: rows out of step" in words


@pytest.mark.parametrize(("shift", "where"), [(1, "late"), (-1, "early")])
def test_entropies_shifted_against_the_log_probabilities(shift: int, where: str) -> None:
    # Computed padding, so that the zeros do not give it away.
    advantage, rollout = _honest()
    assert rollout.entropy is not None
    noise = torch.rand(ROWS, WIDTH, generator=torch.Generator().manual_seed(1)) + 0.1
    entropy = torch.where(rollout.mask, rollout.entropy, noise).roll(shift, -1)
    inside = rollout.mask.clone()
    inside[:, 0] = False  # what came round is of no token
    inside &= rollout.mask.roll(-1, -1)
    words = _complaint(advantage, replace(rollout, mask=inside, entropy=entropy))
    assert f"entropy is shifted against logprob: it comes one position too {where}" in words


@pytest.mark.parametrize("varentropy", [True, False])
def test_entropies_in_bits(varentropy: bool) -> None:
    # 1.5 nats a token, 40 tokens a row: 1900 nats, or 7700 where the variance is not known.
    advantage, rollout = _honest(varentropy=varentropy, rows=ROWS if varentropy else 4 * ROWS)
    assert rollout.entropy is not None
    words = _complaint(advantage, replace(rollout, entropy=rollout.entropy / math.log(2)))
    assert "entropy in bits? Multiply it by ln 2" in words


def test_log_probabilities_in_bits() -> None:
    advantage, rollout = _honest()
    assert rollout.logprob is not None
    words = _complaint(advantage, replace(rollout, logprob=rollout.logprob / math.log(2)))
    assert "logprob in bits? Multiply it by ln 2" in words


@pytest.mark.parametrize(("temperature", "of"), [(0.6, 1.0), (1.0, 0.6), (1.0, 1.6)])
def test_entropies_at_another_temperature(temperature: float, of: float) -> None:
    words = _complaint(*_honest(temperature=temperature, of=of))
    assert "at another temperature than the sampling" in words
    check_rollout(*_honest(temperature=temperature, of=temperature))


def test_log_probabilities_that_are_none() -> None:
    advantage, rollout = _honest()
    assert rollout.logprob is not None
    words = _complaint(advantage, replace(rollout, logprob=-rollout.logprob))
    assert "logprob must not be positive" in words
    impossible = rollout.logprob.clone()
    impossible[2, 0] = -math.inf
    words = _complaint(advantage, replace(rollout, logprob=impossible))
    assert "logprob must be finite where mask is True, got NaN or infinity in rows [2]" in words


def test_negative_entropies() -> None:
    advantage, rollout = _honest()
    assert rollout.entropy is not None
    entropy = rollout.entropy.clone()
    entropy[5, 0] = -0.5
    words = _complaint(advantage, replace(rollout, entropy=entropy))
    assert "entropy must not be negative, got less than -0.1 nats in rows [5]" in words


def test_advantages_of_other_rows() -> None:
    advantage, rollout = _honest()
    # Within each group, so that the sums stay 0.
    words = _complaint(advantage.view(8, 4).roll(1, 0).reshape(ROWS), rollout)
    assert "rows of advantage and reward are out of step" in words
    # Across the groups, so that they do not.
    words = _complaint(advantage.sort().values, rollout)
    assert "not group-centred" in words


def test_shaped_advantages_are_not_group_centred() -> None:
    advantage, rollout = _honest()
    words = _complaint(advantage + 0.3 * advantage.abs(), rollout)
    assert "their sum is not 0 in 4 of 4 groups, first [0, 1, 2, 3]" in words
    assert "already shaped?" in words


@pytest.mark.usefixtures("shapes_unchecked")
def test_advantages_of_another_shape_or_not_finite() -> None:
    advantage, rollout = _honest()
    words = _complaint(advantage[:-1], rollout)
    assert "advantage must have shape (32,) or (32, 60) like mask, got (31,)" in words
    advantage = advantage.clone()
    advantage[7] = math.inf
    words = _complaint(advantage, rollout)
    assert "advantage must be finite, got NaN or infinity in rows [7]" in words


def test_all_mistakes_are_told_at_once() -> None:
    advantage, rollout = _honest()
    assert rollout.entropy is not None
    words = _complaint(advantage + 1, replace(rollout, entropy=rollout.entropy / math.log(2)))
    assert words.count("\n- ") == 2
