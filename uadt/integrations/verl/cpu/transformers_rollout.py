# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false, reportUntypedBaseClass=false
# pyright: reportUnknownParameterType=false
# verl and Ray are not typed.
"""``rollout.name=transformers``: a rollout server on ``generate``, for text and images.

A Ray actor holds its own copy of the model, in float32, and batches the requests that wait. It
returns the log-probabilities of what it sampled, receives weights after each update, and can be
interrupted: an aborted request returns what it has, which is what the asynchronous modes want.
"""

import asyncio
import hashlib
import logging
import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

import ray
import torch
from torch import Tensor
from transformers import AutoConfig, AutoProcessor, GenerationConfig, LogitsProcessorList
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.model import get_hf_auto_model_class
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput
from verl.workers.rollout.utils import ensure_async_iterator

from uadt.integrations.verl.cpu.barred import bar_tokens
from uadt.integrations.verl.cpu.rollout_names import NAME
from uadt.integrations.verl.cpu.sampler import Budget, Draw
from uadt.integrations.verl.cpu.shims import in_time

__all__ = ["TransformersAdapter", "TransformersReplica", "TransformersServer"]

_GATHER_SECONDS = 0.05
"""How long a batch waits for companions (ours)."""

_logger = logging.getLogger(__name__)


@dataclass
class _Request:
    prompt: list[int]
    temperature: float
    top_p: float
    top_k: int
    budget: int
    seed: int
    images: list[Any]
    answer: "asyncio.Future[TokenOutput]"


class TransformersServer:
    """The model and its queue, in one Ray actor."""

    def __init__(self, config: Any, path: str, eos_ids: list[int], pad_id: int, rank: int) -> None:
        """Load the model from a local folder."""
        self.config, self.pad_id, self.rank = config, pad_id, rank
        architecture: Any = get_hf_auto_model_class(AutoConfig.from_pretrained(path))
        self.model: Any = architecture.from_pretrained(
            path, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
        own = self.model.generation_config.eos_token_id
        self.eos_ids = sorted({*eos_ids, *(own if isinstance(own, list) else [own])} - {None})
        # A checkpoint's defaults (a repetition penalty, say) would sample from another distribution
        # than the one that the actor trains.
        self.model.generation_config = GenerationConfig()
        bar_tokens(self.model)
        image_id = getattr(self.model.config, "image_token_id", None)
        self.image_id: int | None = image_id
        self.images = AutoProcessor.from_pretrained(path).image_processor if image_id else None
        self.queue: asyncio.Queue[_Request] = asyncio.Queue()
        self.busy = asyncio.Lock()
        self.admitted = asyncio.Event()
        self.admitted.set()
        self.aborting = self.rejecting = False
        self.seen: Counter[bytes] = Counter()
        self.global_steps: int | None = None
        self.loop: asyncio.Task[None] | None = None

    async def ready(self) -> str:
        """Return an address, which nothing connects to."""
        return f"transformers-{self.rank}:0"

    async def generate(
        self,
        prompt_ids: list[int],
        sampling_params: dict[str, Any],
        request_id: str,
        image_data: list[Any] | None = None,
        video_data: list[Any] | None = None,
        **kwargs: Any,
    ) -> TokenOutput:
        """Answer one prompt with one completion."""
        if video_data:
            raise NotImplementedError(
                "rollout.name=transformers serves text and images, got a video"
            )
        if sampling_params.get("repetition_penalty", 1.0) != 1.0:
            raise NotImplementedError("rollout.name=transformers knows no repetition_penalty")
        if self.rejecting:
            return self._output([], [], "aborted")  # verl asks another server
        await self.admitted.wait()
        if self.loop is None:
            self.loop = asyncio.create_task(self._serve())
        room = self.config.prompt_length + self.config.response_length - len(prompt_ids)
        budget = min(self.config.response_length, room)
        budget = sampling_params.get("max_tokens", sampling_params.get("max_new_tokens", budget))
        request = _Request(
            prompt=list(prompt_ids),
            temperature=float(sampling_params.get("temperature", 1.0)),
            top_p=float(sampling_params.get("top_p", 1.0)),
            top_k=int(sampling_params.get("top_k", -1)),
            budget=max(1, int(budget)),
            seed=self._seed(prompt_ids, image_data or []),
            images=list(image_data or []),
            answer=asyncio.get_running_loop().create_future(),
        )
        await self.queue.put(request)
        return await request.answer

    async def load_weights(self, named: dict[str, Any], global_steps: int | None = None) -> None:
        """Take new weights between two batches.

        Raises:
            ValueError: If the names or shapes are not those of this model.
        """
        async with self.busy:
            _copy_weights(self.model, named)
            self.global_steps = global_steps
            self.seen.clear()

    async def abort_all_requests(self, reject_request: bool = False) -> None:
        """End the running batch early, and hold new requests until `resume_generation`.

        With ``reject_request`` new requests are sent back at once: this server leaves the rotation.
        """
        self.admitted.clear()
        self.aborting, self.rejecting = True, reject_request
        while not self.queue.empty():
            self.queue.get_nowait().answer.set_result(self._output([], [], "aborted"))
        async with self.busy:  # the running batch has ended
            self.aborting = False

    async def resume_generation(self) -> None:
        """Admit requests again."""
        self.rejecting = False
        self.admitted.set()

    async def set_global_steps(self, global_steps: int) -> None:
        """Note which weights are held."""
        self.global_steps = global_steps

    async def wake_up(self, tags: list[str] | None = None) -> None:
        """Nothing was released."""

    async def sleep(self) -> None:
        """Release nothing: the weights lie in the same memory anyway."""

    async def clear_kv_cache(self) -> None:
        """No cache outlives a batch."""

    async def release_kv_cache(self) -> None:
        """No cache outlives a batch."""

    async def resume_kv_cache(self) -> None:
        """No cache outlives a batch."""

    async def start_profile(self, **kwargs: Any) -> None:
        """No profiler."""

    async def stop_profile(self) -> None:
        """No profiler."""

    def _seed(self, prompt: list[int], images: list[Any]) -> int:
        # A completion depends on the run's seed, the weights' version, the prompt with its images,
        # and on how often this prompt has been asked; not on request ids, which are random.
        digest = hashlib.blake2b(repr(list(prompt)).encode(), digest_size=8)
        for image in images:
            digest.update(image.tobytes())
        key = digest.digest()
        self.seen[key] += 1
        version = f"{self.config.seed} {self.global_steps} {self.seen[key]}"
        digest.update(version.encode())
        return int.from_bytes(digest.digest(), "big") >> 1

    async def _serve(self) -> None:
        while True:
            waiting = [await self.queue.get()]
            await asyncio.sleep(_GATHER_SECONDS)
            while not self.queue.empty() and len(waiting) < self.config.max_num_seqs:
                waiting.append(self.queue.get_nowait())
            batches: dict[tuple[float, float, int], list[_Request]] = {}
            for request in waiting:
                key = (request.temperature, request.top_p, request.top_k)
                batches.setdefault(key, []).append(request)
            for batch in batches.values():
                await self._answer(batch)

    async def _answer(self, batch: list[_Request]) -> None:
        async with self.busy:
            try:
                outputs = await asyncio.to_thread(self._run, batch)
            except Exception as error:
                _logger.exception("a rollout batch of %d failed", len(batch))
                for request in batch:
                    request.answer.set_exception(error)
                return
        for request, output in zip(batch, outputs, strict=True):
            request.answer.set_result(output)

    @torch.no_grad()
    def _run(self, batch: list[_Request]) -> list[TokenOutput]:
        longest = max(len(request.prompt) for request in batch)
        rows = [[self.pad_id] * (longest - len(r.prompt)) + r.prompt for r in batch]
        ids = torch.tensor(rows)
        lengths = torch.tensor([len(request.prompt) for request in batch])
        attended = torch.arange(longest) >= longest - lengths.unsqueeze(-1)
        first = batch[0]
        draw = Draw(
            seeds=[request.seed for request in batch],
            temperature=first.temperature,
            top_p=first.top_p,
            top_k=first.top_k,
        )
        budgets = torch.tensor([request.budget for request in batch])
        budget = Budget(start=longest, tokens=budgets, stopped=lambda: self.aborting)
        sequences = self.model.generate(
            input_ids=ids,
            attention_mask=attended.long(),
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=int(budgets.max()),
                eos_token_id=self.eos_ids,
                pad_token_id=self.pad_id,
            ),
            logits_processor=LogitsProcessorList([draw]),
            stopping_criteria=[budget],
            **self._pixels(batch, ids),
        )
        new = sequences[:, longest:].tolist()
        logprobs = torch.stack(draw.logprobs, dim=1).tolist()
        return [self._cut(*row) for row in zip(batch, new, logprobs, strict=True)]

    def _cut(self, request: _Request, tokens: list[int], logprobs: list[float]) -> TokenOutput:
        ends = (i + 1 for i, token in enumerate(tokens) if token in self.eos_ids)
        length = min(next(ends, len(tokens)), request.budget)
        ended = length > 0 and tokens[length - 1] in self.eos_ids
        spent = length == request.budget
        reason = "completed" if ended or spent else "aborted"
        return self._output(tokens[:length], logprobs[:length], reason)

    def _output(self, tokens: list[int], logprobs: list[float], reason: str) -> TokenOutput:
        return TokenOutput(
            token_ids=tokens,
            log_probs=logprobs,
            stop_reason=reason,
            extra_fields={"global_steps": self.global_steps},
        )

    def _pixels(self, batch: list[_Request], ids: Tensor) -> dict[str, Tensor]:
        images = [image for request in batch for image in request.images]
        if not images:
            return {}
        if self.images is None:
            raise ValueError("a prompt has images, and the model has no image token")
        pixels = dict(self.images(images=images, return_tensors="pt"))
        return {**pixels, "mm_token_type_ids": (ids == self.image_id).int()}


def _copy_weights(model: torch.nn.Module, named: dict[str, Any]) -> None:
    own = model.state_dict()
    unknown = sorted(named.keys() - own.keys())
    written: set[int] = set()
    with torch.no_grad():
        for name in named.keys() & own.keys():
            value = torch.tensor(named[name])  # a copy: Ray hands over read-only memory
            if value.shape != own[name].shape:
                raise ValueError(
                    f"weight {name!r} must have shape {tuple(own[name].shape)}, "
                    f"got {tuple(value.shape)}"
                )
            own[name].copy_(value)
            written.add(own[name].data_ptr())
    missing = sorted(name for name, value in own.items() if value.data_ptr() not in written)
    if unknown or missing:
        raise ValueError(
            f"the weights must be those of the rollout's model, got unknown {unknown[:3]} "
            f"({len(unknown)}), missing {missing[:3]} ({len(missing)})"
        )


class TransformersReplica(RolloutReplica):
    """Starts one server; verl starts one replica a rank."""

    async def launch_servers(self) -> None:
        """Start the actor, and fail if it does not come up."""
        model = omega_conf_to_dataclass(self.model_config)
        tokenizer = model.tokenizer
        options = {
            "name": f"{NAME}_server_{self.replica_rank}",
            "num_cpus": 1,
            "max_concurrency": self.max_concurrency,
        }
        actor: Any = ray.remote(TransformersServer)
        server: Any = actor.options(**options).remote(
            self.config,
            model.local_path,
            [tokenizer.eos_token_id],
            tokenizer.pad_token_id,
            self.replica_rank,
        )
        self._server_address = await in_time(server.ready.remote(), self._asked("start"))
        self.servers, self._server_handle = [server], server

    # The steps of a weight sync to a server of its own: each fails if the server is silent.

    async def abort_all_requests(self, reject_request: bool = False) -> None:
        """Interrupt what the server generates, in time or with an error."""
        await in_time(super().abort_all_requests(reject_request), self._asked("abort requests"))

    async def release_kv_cache(self) -> None:
        """Let the server give its cache away, in time or with an error."""
        await in_time(super().release_kv_cache(), self._asked("release its cache"))

    async def resume_kv_cache(self) -> None:
        """Let the server take its cache again, in time or with an error."""
        await in_time(super().resume_kv_cache(), self._asked("take its cache again"))

    async def resume_generation(self) -> None:
        """Let the server go on, in time or with an error."""
        await in_time(super().resume_generation(), self._asked("generate again"))

    def _asked(self, what: str) -> str:
        return f"the rollout server of rank {self.replica_rank} was asked to {what}"


class TransformersAdapter(BaseRollout):
    """Lives in the actor worker and hands new weights to the server of its rank."""

    def __init__(
        self,
        config: Any,
        model_config: Any,
        device_mesh: Any,
        replica_rank: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Connect to nothing yet: the server starts later."""
        super().__init__(config, model_config, device_mesh)
        # In a worker of the trainer, one server a rank; elsewhere verl says which server it is.
        self.rank = int(os.environ["RANK"]) if replica_rank is None else replica_rank
        self.server: Any = None

    async def resume(self, tags: list[str]) -> None:
        """Nothing was released."""

    async def release(self) -> None:
        """Release nothing."""

    async def update_weights(
        self,
        weights: Any,
        wire_format: str = "named_tensors",
        global_steps: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Send all weights at once, and raise what the server raises.

        Raises:
            TimeoutError: If the server does not answer in time.
        """
        if wire_format != "named_tensors":
            raise NotImplementedError(f"wire_format must be 'named_tensors', got {wire_format!r}")
        # Every rank goes through all names: each is gathered from all ranks.
        named = {
            name: weight.detach().to("cpu", torch.float32).numpy()
            async for name, weight in ensure_async_iterator(weights)
        }
        if self.server is None:
            self.server = ray.get_actor(f"{NAME}_server_{self.rank}")
        sent = self.server.load_weights.remote(named, global_steps)
        await in_time(sent, f"the rollout server of rank {self.rank} was sent new weights")
