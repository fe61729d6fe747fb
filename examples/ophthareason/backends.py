"""Models that answer: transformers on any machine, vLLM where it is installed.

Both send what the authors' ``eval.py`` sends: system prompt, then text, then images; greedy
decoding; no repetition penalty or other default of a checkpoint's ``generation_config.json``.
"""

import base64
import gc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from examples.ophthareason.inputs import model_inputs
from examples.ophthareason.prompts import SYSTEM_PROMPT
from examples.ophthareason.records import MAX_IMAGES, Item
from uadt.entropy import token_entropy, topk_entropy

__all__ = ["SEED", "Answer", "Backend", "TransformersBackend", "VllmBackend"]

SEED = 3702
"""The authors' (*stated*). Greedy decoding draws nothing; vLLM wants one all the same."""


class Answer(NamedTuple):
    """What a model wrote."""

    response: str
    """The text, without special tokens."""
    tokens: int
    """Tokens written, the end-of-turn token included."""
    finished: bool
    """Whether it ended by itself."""
    entropy: float | None
    """Mean entropy over these tokens in nats, at temperature 1; ``None`` if unknown or no token."""


class Backend(Protocol):
    """Anything that answers items."""

    def answer(self, items: Sequence[Item]) -> list[Answer]:
        """Answer a batch, in its order."""
        ...

    def close(self) -> None:
        """Give back the memory that the model holds; it answers no more."""
        ...


class _EntropyRecorder:
    """A logits processor that changes nothing and keeps one number a row and step.

    ``generate`` could return all logits instead; at 8192 tokens and a vocabulary of 150k that is 5
    GB a response.
    """

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.steps.append(token_entropy(scores).cpu())
        return scores


class TransformersBackend:
    """Any vision-language model that transformers loads as ``AutoModelForImageTextToText``.

    Args:
        model: A folder, or a name on the hub.
        max_tokens: Longest response.
        dtype: ``"auto"`` for the checkpoint's own, or a name such as ``"float32"``.
        device: Where to run; a GPU if there is one.
    """

    def __init__(
        self, model: str, *, max_tokens: int = 8192, dtype: str = "auto", device: str | None = None
    ) -> None:
        """Load processor and model."""
        from transformers import (
            AutoModelForImageTextToText,
            AutoProcessor,
            GenerationConfig,
            LogitsProcessor,
        )

        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        # A recorder must be a LogitsProcessor for generate to accept it in a list.
        self._recorder = type("EntropyRecorder", (_EntropyRecorder, LogitsProcessor), {})
        self.processor: Any = AutoProcessor.from_pretrained(model)
        self.processor.tokenizer.padding_side = "left"
        loaded: Any = AutoModelForImageTextToText.from_pretrained(model, dtype=dtype)
        self.model: Any = loaded.to(self.device).eval()
        # generate fills what it is not told from the checkpoint's own defaults, such as Qwen's
        # repetition penalty; a fresh configuration has none.
        own = self.model.generation_config
        self.model.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=max_tokens,
            eos_token_id=own.eos_token_id,
            pad_token_id=own.pad_token_id,
            bos_token_id=own.bos_token_id,
        )

    @torch.inference_mode()
    def answer(self, items: Sequence[Item]) -> list[Answer]:
        """Answer a batch, in its order."""
        inputs = model_inputs(self.processor, [(item.prompt, item.images) for item in items])
        recorder = self._recorder()
        generated = self.model.generate(**inputs.to(self.device), logits_processor=[recorder])
        written = generated[:, inputs["input_ids"].shape[1] :].cpu()
        entropy = torch.stack(recorder.steps, dim=1)
        ends: Any = self.model.generation_config.eos_token_id
        ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
        return [self._read(row, steps, ends) for row, steps in zip(written, entropy, strict=True)]

    def close(self) -> None:
        """Give back the memory that the model holds; it answers no more."""
        self.model = None
        _collect()

    def _read(self, row: torch.Tensor, entropy: torch.Tensor, ends: list[int]) -> Answer:
        stops = torch.isin(row, torch.tensor(ends)).nonzero()
        finished = len(stops) > 0
        length = int(stops[0]) + 1 if finished else len(row)
        text: str = self.processor.tokenizer.decode(row[:length], skip_special_tokens=True)
        mean = float(entropy[:length].mean()) if length else None
        return Answer(text, length, finished, mean)


class VllmBackend:
    """vLLM's offline engine, as in the authors' script.

    Args:
        model: A folder, or a name on the hub.
        max_tokens: Longest response.
        dtype: ``"auto"`` for the checkpoint's own, or a name.
        tensor_parallel: GPUs a model; the authors use 4.
        memory: Share of a GPU's memory; the authors use 0.9.
        max_length: Longest prompt and response; the model's own if not given.
        top_logprobs: How many log-probabilities a token to estimate the entropy from, with
            ``uadt.topk_entropy``; 0 for none.
    """

    def __init__(
        self,
        model: str,
        *,
        max_tokens: int = 8192,
        dtype: str = "auto",
        tensor_parallel: int = 1,
        memory: float = 0.9,
        max_length: int | None = None,
        top_logprobs: int = 20,
    ) -> None:
        """Start the engine."""
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # as the authors set it
        from vllm import LLM, SamplingParams

        make: Any = LLM
        self.engine: Any = make(
            model=model,
            dtype=dtype,
            tensor_parallel_size=tensor_parallel,
            gpu_memory_utilization=memory,
            max_model_len=max_length,
            seed=SEED,
            limit_mm_per_prompt={"image": MAX_IMAGES},
        )
        self.vocabulary = len(self.engine.get_tokenizer())
        self.top = top_logprobs
        self.settings = SamplingParams(
            temperature=0.0, max_tokens=max_tokens, seed=SEED, logprobs=top_logprobs or None
        )

    def answer(self, items: Sequence[Item]) -> list[Answer]:
        """Answer a batch, in its order."""
        outputs = self.engine.chat(
            [_url_messages(item) for item in items], self.settings, use_tqdm=False
        )
        return [self._read(output.outputs[0]) for output in outputs]

    def close(self) -> None:
        """Stop the engine, which holds most of a GPU: the next model needs the room."""
        self.engine.llm_engine.engine_core.shutdown()
        self.engine = None
        _collect()

    def _read(self, output: Any) -> Answer:
        entropy = None
        if self.top and output.logprobs:
            # The sampled token may come on top of the best ones; equal lengths make a tensor.
            rows = [
                sorted((entry.logprob for entry in step.values()), reverse=True)[: self.top]
                for step in output.logprobs
            ]
            bounds = topk_entropy(torch.tensor(rows), self.vocabulary)
            entropy = float(bounds.estimate.mean())
        return Answer(output.text, len(output.token_ids), output.finish_reason == "stop", entropy)


def _url_messages(item: Item) -> list[dict[str, Any]]:
    """The authors' form: images as data URLs after the text."""
    user: list[dict[str, Any]] = [{"type": "text", "text": item.prompt}]
    for image in item.images:
        url = f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"
        user.append({"type": "image_url", "image_url": {"url": url}})
    return [
        {"role": "system", "content": [{"type": "text", "text": SYSTEM_PROMPT}]},
        {"role": "user", "content": user},
    ]


def _collect() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


BACKENDS: dict[str, Any] = {"transformers": TransformersBackend, "vllm": VllmBackend}
"""By the name that the command line takes."""


def model_name(model: str) -> str:
    """Return a short name for a model: the last part of its path or hub name.

    Args:
        model: A folder, or a name on the hub.

    Returns:
        The name.

    Example:
        >>> model_name("runs/demo/stage3/"), model_name("lxirich/OphthaReason")
        ('stage3', 'OphthaReason')
    """
    return Path(model.rstrip("/")).name or "model"
