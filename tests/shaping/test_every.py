"""What holds for every shaping, whatever its formula."""

import json
import pickle
import re

import pytest
import torch
from torch import Tensor

from tests.shaping.batches import padded, pick, random_batch, replaced
from uadt.config import SHAPINGS
from uadt.shaping import (
    EDGE,
    GRPOS,
    GTPO,
    SEED,
    STARE,
    UADT,
    UCAS,
    Clip,
    EntropyAdvantage,
    HighEntropyTokens,
    KeepSign,
    MeanOne,
    Scale,
    chain,
)
from uadt.states import state_from_dict, state_to_dict
from uadt.types import MissingSignalError, Rollout, Shaping, required_signals

EVERY: tuple[Shaping, ...] = (
    UADT(),
    UADT(per_task=True, span="think", reduce="top_mean", sign_policy="symmetric"),
    UADT(threshold=0.5, strength_in_tanh=True, signal="surprisal"),
    EntropyAdvantage(),
    HighEntropyTokens(),
    HighEntropyTokens(scope="group"),
    HighEntropyTokens(scope="sequence"),
    GTPO(),
    GRPOS(),
    UCAS(),
    UCAS(faithful_to="code", vocab_size=100),
    UCAS(standardise=False, penalty=0.0),
    EDGE(),
    SEED(),
    STARE(target=9.0, variant="C2", adaptive=True),
    Clip(low=-0.5, high=0.5),
    Scale(by=0.5),
    KeepSign(shaping=GTPO()),
    MeanOne(shaping=UADT()),
    chain(UADT(), EntropyAdvantage(), STARE(), UADT(decay=0.5)),
)
every = pytest.mark.parametrize("shaping", EVERY, ids=repr)
OF_TOKENS = (EntropyAdvantage(), HighEntropyTokens(), GTPO(), UCAS(), STARE())


def _shape(shaping: Shaping, advantage: Tensor, rollout: Rollout) -> Tensor:
    return shaping(advantage, rollout, shaping.init()).advantage


@every
def test_it_is_a_shaping_that_prints_compares_hashes_and_pickles(shaping: Shaping) -> None:
    assert isinstance(shaping, Shaping)
    again = pickle.loads(pickle.dumps(shaping))
    assert again == shaping
    assert hash(again) == hash(shaping)
    assert repr(again) == repr(shaping)


@pytest.mark.parametrize("name", sorted(SHAPINGS))
def test_it_says_what_becomes_of_each_quadrant(name: str) -> None:
    words = SHAPINGS[name].__doc__ or ""
    assert re.search(r"\| \| [a-z ]*uncertain[^|\n]*\| [a-z ]*certain[^|\n]*\|\n", words)
    for row in ("correct", "wrong"):
        assert re.search(rf"\| \*\*{row}\*\*[^|\n]*\|[^|\n]+\|[^|\n]+\|\n", words)


@every
@pytest.mark.parametrize("seed", [0, 1])
def test_padding_and_its_nan_change_nothing(shaping: Shaping, seed: int) -> None:
    advantage, rollout = random_batch(seed)
    wide = torch.cat([advantage, torch.full((len(advantage), 2), float("nan"))], dim=1)
    before = _shape(shaping, advantage, rollout)
    after = _shape(shaping, wide, padded(rollout, 2))[:, :-2]
    torch.testing.assert_close(after[rollout.mask], before[rollout.mask])
    untouched = ~rollout.mask
    assert torch.equal(after[untouched], advantage[untouched])


@every
@pytest.mark.parametrize("seed", [0, 1])
def test_the_order_of_the_rows_changes_nothing(shaping: Shaping, seed: int) -> None:
    advantage, rollout = random_batch(seed)
    order = torch.randperm(len(advantage), generator=torch.Generator().manual_seed(seed))
    before = _shape(shaping, advantage, rollout)
    after = _shape(shaping, advantage[order], pick(rollout, order))
    torch.testing.assert_close(after, before[order])


@every
def test_the_inputs_are_left_as_they_were(shaping: Shaping) -> None:
    advantage, rollout = random_batch(2)
    copy, again = random_batch(2)
    _shape(shaping, advantage, rollout)
    assert torch.equal(advantage, copy)
    assert again.entropy is not None
    assert rollout.entropy is not None
    assert torch.equal(rollout.entropy, again.entropy)


@every
def test_no_gradient_passes_through(shaping: Shaping) -> None:
    # Shaped advantages are constants of the loss: what trains a critic is not the policy's loss.
    advantage, rollout = random_batch(2)
    live = advantage.clone().requires_grad_()
    shaped = shaping(live, rollout, shaping.init())
    assert not shaped.advantage.requires_grad
    assert not any(value.requires_grad for value in shaped.info.values())
    assert torch.equal(shaped.advantage, _shape(shaping, advantage, rollout))
    assert live.requires_grad


@every
def test_equal_completions_are_treated_alike_in_whatever_order(shaping: Shaping) -> None:
    # Every signal is equal everywhere, so there is nothing to tell two rows of a prompt apart by.
    advantage, rollout = random_batch(2)
    flat = Rollout(
        mask=torch.ones_like(rollout.mask),
        entropy=torch.full_like(advantage, 0.5),
        logprob=torch.full_like(advantage, -0.5),
        reward=torch.ones(len(advantage)),
        group=torch.zeros(len(advantage), dtype=torch.int64),
        task=["basic"] * len(advantage),
        extra={
            "self_certainty": torch.ones_like(advantage),
            "logit": torch.ones_like(advantage),
            "cluster": torch.zeros(len(advantage), dtype=torch.int64),
            "think": torch.ones_like(rollout.mask),
        },
    )
    shaped = _shape(shaping, torch.ones_like(advantage), flat)
    torch.testing.assert_close(shaped, shaped[:1, :1].expand_as(shaped))


@every
def test_entropies_that_rounding_pushed_below_zero_count_as_zero(shaping: Shaping) -> None:
    # Only shares, quotients and bonuses ask for it; ranks and means may see the difference.
    advantage, rollout = random_batch(2)
    assert rollout.entropy is not None
    below = rollout.entropy.clone()
    below[:, 0] = torch.tensor([-0.1, -1e-8, 0.0, -0.1, -1e-6, -0.02])
    negative, zero = replaced(rollout, entropy=below), replaced(rollout, entropy=below.clamp(min=0))
    shaped = _shape(shaping, advantage, negative)
    assert bool(shaped[rollout.mask].isfinite().all())
    if isinstance(shaping, EntropyAdvantage | GTPO | GRPOS | EDGE):
        assert torch.equal(shaped, _shape(shaping, advantage, zero))


@every
def test_a_row_without_tokens_keeps_its_advantage_and_enters_nothing(shaping: Shaping) -> None:
    advantage, rollout = random_batch(3)
    more = torch.cat([advantage, torch.full((1, advantage.shape[1]), 0.7)])
    widened = pick(rollout, torch.tensor([0, 1, 2, 3, 4, 5, 0]))
    mask = widened.mask.clone()
    mask[6] = False
    dead = replaced(widened, mask=mask)
    if isinstance(shaping, EDGE) and shaping.faithful_to == "code":
        pytest.skip("the authors' code counts such rows")
    without = shaping(advantage, rollout, shaping.init())
    with_dead = shaping(more, dead, shaping.init())
    assert torch.equal(with_dead.advantage[6], more[6])
    torch.testing.assert_close(with_dead.advantage[:6], without.advantage)
    assert with_dead.state == without.state


@every
def test_a_batch_of_empty_rows_is_let_be(shaping: Shaping) -> None:
    advantage, rollout = random_batch(4)
    empty = replaced(rollout, mask=torch.zeros_like(rollout.mask))
    shaped = shaping(advantage, empty, shaping.init())
    assert torch.equal(shaped.advantage, advantage)


@every
def test_it_reads_the_signals_that_it_names_and_no_other(shaping: Shaping) -> None:
    advantage, rollout = random_batch(5)
    names = required_signals(shaping)
    assert names is not None

    def only(wanted: frozenset[str]) -> Rollout:
        return Rollout(
            mask=rollout.mask,
            entropy=rollout.entropy if "entropy" in wanted else None,
            logprob=rollout.logprob if "logprob" in wanted else None,
            reward=rollout.reward if "reward" in wanted else None,
            group=rollout.group if "group" in wanted else None,
            task=rollout.task if "task" in wanted else None,
            extra={name: value for name, value in rollout.extra.items() if name in wanted},
        )

    expected = _shape(shaping, advantage, rollout)
    assert torch.equal(_shape(shaping, advantage, only(names)), expected)
    for name in names:
        with pytest.raises(MissingSignalError, match=f"needs the signal '{name}', got None"):
            _shape(shaping, advantage, only(names - {name}))


@every
def test_saved_and_restored_at_each_step_equals_unbroken(shaping: Shaping) -> None:
    unbroken, resumed = shaping.init(), shaping.init()
    for step in range(10):
        advantage, rollout = random_batch(step)
        written = json.dumps(state_to_dict(resumed, shaping=shaping))
        resumed = state_from_dict(shaping, json.loads(written))
        one, unbroken, _ = shaping(advantage, rollout, unbroken)
        two, resumed, _ = shaping(advantage, rollout, resumed)
        assert torch.equal(one, two)
        assert unbroken == resumed


@every
def test_info_is_named_after_the_shaping_and_has_a_known_shape(shaping: Shaping) -> None:
    advantage, rollout = random_batch(6)
    for key, value in shaping(advantage, rollout, shaping.init()).info.items():
        assert key.count("/") == 1, key
        assert value.shape in {(), (6,), (6, 5)}, key


@every
def test_advantages_of_another_batch_are_refused(shaping: Shaping) -> None:
    _, rollout = random_batch(7)
    with pytest.raises(ValueError, match=r"needs advantages of shape .*got \(4, 5\)"):
        _shape(shaping, torch.ones(4, 5), rollout)


@pytest.mark.parametrize("shaping", OF_TOKENS, ids=repr)
def test_one_advantage_a_completion_is_not_enough_for_tokens(shaping: Shaping) -> None:
    _, rollout = random_batch(8)
    with pytest.raises(ValueError, match=r"pass advantage\[:, None\]\.expand\(6, 5\)"):
        _shape(shaping, torch.ones(6), rollout)


@pytest.mark.parametrize("shaping", [UADT(), EDGE(), SEED(), GRPOS()], ids=repr)
def test_methods_of_completions_give_both_shapes_the_same_numbers(shaping: Shaping) -> None:
    advantage, rollout = random_batch(9)
    tokens = _shape(shaping, advantage, rollout)
    completions = _shape(shaping, advantage[:, 0].clone(), rollout)
    expected = torch.where(rollout.mask, completions[:, None], advantage)
    torch.testing.assert_close(tokens, expected)


@every
def test_half_precision_advantages_come_back_as_such(shaping: Shaping) -> None:
    advantage, rollout = random_batch(10)
    shaped = _shape(shaping, advantage.bfloat16(), rollout)
    assert shaped.dtype == torch.bfloat16
    exact = _shape(shaping, advantage, rollout)
    torch.testing.assert_close(shaped.float(), exact, rtol=0.03, atol=0.02)
