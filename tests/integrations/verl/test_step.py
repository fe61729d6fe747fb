# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false, reportAbstractUsage=false
# pyright: reportCallIssue=false
# verl, TransferQueue and TensorDict are only partly typed.
"""One ``_compute_advantage`` over verl's own code and a real TransferQueue, without a model.

The rows are written by hand, so that the baseline can be computed by hand as well.
"""

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verl", reason="verl is not installed")
pytest.importorskip("ray", reason="Ray is not installed")

import ray
import torch
import transfer_queue as tq
from hydra import compose, initialize_config_module
from tensordict import NonTensorStack, TensorDict
from torch import Tensor
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1 import trainer_base
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from uadt import UADT, Rollout
from uadt.integrations.verl.failing import FAILURES
from uadt.integrations.verl.trainer import UadtColocateAsync, UadtMixin, UadtSync
from uadt.types import EmptyState, Shaped

Rows = Mapping[str, Sequence[Sequence[float]]]

# Two prompts, two samples each, of two, three, one and two tokens; 99 where a token is not the
# policy's. Without the division by the deviation, GRPO's advantage is the reward minus the mean of
# the group: (1 + 0) / 2 and (0.25 + 0.75) / 2 give 0.5, -0.5, -0.25, 0.25.
KEYS = ["a_0_0", "a_1_0", "b_0_0", "b_1_0"]
ROWS: Rows = {
    "response_mask": [[1, 1], [1, 0, 1], [1], [1, 1]],
    "rm_scores": [[0, 1], [0, 0, 0], [0.25], [0, 0.75]],
    "entropy": [[2, 4], [1, 99, 3], [5], [1, 2]],
    "old_log_probs": [[-1, -2], [-3, -4, -5], [-6], [-7, -8]],
}
GRPO = [[0.5, 0.5], [-0.5, 0, -0.5], [-0.25], [0.25, 0.25]]
COMPUTE = "compute_advantage_for_multi_trajectories"
WIDTH_FREE = "algorithm.norm_adv_by_std_in_grpo=False"


def config_of(folder: Path, *overrides: str) -> Any:
    with initialize_config_module("uadt.integrations.verl.config", version_base=None):
        settings = [f"trainer.default_local_dir={folder}", "actor_rollout_ref.rollout.n=2"]
        config = compose("uadt_ppo_cpu", [*settings, WIDTH_FREE, *overrides])
    config.transfer_queue.enable = True
    return config


@pytest.fixture(scope="module", autouse=True)
def queue(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    """Start a Ray and a TransferQueue for this module."""
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    tq.init(config_of(tmp_path_factory.mktemp("queue")).transfer_queue)
    yield
    tq.close()
    ray.shutdown()


def nested(rows: Sequence[Sequence[float]], dtype: torch.dtype = torch.float32) -> Tensor:
    tensors = [torch.tensor(row, dtype=dtype) for row in rows]
    return torch.nested.as_nested_tensor(tensors, layout=torch.jagged)


def padded(rows: Sequence[Sequence[float]]) -> Tensor:
    return nested(rows).to_padded_tensor(0.0)


class Step:
    """One update on given rows, and what it left in the queue."""

    def __init__(
        self,
        folder: Path,
        *overrides: str,
        keys: Sequence[str] = tuple(KEYS),
        rows: Rows = ROWS,
        padding: Sequence[str] = (),
        trainer: type[PPOTrainer] = UadtSync,
    ) -> None:
        where: dict[str, Any] = {"keys": list(keys), "partition_id": "train"}
        fields = {
            name: nested(values, torch.int64 if name == "response_mask" else torch.float32)
            for name, values in rows.items()
        }
        uid = NonTensorStack(*(key.split("_")[0] for key in keys))
        tags = [{"is_padding": key in padding} for key in keys]
        content = TensorDict({**fields, "uid": uid}, batch_size=len(keys))
        tq.kv_batch_put(**where, fields=content, tags=tags)
        self.trainer = trainer(config_of(folder, *overrides))
        self.trainer.timing_raw, self.trainer.global_steps = {}, 1
        self.metrics: dict[str, Any] = {}
        batch = KVBatchMeta(**where, tags=tags)
        try:
            self.trainer._compute_advantage(batch, self.metrics)  # pyright: ignore[reportPrivateUsage]
            self.left = tq.kv_batch_get(**where)
        finally:
            tq.kv_clear(**where)

    def field(self, name: str) -> list[list[float]]:
        return [row.tolist() for row in self.left[name].unbind()]


def expect(found: list[list[float]], wanted: Sequence[Sequence[float]]) -> None:
    for row, other in zip(found, wanted, strict=True):
        assert row == pytest.approx(list(other), abs=1e-6)


def shaped_by_the_core(
    advantage: Sequence[Sequence[float]], rows: Rows = ROWS, mask: Any = None
) -> list[list[float]]:
    """Return what the core library makes of a baseline, cut to the rows' lengths."""
    chosen = padded(mask or rows["response_mask"]).bool()
    rollout = Rollout(mask=chosen, entropy=padded(rows["entropy"]))
    shaped = UADT()(padded(advantage), rollout, UADT().init()).advantage
    return [row[: len(by)].tolist() for row, by in zip(shaped, advantage, strict=True)]


def test_the_baseline_is_verls_own_and_the_rest_the_core_library(tmp_path: Path) -> None:
    expect(Step(tmp_path, "+uadt.strength=0.0").field("advantages"), GRPO)
    step = Step(tmp_path)
    expect(step.field("advantages"), shaped_by_the_core(GRPO))
    expect(step.field("returns"), GRPO)  # the same tensor as the advantages in verl
    assert step.metrics["uadt/updates"] == 1
    assert step.metrics["uadt/groups_of_one"] == 0


def test_our_estimator_in_verls_own_mode_is_an_error(tmp_path: Path) -> None:
    mode = ["trainer.v1.trainer_mode=sync", "algorithm.adv_estimator=uadt"]
    with pytest.raises(ValueError, match=r"add trainer\.v1\.trainer_mode=uadt_sync"):
        Step(tmp_path, *mode, trainer=PPOTrainerSync)


class ElsewhereSync(PPOTrainerSync):
    """Stands for a verl that computes its advantages in another place."""

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        return batch


class UadtElsewhere(UadtMixin, ElsewhereSync):
    mode = "sync"


def test_another_verl_that_computes_advantages_elsewhere_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match=r"called it 0 times .*: use verl 0\.9\.1"):
        Step(tmp_path, trainer=UadtElsewhere)
    monkeypatch.delattr(trainer_base, COMPUTE)
    with pytest.raises(RuntimeError, match=r"called it 0 times .*: use verl 0\.9\.1"):
        Step(tmp_path, trainer=UadtElsewhere)


def test_verl_is_as_it_was_after_a_step_and_after_a_failed_one(tmp_path: Path) -> None:
    before = vars(trainer_base)[COMPUTE]
    Step(tmp_path)
    with pytest.raises(ValueError, match="finite"):
        Step(tmp_path, rows={**ROWS, "rm_scores": [[0, float("inf")], *ROWS["rm_scores"][1:]]})
    assert vars(trainer_base)[COMPUTE] is before
    stock = ["trainer.v1.trainer_mode=sync", "algorithm.adv_estimator=grpo"]
    expect(Step(tmp_path, *stock, trainer=PPOTrainerSync).field("advantages"), GRPO)


def test_padding_rows_change_nothing(tmp_path: Path) -> None:
    # As verl fills a batch: one token outside the mask, whatever entropy the actor found there.
    pads = ["pad_0_0", "pad_1_0"]
    with_pads: dict[str, list[Sequence[float]]] = {
        name: [*values, *[[99.0 if name == "entropy" else 0.0]] * 2]
        for name, values in ROWS.items()
    }
    step = Step(tmp_path, keys=[*KEYS, *pads], rows=with_pads, padding=pads)
    expect(step.field("advantages"), [*shaped_by_the_core(GRPO), [0.0], [0.0]])
    assert step.metrics == pytest.approx(Step(tmp_path).metrics)
    # verl balances its ranks by changing the order: padding may stand anywhere.
    order = [4, 0, 1, 5, 2, 3]
    mixed = {name: [values[i] for i in order] for name, values in with_pads.items()}
    step = Step(tmp_path, keys=[[*KEYS, *pads][i] for i in order], rows=mixed, padding=pads)
    a, b, c, d = shaped_by_the_core(GRPO)
    expect(step.field("advantages"), [[0.0], a, b, [0.0], c, d])


def test_kl_in_the_reward_is_in_the_advantages_before_they_are_shaped(tmp_path: Path) -> None:
    # Σ (log π - log π_ref) is 0.6, 0, 0.2, 0; a half of it is taken off the rewards, which become
    # 0.7, 0, 0.15, 0.75, with the means 0.35 and 0.45.
    reference = [[-1.2, -2.4], [-3, -50, -5], [-6.2], [-7, -8]]
    baseline = [[0.35, 0.35], [-0.35, 0, -0.35], [-0.3], [0.3, 0.3]]
    settings = ["algorithm.use_kl_in_reward=True", "algorithm.kl_ctrl.kl_coef=0.5"]
    rows = {**ROWS, "ref_log_prob": reference}
    step = Step(tmp_path, *settings, f"uadt.diagnostics.path={tmp_path}/records", rows=rows)
    expect(step.field("advantages"), shaped_by_the_core(baseline))
    # (0.6 / 2 + 0 + 0.2 / 1 + 0) / 4
    assert step.metrics["actor/reward_kl_penalty"] == pytest.approx(0.125, abs=1e-6)
    # The signal "reward" is what the reward function gave.
    lines = (tmp_path / "records" / "step_000001_00.jsonl").read_text().splitlines()
    assert [json.loads(line)["reward"] for line in lines] == [1.0, 0.0, 0.25, 0.75]


def test_tokens_that_rollout_correction_rejects_are_outside_the_mask(tmp_path: Path) -> None:
    # Log-ratios of 0, except -2 at the second token of the first row and at all of the last one's:
    # k2 = 0.5 · 2² = 2 is above the threshold. The last row has no token left.
    sampled = [[-1, 0], [-3, -4, -5], [-6], [-5, -6]]
    settings = [
        "algorithm.rollout_correction.rollout_rs=token_k2",
        "algorithm.rollout_correction.rollout_rs_threshold=1.0",
        "algorithm.rollout_correction.rollout_is=token",
    ]
    step = Step(tmp_path, *settings, rows={**ROWS, "rollout_log_probs": sampled})
    kept = [[1, 0], [1, 0, 1], [1], [0, 0]]
    assert step.field("response_mask") == kept
    baseline = [[0.5, 0.0], [-0.5, 0, -0.5], [-0.25], [0.0, 0.0]]
    expect(step.field("advantages"), shaped_by_the_core(baseline, mask=kept))
    assert step.metrics["uadt/rows_without_tokens"] == 1
    assert "rollout_is_weights" in step.left


def test_in_bypass_mode_what_needs_no_entropies_is_shaped(tmp_path: Path) -> None:
    bypass = "algorithm.rollout_correction.bypass_mode=True"
    with pytest.raises(ValueError, match=r"needs the signal 'entropy'.*bypass_mode=False"):
        Step(tmp_path, bypass)
    rows = {name: values for name, values in ROWS.items() if name != "entropy"}
    rows["rollout_log_probs"] = ROWS["old_log_probs"]
    clip = ["+uadt.name=clip", "+uadt.low=-0.3", "+uadt.high=0.3"]
    step = Step(tmp_path, bypass, *clip, rows=rows)
    expect(step.field("advantages"), [[0.3, 0.3], [-0.3, 0, -0.3], [-0.25], [0.25, 0.25]])


def test_each_output_of_a_session_has_its_own_uncertainty(tmp_path: Path) -> None:
    # The first session of a has two outputs; verl gives both the advantage of the last, and the
    # score of the earlier one stays out of the group's mean.
    keys = ["a_0_0", "a_0_1", "a_1_0"]
    rows: Rows = {
        "response_mask": [[1, 1], [1], [1, 1]],
        "rm_scores": [[0, 1], [1], [0, 0]],
        "entropy": [[6, 4], [1], [2, 2]],
        "old_log_probs": [[-1, -1], [-1], [-1, -1]],
    }
    baseline = [[0.5, 0.5], [0.5], [-0.5, -0.5]]
    step = Step(tmp_path, keys=keys, rows=rows)
    expect(step.field("advantages"), shaped_by_the_core(baseline, rows))
    assert step.metrics["uadt/groups_of_one"] == 0
    first, last, _ = step.field("advantages")
    assert first[0] != pytest.approx(last[0], abs=1e-3)


def test_with_a_critic_advantages_are_shaped_and_returns_are_not(tmp_path: Path) -> None:
    # With γ = λ = 1 a return is the reward to come, 1 1 | 0 · 0 | 0.25 | 0.75 0.75; an advantage is
    # the return minus the value, whitened over all tokens.
    values = [[0.5, 0.75], [0.25, 0, 0.5], [0.25], [0.75, 0.25]]
    raw = torch.tensor([0.5, 0.25, -0.25, -0.5, 0.0, 0.0, 0.5])
    white = ((raw - raw.mean()) / (raw.var() + 1e-8).sqrt()).tolist()
    baseline = [white[:2], [white[2], 0.0, white[3]], [white[4]], white[5:]]
    gae = "algorithm.adv_estimator=gae"
    step = Step(tmp_path, gae, rows={**ROWS, "values": values})
    found = step.field("advantages")
    found[1][1] = 0.0  # outside the mask verl leaves what its whitening made there
    expect(found, shaped_by_the_core(baseline))
    returns = [row[0] for row in step.field("returns")]
    assert returns == pytest.approx([1.0, 0.0, 0.25, 0.75], abs=1e-6)


def test_a_completion_without_tokens_enters_nothing(tmp_path: Path) -> None:
    rows: Rows = {name: [*values[:3], []] for name, values in ROWS.items()}
    step = Step(tmp_path, rows=rows)
    assert step.metrics["uadt/rows_without_tokens"] == 1
    # Its reward is 0 for verl: the mean of b is (0.25 + 0) / 2.
    baseline = [*GRPO[:2], [0.125], []]
    expect(step.field("advantages"), shaped_by_the_core(baseline, rows))


def test_the_only_one_left_of_a_group_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = {name: values[:3] for name, values in ROWS.items()}
    step = Step(tmp_path, keys=KEYS[:3], rows=rows)
    # verl's GRPO has nothing to compare it with and takes its reward as it is.
    expect(step.field("advantages"), shaped_by_the_core([*GRPO[:2], [0.25]], rows))
    assert step.metrics["uadt/groups_of_one"] == 1
    assert "1 of 2 groups have a single completion" in caplog.text


@dataclass(frozen=True)
class DoubleWidth:
    """A shaping of a user's own that computes in float64."""

    def init(self) -> EmptyState:
        return EmptyState()

    def __call__(self, advantage: Tensor, rollout: Rollout, state: EmptyState) -> Shaped:
        return Shaped(2.0 * advantage.double(), state, {})


def test_a_shaping_in_float64_is_written_in_verls_own_dtype(tmp_path: Path) -> None:
    step = Step(tmp_path, f"+uadt.name={__name__}:DoubleWidth")
    expect(step.field("advantages"), [[2.0 * value for value in row] for row in GRPO])
    assert step.left["advantages"].dtype == torch.float32


def test_a_reward_that_is_no_number_is_named_where_the_advantages_do_not_show_it(
    tmp_path: Path,
) -> None:
    # The score of a session's earlier output enters no advantage.
    rows: Rows = {
        "response_mask": [[1], [1], [1]],
        "rm_scores": [[float("nan")], [1], [0]],
        "entropy": [[1], [1], [2]],
        "old_log_probs": [[-1], [-1], [-1]],
    }
    with pytest.raises(ValueError, match=r"must be a finite number, got 1 of 3 .*a_0_0: nan"):
        Step(tmp_path, keys=["a_0_0", "a_0_1", "a_1_0"], rows=rows)


def test_a_reward_that_is_no_number_is_named(tmp_path: Path) -> None:
    scores = [*ROWS["rm_scores"][:3], [0, float("nan")]]
    with pytest.raises(ValueError, match=r"must be a finite number, got 1 of 4 .*b_1_0: nan"):
        Step(tmp_path, rows={**ROWS, "rm_scores": scores})


def asynchronous_buffer(folder: Path, statuses: Sequence[str]) -> Any:
    """Return verl's buffer over prompts of which one after the other ends with these statuses."""
    mode = "trainer.v1.trainer_mode=uadt_colocate_async"
    buffer: Any = UadtColocateAsync(config_of(folder, mode)).replay_buffer
    ended = iter(enumerate(statuses))

    def next_prompts(count: int) -> None:  # stands for the rollout of so many prompts
        for _ in range(count):
            index, status = next(ended)
            tag = {"is_prompt": True, "status": status, "global_steps": 1}
            tq.kv_batch_put(keys=[f"p{index}"], partition_id="train", tags=[tag])

    buffer.refill_fn = next_prompts
    next_prompts(2)
    return buffer


@pytest.fixture
def cleared() -> Generator[None]:
    """Leave no prompt behind."""
    yield
    if left := list((tq.kv_list("train") or {}).get("train", {})):
        tq.kv_clear(keys=left, partition_id="train")


@pytest.mark.usefixtures("cleared")
@pytest.mark.parametrize("before", [[], ["finished"]], ids=["from the start", "after one"])
def test_an_asynchronous_run_ends_when_every_prompt_fails(
    tmp_path: Path, before: list[str]
) -> None:
    buffer = asynchronous_buffer(tmp_path, [*before, *["failure"] * 1000])
    with pytest.raises(RuntimeError, match=f"{FAILURES} prompts in a row have failed"):
        buffer.wait_for_sampleable(1, "train", 2)


@pytest.mark.usefixtures("cleared")
def test_an_asynchronous_run_goes_on_when_most_prompts_fail(tmp_path: Path) -> None:
    # Never 64 in a row, but 90 in all.
    statuses = [*["failure"] * 45, "finished", *["failure"] * 45, "finished"]
    found, _ = asynchronous_buffer(tmp_path, statuses).wait_for_sampleable(1, "train", 2)
    assert found == {"p45", "p91"}
