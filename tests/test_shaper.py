"""Rows from several places are one batch, and one batch is one step of the state."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from uadt import UADT, MissingSignalError, Rollout, Shaped
from uadt.integrations.rows import Rows, gather, join, own_part, split
from uadt.integrations.shaper import STATE_FILE, Shaper
from uadt.types import EmptyState

NAN = float("nan")


def rows(values: list[list[float]], advantage: list[float], **extra: Any) -> Rows:
    """Rows whose entropy is given; a NaN stands outside the mask."""
    entropy = torch.tensor(values)
    return Rows(advantage=torch.tensor(advantage), mask=~entropy.isnan(), entropy=entropy, **extra)


SHORT = rows([[1.0], [3.0]], [1.0, -1.0])
LONG = rows([[2.0, 4.0, NAN]], [0.5])


def test_joining_pads_on_the_right_with_a_false_mask() -> None:
    joined = join([SHORT, LONG])
    assert joined.mask.tolist() == [[True, False, False], [True, False, False], [True, True, False]]
    assert joined.advantage.tolist() == [1.0, -1.0, 0.5]
    assert joined.entropy is not None
    assert joined.entropy[joined.mask].tolist() == [1.0, 3.0, 2.0, 4.0]


def test_splitting_undoes_joining_for_advantages_of_tokens() -> None:
    short = Rows(advantage=torch.tensor([[1.0], [2.0]]), mask=torch.ones(2, 1).bool())
    long = Rows(advantage=torch.tensor([[3.0, 4.0, 5.0]]), mask=torch.ones(1, 3).bool())
    parts = split(join([short, long]).advantage, [short, long])
    assert [part.tolist() for part in parts] == [[[1.0], [2.0]], [[3.0, 4.0, 5.0]]]


def test_names_and_groups_keep_their_order() -> None:
    first = rows([[1.0]], [1.0], task=["a"], group=torch.tensor([7]), reward=torch.tensor([0.5]))
    second = rows([[1.0]], [1.0], task=["b"], group=torch.tensor([8]), reward=torch.tensor([1.5]))
    rollout = join([first, second]).rollout()
    assert rollout.task == ("a", "b")
    assert rollout.group is not None
    assert rollout.group.tolist() == [7, 8]
    assert rollout.reward is not None
    assert rollout.reward.tolist() == [0.5, 1.5]


def test_parts_with_other_signals_are_refused() -> None:
    bare = Rows(advantage=torch.ones(1), mask=torch.ones(1, 1).bool())
    words = (
        r"every micro-batch must hold the same signals, got \['mask', 'entropy'\] in micro-batch 0 "
        r"and \['mask'\] in micro-batch 1"
    )
    with pytest.raises(ValueError, match=words):
        join([SHORT, bare])
    with pytest.raises(ValueError, match="join needs at least one micro-batch, got none"):
        join([])


def test_without_other_ranks_gathering_is_nothing() -> None:
    everyone, start = gather(SHORT)
    assert everyone is SHORT
    assert start == 0
    assert own_part(SHORT.advantage, SHORT, start).tolist() == [1.0, -1.0]


def test_micro_batches_are_one_step_and_their_sizes_do_not_matter() -> None:
    together = Shaper(UADT(), stack="a test", offers=["entropy"])
    whole, _ = together.shape([join([SHORT, LONG])])
    apart = Shaper(UADT(), stack="a test", offers=["entropy"])
    parts, _ = apart.shape([SHORT, LONG])
    assert torch.cat(parts).tolist() == whole[0].tolist()
    # U = 1, 3, (2 + 4) / 2 = 3, and the first threshold is their mean, 7 / 3.
    assert apart.state == together.state
    assert apart.state == (pytest.approx(7 / 3), 1)


def test_the_scalars_are_those_of_the_core_and_hold_no_nan() -> None:
    shaper = Shaper(UADT(), stack="a test", offers=["entropy"])
    _, scalars = shaper.shape([SHORT])
    assert scalars["uadt/threshold/mean"] == pytest.approx(2.0)
    empty = rows([[NAN], [NAN]], [1.0, 2.0])
    shaped, scalars = shaper.shape([empty])
    assert shaped[0].tolist() == [1.0, 2.0]  # without a token an advantage stays as it is
    assert shaper.state == (2.0, 1)  # and nobody voted
    assert "uadt/uncertainty/mean" not in scalars
    assert scalars["uadt/rows_without_tokens"] == 2.0


def test_a_signal_that_the_stack_lacks_is_an_error_before_training_starts() -> None:
    words = (
        r"UADT needs the signal 'self_certainty', got None: "
        r"the adapter for a test hands over entropy, reward and nothing else"
    )
    with pytest.raises(MissingSignalError, match=words):
        Shaper(UADT(signal="self_certainty"), stack="a test", offers=["reward", "entropy"])


class Silent:
    """A shaping that does not say what it reads."""

    def init(self) -> EmptyState:
        return EmptyState()

    def __call__(self, advantage: torch.Tensor, rollout: Rollout, state: EmptyState) -> Shaped:
        return Shaped(advantage, state, {})


def test_what_a_shaping_does_not_say_it_may_read() -> None:
    assert Shaper(Silent(), stack="a test", offers=["entropy"]).wants("reward")
    uadt = Shaper(UADT(), stack="a test", offers=["entropy"])
    assert uadt.wants("entropy")
    assert not uadt.wants("reward")


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    shaper = Shaper(UADT(), stack="a test", offers=["entropy"])
    shaper.shape([rows([[0.1], [0.7]], [1.0, -1.0])])
    shaper.save(tmp_path / "checkpoint")
    assert json.loads((tmp_path / "checkpoint" / STATE_FILE).read_text())["schema"] == 1
    again = Shaper(UADT(), stack="a test", offers=["entropy"])
    again.load(tmp_path / "checkpoint")
    assert again.state == shaper.state
    assert again.updates == shaper.updates == 1


def test_a_checkpoint_without_a_state_leaves_it_alone(tmp_path: Path) -> None:
    shaper = Shaper(UADT(), stack="a test", offers=["entropy"])
    shaper.shape([SHORT])
    before = shaper.state
    with pytest.warns(UserWarning, match=r"uadt_state\.json is missing.*without a past"):
        shaper.load(tmp_path)
    assert shaper.state == before


def test_the_state_of_another_shaping_is_refused(tmp_path: Path) -> None:
    Shaper(UADT(), stack="a test", offers=["entropy"]).save(tmp_path)
    other = Shaper(UADT(decay=0.5), stack="a test", offers=["entropy"])
    with pytest.raises(ValueError, match=r"decay=0\.9 there, decay=0\.5 here"):
        other.load(tmp_path)


# Three ranks: two rows, none, and one that is wider; the last holds a part of the first's group.
RANKS = (
    rows([[1.0], [3.0]], [1.0, -1.0], task=["a", "b"], group=torch.tensor([4, 5])),
    Rows(
        advantage=torch.zeros(0),
        mask=torch.zeros(0, 1).bool(),
        entropy=torch.zeros(0, 1),
        task=[],
        group=torch.zeros(0).long(),
    ),
    rows([[2.0, 4.0, NAN]], [0.5], task=["a"], group=torch.tensor([4])),
)


def _one_rank(rank: int, port: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=len(RANKS)
    )
    everyone, start = gather(RANKS[rank])
    shaper = Shaper(UADT(), stack="a test", offers=["entropy"])
    shaped, _ = shaper.shape([RANKS[rank]])
    refused = ""
    try:
        gather(RANKS[0] if rank else Rows(advantage=torch.ones(1), mask=torch.ones(1, 1).bool()))
    except ValueError as error:
        refused = str(error)
    entropy = everyone.entropy
    assert entropy is not None
    found: dict[str, Any] = {
        "start": start,
        "advantage": everyone.advantage.tolist(),
        "mask": everyone.mask.tolist(),
        "dtype": str(everyone.mask.dtype),
        "entropy": entropy[everyone.mask].tolist(),
        "task": everyone.task,
        "group": everyone.group.tolist() if everyone.group is not None else None,
        "shaped": shaped[0].tolist(),
        "threshold": shaper.state.threshold,
        "refused": refused,
    }
    Path(folder, str(rank)).write_text(json.dumps(found))
    dist.destroy_process_group()


def test_ranks_with_unequal_rows_and_widths_see_one_batch(tmp_path: Path) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    mp.spawn(_one_rank, args=(port, str(tmp_path)), nprocs=len(RANKS))  # pyright: ignore[reportUnknownMemberType, reportPrivateImportUsage]
    found = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(len(RANKS))]
    assert [one["start"] for one in found] == [0, 2, 2]
    for one in found:
        assert one["advantage"] == [1.0, -1.0, 0.5]
        assert one["mask"] == [[True, False, False], [True, False, False], [True, True, False]]
        assert one["dtype"] == "torch.bool"
        assert one["entropy"] == [1.0, 3.0, 2.0, 4.0]
        assert one["task"] == ["a", "b", "a"]
        assert one["group"] == [4, 5, 4]
        # U = 1, 3, 3 by rows: the mean of the ranks' means, (2 + 3) / 2, would be wrong.
        assert one["threshold"] == pytest.approx(7 / 3)
        assert "in rank 0 and ['mask', 'entropy', 'group', 'task'] in rank 1" in one["refused"]
    single = Shaper(UADT(), stack="a test", offers=["entropy"])
    (whole,), _ = single.shape([join([RANKS[0], RANKS[2]])])
    assert found[0]["shaped"] + found[1]["shaped"] + found[2]["shaped"] == whole.tolist()
