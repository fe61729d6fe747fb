"""Find the mistakes that people make when they hand over their tensors."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from uadt.groups import Groups, row_numbers
from uadt.types import Advantage, Rollout

__all__ = ["check_rollout"]

_SIGMAS = 5.0
"""How improbable a mean must be before it is called a mistake."""
_MAX_SURPRISAL = 20.0
"""Nats: less probable tokens than e^-20 are not met in practice."""
_TOLERANCE = 0.05
"""Share by which surprisal and entropy may differ: kernels and rollout engines round."""


def check_rollout(advantage: Advantage, rollout: Rollout, *, group_centred: bool = True) -> None:
    r"""Raise if the tensors of a step cannot be what they are said to be.

    Meant for the first steps of a new set-up, on the advantages before any shaping. It looks for

    * values that no distribution has: NaN or negative entropies, positive log-probabilities;
    * a **mask shifted** by some positions, or one that leaves out the end of sequence;
    * **padding that counts**, or that lies **on opposite sides** in the mask and the values;
    * **rows out of step**: entropies of other completions than the mask's or the
      log-probabilities', advantages of others than the rewards';
    * entropies **in bits**, or **at another temperature** than the log-probabilities;
    * advantages that are **not group-centred**.

    Shifts and padding show where the padding of the entropies or log-probabilities is 0 or NaN,
    as stacks leave it. Units, temperature and alignment show because
    $\mathbb{E}[-\log p_t(y_t)] = H_t$ at every position, whatever came before: the sums
    $\sum_t d_t$ and $\sum_t d_t (H_t - \bar{H})$ of $d_t = -\log p_t(y_t) - H_t$ must stay within
    five standard deviations. By Bernstein's inequality each exceeds them with a probability of
    at most $2 e^{-25/2}$: in less than one of a hundred thousand honest rollouts. The variance is
    bounded through the entropy, generously, so that it takes some thousand tokens to be sure;
    with ``extra={"varentropy": ...}`` from `token_statistics` it is known, and far fewer do.

    Args:
        advantage: The advantages of the step, one number a completion or a token, before any
            shaping.
        rollout: What goes with them. What it does not hold is not checked.
        group_centred: Whether the advantages come from a baseline that is a mean over the group
            (GRPO, Dr.GRPO, RLOO, MaxRL); False for a critic, a quantile or no baseline.

    Raises:
        ValueError: With one line for each mistake found.

    Example:
        >>> rollout = Rollout(
        ...     mask=torch.tensor([[True, True, False]]), entropy=torch.tensor([[0.5, 0.2, 0.0]])
        ... )
        >>> check_rollout(torch.tensor([1.0]), rollout)  # nothing to say
        >>> check_rollout(torch.tensor([float("nan")]), rollout)
        Traceback (most recent call last):
        ValueError: this rollout cannot be right:
        - advantage must be finite, got NaN or infinity in rows [0]
    """
    found = [
        *_wrong_values(rollout),
        *_wrong_places("entropy", rollout.entropy, rollout.mask),
        *_wrong_places("logprob", rollout.logprob, rollout.mask),
        *_wrong_padding(rollout),
        *_wrong_distribution(rollout),
        *_wrong_advantages(advantage, rollout, group_centred),
    ]
    if found:
        raise ValueError(
            "this rollout cannot be right:\n" + "\n".join(f"- {line}" for line in found)
        )


def _wrong_values(rollout: Rollout) -> Iterator[str]:
    mask, entropy, logprob = rollout.mask, rollout.entropy, rollout.logprob
    if entropy is not None:
        if rows := row_numbers(mask & ~entropy.isfinite()):
            yield f"entropy must be finite where mask is True, got NaN or infinity in rows {rows}"
        if rows := row_numbers(mask & (entropy < -0.1)):  # bfloat16 alone rounds to -0.08
            yield f"entropy must not be negative, got less than -0.1 nats in rows {rows}"
    if logprob is not None:
        if rows := row_numbers(mask & ~logprob.isfinite()):
            yield (
                f"logprob must be finite where mask is True, got NaN or infinity in rows {rows}: "
                "the policy cannot have sampled that token"
            )
        if rows := row_numbers(mask & (logprob > 0.01)):
            yield (
                f"logprob must not be positive, got more than 0.01 in rows {rows}: "
                "surprisals or probabilities in place of log-probabilities?"
            )


def _wrong_places(name: str, values: Tensor | None, mask: Tensor) -> Iterator[str]:
    """Compare the mask with where the values are alive: neither 0 nor NaN, as padding is."""
    if values is None or values.shape[-1] == 0:
        return
    alive = (values != 0) & ~values.isnan()
    both = mask.any(dim=-1) & alive.any(dim=-1)
    if not bool(both.any()):
        return
    first_m, last_m = _ends(mask[both])
    first_a, last_a = _ends(alive[both])
    end = mask.shape[-1] - 1
    late, over = first_m - first_a, last_m - last_a
    if side := _opposite_sides(first_m, last_m, first_a, last_a, end):
        other = "left" if side == "right" else "right"
        yield (
            f"mask and {name} are padded on opposite sides: mask on the {side}, {name} on the "
            f"{other}; cut both alike"
        )
        return
    if bool((last_a.sort().values == last_m.sort().values).all()) and bool((over != 0).any()):
        step = torch.zeros_like(both).masked_scatter(both, over != 0)
        rows = row_numbers(step)
        yield (
            f"rows of {name} and mask are out of step: their lengths are the same, but in another "
            f"order, first in rows {rows[:8]}"
        )
        return
    room_m, room_a = last_m < end, last_a < end
    shift = int(late[0])
    if shift > 0 and bool(room_m.any()) and _all(late, shift) and _all(over[room_m], shift):
        yield (
            f"mask is shifted by {shift} to the right of {name}: in every row it starts and "
            "ends that much later"
        )
        return
    early = over[room_a]
    ends = last_a[room_a]
    several = bool((ends != ends[:1]).any())
    if several and int(early[0]) < 0 and _all(early, int(early[0])):
        yield (
            f"mask ends {-int(early[0])} before {name} in every row: shifted to the left, or the "
            "end-of-sequence token left out, which the policy chose too"
        )
        return


def _opposite_sides(
    first_m: Tensor, last_m: Tensor, first_a: Tensor, last_a: Tensor, end: int
) -> str:
    """Return the side on which the mask is padded if the values are padded on the other.

    A longer mask then goes with values that begin earlier, or end later, by as much, in every row;
    the same number of rows' first or last values may be true zeros. Honest values do not know how
    long the other rows are, so three lengths that fit are no accident.
    """
    length = last_m - first_m + 1
    if length.unique().numel() < 3:
        return ""
    lead, trail = first_a - (end + 1 - length), (length - 1) - last_a
    if _all(first_m, 0) and int(lead[0]) >= 0 and _all(lead, int(lead[0])):
        return "right"
    if _all(last_m, end) and int(trail[0]) >= 0 and _all(trail, int(trail[0])):
        return "left"
    return ""


def _wrong_padding(rollout: Rollout) -> Iterator[str]:
    """Look for a mask that ends at one place for all rows, where the values end at many."""
    signals = [x for x in (rollout.entropy, rollout.logprob) if x is not None]
    if not signals or rollout.mask.shape[-1] == 0:
        return
    alive = torch.stack([(x != 0) & ~x.isnan() for x in signals]).any(dim=0)
    both = rollout.mask.any(dim=-1) & alive.any(dim=-1)
    if not bool(both.any()):
        return
    first_m, last_m = _ends(rollout.mask[both])
    first_a, last_a = _ends(alive[both])
    if _opposite_sides(first_m, last_m, first_a, last_a, rollout.mask.shape[-1] - 1):
        return  # said already
    dead = last_m - last_a
    # A sure policy ends in true zeros too, "</answer>" and the like: hence the two conditions.
    rectangle = _all(last_m, int(last_m[0])) and int(dead.max() - dead.min()) > 1
    if rectangle and int(dead.sum()) * 10 >= int(rollout.mask.sum()):
        yield (
            f"padding counts: mask ends at the same place in every row, and is True at "
            f"{int(dead.sum())} positions behind the last value that is not 0 or NaN"
        )


def _wrong_distribution(rollout: Rollout) -> Iterator[str]:
    """Test that minus the log-probability has the entropy as its mean, token by token."""
    if rollout.entropy is None or rollout.logprob is None:
        return
    counts = rollout.mask & rollout.entropy.isfinite() & rollout.logprob.isfinite()
    entropy = rollout.entropy.double().masked_fill(~counts, 0.0)
    surprisal = -rollout.logprob.double().masked_fill(~counts, 0.0)
    variance = rollout.extra.get("varentropy")
    if variance is None:
        # The least even distributions over 150k tokens have a variance of 16 H at 0.3 nats, less
        # above; no distribution over them has more than 40.
        variance = (_MAX_SURPRISAL * entropy).clamp(max=40.0)
    variance = variance.double().masked_fill(~counts, 0.0).clamp(min=0.0)
    n, sum_s, sum_h = int(counts.sum()), float(surprisal.sum()), float(entropy.sum())
    if n == 0 or sum_h <= 0:
        return
    ratio = sum_s / sum_h
    surprising = _improbable(sum_s - sum_h, float(variance.sum()), _MAX_SURPRISAL)
    if surprising and abs(ratio - 1.0) > _TOLERANCE:
        means = f"minus logprob averages {sum_s / n:.4g}, entropy {sum_h / n:.4g}"
        if abs(ratio / math.log(2) - 1.0) < _TOLERANCE:
            cause = "entropy in bits? Multiply it by ln 2; else it is"
        elif abs(ratio * math.log(2) - 1.0) < _TOLERANCE:
            cause = "logprob in bits? Multiply it by ln 2; else entropy is"
        else:
            cause = "entropy is"
        yield (
            f"{means}, but both have the same mean: {cause} at another temperature than the "
            "sampling, or of tokens that top-p or top-k cut off, or padding counts"
        )
        return
    centred = (entropy - sum_h / n).masked_fill(~counts, 0.0)
    if not _misaligned(surprisal - entropy, centred, variance):
        return
    for shift, where in ((1, "late"), (-1, "early")):
        both = counts & counts.roll(-shift, -1)
        both[:, -1 if shift > 0 else 0] = False
        moved = entropy.roll(-shift, -1)
        g = (moved - sum_h / n).masked_fill(~both, 0.0)
        d = (surprisal - moved).masked_fill(~both, 0.0)
        if not _misaligned(d, g, variance.roll(-shift, -1).masked_fill(~both, 0.0)):
            yield f"entropy is shifted against logprob: it comes one position too {where}"
            return
    yield (
        "entropy and logprob are not of the same tokens: rows out of step, or shifted by more "
        "than one position"
    )


def _wrong_advantages(advantage: Tensor, rollout: Rollout, group_centred: bool) -> Iterator[str]:
    mask = rollout.mask
    if advantage.shape not in ((len(mask),), mask.shape):
        yield (
            f"advantage must have shape {(len(mask),)} or {tuple(mask.shape)} like mask, "
            f"got {tuple(advantage.shape)}"
        )
        return
    counts = mask if advantage.ndim == 2 else torch.ones_like(advantage, dtype=torch.bool)
    if rows := row_numbers(counts & ~advantage.isfinite()):
        yield f"advantage must be finite, got NaN or infinity in rows {rows}"
        return
    if not group_centred or rollout.group is None:
        return
    per_row, known = _one_a_row(advantage.detach().double(), counts)
    groups = Groups.of(rollout.group)
    whole = (groups.total(known) == groups.count) & (groups.count > 1)
    size = groups.total(per_row.abs())
    # bfloat16 advantages keep three digits.
    off = whole & (groups.total(per_row).abs() > 0.01 * size + 1e-6)
    if bool(off.any()):
        labels = sorted({int(label) for label in rollout.group[groups.spread(off)]})
        yield (
            f"advantages are not group-centred: their sum is not 0 in {len(labels)} of "
            f"{len(groups.count)} groups, first {labels[:8]}; rows of group out of step, a "
            "baseline other than a group mean (then pass group_centred=False), or already shaped?"
        )
    elif rollout.reward is not None:
        reward = rollout.reward.double()
        deviation = reward - groups.spread(groups.mean(reward))
        product = groups.total(deviation * per_row)
        power = groups.total(deviation.square()).sqrt() * groups.total(per_row.square()).sqrt()
        speaks = whole & (power > 1e-9)
        correlation = float((product[speaks] / power[speaks]).mean())  # NaN if none speaks
        if correlation < 0.5:
            yield (
                "rows of advantage and reward are out of step: within the groups, the "
                f"correlation of the two averages {correlation:.2f}"
            )


def _one_a_row(advantage: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the advantage of each completion, and whether it is the same for all its tokens."""
    if advantage.ndim == 1:
        return advantage, torch.ones_like(advantage)
    if advantage.shape[-1] == 0:
        return advantage.new_zeros(len(advantage)), advantage.new_zeros(len(advantage))
    high = advantage.masked_fill(~counts, -math.inf).amax(dim=-1)
    low = advantage.masked_fill(~counts, math.inf).amin(dim=-1)
    known = counts.any(dim=-1) & (high - low <= 1e-6 * high.abs() + 1e-9)
    return high.masked_fill(~known, 0.0), known.double()


def _ends(where: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and the last True of each row, each of which has one."""
    numbers = torch.arange(where.shape[-1], device=where.device).expand(where.shape)
    return (
        numbers.masked_fill(~where, where.shape[-1]).amin(dim=-1),
        numbers.masked_fill(~where, -1).amax(dim=-1),
    )


def _all(values: Tensor, value: int) -> bool:
    return bool((values == value).all())


def _improbable(total: float, variance: float, largest: float) -> bool:
    """Bernstein: a sum of centred terms below ``largest``, beyond five standard deviations."""
    x = abs(total)
    return x * x > _SIGMAS**2 * (variance + largest * x / 3.0)


def _misaligned(difference: Tensor, centred: Tensor, variance: Tensor) -> bool:
    total, power = float((difference * centred).sum()), float(centred.square().sum())
    spread = float((centred.square() * variance).sum())
    largest = _MAX_SURPRISAL * float(centred.abs().max())
    return abs(total) > 0.2 * power and _improbable(total, spread, largest)
