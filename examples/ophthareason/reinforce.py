"""Stage 3: GRPO + UADT through verl, in a process of its own.

This module writes the data, composes the command, follows its log and, after an interruption, goes
on from verl's last checkpoint. Everything that decides the training is in the command, which is
written to ``command.txt``: it can be run by hand.
"""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from examples.ophthareason.records import Item
from examples.ophthareason.settings import Reinforcement
from examples.ophthareason.splits import Tell
from examples.ophthareason.writers import write_verl_parquet

__all__ = ["ROLLOUTS", "command", "diagnostics", "metrics", "reinforce", "trained_model"]

ROLLOUTS = ("transformers", "vllm")
"""What generates: the small server of this package, or vLLM (its CPU build, or on a GPU)."""


def command(
    settings: Reinforcement, *, model: Path, folder: Path, rollout: str = "transformers"
) -> list[str]:
    """Compose the command of stage 3.

    Args:
        settings: Its numbers.
        model: The stage-2 model: weights, tokenizer and processor.
        folder: Where data, checkpoints and logs of this stage are.
        rollout: One of `ROLLOUTS`.

    Returns:
        The command and its arguments.

    Raises:
        ValueError: If the rollout is unknown.
    """
    if rollout not in ROLLOUTS:
        raise ValueError(f"rollout must be one of {list(ROLLOUTS)}, got {rollout!r}")
    actor, server = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    length = settings.max_prompt_tokens + settings.max_new_tokens
    size = settings.prompts * settings.group
    # verl wants equal parts: the largest that divides the batch
    part = max(n for n in range(1, min(size, settings.micro_batch) + 1) if size % n == 0)
    return [
        sys.executable,
        "-m",
        "uadt.integrations.verl",
        f"data.train_files={folder / 'train.parquet'}",
        f"data.val_files={folder / 'test.parquet'}",
        f"data.train_batch_size={settings.prompts}",
        f"data.max_prompt_length={settings.max_prompt_tokens}",
        f"data.max_response_length={settings.max_new_tokens}",
        "data.shuffle=True",
        "data.seed=1",
        f"actor_rollout_ref.model.path={model}",
        f"{actor}.optim.lr={settings.learning_rate}",
        f"{actor}.optim.lr_warmup_steps={settings.warmup}",
        f"{actor}.optim.betas=[0.9,0.99]",
        f"{actor}.ppo_mini_batch_size={settings.prompts}",
        f"{actor}.ppo_micro_batch_size_per_gpu={part}",
        f"{actor}.checkpoint.save_contents=[model,optimizer,extra,hf_model]",
        f"{server}.name={rollout}",
        f"{server}.n={settings.group}",
        f"{server}.temperature={settings.temperature}",
        f"{server}.max_model_len={length}",
        f"{server}.max_num_batched_tokens={max(1024, length)}",
        f"{server}.max_num_seqs={size}",
        f"{server}.log_prob_micro_batch_size_per_gpu={part}",
        "reward.custom_reward_function.path=pkg://uadt.integrations.verl.rewards",
        "reward.custom_reward_function.name=compute_score",
        f"uadt.strength={settings.strength}",
        f"uadt.decay={settings.decay}",
        "uadt.task_key=extra_info.task",
        f"uadt.diagnostics.path={folder / 'diagnostics'}",
        "uadt.diagnostics.tokens=True",
        "trainer.logger=[console,file]",
        f"trainer.total_training_steps={settings.steps}",
        "trainer.total_epochs=10000",
        "trainer.test_freq=-1",
        "trainer.val_before_train=False",
        f"trainer.save_freq={settings.checkpoint_every}",
        "trainer.max_actor_ckpt_to_keep=2",
        "trainer.resume_mode=auto",
        f"trainer.default_local_dir={folder / 'checkpoints'}",
        f"hydra.run.dir={folder / 'hydra'}",
    ]


def reinforce(
    settings: Reinforcement,
    *,
    model: Path,
    practice: Sequence[Item],
    test: Sequence[Item],
    folder: Path,
    tell: Tell,
    rollout: str = "transformers",
) -> Path:
    """Run stage 3, or what is left of it.

    Args:
        settings: Its numbers.
        model: The stage-2 model.
        practice: What it practises on.
        test: Held-out items; verl wants a file of them, and nothing is trained on it.
        folder: The folder of this stage.
        tell: Told of each step.
        rollout: One of `ROLLOUTS`.

    Returns:
        The folder of the trained model.

    Raises:
        RuntimeError: If verl ends without the last step; the message has the end of its log.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    _end_former(folder / "process")
    tracker = folder / "checkpoints" / "latest_checkpointed_iteration.txt"
    if tracker.is_file() and int(tracker.read_text()) >= settings.steps:
        return trained_model(folder, settings.steps)
    for items, name in ((practice, "train.parquet"), (test, "test.parquet")):
        if not (folder / name).is_file():
            write_verl_parquet(items, folder / name)
    words = command(settings, model=model.resolve(), folder=folder, rollout=rollout)
    (folder / "command.txt").write_text("VERL_PLATFORM=cpu " + shlex.join(words) + "\n")
    attempt = len(list(folder.glob("metrics-*.jsonl")))
    environment = {
        "VERL_PLATFORM": "cpu",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        **os.environ,
        "VERL_FILE_LOGGER_PATH": str(folder / f"metrics-{attempt:03d}.jsonl"),
    }
    log = folder / f"verl-{attempt:03d}.log"
    with log.open("wb") as output:
        # A session of its own: Ctrl-C reaches it through us, and all its processes end together.
        process = subprocess.Popen(
            words, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    (folder / "process").write_text(str(process.pid))
    seen = len(metrics(folder))
    tell("reinforcement", seen, settings.steps, {})
    try:
        while process.poll() is None:
            time.sleep(1)
            lines = metrics(folder)
            for step, numbers in list(lines.items())[seen:]:
                tell("reinforcement", step, settings.steps, _shown(numbers))
            seen = len(lines)
    finally:
        _end(process.pid, lambda: process.poll() is None)
        process.wait()
    trained = trained_model(folder, settings.steps)
    if process.returncode or not trained.is_dir():
        tail = log.read_text(errors="replace").splitlines()[-25:]
        raise RuntimeError(
            f"verl must reach step {settings.steps}, got exit status {process.returncode}; "
            f"the end of {log}:\n" + "\n".join(tail)
        )
    for step, numbers in list(metrics(folder).items())[seen:]:
        tell("reinforcement", step, settings.steps, _shown(numbers))
    return trained


def trained_model(folder: Path, step: int) -> Path:
    """Return where verl writes the model of a step in the form of transformers."""
    return folder / "checkpoints" / f"global_step_{step}" / "actor" / "huggingface"


def metrics(folder: Path) -> dict[int, dict[str, float]]:
    """Read verl's metrics, one entry a step; a step that was repeated counts as last run."""
    steps: dict[int, dict[str, float]] = {}
    for path in sorted(folder.glob("metrics-*.jsonl")):
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # the last line of a process that was killed
                continue
            steps[entry["step"]] = entry["data"]
    return dict(sorted(steps.items()))


def diagnostics(folder: Path) -> list[dict[str, Any]]:
    """Read what the shaping did to each completion, in the order of the steps."""
    return [
        json.loads(line)
        for path in sorted((folder / "diagnostics").glob("step_*.jsonl"))
        for line in path.read_text().splitlines()
    ]


def _shown(numbers: dict[str, float]) -> dict[str, float]:
    names = {
        "reward": "critic/score/mean",
        "entropy": "actor/entropy",
        "tokens": "response_length/mean",
    }
    return {short: numbers[name] for short, name in names.items() if name in numbers}


def _end_former(pid_file: Path) -> None:
    """End a verl that an earlier, killed run of this folder left behind."""
    if not pid_file.is_file():
        return
    pid = int(pid_file.read_text())
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        words = b""
    if b"uadt.integrations.verl" in words:
        _end(pid, Path(f"/proc/{pid}").exists)
    pid_file.unlink()


def _end(group: int, alive: Callable[[], bool]) -> None:
    """End a process group: ask its leader, wait, and let nothing of it live on."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)
        for _ in range(200):
            if not alive():
                break
            time.sleep(0.1)
        os.killpg(group, signal.SIGKILL)
