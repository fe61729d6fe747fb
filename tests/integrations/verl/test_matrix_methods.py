# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportAbstractUsage=false, reportCallIssue=false
# Hydra, verl, TransferQueue and TensorDict are only partly typed.
"""Every command line of docs/methods.md in verl, for the full matrix.

Each shapes two updates of verl's own code over a real TransferQueue, without a model; two of them,
which want the most of verl, whole runs of two steps. What comes out is compared with what the core
makes of the same rows.
"""

import re
from collections.abc import Callable, Generator
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
from verl_runs import HERE, diagnosed, overrides, run

from uadt import Rollout, Shaping, group_advantage
from uadt.integrations.verl.settings import Settings, check_run
from uadt.integrations.verl.trainer import UadtSync
from uadt.types import required_signals

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(2400)]

PAGE = (HERE.parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
LINES = re.findall(r"^\+uadt.*$", PAGE, flags=re.MULTILINE)
# A signal of the reward function, and log-probabilities with a controller.
WHOLE_RUNS = [line for line in LINES if re.search("seed|C2", line)]
Records = list[dict[str, Any]]


@pytest.fixture(scope="module")
def queue(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    """Start a Ray and a TransferQueue for the updates."""
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    tq.init(config_of(tmp_path_factory.mktemp("queue"), []).transfer_queue)
    yield
    tq.close()
    ray.shutdown()


@pytest.mark.parametrize("line", WHOLE_RUNS)
def test_the_line_runs_in_verl_and_shapes_as_the_core_does(
    line: str, text_assets: Path, tmp_path: Path, tell: Callable[[str], None]
) -> None:
    own = line.split()
    if "stare" in line:  # it acts below .3 nats, and a random model is at 5.5: sample it colder
        own.append("actor_rollout_ref.rollout.temperature=0.01")
    arguments = [
        *overrides(text_assets, tmp_path, steps=2),
        *diagnosed(tmp_path),
        f"reward.custom_reward_function.path={HERE}/methods_reward.py",
        *own,
    ]
    ran = run(tmp_path, arguments, tell=tell)
    assert ran.returncode == 0, ran.tail()
    assert sorted(ran.metrics) == sorted(ran.diagnostics) == [1, 2]
    shaping = Settings.from_config(config_of(tmp_path, own)).shaping
    state = shaping.init()
    for step, records in sorted(ran.diagnostics.items()):
        assert ran.metrics[step]["uadt/updates"] == step
        assert len(records) == 16
        assert len({record["group"] for record in records}) == 4
        advantage, rollout = tokens(records, "advantages"), recorded(records, shaping)
        shaped = shaping(advantage, rollout, state)
        state = shaped.state
        found = tokens(records, "shaped_advantages")[rollout.mask]
        torch.testing.assert_close(found, shaped.advantage[rollout.mask], atol=1e-5, rtol=1e-4)
        assert not torch.allclose(found, advantage[rollout.mask])  # the line did something


@pytest.mark.parametrize("line", LINES)
def test_the_line_shapes_two_updates_of_verls_own_code(
    line: str, tmp_path: Path, queue: None
) -> None:
    config = config_of(tmp_path, line.split())
    settings = Settings.from_config(config)
    check_run(config, settings)
    trainer = UadtSync(config)
    trainer.timing_raw, trainer.global_steps = {}, 1
    shaping = settings.shaping
    scale = "std" if config.algorithm.norm_adv_by_std_in_grpo else "none"
    state = shaping.init()
    for seed in (0, 1):
        fields, rollout = update(seed)
        assert rollout.reward is not None
        assert rollout.group is not None
        baseline = group_advantage(rollout.reward, rollout.group, scale=scale)
        advantage = baseline[:, None] * rollout.mask
        expected = shaping(advantage, rollout, state)
        found = through_verl(trainer, fields)
        assert not torch.allclose(found, advantage, atol=1e-3)  # the line does something
        torch.testing.assert_close(found, expected.advantage * rollout.mask, atol=1e-5, rtol=1e-4)
        state = expected.state  # the second update is shaped with what the first left behind


def config_of(folder: Path, line: list[str]) -> Any:
    with initialize_config_module("uadt.integrations.verl.config", version_base=None):
        own = [f"trainer.default_local_dir={folder}", "actor_rollout_ref.rollout.n=4"]
        config = compose("uadt_ppo_cpu", [*own, *line])
    config.transfer_queue.enable = True
    return config


def update(seed: int) -> tuple[TensorDict, Rollout]:
    """Return two prompts of four completions, as verl keeps them and as the core takes them."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(6) < torch.randint(2, 7, (8, 1), generator=generator)
    mask[0] = True  # one is as long as the batch, so that verl's rows have its width
    entropy = torch.rand(8, 6, generator=generator) * 0.5  # .25 in the mean, below STARE's target
    logprob = -torch.rand(8, 6, generator=generator)
    reward = torch.tensor([2.0, 1.0, 0.0, 2.0, 1.0, 1.0, 2.0, 0.0])
    cluster = torch.tensor([0.0, 1.0, 1.0, 0.0, 2.0, 2.0, 0.0, 2.0])
    tasks = ["basic", "complex"] * 4
    rollout = Rollout(
        mask=mask,
        entropy=entropy,
        logprob=logprob,
        reward=reward,
        group=torch.arange(8) // 4,
        task=tasks,
        extra={"cluster": cluster},
    )

    def jagged(values: Tensor) -> Tensor:
        rows = [row[kept] for row, kept in zip(values, mask, strict=True)]
        return torch.nested.as_nested_tensor(rows, layout=torch.jagged)

    last = mask & (mask.cumsum(-1) == mask.sum(-1, keepdim=True))
    told = [{"reward_extra_info": {"cluster": value}} for value in cluster.tolist()]
    fields: dict[str, Any] = {
        "uid": NonTensorStack(*("ab"[row // 4] for row in range(8))),
        "response_mask": jagged(mask.long()),
        "rm_scores": jagged(last * reward[:, None]),
        "entropy": jagged(entropy),
        "old_log_probs": jagged(logprob),
        "data_source": NonTensorStack(*tasks),
        "extra_fields": NonTensorStack(*told),
    }
    return TensorDict(fields, batch_size=8), rollout


def through_verl(trainer: UadtSync, fields: TensorDict) -> Tensor:
    """Compute the advantages of rows as the trainer does; return what it leaves in the queue."""
    where: dict[str, Any] = {
        "keys": [f"{'ab'[row // 4]}_{row % 4}_0" for row in range(8)],
        "partition_id": "train",
    }
    tags = [{"is_padding": False} for _ in range(8)]
    tq.kv_batch_put(**where, fields=fields, tags=tags)
    try:
        trainer._compute_advantage(KVBatchMeta(**where, tags=tags), {})  # pyright: ignore[reportPrivateUsage]
        return tq.kv_batch_get(**where)["advantages"].to_padded_tensor(0.0)
    finally:
        tq.kv_clear(**where)


def recorded(records: Records, shaping: Shaping) -> Rollout:
    """Return what the shaping was shown, from the diagnostics that a run wrote."""
    reads = required_signals(shaping)
    assert reads is not None
    names = sorted({record["group"] for record in records})
    reward = torch.tensor([record["reward"] for record in records])
    return Rollout(
        mask=tokens(records, "advantages", torch.nan).isfinite(),
        entropy=tokens(records, "entropies") if "entropy" in reads else None,
        logprob=tokens(records, "logprobs") if "logprob" in reads else None,
        reward=reward,
        group=torch.tensor([names.index(record["group"]) for record in records]),
        extra={"cluster": (reward > 1.5).float()},  # as methods_reward.py gives it
    )


def tokens(records: Records, name: str, fill: float = 0.0) -> Tensor:
    rows = [torch.tensor(record[name]) for record in records]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)
