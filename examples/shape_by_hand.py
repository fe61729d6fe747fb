"""The whole flow on six tokens, each arrow printed with its arithmetic.

``python examples/shape_by_hand.py`` prints, in the order of the figure of the documentation,

    completion ─ rewards ─▶ r ─ baselines ─▶ A;  logits ─ entropy ─▶ H ─ uncertainty ─▶ U
    ─ threshold ─▶ τ ─ factor ─▶ ω ─ shaping ─▶ A′

for two completions of one question, of four tokens and of two. Each number is computed twice: by
the functions of `uadt`, and by the arithmetic printed beside it; the last step does it all again
with `uadt.UADT`. No number here is from the paper: λ = 0.5 and γ = 0.9 are ours.
"""

import math

import torch

import uadt

NO = -math.inf  # a token that cannot be sampled
LN2 = math.log(2)
DECAY, STRENGTH = 0.9, 0.5  # γ and λ, ours


def arrow(name: str) -> None:
    """Print the name of a step."""
    print(f"\n── {name}")


def same(got: torch.Tensor | float, by_hand: list[float] | float) -> None:
    """Stop if the library and the arithmetic beside it disagree."""
    torch.testing.assert_close(
        torch.as_tensor(got).double(), torch.tensor(by_hand).double(), atol=1e-6, rtol=0
    )


print("Which eye disease? A: glaucoma, B: cataract. The reference is B. B = 2 completions.")
texts = [
    "<think>cloudy lens</think><answer>B</answer>",
    "<think>deep cup</think><answer>A</answer>",
]

arrow("completion → reward: 1 for the form + 1 for the right letter")
scores = [uadt.rewards.score(text, "B", task="single_choice") for text in texts]
for text, score in zip(texts, scores, strict=True):
    print(f"   {text:46} r = {score.format:.0f} + {score.accuracy:.0f} = {score.total:.0f}")
reward = torch.tensor([score.total or 0.0 for score in scores])
group = torch.tensor([0, 0])
same(reward, [2.0, 1.0])

arrow("reward → advantage: A = (r − mean) / (std + ε), the group is both completions")
advantage = uadt.group_advantage(reward, group)
print("   mean = (2 + 1) / 2 = 1.5, std = √((0.5² + 0.5²) / (2 − 1)) = 0.7071, ε = 0.000001")
print(f"   A = ±0.5 / 0.7071 = {advantage[0]:+.4f}, {advantage[1]:+.4f}")
same(advantage, [0.5 / (math.sqrt(0.5) + 1e-6), -0.5 / (math.sqrt(0.5) + 1e-6)])

arrow("logits → entropy: H = −Σ p ln p, in nats, V = 4 tokens in the vocabulary")
logits = torch.tensor(
    [
        [[0.0, 0.0, 0.0, 0.0], [5.0, 5.0, NO, NO], [0.0, NO, NO, NO], [NO, 1.0, NO, 1.0]],
        [[NO, NO, 3.0, NO], [0.0, NO, NO, 0.0], [9.9, 9.9, 9.9, 9.9], [9.9, 9.9, 9.9, 9.9]],
    ]
)
mask = torch.tensor([[True, True, True, True], [True, True, False, False]])
entropy = uadt.token_entropy(logits)
choices = [[4, 2, 1, 2], [1, 2, 0, 0]]  # equally likely tokens at each position; 0: padding
for i, row in enumerate(choices):
    for t, n in enumerate(row):
        if n:
            said = f"{n} equally likely tokens" if n > 1 else "no choice"
            print(f"   H[{i},{t}] = ln {n} = {entropy[i, t]:.4f}    {said}")
            same(entropy[i, t], math.log(n))
        else:
            print(f"   H[{i},{t}] does not count: padding, and mask[{i},{t}] is False")

arrow("entropy → uncertainty: U = the mean over the tokens that count")
uncertainty = uadt.sequence_mean(entropy, mask)
print(f"   U[0] = (1.3863 + 0.6931 + 0 + 0.6931) / 4 = {uncertainty[0]:.4f}")
print(f"   U[1] = (0 + 0.6931) / 2 = {uncertainty[1]:.4f}")
same(uncertainty, [LN2, LN2 / 2])

arrow("uncertainty → threshold: τ₀ = the mean of the first batch")
state = uadt.ema_threshold(None, uncertainty, decay=DECAY)
print(f"   τ = (0.6931 + 0.3466) / 2 = {state.threshold:.4f}")
same(state.threshold, 0.75 * LN2)

arrow("uncertainty, threshold → factor: ω = tanh((U − τ) / τ)")
factor = uadt.tanh_factor(uncertainty, state.threshold)
print(f"   ω[0] = tanh((0.6931 − 0.5199) / 0.5199) = tanh(+1/3) = {factor[0]:+.4f}   uncertain")
print(f"   ω[1] = tanh((0.3466 − 0.5199) / 0.5199) = tanh(−1/3) = {factor[1]:+.4f}   certain")
same(factor, [math.tanh(1 / 3), -math.tanh(1 / 3)])

arrow("advantage, factor → shaped advantage: A′ = A + λ ω |A|, λ = 0.5")
shaped = uadt.shape_advantage(advantage, factor, strength=STRENGTH)
print(f"   A′[0] = +0.7071 + 0.5 · (+0.3215) · 0.7071 = {shaped[0]:+.4f}   right in doubt: more")
print(f"   A′[1] = −0.7071 + 0.5 · (−0.3215) · 0.7071 = {shaped[1]:+.4f}   wrong but sure: more")
push = 0.5 * math.tanh(1 / 3)
same(
    shaped,
    [0.5 / (math.sqrt(0.5) + 1e-6) * (1 + push), -0.5 / (math.sqrt(0.5) + 1e-6) * (1 + push)],
)

arrow("the same in one call: uadt.UADT()")
shaping = uadt.UADT(decay=DECAY, strength=STRENGTH)
rollout = uadt.Rollout(mask=mask, entropy=entropy, reward=reward, group=group)
uadt.check_rollout(advantage, rollout)
result = shaping(advantage, rollout, shaping.init())
print(f"   A′ = {result.advantage[0]:+.4f}, {result.advantage[1]:+.4f}    next: {result.state}")
same(result.advantage, shaped.tolist())
same(result.state.threshold, state.threshold)

arrow("the next step: it is judged by τ₀, and then moves it: τ₁ = γ τ₀ + (1 − γ) mean, γ = 0.9")
surer = uadt.Rollout(mask=mask, entropy=entropy / 2)  # the policy has made up its mind
later = shaping(advantage, surer, result.state)
print("   U = 0.3466, 0.1733; ω = tanh(−1/3), tanh(−2/3)")
print(f"   τ₁ = 0.9 · 0.5199 + 0.1 · 0.2599 = {later.state.threshold:.4f}")
same(later.info["uadt/factor"], [-math.tanh(1 / 3), -math.tanh(2 / 3)])
same(later.state.threshold, (0.9 + 0.1 / 2) * 0.75 * LN2)
