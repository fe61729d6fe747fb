# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# (the annotations of transformers' models and processors are partial)
"""The miniature as a policy in plain PyTorch: each prompt is read once for its whole group.

A prompt with its picture is four times as long as an answer, and the members of a group share it.
So `read` runs the prompts once and repeats their keys and values; `sample` and `response_logits`
go on from there. Gradients flow through the shared part too: they are those of the whole sequences.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
from transformers.cache_utils import DynamicLayer

from examples.ophthareason.inputs import model_inputs
from examples.ophthareason.model import never_sampled
from examples.ophthareason.records import Item
from uadt import token_entropy

__all__ = ["Completions", "Policy", "Prompts"]


class Completions(NamedTuple):
    """What a policy wrote."""

    tokens: Tensor
    """``(B, T)``; what follows the end is padding."""
    mask: Tensor
    """``(B, T)``, bool: what the policy chose, the end included."""
    entropy: Tensor
    """``(B, T)``, in nats, of the distributions that the tokens were drawn from."""


class Prompts(NamedTuple):
    """Prompts that were read, each repeated for the members of its group."""

    cache: DynamicCache
    """Keys and values, ``(B, heads, P, d)`` a layer."""
    mask: Tensor
    """``(B, P)``, 1 at tokens and 0 at padding."""
    following: Tensor
    """``(B,)``: the position of the first token to come."""
    logits: Tensor
    """``(B, V)``, of the first token to come."""


class Policy:
    """A model and its processor, with the tokens that nobody may write barred.

    They are barred where logits are made, so that what is sampled, its log-probability and its
    entropy belong to one distribution.
    """

    def __init__(
        self, model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor
    ) -> None:
        """Keep both."""
        self.model, self.processor = model, processor
        tokenizer = processor.tokenizer
        self.end = tokenizer.eos_token_id
        self.barred = torch.zeros(model.lm_head.out_features, dtype=torch.bool)
        self.barred[never_sampled(tokenizer)] = True

    def read(self, items: Sequence[Item], *, copies: int = 1) -> Prompts:
        """Read the prompts of some items, with their pictures.

        Args:
            items: Questions.
            copies: How many answers each is to get; they stand side by side.

        Returns:
            The prompts, ``len(items) * copies`` rows.
        """
        self.processor.tokenizer.padding_side = "left"
        asked = [(item.prompt, item.images) for item in items]
        batch = model_inputs(self.processor, asked).to(self.model.device)
        mask = batch["attention_mask"]
        positions, _ = self.model.model.get_rope_index(
            batch["input_ids"],
            mm_token_type_ids=(batch["input_ids"] == self.model.config.image_token_id).int(),
            image_grid_thw=batch["image_grid_thw"],
            attention_mask=mask,
        )
        output = self.model.model(
            input_ids=batch["input_ids"],
            pixel_values=batch["pixel_values"],
            image_grid_thw=batch["image_grid_thw"],
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
        )
        output.past_key_values.batch_repeat_interleave(copies)
        return Prompts(
            output.past_key_values,
            mask.repeat_interleave(copies, 0),
            # The largest coordinate so far, of whichever axis, plus one: where text goes on.
            (positions.amax(dim=(0, 2)) + 1).repeat_interleave(copies, 0),
            self._logits(output.last_hidden_state[:, -1]).repeat_interleave(copies, 0),
        )

    @torch.no_grad()
    def sample(
        self,
        items: Sequence[Item],
        *,
        copies: int = 1,
        temperature: float,
        max_new_tokens: int,
        generator: torch.Generator,
    ) -> Completions:
        """Write answers.

        Args:
            items: Questions.
            copies: How many answers each gets.
            temperature: 0 takes the likeliest token; the entropy is then that at 1.
            max_new_tokens: The longest answer.
            generator: Of the chances.

        Returns:
            The answers, ``len(items) * copies`` rows.
        """
        prompts = self.read(items, copies=copies)
        prompts.cache.layers = [_Roomy(layer, max_new_tokens) for layer in prompts.cache.layers]
        logits = prompts.logits
        running = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        tokens: list[Tensor] = []
        masks: list[Tensor] = []
        entropies: list[Tensor] = []
        while running.any() and len(tokens) < max_new_tokens:
            if temperature:
                # From the whole distribution: top-k or top-p would not be what is measured.
                p = torch.softmax(logits / temperature, dim=-1)
                chosen = p.multinomial(1, generator=generator)[:, 0]
            else:
                chosen = logits.argmax(-1)
            tokens.append(chosen)
            masks.append(running)
            entropies.append(token_entropy(logits, temperature=temperature or 1.0))
            running = running & (chosen != self.end)
            if running.any() and len(tokens) < max_new_tokens:
                logits = self._continue(prompts, chosen[:, None], len(tokens) - 1)[:, -1]
        return Completions(torch.stack(tokens, 1), torch.stack(masks, 1), torch.stack(entropies, 1))

    def response_logits(self, items: Sequence[Item], tokens: Tensor, *, copies: int = 1) -> Tensor:
        """Return the logits that chose each token, ``(B, T, V)``, with their gradient.

        Args:
            items: The questions.
            tokens: The answers, ``(B, T)``, whatever stands behind their ends.
            copies: How many answers each question has.

        Returns:
            Float logits, −∞ at the tokens that are barred.
        """
        prompts = self.read(items, copies=copies)
        if tokens.shape[1] == 1:
            return prompts.logits[:, None]
        more = self._continue(prompts, tokens[:, :-1], 0)
        return torch.cat([prompts.logits[:, None], more], dim=1)

    def texts(self, completions: Completions) -> list[str]:
        """Return the answers as text, without the end."""
        return [
            self.processor.tokenizer.decode(row[mask].tolist(), skip_special_tokens=True)
            for row, mask in zip(completions.tokens, completions.mask, strict=True)
        ]

    def _continue(self, prompts: Prompts, tokens: Tensor, first: int) -> Tensor:
        """Return the logits after each of some more tokens, the first of which has this place."""
        places = torch.arange(first, first + tokens.shape[1], device=tokens.device)
        seen = prompts.mask.new_ones(len(tokens), first + tokens.shape[1])
        hidden = self.model.model.language_model(
            inputs_embeds=self.model.get_input_embeddings()(tokens),
            position_ids=(prompts.following[:, None] + places).expand(3, -1, -1),
            attention_mask=torch.cat([prompts.mask, seen], dim=1),
            past_key_values=prompts.cache,
            use_cache=True,
        ).last_hidden_state
        return self._logits(hidden)

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self.model.lm_head(hidden).float()
        return logits.masked_fill(self.barred.to(logits.device), -torch.inf)


class _Roomy(DynamicLayer):
    """Keys and values with room for what is to come: a new token does not copy the former ones.

    Copying them took a third of the time of `Policy.sample`.
    """

    def __init__(self, layer: DynamicLayer, room: int) -> None:
        """Take over what a layer holds."""
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        assert layer.keys is not None
        assert layer.values is not None
        self.keys, self.values = layer.keys, layer.values
        self._all = [
            torch.cat([held, held.new_empty(*held.shape[:2], room, held.shape[3])], dim=2)
            for held in (self.keys, self.values)
        ]
        self._length = self.keys.shape[2]

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Write behind what is there."""
        start, self._length = self._length, self._length + key_states.shape[2]
        for held, new in zip(self._all, (key_states, value_states), strict=True):
            held[:, :, start : self._length] = new
        self.keys, self.values = (held[:, :, : self._length] for held in self._all)
        return self.keys, self.values
