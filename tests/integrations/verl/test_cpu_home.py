# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
# transformers is only partly typed.
"""The rollout server and its parts, without Ray: the actor's class is a plain one."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

# It imports verl, which sets the shims under which transformers can be imported.
pytest.importorskip("verl", reason="verl is not installed")

import torch
from PIL import Image

from uadt.integrations.verl.cpu.barred import BARRED_LOGIT, bar_tokens, barred_ids
from uadt.integrations.verl.cpu.sampler import Budget, Draw, truncate
from uadt.integrations.verl.cpu.transformers_rollout import TransformersServer

PROMPT = [72, 105, 33]


def server_of(assets: Path, **changes: Any) -> TransformersServer:
    config: dict[str, Any] = {
        "prompt_length": 96,
        "response_length": 12,
        "max_num_seqs": 8,
        "seed": 3,
    }
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(assets / "model")
    return TransformersServer(
        SimpleNamespace(**config | changes),
        str(assets / "model"),
        [tokenizer.eos_token_id],
        tokenizer.pad_token_id,
        0,
    )


async def ask(server: TransformersServer, *prompts: list[int], **parameters: Any) -> list[Any]:
    asked = (server.generate(p, dict(parameters), f"request {i}") for i, p in enumerate(prompts))
    return list(await asyncio.gather(*asked))


def test_truncation_by_hand() -> None:
    p = torch.tensor([[0.1, 0.4, 0.3, 0.2]])
    # 0.4 + 0.3 reach 0.65; a share of 0.75 needs 0.2 as well.
    torch.testing.assert_close(
        truncate(p, top_p=0.65, top_k=0), torch.tensor([[0.0, 0.4, 0.3, 0.0]])
    )
    torch.testing.assert_close(
        truncate(p, top_p=0.75, top_k=0), torch.tensor([[0.0, 0.4, 0.3, 0.2]])
    )
    torch.testing.assert_close(
        truncate(p, top_p=1.0, top_k=1), torch.tensor([[0.0, 0.4, 0.0, 0.0]])
    )
    assert truncate(p, top_p=1.0, top_k=-1) is p


def test_draws_follow_the_distribution() -> None:
    # p = softmax(2 z) = (1/4, 3/4, 0) at temperature 1/2.
    logits = torch.tensor([[0.0, 0.5 * torch.tensor(3.0).log(), float("-inf")]]).repeat(4000, 1)
    draw = Draw(seeds=range(4000), temperature=0.5)
    chosen = draw(torch.zeros(4000, 1), logits).argmax(-1)
    assert (chosen == 2).sum() == 0
    # 3000 expected, a standard deviation of sqrt(4000 * 3/16) = 27: five of them.
    assert abs(int((chosen == 1).sum()) - 3000) < 5 * 27
    expected = torch.where(chosen == 1, 0.75, 0.25).log()
    torch.testing.assert_close(draw.logprobs[0], expected)


def test_temperature_zero_takes_the_likeliest() -> None:
    draw = Draw(seeds=[1], temperature=0.0)
    assert int(draw(torch.zeros(1, 1), torch.tensor([[1.0, 3.0, 2.0]])).argmax()) == 1
    # log(e^3 / (e + e^3 + e^2)) = -log(1 + e^-1 + e^-2) = -0.4076
    assert float(draw.logprobs[0]) == pytest.approx(-0.4076, abs=1e-4)


def test_a_budget_stops_its_row_and_an_abort_all() -> None:
    stop = False
    budget = Budget(start=2, tokens=torch.tensor([1, 3]), stopped=lambda: stop)
    assert budget(torch.zeros(2, 3), None).tolist() == [True, False]
    stop = True
    assert budget(torch.zeros(2, 3), None).tolist() == [True, True]


def test_logprobs_are_the_models_own(text_assets: Path) -> None:
    server = server_of(text_assets)
    prompts = [PROMPT, [*PROMPT, 50, 51], [40]]
    answers = asyncio.run(ask(server, *prompts, temperature=0.7))
    model = server.model.double()
    for prompt, answer in zip(prompts, answers, strict=True):
        row = torch.tensor([[*prompt, *answer.token_ids]])
        logits = model(row).logits[0, len(prompt) - 1 : -1] / 0.7
        expected = logits.log_softmax(-1).gather(-1, row[0, len(prompt) :, None])[:, 0]
        found = torch.tensor(answer.log_probs, dtype=torch.float64)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        assert answer.stop_reason == "completed"


def test_a_completion_does_not_depend_on_its_batch(text_assets: Path) -> None:
    alone = asyncio.run(ask(server_of(text_assets), PROMPT, temperature=1.0))[0]
    others = [PROMPT, [1, 2, 3, 4, 5, 6], [7] * 9]
    among = asyncio.run(ask(server_of(text_assets), *others, temperature=1.0))[0]
    assert alone.token_ids == among.token_ids
    twice = asyncio.run(ask(server_of(text_assets), PROMPT, PROMPT, temperature=1.0))
    assert twice[0].token_ids == alone.token_ids
    assert twice[1].token_ids != alone.token_ids  # the second sample of a prompt is another one
    changed = asyncio.run(ask(server_of(text_assets, seed=4), PROMPT, temperature=1.0))[0]
    assert changed.token_ids != alone.token_ids


def test_images_are_seen_and_their_tokens_never_sampled(vision_assets: Path) -> None:
    server = server_of(vision_assets, response_length=40)
    start, end, pad, video = (
        server.model.config.vision_start_token_id,
        server.model.config.vision_end_token_id,
        server.model.config.image_token_id,
        server.model.config.video_token_id,
    )
    assert barred_ids(server.model.config) == sorted([pad, video])
    with torch.no_grad():  # without the bar it would write nothing but image tokens
        server.model.lm_head.weight[pad] = server.model.lm_head.weight[40] * 3
        server.model.lm_head.weight[video] = server.model.lm_head.weight[40] * 3

    async def look(colour: str) -> Any:
        # 56 × 56 pixels, patches of 14, merged 2 × 2: four tokens.
        prompt = [start, pad, pad, pad, pad, end, 65]
        image = Image.new("RGB", (56, 56), colour)
        return await server.generate(prompt, {"temperature": 0.0}, "id", image_data=[image])

    red, blue = asyncio.run(_both(look("red"), look("blue")))
    assert not {pad, video} & {*red.token_ids, *blue.token_ids}
    assert red.log_probs != blue.log_probs  # it has seen the colours


async def _both(*questions: Any) -> list[Any]:
    return list(await asyncio.gather(*questions))


def test_the_bar_is_exact_in_float32() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = SimpleNamespace(image_token_id=1, video_token_id=None)
            self.lm_head = torch.nn.Linear(2, 3)

    model = Model()
    bar_tokens(model)
    logits = model.lm_head(torch.ones(1, 2)).detach()
    assert float(logits[0, 1]) == BARRED_LOGIT
    p = logits.softmax(-1)
    assert float(p[0, 1]) == 0.0
    assert bool((p * logits).isfinite().all())  # as in verl's entropy


def test_new_weights_change_what_is_written(text_assets: Path) -> None:
    server = server_of(text_assets)
    named = {name: value.numpy() for name, value in server.model.state_dict().items()}
    named["lm_head.weight"] = named["lm_head.weight"][::-1].copy()

    async def both() -> tuple[Any, Any]:
        before = (await ask(server, PROMPT, temperature=0.0))[0]
        await server.load_weights(named, global_steps=4)
        return before, (await ask(server, PROMPT, temperature=0.0))[0]

    before, after = asyncio.run(both())
    assert before.token_ids != after.token_ids
    assert after.extra_fields["global_steps"] == 4


def test_weights_of_another_model_are_refused(text_assets: Path) -> None:
    server = server_of(text_assets)
    named = {name: value.numpy() for name, value in server.model.state_dict().items()}
    with pytest.raises(ValueError, match=r"missing \['lm_head\.weight'\] \(1\)"):
        asyncio.run(server.load_weights({k: v for k, v in named.items() if k != "lm_head.weight"}))
    with pytest.raises(ValueError, match=r"unknown \['other'\] \(1\)"):
        asyncio.run(server.load_weights({**named, "other": named["lm_head.weight"]}))
    with pytest.raises(ValueError, match="must have shape"):
        asyncio.run(server.load_weights({**named, "lm_head.weight": named["lm_head.weight"][:2]}))


def test_an_aborted_request_returns_what_it_has(text_assets: Path) -> None:
    server = server_of(text_assets, response_length=5000)

    async def interrupted() -> tuple[Any, bool, Any]:
        running = asyncio.create_task(ask(server, PROMPT, temperature=1.0))
        await asyncio.sleep(1.0)
        await server.abort_all_requests()
        (answer,) = await running
        late = asyncio.create_task(ask(server, PROMPT, temperature=0.0, max_tokens=2))
        await asyncio.sleep(0.3)
        held = not late.done()
        await server.resume_generation()
        return answer, held, (await late)[0]

    answer, held, late = asyncio.run(interrupted())
    assert answer.stop_reason in ("aborted", "completed")  # it may have ended by itself
    assert len(answer.token_ids) == len(answer.log_probs) < 5000
    assert held
    assert len(late.token_ids) <= 2


def test_a_server_that_leaves_sends_requests_back(text_assets: Path) -> None:
    server = server_of(text_assets)

    async def rejected() -> tuple[Any, Any]:
        await server.abort_all_requests(reject_request=True)
        (back,) = await ask(server, PROMPT)
        await server.resume_generation()
        (answer,) = await ask(server, PROMPT, max_tokens=2)
        return back, answer

    back, answer = asyncio.run(rejected())
    assert (back.token_ids, back.stop_reason) == ([], "aborted")  # verl asks another server
    assert len(answer.token_ids) in (1, 2)
