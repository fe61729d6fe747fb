"""Does UADT do anything? The miniature, trained by GRPO and by its shapings, seed by seed.

    python -m examples.ophthareason.compare --run runs/compare           # train; goes on if stopped
    python -m examples.ophthareason.compare --run runs/compare --report docs/experiments/phantoms

Every arm starts from the same stage-2 model; runs of equal seed see the same questions in the same
order and draw from the same stream of chances, so differences between arms are paired by seed. The
loop is plain PyTorch, because that gave more runs an hour than verl or TRL do on a CPU: a prompt is
read once for its group (`policy`), and one update follows each rollout, so the policy that is
updated is the policy that sampled.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

import uadt
from examples.ophthareason.comparison import write_comparison
from examples.ophthareason.model import load
from examples.ophthareason.policy import Completions, Policy
from examples.ophthareason.records import Item
from examples.ophthareason.settings import Reinforcement, Settings, load_settings
from examples.ophthareason.splits import draw_phantoms, read_split
from examples.ophthareason.styles import learn_short_traces, style_of
from uadt.rewards import score
from uadt.shaping import EntropyAdvantage
from uadt.types import Shaping

__all__ = ["ARMS", "Batch", "examine", "train"]

HERE = Path(__file__).parent
ARMS: dict[str, Shaping] = {
    "grpo": uadt.UADT(strength=0.0, per_task=True),  # the identity, which measures all the same
    "uadt": uadt.UADT(per_task=True),
    "uadt_reversed": uadt.UADT(per_task=True, sign_policy="exploit"),
    "uadt_strength_0.9": uadt.UADT(per_task=True, strength=0.9),
    "uadt_sum": uadt.UADT(per_task=True, reduce="sum"),
    "uadt_top_fifth": uadt.UADT(per_task=True, reduce="top_mean"),
    "entropy_advantage": EntropyAdvantage(),
}
"""What is compared, by name; the first is what the others are compared with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Some completions and what they were worth."""

    items: Sequence[Item]
    """The question of each completion."""
    completions: Completions
    responses: Sequence[str]
    reward: Tensor
    """``(B,)``: format and accuracy, each 0 or 1."""
    accuracy: Tensor
    """``(B,)``."""

    def measure(self) -> dict[str, float]:
        """Average what the comparison looks at."""
        uncertainty = uadt.sequence_mean(self.completions.entropy, self.completions.mask)
        tokens = self.completions.mask.sum(1).float()
        tasks = [item.task for item in self.items]
        styles = [style_of(response) for response in self.responses]
        above = torch.zeros(len(tasks), dtype=torch.bool)
        measures: dict[str, float] = {}
        for task in sorted(set(tasks)):
            rows = torch.tensor([other == task for other in tasks])
            above |= rows & (uncertainty > uncertainty[rows].median())
            measures[f"accuracy/{task}"] = self.accuracy[rows].mean().item()
        count = Counter(styles)
        for style in ("forward", "backward", "short"):
            rows = torch.tensor([other == style for other in styles])
            measures[f"share/{style}"] = count[style] / len(styles)
            if rows.any():  # of a style that died out there is nothing to measure
                measures[f"tokens/{style}"] = tokens[rows].mean().item()
                measures[f"entropy/{style}"] = uncertainty[rows].mean().item()
        return measures | {
            "reward": self.reward.mean().item(),
            "accuracy": self.accuracy.mean().item(),
            "format": (self.reward - self.accuracy).mean().item(),
            "entropy": uncertainty.mean().item(),
            "tokens": tokens.mean().item(),
            "tokens/uncertain": tokens[above].mean().item(),
            "tokens/certain": tokens[~above].mean().item(),
        }


def train(
    policy: Policy,
    shaping: Shaping,
    practice: Sequence[Item],
    settings: Reinforcement,
    *,
    seed: int,
    tell: Callable[[int], None] | None = None,
) -> list[dict[str, float]]:
    """Train a policy in place, with one update a rollout.

    Args:
        policy: The stage-2 model.
        shaping: What is done to GRPO's advantages.
        practice: The questions.
        settings: Steps, sizes and learning rate, those of the demo's stage 3.
        seed: Of the order of the questions and of the samples.
        tell: Called with the number of steps done.

    Returns:
        The measures of each step.
    """
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(
        policy.model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99)
    )
    warmup = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, (step + 1) / max(1, settings.warmup))
    )
    policy.model.train()
    state = shaping.init()
    questions = _endless(practice, seed)
    steps: list[dict[str, float]] = []
    group = torch.arange(settings.prompts).repeat_interleave(settings.group)
    for step in range(settings.steps):
        began = time.perf_counter()
        asked = [next(questions) for _ in range(settings.prompts)]
        batch = _answer(policy, asked, settings, settings.group, settings.temperature, generator)
        tokens, mask, entropy = batch.completions
        logits = policy.response_logits(asked, tokens, copies=settings.group)
        logprob = (logits / settings.temperature).log_softmax(dim=-1)
        logprob = logprob.gather(2, tokens[..., None])[..., 0].masked_fill(~mask, 0.0)

        advantage = uadt.group_advantage(batch.reward, group)
        rollout = uadt.Rollout(
            mask=mask,
            entropy=entropy,
            reward=batch.reward,
            group=group,
            task=[item.task for item in batch.items],
        )
        per_token = advantage[:, None].expand_as(entropy).masked_fill(~mask, 0.0)
        shaped, state, info = shaping(per_token, rollout, state)

        # The policy that sampled is updated, once: the ratio is 1 and its clip never acts.
        loss = -(shaped * logprob)[mask].mean()
        optimiser.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
        optimiser.step()
        warmup.step()

        measures = batch.measure()
        spread = batch.reward.view(settings.prompts, settings.group).std(dim=1)
        moved = (shaped - per_token)[mask].abs().sum() / per_token[mask].abs().sum()
        measures |= {
            "seconds": time.perf_counter() - began,
            "dead groups": (spread == 0).float().mean().item(),
            "moved": moved.nan_to_num().item(),
            "gradient norm": norm.item(),
        }
        if "uadt/factor" in info:
            measures["factor spread"] = info["uadt/factor"].std().item()
        steps.append(measures)
        if tell:
            tell(step + 1)
    return steps


@torch.no_grad()
def examine(
    policy: Policy,
    items: Sequence[Item],
    settings: Reinforcement,
    *,
    seed: int = 0,
    copies: int = 2,
) -> dict[str, dict[str, float]]:
    """Ask held-out questions.

    Args:
        policy: What answers.
        items: The questions.
        settings: Temperature and the longest answer.
        seed: Of the samples.
        copies: How often each question is asked when sampling.

    Returns:
        The measures of ``greedy`` and of ``sampled`` answers.
    """
    policy.model.eval()
    results: dict[str, dict[str, float]] = {}
    for how, temperature, each in (("greedy", 0.0, 1), ("sampled", settings.temperature, copies)):
        generator = torch.Generator().manual_seed(seed)
        parts: list[tuple[int, dict[str, float]]] = []
        # Item k and item k + 1 are of different tasks: every part has as many of each.
        for start in range(0, len(items), 90):
            asked = items[start : start + 90]
            batch = _answer(policy, asked, settings, each, temperature, generator)
            parts.append((len(asked), batch.measure()))
        names = sorted({name for _, measures in parts for name in measures})
        results[how] = {}
        for name in names:
            known = [(size, part[name]) for size, part in parts if name in part]
            results[how][name] = sum(n * x for n, x in known) / sum(n for n, _ in known)
    return results


def _answer(
    policy: Policy,
    asked: Sequence[Item],
    settings: Reinforcement,
    copies: int,
    temperature: float,
    generator: torch.Generator,
) -> Batch:
    """Sample answers and score them."""
    completions = policy.sample(
        asked,
        copies=copies,
        temperature=temperature,
        max_new_tokens=settings.max_new_tokens,
        generator=generator,
    )
    items = [item for item in asked for _ in range(copies)]
    responses = policy.texts(completions)
    points = [
        score(response, item.answer, task=item.task)
        for response, item in zip(responses, items, strict=True)
    ]
    return Batch(
        items=items,
        completions=completions,
        responses=responses,
        reward=torch.tensor([point.total for point in points]),
        accuracy=torch.tensor([point.accuracy for point in points]),
    )


def _endless(items: Sequence[Item], seed: int) -> Iterator[Item]:
    """Go through the items again and again, in another order each time."""
    generator = torch.Generator().manual_seed(1_000_000 + seed)
    while True:
        for place in torch.randperm(len(items), generator=generator).tolist():
            yield items[place]


def _run_all(settings: Settings, run: Path, arms: Sequence[str], seeds: int, start: Path) -> None:
    """Train what the folder does not have yet, seed by seed so that a part is balanced too."""
    for split in ("practice", "test"):
        draw_phantoms(settings, run / "phantoms", split, lambda *_: None)
    practice, test = (read_split(run / "phantoms", split) for split in ("practice", "test"))
    reinforcement = settings.reinforcement
    if not (run / "before.json").is_file():
        _write(run / "before.json", examine(Policy(*load(start)), test, reinforcement))
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        total = progress.add_task("runs", total=seeds * len(arms))
        for seed in range(seeds):
            for arm in arms:
                path = run / f"seed-{seed}" / f"{arm}.json"
                if not path.is_file():
                    now = progress.add_task(f"{arm}, seed {seed}", total=reinforcement.steps)
                    policy = Policy(*load(start))
                    steps = train(
                        policy,
                        ARMS[arm],
                        practice,
                        reinforcement,
                        seed=seed,
                        tell=lambda done, now=now: progress.update(now, completed=done),
                    )
                    exam = examine(policy, test, reinforcement)
                    _write(path, {"shaping": repr(ARMS[arm]), "steps": steps, "exam": exam})
                    progress.remove_task(now)
                    progress.console.print(f"{path}: {exam['sampled']['accuracy']:.3f}")
                progress.advance(total)


def _write(path: Path, content: dict[str, Any]) -> None:
    """Write JSON in one piece: what is there is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1))
    part.replace(path)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--run", type=Path, default=Path("runs/compare"))
    parser.add_argument("--config", type=Path, default=HERE / "configs" / "miniature.yaml")
    parser.add_argument("--start", type=Path, default=HERE / "checkpoints" / "stage-2")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--short-traces", action="store_true", help="first teach traces that are short as well"
    )
    parser.add_argument("--report", type=Path, help="write tables and figures of what is there")
    parser.add_argument(
        "--set", nargs="+", default=[], dest="overrides", help="such as reinforcement.steps=2"
    )
    given = parser.parse_args()
    if given.report:
        style = "short" if given.short_traces else "backward"
        write_comparison(given.run, given.report, arms=given.arms, style=style)
        return
    settings = load_settings(given.config, given.overrides)
    start = given.start
    if given.short_traces:
        start = learn_short_traces(settings, given.run, start, lambda *_: None)
    _run_all(settings, given.run, given.arms, given.seeds, start)


if __name__ == "__main__":
    main()
