"""Real runs of verl in processes of their own, under a timeout, and gone afterwards."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

SECONDS = 900
"""After how long a run counts as hanging. A quiet machine needs a tenth of it."""
HERE = Path(__file__).resolve().parent
MARK = "UADT_TEST_RUN"
"""The variable by which the processes of a run are known."""
BESIDE_TESTS = {
    "PYTHONPATH": os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
}
"""The environment in which a run finds the modules of this folder."""


@dataclass(frozen=True)
class Run:
    """What a run left behind."""

    folder: Path
    returncode: int
    log: str

    @property
    def metrics(self) -> dict[int, dict[str, Any]]:
        """verl's metrics by step."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines]
        return {line["step"]: line["data"] for line in found}

    @property
    def diagnostics(self) -> dict[int, list[dict[str, Any]]]:
        """Our records by step."""
        files = sorted((self.folder / "diagnostics").glob("step_*.jsonl"))
        found: dict[int, list[dict[str, Any]]] = {}
        for file in files:
            for line in file.read_text(encoding="utf-8").splitlines():
                record = json.loads(line)
                found.setdefault(record["step"], []).append(record)
        return found

    def failed_with(self, *words: str) -> None:
        """Assert that the run ended by itself, in an error with these words."""
        assert self.returncode not in (0, -signal.SIGKILL), self.tail()
        for text in words:
            assert text in self.log, f"{text!r} is not in the log:\n{self.tail()}"

    def tail(self) -> str:
        """Return the end of the log."""
        return self.log[-6000:]


def overrides(assets: Path, folder: Path, *, steps: int) -> list[str]:
    """Return what every run sets: four prompts, four samples, sixteen tokens."""
    return [
        f"data.train_files={assets}/train.parquet",
        f"data.val_files={assets}/test.parquet",
        "data.train_batch_size=4",
        "data.max_prompt_length=96",
        "data.max_response_length=16",
        f"actor_rollout_ref.model.path={assets}/model",
        "actor_rollout_ref.actor.optim.lr=1e-3",
        "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        "actor_rollout_ref.rollout.n=4",
        f"reward.custom_reward_function.path={HERE}/verl_reward.py",
        f"trainer.total_training_steps={steps}",
        "trainer.total_epochs=1",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
        "trainer.val_before_train=False",
        "trainer.logger=[console,file]",
        f"trainer.default_local_dir={folder}/checkpoints",
        f"hydra.run.dir={folder}/hydra",
    ]


def diagnosed(folder: Path) -> list[str]:
    """Return the overrides that write diagnostics with tokens."""
    return [f"uadt.diagnostics.path={folder}/diagnostics", "uadt.diagnostics.tokens=true"]


IMAGE_REWARD = [
    "reward.reward_manager.source=importlib",
    "reward.reward_manager.module.path=pkg://uadt.integrations.verl.reward_manager",
    "reward.reward_manager.name=ImageRewardManager",
    "reward.custom_reward_function.name=compute_colour",
]
"""The overrides by which the reward sees the images."""


def assert_images_were_seen(ran: Run, *, tolerance: float) -> None:
    """Check two steps: rollout, actor and reward saw the same images."""
    for step in (1, 2):
        assert ran.metrics[step]["training/rollout_probs_diff_mean"] < tolerance
        # The reward saw each prompt's own image: it puts the colour that it found before the share.
        assert all(record["reward"] >= 1.0 for record in ran.diagnostics[step])
        assert len(ran.diagnostics[step]) == 16


def saved_and(callback: str) -> list[str]:
    """Return the overrides by which something of `verl_between` happens."""
    return ["trainer.save_freq=1", f"trainer.checkpoint_callback_class=verl_between.{callback}"]


def run(
    folder: Path,
    arguments: Sequence[str],
    *,
    module: str = "uadt.integrations.verl",
    environment: Mapping[str, str] | None = None,
    tell: Callable[[str], None] = lambda line: None,
    interrupt: Callable[[Path], bool] = lambda folder: False,
    seconds: float = SECONDS,
) -> Run:
    """Run verl's main to its end, and clear away every process that it started.

    ``interrupt`` is asked twice a second; once it says yes, the run is killed with SIGKILL.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex
    variables = {
        **os.environ,
        MARK: mark,
        "VERL_PLATFORM": "cpu",
        "VERL_FILE_LOGGER_PATH": str(folder / "metrics.jsonl"),
        "UADT_CPU_TIMEOUT": str(int(seconds / 2)),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HYDRA_FULL_ERROR": "1",
        "RAY_DEDUP_LOGS": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        **(environment or {}),
    }
    path = folder / "log.txt"
    started = told = time.monotonic()
    with path.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=variables,
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                time.sleep(0.5)
                passed = time.monotonic() - started
                if time.monotonic() - told > 15:
                    told = time.monotonic()
                    tell(f"{folder.name}: {passed:.0f} s, {_last_step(path)}")
                if interrupt(folder):
                    _kill(_marked(mark))
                    process.wait(30)
                elif passed > seconds:
                    _kill(_marked(mark))
                    process.wait(30)
                    raise AssertionError(f"the run hung for {passed:.0f} s:\n{_text(path)[-6000:]}")
        finally:
            _clear(mark)
    tell(f"{folder.name}: ended with {process.returncode} after {time.monotonic() - started:.0f} s")
    return Run(folder, process.returncode, _text(path))


def marked_processes(mark: str) -> list[psutil.Process]:
    """Return the processes that a run started and that still live."""
    return _marked(mark)


def _clear(mark: str) -> None:
    # Ray's own processes take some seconds to notice that the driver has gone.
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and _marked(mark):
        time.sleep(0.5)
    left = _marked(mark)
    _kill(left)
    psutil.wait_procs(left, timeout=30)
    assert not _marked(mark), f"processes of the run are still there: {_marked(mark)}"


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def _marked(mark: str) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def _last_step(path: Path) -> str:
    steps = [line for line in _text(path).splitlines() if "step:" in line]
    return steps[-1].split(" - ")[0][-40:] if steps else "starting"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
