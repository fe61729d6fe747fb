"""Draw what every shaping does to every token of one small batch.

    python examples/zoo.py            writes zoo.png and prints how each completion fares

Two prompts, four completions each, of a made-up policy over 32 words: sure of most tokens, in
doubt at a few. Each panel has the same completions, a row each; a cell is a token, its colour
the advantage. What is blue is made likelier, what is red less likely; beside each row stands what
became of its size. Compare each panel with "before".
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from uadt import Rollout, Shaping, group_advantage, token_statistics
from uadt.shaping import (
    EDGE,
    GRPOS,
    GTPO,
    SEED,
    STARE,
    UADT,
    UCAS,
    EntropyAdvantage,
    HighEntropyTokens,
)

VOCABULARY = 32
LENGTHS = (18, 14, 16, 18, 15, 18, 12, 17)
REWARD = (1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0)
UNSURE = (True, False, True, False, True, False, False, True)
ANSWERS = (0, 1, 2, 3, 0, 0, 0, 1)  # the first prompt is answered in four ways, the second in two

ZOO: tuple[tuple[str, str, Shaping], ...] = (
    ("UADT", "unsure: right up, wrong softened", UADT()),
    ("UADT, symmetric", "unsure: louder, right or wrong", UADT(sign_policy="symmetric")),
    ("EDGE-GRPO", "unsure: quieter, right or wrong", EDGE()),
    ("SEED-GRPO", "answers differ: the whole prompt quieter", SEED()),
    ("UCAS", "as UADT in the group, and sure tokens taxed", UCAS()),
    ("GRPO-S", "shares the reward by entropy, then z-score", GRPOS()),
    ("GTPO", "the same for each position; a class has mean 0", GTPO()),
    ("Entropy advantage", "unsure tokens get a bonus", EntropyAdvantage()),
    ("80/20", "only the most unsure fifth is learned from", HighEntropyTokens()),
    ("STARE, C2", "surprising: right ×1.5, wrong ×0.5",
     STARE(up=1.5, down=0.5, target=9.0, variant="C2")),
)  # fmt: skip
"""Name, gloss, shaping. STARE's gate is held open and its weights are strong, to be seen."""


def synthetic_batch() -> tuple[Tensor, Rollout]:
    """Return advantages of tokens and everything that the shapings read."""
    generator = torch.Generator().manual_seed(8)
    batch, positions = len(LENGTHS), max(LENGTHS)
    mask = torch.arange(positions) < torch.tensor(LENGTHS)[:, None]
    unsure = torch.tensor(UNSURE)[:, None]
    forks = torch.rand(batch, positions, generator=generator) < torch.where(unsure, 0.45, 0.12)
    sharpness = torch.where(forks, 1.0, torch.where(unsure, 5.0, 9.0))
    logits = torch.randn(batch, positions, VOCABULARY, generator=generator) * sharpness[..., None]
    drawn = torch.multinomial(logits.softmax(-1).flatten(0, 1), 1, generator=generator)
    tokens = drawn.reshape(batch, positions)
    statistics = token_statistics(logits, tokens)
    assert statistics.logprob is not None
    reward, group = torch.tensor(REWARD), torch.arange(batch) // 4
    rollout = Rollout(
        mask=mask,
        entropy=statistics.entropy,
        logprob=statistics.logprob,
        reward=reward,
        group=group,
        extra={
            "self_certainty": statistics.self_certainty,
            "logit": logits.gather(-1, tokens[..., None])[..., 0],
            "cluster": torch.tensor(ANSWERS),
        },
    )
    advantage = group_advantage(reward, group)
    return advantage[:, None].expand(batch, positions).clone(), rollout


def shape_all(advantage: Tensor, rollout: Rollout) -> dict[str, Tensor]:
    """Return the shaped advantages under the name of each shaping."""
    return {name: each(advantage, rollout, each.init()).advantage for name, _, each in ZOO}


def size_ratio(shaped: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
    """Return how much louder each completion became: Σ|A′| / Σ|A| over its tokens."""
    return (shaped.abs() * mask).sum(-1) / (advantage.abs() * mask).sum(-1)


def draw(advantage: Tensor, rollout: Rollout, shaped: dict[str, Tensor]) -> Any:
    """Draw one panel a shaping, after the entropy and the advantages before."""
    figure, axes = plt.subplots(4, 3, figsize=(13.5, 11.5), layout="constrained")
    panels = list(axes.flat)
    entropy = rollout.entropy
    assert entropy is not None
    _panel(panels[0], entropy, rollout, "Entropy", "nats: dark is unsure", "Purples", 0.0)
    image = _panel(panels[1], advantage, rollout, "Before", "GRPO: one number a completion")
    for axis, (name, gloss, _) in zip(panels[2:], ZOO, strict=True):
        _panel(axis, shaped[name], rollout, name, gloss)
        ratios = size_ratio(shaped[name], advantage, rollout.mask)
        for row, ratio in enumerate(ratios.tolist()):
            axis.text(17.8, row, f"×{ratio:.2f}", va="center", fontsize=8, color="#444444")
    for axis in axes[:, 0]:
        axis.set_yticks(range(len(LENGTHS)), _row_names(), fontsize=8)
        for prompt, middle in enumerate((1.5, 5.5), start=1):
            axis.text(
                -6.1, middle, f"prompt {prompt}", rotation=90, va="center", ha="center", fontsize=9
            )
    bar = figure.colorbar(image, ax=axes, shrink=0.4, aspect=40, pad=0.01, extend="both")
    bar.set_label("advantage A′ of a token   (red: less likely, blue: likelier)")
    figure.suptitle(
        "One batch, ten shapings: what becomes of every token\n", fontsize=15, fontweight="bold"
    )
    figure.supxlabel(
        "position in the completion · grey: padding · ×: size of the row's advantages against "
        "before, Σ|A′| / Σ|A|",
        fontsize=9,
    )
    return figure


def _row_names() -> list[str]:
    return [
        f"{'right' if reward else 'wrong'}, {'unsure' if unsure else 'sure'}"
        for reward, unsure in zip(REWARD, UNSURE, strict=True)
    ]


def _panel(  # noqa: PLR0913 - one argument a choice
    axis: Any,
    values: Tensor,
    rollout: Rollout,
    title: str,
    gloss: str,
    colours: str = "RdBu",
    low: float = -1.8,
) -> Any:
    """Draw one batch, and what is padding in grey."""
    colour_map = mpl.colormaps[colours].with_extremes(bad="#d9d9d9")
    shown = values.masked_fill(~rollout.mask, float("nan")).numpy()
    high = 3.0 if low == 0.0 else -low
    image = axis.imshow(shown, cmap=colour_map, vmin=low, vmax=high, aspect="auto")
    axis.set_title(f"{title}\n", fontsize=11, fontweight="bold", loc="left", pad=2)
    axis.text(0, 1.03, gloss, transform=axis.transAxes, fontsize=8.5, color="#555555")
    axis.axhline(3.5, color="black", linewidth=1.2)  # the border between the two prompts
    axis.set_yticks([])
    axis.set_xticks([])
    axis.set_xticks([x - 0.5 for x in range(max(LENGTHS))], minor=True)
    axis.set_yticks([y - 0.5 for y in range(len(LENGTHS))], minor=True)
    axis.grid(which="minor", color="white", linewidth=0.8)
    axis.tick_params(which="both", length=0)
    axis.spines[:].set_visible(False)
    return image


def main() -> None:
    """Draw the figure and print the size of each row."""
    parser = argparse.ArgumentParser(description="Draw what every shaping does to every token.")
    parser.add_argument("--out", type=Path, default=Path("zoo.png"), help="the picture's file")
    out: Path = parser.parse_args().out
    mpl.use("Agg")
    advantage, rollout = synthetic_batch()
    shaped = shape_all(advantage, rollout)
    draw(advantage, rollout, shaped).savefig(out, dpi=110)
    print(f"{'size against before':24}", *(f"{name:>13}" for name in _row_names()))
    for name, after in shaped.items():
        ratios = size_ratio(after, advantage, rollout.mask).tolist()
        print(f"{name:24}", *(f"{ratio:13.2f}" for ratio in ratios))
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
