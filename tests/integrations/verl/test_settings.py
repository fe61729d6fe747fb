"""What a wrong configuration is told, before anything starts."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verl", reason="verl is not installed")

from omegaconf import DictConfig, OmegaConf

from uadt import UADT
from uadt.integrations.verl.settings import Settings, check_run
from uadt.shaping import Chain


def run_config(uadt: dict[str, Any] | None = None, *changes: str) -> DictConfig:
    config = OmegaConf.create(
        {
            "trainer": {"use_v1": True, "v1": {"trainer_mode": "uadt_sync"}},
            "algorithm": {
                "adv_estimator": "uadt",
                "use_kl_in_reward": False,
                "rollout_correction": {"bypass_mode": False},
            },
            "actor_rollout_ref": {
                "actor": {"use_kl_loss": False},
                "rollout": {"calculate_log_probs": False},
            },
        }
    )
    if uadt is not None:
        config.uadt = uadt
    return OmegaConf.merge(config, OmegaConf.from_dotlist(list(changes)))  # type: ignore[return-value]


def test_without_the_key_everything_has_its_default() -> None:
    settings = Settings.from_config(run_config())
    assert settings.shaping == UADT()
    assert settings.diagnostics.path is None
    check_run(run_config(), settings)


def test_our_own_keys_stand_beside_those_of_the_shaping() -> None:
    keys = {
        "strength": 0.25,
        "task_key": "extra_info.task",
        "diagnostics": {"path": "/somewhere", "format": "parquet", "tokens": True},
    }
    settings = Settings.from_config(run_config(keys))
    assert settings.shaping == UADT(strength=0.25)
    assert settings.task_key == "extra_info.task"
    assert settings.diagnostics.path == Path("/somewhere")
    assert settings.diagnostics.tokens


def test_a_chain_is_a_shaping() -> None:
    keys = {
        "chain": [{"strength": 0.3}, {"name": "clip", "low": -2, "high": 2}],
        "fresh_state": True,
    }
    settings = Settings.from_config(run_config(keys))
    assert isinstance(settings.shaping, Chain)
    assert settings.fresh_state


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"strenght": 0.5}, "got 'strenght'"),
        ({"decay": 1.5}, "decay"),
        ({"name": "nothing"}, "the name must be one of"),
        (
            {"diagnostics": {"folder": "x"}},
            r"uadt\.diagnostics must have keys of .* got \['folder'\]",
        ),
        ({"diagnostics": {"format": "csv"}}, r"uadt\.diagnostics\.format must be one of"),
        ({"diagnostics": {"tokens": 1}}, r"uadt\.diagnostics\.tokens must be true or false, got 1"),
        ({"fresh_state": "yes"}, r"uadt\.fresh_state must be true or false, got 'yes'"),
        ({"task_key": 3}, r"uadt\.task_key must be the name of a column, got 3"),
    ],
)
def test_a_wrong_key_is_named(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Settings.from_config(run_config(keys))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("trainer.v1.trainer_mode=sync", r"trainer_mode=sync: set it to uadt_sync"),
        ("trainer.use_v1=false", r"trainer\.use_v1=False"),
        (
            "algorithm.rollout_correction.bypass_mode=true",
            r"needs the signal 'entropy'.*bypass_mode=False",
        ),
    ],
)
def test_a_run_without_entropies_is_refused(change: str, words: str) -> None:
    config = run_config(None, change)
    with pytest.raises(ValueError, match=words):
        check_run(config, Settings.from_config(config))


def test_rows_that_verl_draws_again_are_refused() -> None:
    again = "algorithm.use_pf_ppo=true"
    config = run_config(None, again, "algorithm.adv_estimator=gae")
    with pytest.raises(ValueError, match=r"set algorithm\.use_pf_ppo=False"):
        check_run(config, Settings.from_config(config))
    config = run_config(None, again)  # verl looks at it with gae only
    check_run(config, Settings.from_config(config))


def test_a_chain_without_entropies_may_bypass_them() -> None:
    change = "algorithm.rollout_correction.bypass_mode=true"
    config = run_config({"name": "clip", "low": -2, "high": 2}, change)
    check_run(config, Settings.from_config(config))


def test_our_main_refuses_a_wrong_key_before_ray_starts(tmp_path: Path) -> None:
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "uadt.integrations.verl"),
            *("uadt.strenght=0.5", f"hydra.run.dir={tmp_path}"),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "VERL_PLATFORM": "cpu"},
        timeout=300,
        check=False,
    )
    assert ended.returncode != 0
    assert "got 'strenght'" in ended.stderr
    assert "ray init kwargs" not in ended.stdout  # what verl prints before it starts Ray
