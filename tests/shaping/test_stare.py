"""STARE (2606.19236): by hand, beside the authors' code, and the controller.

The numbers marked with a repository and a commit were printed by that code on these inputs.
"""

import pytest
import torch

from uadt.shaping import STARE, StareState
from uadt.types import Rollout

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


def test_tokens_of_equal_surprisal_share_the_places_that_are_left() -> None:
    # Of four right tokens two are chosen: the one of 3, and one place for the two of 2. So these
    # get half of what W adds, 1 + .5 · .1, in whatever order the completions come.
    logprob = -torch.tensor([[2.0, 0.5], [2.0, 3.0]])
    rollout = Rollout(
        mask=torch.ones(2, 2, dtype=torch.bool), logprob=logprob, entropy=torch.full((2, 2), 0.1)
    )
    turned = Rollout(mask=rollout.mask, logprob=logprob.flip(0), entropy=rollout.entropy)
    shaping, ones = STARE(fraction=0.5), torch.ones(2, 2)
    shaped = shaping(ones, rollout, shaping.init()).advantage
    torch.testing.assert_close(shaped, torch.tensor([[1.05, 1.0], [1.05, 1.1]]))
    assert torch.equal(shaping(ones, turned, shaping.init()).advantage.flip(0), shaped)
