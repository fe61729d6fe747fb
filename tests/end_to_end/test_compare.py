# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportUnknownLambdaType=false
# (the annotations of transformers' models and processors are partial)
"""The comparison of arms, on the shipped stage-2 model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import uadt
from examples.ophthareason import compare
from examples.ophthareason.comparison import difference, outcomes, read_runs, table
from examples.ophthareason.exam import sit
from examples.ophthareason.images import open_rgb
from examples.ophthareason.model import load
from examples.ophthareason.policy import Policy
from examples.ophthareason.prompts import chat_messages
from examples.ophthareason.records import Item
from examples.ophthareason.settings import Reinforcement, Settings
from examples.ophthareason.splits import draw_phantoms, read_split
from examples.ophthareason.styles import shortened, style_of
from examples.ophthareason.tasks import pose

START = Path(compare.__file__).parent / "checkpoints" / "stage-2"
SMALL = [
    "rl_items=6",
    "test_items=6",
    "reinforcement.steps=2",
    "reinforcement.prompts=3",
    "reinforcement.group=2",
    "reinforcement.warmup=1",
]


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    """Six held-out phantoms, two a task: prompts of several lengths."""
    folder = tmp_path_factory.mktemp("phantoms")
    draw_phantoms(Settings(test_items=6), folder, "test", lambda *_: None)
    return read_split(folder, "test")


@pytest.fixture
def policy() -> Policy:
    """The stage-2 model."""
    return Policy(*load(START))


def _sample(policy: Policy, items: list[Item], **options: Any) -> Any:
    generator = torch.Generator().manual_seed(3)
    return policy.sample(items, max_new_tokens=48, generator=generator, **options)


def test_a_shared_prompt_gives_the_logits_and_gradients_of_whole_sequences(
    policy: Policy, items: list[Item]
) -> None:
    completions = _sample(policy, items, copies=2, temperature=1.0)
    tokens, mask, _ = completions

    def gradients(logits: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logprob = logits.log_softmax(-1).gather(2, tokens[..., None])[..., 0][mask]
        policy.model.zero_grad()
        logprob.sum().backward()
        named = policy.model.named_parameters()
        return logprob.detach(), {n: p.grad.clone() for n, p in named if p.grad is not None}

    shared, shared_gradients = gradients(policy.response_logits(items, tokens, copies=2))

    # The oracle: every prompt written out for each of its completions, the model's own forward.
    rows = [item for item in items for _ in range(2)]
    batch = policy.processor(
        text=[
            policy.processor.apply_chat_template(
                chat_messages(row.prompt, len(row.images)),
                tokenize=False,
                add_generation_prompt=True,
            )
            for row in rows
        ],
        images=[[open_rgb(data) for data in row.images] for row in rows],
        padding=True,
        return_tensors="pt",
    )
    assert (batch["attention_mask"] == 0).any()  # the prompts differ in length: padding is tested
    logits = policy.model(
        input_ids=torch.cat([batch["input_ids"], tokens], 1),
        attention_mask=torch.cat([batch["attention_mask"], mask.long()], 1),
        mm_token_type_ids=torch.cat([batch["mm_token_type_ids"], torch.zeros_like(tokens)], 1),
        pixel_values=batch["pixel_values"],
        image_grid_thw=batch["image_grid_thw"],
    ).logits[:, -tokens.shape[1] - 1 : -1]
    whole, whole_gradients = gradients(logits.masked_fill(policy.barred, -torch.inf))

    torch.testing.assert_close(shared, whole, atol=1e-4, rtol=0)
    assert shared_gradients.keys() == whole_gradients.keys()
    for name, gradient in whole_gradients.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(shared_gradients[name], gradient, atol=1e-4 * scale, rtol=1e-3)


def test_the_entropy_of_a_sample_is_that_of_the_logits_that_drew_it(
    policy: Policy, items: list[Item]
) -> None:
    tokens, mask, entropy = _sample(policy, items, copies=2, temperature=0.7)

    logits = policy.response_logits(items, tokens, copies=2)

    p = torch.softmax(logits.double() / 0.7, dim=-1)
    expected = -(p * p.clamp(min=1e-300).log()).sum(-1)
    torch.testing.assert_close(entropy.double()[mask], expected[mask], atol=1e-4, rtol=1e-4)


def test_greedy_answers_are_those_of_transformers(policy: Policy, items: list[Item]) -> None:
    expected = sit(policy.model, policy.processor, items, max_new_tokens=48)

    completions = _sample(policy, items, temperature=0.0)

    assert policy.texts(completions) == [answer["response"] for answer in expected]
    assert completions.mask.sum(1).tolist() == [answer["tokens"] for answer in expected]


def test_strength_zero_is_plain_grpo_and_uadt_is_not(items: list[Item]) -> None:
    settings = Reinforcement(steps=2, prompts=3, group=4, warmup=1, learning_rate=1e-3)

    def trained(shaping: uadt.Shaping) -> tuple[list[dict[str, float]], torch.Tensor]:
        policy = Policy(*load(START))
        steps = compare.train(policy, shaping, items, settings, seed=1)
        return steps, policy.model.lm_head.weight.detach()

    steps, weight = trained(compare.ARMS["grpo"])
    _, again = trained(uadt.chain())  # nothing in between
    shaped_steps, shaped_weight = trained(compare.ARMS["uadt"])

    assert torch.equal(weight, again)
    assert not torch.equal(weight, shaped_weight)
    assert steps[0]["reward"] == shaped_steps[0]["reward"]  # the same questions and chances
    assert steps[0]["moved"] == 0 < shaped_steps[0]["moved"] <= 0.5  # λ = .5


def test_an_interrupted_comparison_goes_on_and_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = {name: compare.ARMS[name] for name in ("grpo", "uadt")}
    monkeypatch.setattr(compare, "ARMS", arms)

    def call(*words: str) -> None:
        monkeypatch.setattr("sys.argv", ["compare", "--run", str(tmp_path / "run"), *words])
        compare.main()

    call("--seeds", "2", "--set", *SMALL)
    kept, remade = (tmp_path / "run" / "seed-1" / f"{arm}.json" for arm in arms)
    before = json.loads(remade.read_text())
    when = kept.stat().st_mtime_ns
    remade.unlink()
    call("--seeds", "2", "--set", *SMALL)
    after = json.loads(remade.read_text())
    for step in (*before["steps"], *after["steps"]):
        step.pop("seconds")
    assert after == before
    assert kept.stat().st_mtime_ns == when

    call("--report", str(tmp_path / "report"))
    written = sorted(path.name for path in (tmp_path / "report").iterdir())
    assert written == ["curves.png", "differences.png", "results.json", "table.md"]
    lines = (tmp_path / "report" / "table.md").read_text().splitlines()
    assert len(lines) == 2 + len(outcomes("backward"))
    with pytest.raises(ValueError, match="two seeds or more"):
        read_runs(tmp_path / "run", [*arms, "another"])


def test_the_table_has_paired_differences() -> None:
    def run(accuracy: float) -> dict[str, Any]:
        names = ("accuracy", "accuracy/single_choice", "accuracy/multiple_choice")
        names += ("accuracy/diagnosis", "format", "tokens", "tokens/uncertain", "tokens/certain")
        exam = dict.fromkeys((*names, "share/backward"), accuracy)
        step = {"reward": accuracy, "entropy": accuracy}
        return {"steps": [step] * 12, "exam": {"greedy": exam, "sampled": exam}}

    runs = {"grpo": [run(0.2), run(0.4)], "uadt": [run(0.3), run(0.5)]}
    lines = table(runs, run(0.1), style="backward").splitlines()

    # Both seeds gain .1: no spread. The reference: mean .3, standard deviation .2 / √2 = .141.
    expected = "| accuracy, sampled | 0.100 | 0.300 ± 0.141 | +0.100 [+0.100, +0.100] |"
    assert expected in lines
    # Two sums .1 − .1 and .4 − .2: mean .1, sd .1414, t(1) = 12.706: half 12.706 · .1414 / √2.
    found = difference([0.1, 0.4], [0.1, 0.2])
    assert [round(value, 4) for value in found] == [0.1, -1.1706, 1.3706]
    with pytest.raises(ValueError, match="two seeds"):
        difference([1.0], [0.0])


def test_short_traces_are_learnt_first_if_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    few = ["train_items=6", "finetuning.steps=2", "finetuning.batch=3", *SMALL]
    words = ["--arms", "grpo", "--seeds", "1", "--short-traces", "--set", *few]
    monkeypatch.setattr("sys.argv", ["compare", "--run", str(run), *words])
    compare.main()

    learnt = load(run / "short-traces")[0].lm_head.weight
    assert not torch.equal(learnt, load(START)[0].lm_head.weight)
    assert (run / "seed-0" / "grpo.json").is_file()
    when = (run / "short-traces" / "model.safetensors").stat().st_mtime_ns
    compare.main()  # all there: nothing is made again
    assert (run / "short-traces" / "model.safetensors").stat().st_mtime_ns == when


@pytest.mark.parametrize("seed", range(12))
def test_every_taught_trace_has_its_style_and_a_shorter_form(seed: int) -> None:
    item = pose(seed)
    long, short = (f"<think>{reason}" for reason in (item.reason, shortened(item.reason)))
    assert style_of(long) in ("forward", "backward")
    assert style_of(short) == "short"
    assert len(short) < len(long)
    assert short.split(". ")[-1] == long.split(". ")[-1]  # the conclusion stays
    assert style_of(long.removeprefix("<think>")) == "other"
