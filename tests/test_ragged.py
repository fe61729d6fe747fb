"""Packed completions give what padded ones give, and padding costs nothing."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import uadt
from uadt import ragged
from uadt.uncertainty import sequence_sum

PAIRS: list[tuple[Callable[..., Tensor], Callable[..., Tensor]]] = [
    (ragged.packed_mean, uadt.sequence_mean),
    (ragged.packed_sum, sequence_sum),
    (ragged.packed_max, uadt.sequence_max),
    (ragged.packed_top_mean, uadt.sequence_top_mean),
]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=6), st.integers(0, 1000))
def test_each_equals_its_padded_sibling(lengths: list[int], seed: int) -> None:
    n = torch.tensor(lengths)
    values = torch.randn(int(n.sum()), generator=torch.Generator().manual_seed(seed))
    padded, mask = ragged.to_padded(values, n)
    for packed, sibling in PAIRS:
        torch.testing.assert_close(packed(values, n), sibling(padded, mask), equal_nan=True)
    back, again = ragged.to_packed(padded, mask)
    assert torch.equal(back, values)
    assert torch.equal(again, n)


def test_by_hand() -> None:
    values, lengths = torch.tensor([1.0, 4.0, 7.0, 2.0]), torch.tensor([3, 0, 1])
    nan = math.nan
    expected = {
        ragged.packed_mean: [4.0, nan, 2.0],  # (1 + 4 + 7) / 3
        ragged.packed_sum: [12.0, nan, 2.0],
        ragged.packed_max: [7.0, nan, 2.0],
        ragged.packed_top_mean: [7.0, nan, 2.0],  # a fifth of 3, rounded up: 1
    }
    for f, numbers in expected.items():
        torch.testing.assert_close(f(values, lengths), torch.tensor(numbers), equal_nan=True)
    assert ragged.spread(torch.tensor([5, 6, 7]), lengths).tolist() == [5, 5, 5, 7]


def test_gradients_reach_the_tokens() -> None:
    values = torch.tensor([1.0, 4.0, 7.0], requires_grad=True)
    ragged.packed_mean(values, torch.tensor([2, 1])).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.5, 0.5, 1.0]


def test_packed_statistics_are_those_of_the_padded_rectangle() -> None:
    lengths = torch.tensor([2, 0, 3])
    logits = torch.randn(5, 40)
    ids = torch.tensor([1, 2, 3, 4, 5])
    packed = uadt.token_statistics(logits, ids)
    rectangle = torch.zeros(3, 3, 40)
    rectangle[0, :2], rectangle[2] = logits[:2], logits[2:]
    entropy, mask = ragged.to_padded(packed.entropy, lengths)
    expected = uadt.token_entropy(rectangle)
    torch.testing.assert_close(entropy[mask], expected[mask])


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        ([1, 1], r"must sum to the number of tokens, 3, got 2"),
        ([4, -1], r"integers of at least 0, one a completion"),
        ([1.5, 1.5], r"integers of at least 0, one a completion"),
    ],
)
@pytest.mark.usefixtures("shapes_unchecked")
def test_wrong_lengths_are_named(lengths: list[float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ragged.packed_mean(torch.zeros(3), torch.tensor(lengths))


def test_a_fraction_outside_its_range() -> None:
    with pytest.raises(ValueError, match=r"fraction must be within \(0, 1\], got 0.0"):
        ragged.packed_top_mean(torch.zeros(3), torch.tensor([3]), fraction=0.0)


@pytest.mark.parametrize(("fraction", "tokens"), [(0.07, 100), (0.14, 50)])
def test_seven_hundredths_of_a_hundred_are_seven(fraction: float, tokens: int) -> None:
    assert fraction * tokens == 7.000000000000001  # in floating point: it must not become eight
    top = ragged.packed_top_mean(
        torch.arange(float(tokens)), torch.tensor([tokens]), fraction=fraction
    )
    assert top.item() == tokens - 4  # the mean of the seven largest is the fourth of them
