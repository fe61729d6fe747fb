"""GRPO in plain PyTorch, to read top down: where entropy comes from, and where `uadt` sits.

    python examples/plain_loop.py

A Qwen2 with about 30 thousand random weights learns to repeat a letter: the reward is the part of
the answer that is right. On a CPU in half a minute the reward goes from about 0.1 to above 0.9, and
the threshold, the moving average of the policy's entropy, falls from about 2 nats as the policy
makes up its mind. Nothing is downloaded. Needs transformers: ``pip install uadt transformers``.
"""

import sys

import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

import uadt

LETTERS = 8  # the tokens 0 … 7
END = 8
PROMPTS, GROUP = 8, 8  # B = 64 completions a step, 8 of each prompt
LENGTH = 6  # the longest answer, in tokens
TEMPERATURE = 1.0
LEARNING_RATE = 3e-3
CLIP = 0.2


def make_policy() -> Qwen2ForCausalLM:
    """Return a language model that knows nothing."""
    config = Qwen2Config(
        vocab_size=9,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=END,
    )
    return Qwen2ForCausalLM(config)


@torch.no_grad()
def sample(policy: Qwen2ForCausalLM, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """Return prompts with completions, (B, 1 + T), and the mask of what was chosen, (B, T)."""
    tokens = prompts
    for _ in range(LENGTH):
        # From the whole distribution, without top-k or top-p: its entropy is what is measured.
        p = torch.softmax(policy(input_ids=tokens).logits[:, -1] / TEMPERATURE, dim=-1)
        tokens = torch.cat([tokens, p.multinomial(1)], dim=1)
    chosen = tokens[:, 1:]
    # The end is a choice of the policy too; what follows it is padding, whatever stands there.
    ended_before = (chosen == END).cumsum(dim=1) - (chosen == END).int()
    return tokens, ended_before == 0


def response_logits(policy: Qwen2ForCausalLM, tokens: Tensor) -> Tensor:
    """Return the logits that chose the completion, (B, T, V): each stands one place before."""
    return policy(input_ids=tokens).logits[:, :-1]


def main(steps: int = 150) -> tuple[list[float], list[float]]:
    """Train, and return the mean reward and the threshold of every step."""
    torch.manual_seed(0)
    policy = make_policy()
    optimiser = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE)
    shaping = uadt.UADT(strength=0.5)
    state = shaping.init()
    rewards: list[float] = []
    thresholds: list[float] = []
    group = torch.arange(PROMPTS).repeat_interleave(GROUP)
    for step in range(steps):
        prompts = torch.randint(LETTERS, (PROMPTS, 1)).repeat_interleave(GROUP, dim=0)
        tokens, mask = sample(policy, prompts)
        chosen = tokens[:, 1:]
        reward = ((chosen == prompts) & mask).float().sum(dim=1) / LENGTH

        # The policy that sampled: its entropy, and its log-probabilities for the ratio below.
        with torch.no_grad():
            old = uadt.token_statistics(
                response_logits(policy, tokens), chosen, temperature=TEMPERATURE
            )
        assert old.logprob is not None

        # The step that `uadt` is about. The state goes in and comes out.
        advantage = uadt.group_advantage(reward, group)
        rollout = uadt.Rollout(mask=mask, entropy=old.entropy, reward=reward, group=group)
        advantage, state, info = shaping(advantage, rollout, state)

        # The stack's own loss, unchanged.
        logits = response_logits(policy, tokens) / TEMPERATURE
        logprob = logits.log_softmax(dim=-1).gather(2, chosen[..., None])[..., 0]
        ratio = (logprob - old.logprob).exp()
        clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
        gain = torch.minimum(ratio * advantage[:, None], clipped * advantage[:, None])
        loss = -gain[mask].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

        rewards.append(reward.mean().item())
        thresholds.append(info["uadt/threshold"][0].item())
        if step % 10 == 0 or step == steps - 1:
            print(f"step {step:3}  reward {rewards[-1]:.2f}  threshold {thresholds[-1]:.2f} nats")
    return rewards, thresholds


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
