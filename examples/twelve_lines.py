"""The twelve lines of the README: from logits and rewards to shaped advantages, on a CPU, at once.

``python examples/twelve_lines.py`` prints four advantages and their factors. The logits are random,
so only the signs are certain: the advantages of a group are opposite, and shaping keeps signs.
"""

import torch

import uadt

logits = torch.randn(4, 6, 32)  # B completions, T positions, V tokens
mask = torch.ones(4, 6, dtype=torch.bool)  # True where the policy chose the token
reward, group = torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([0, 0, 1, 1])

shaping = uadt.chain(uadt.UADT(strength=0.5))
rollout = uadt.Rollout(mask=mask, entropy=uadt.token_entropy(logits), reward=reward, group=group)
shaped = shaping(uadt.group_advantage(reward, group), rollout, shaping.init())
print(shaped.advantage, shaped.info["uadt/factor"])  # for your loss, and for your log
state = shaped.state  # pass it in at the next step; uadt.state_to_dict makes it JSON
