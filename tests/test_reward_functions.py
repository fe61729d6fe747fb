import asyncio
import json
import pickle
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from uadt.integrations.reward_functions import (
    BatchReward,
    Item,
    OpenRLHFReward,
    areal_reward,
    compute_score,
    easyr1_compute_score,
    make_scorer,
    parse_item,
    rlinf_reward,
    slime_reward,
)
from uadt.rewards import Scorer, Weights
from uadt.similarity import Chrf

RIGHT, WRONG = "<think>t</think><answer>B</answer>", "<think>t</think><answer>A</answer>"
OPTIONS = {"A": "Drusen", "B": "Glaucoma"}
ITEM = json.dumps({"truth": "B", "task": "single_choice", "options": OPTIONS})
BY_TEXT = "<think>t</think><answer>glaucoma</answer>"


def _fails(answer: str, truth: str) -> float:
    raise RuntimeError("no connection")


UNSCORABLE = Scorer(task="diagnosis", matcher=_fails)


HELD: list[tuple[tuple[Any, ...], Item]] = [
    (("B",), Item("B")),
    ((True, "true_false"), Item("True", "true_false")),
    ((ITEM,), Item("B", "single_choice", OPTIONS)),
    ((ITEM, "multiple_choice"), Item("B", "multiple_choice", OPTIONS)),  # a column wins
    ((ITEM, None, ["x", "y"]), Item("B", "single_choice", {"A": "x", "B": "y"})),
    (("B", None, np.array(["x", "y"], dtype=object)), Item("B", None, {"A": "x", "B": "y"})),
    (("B", None, {"A": "x", "B": None}), Item("B", None, {"A": "x"})),  # Arrow fills in None
    (("B", None, json.dumps(OPTIONS)), Item("B", None, OPTIONS)),
    (("B", None, ""), Item("B")),
    (("B", None, {}), Item("B")),
]


@pytest.mark.parametrize(("held", "item"), HELD)
def test_items_are_read_as_tables_hold_them(held: tuple[Any, ...], item: Item) -> None:
    assert parse_item(*held) == item


def test_an_item_without_its_reference_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"must have the key 'truth', got \['task'\]"):
        parse_item('{"task": "diagnosis"}')
    with pytest.raises(ValueError, match="Expecting"):
        parse_item("{B")


def test_a_scorer_is_built_from_plain_settings() -> None:
    scorer = make_scorer(
        task="diagnosis",
        format_weight=0.5,
        accuracy_weight=2.0,
        matcher="chrf",
        matcher_threshold=0.9,
        synonyms={"sugar eye": "DR"},
        lenient=True,
        graded=True,
        partial="f1",
    )
    assert scorer == Scorer(
        task="diagnosis",
        weights=Weights(0.5, 2.0),
        matcher=Chrf(threshold=0.9),
        synonyms={"sugar eye": "DR"},
        lenient=True,
        graded=True,
        partial="f1",
    )
    with pytest.raises(ValueError, match=r"matcher must be one of \['bleu', .*\], got 'judge'"):
        make_scorer(matcher="judge")


def test_verl_gets_numbers_under_the_same_keys_for_every_item() -> None:
    right = compute_score("x", RIGHT, "B", {"task": "single_choice", "num_turns": 2})
    assert right == {"score": 2.0, "format": 1.0, "accuracy": 1.0, "unscorable": 0.0}
    extra = {"task": "single_choice", "options": OPTIONS}
    assert compute_score("x", BY_TEXT, "B", extra, format_weight=0.5)["score"] == 1.5
    assert compute_score("x", RIGHT, ITEM)["score"] == 2.0
    # What verl's reward loop passes by keyword beside the settings.
    more = compute_score(
        data_source="x",
        solution_str=WRONG,
        ground_truth="B",
        extra_info={"task": "single_choice"},
        reward_router_address=None,
        reward_model_tokenizer=None,
        accuracy_weight=3.0,
    )
    assert more == {"score": 1.0, "format": 1.0, "accuracy": 0.0, "unscorable": 0.0}


def test_verl_gets_0_and_a_mark_for_an_unscorable_item() -> None:
    extra = {"task": "diagnosis"}
    judge = f"{__name__}:_fails"
    assert compute_score("x", RIGHT, "Drusen", extra, matcher=judge) == {
        "score": 0.0,
        "format": 1.0,
        "accuracy": 0.0,
        "unscorable": 1.0,
    }


def test_verl_meets_a_bad_reference_or_setting_as_an_error() -> None:
    with pytest.raises(ValueError, match="must name exactly one option, got 'x y'"):
        compute_score("x", RIGHT, "x y", {"task": "single_choice"})
    with pytest.raises(TypeError, match="leniant"):
        compute_score("x", RIGHT, "B", {"task": "single_choice"}, leniant=True)


def test_trl_plain_and_conversational() -> None:
    reward = BatchReward()
    columns = {
        "ground_truth": ["B", "B", "B", "True"],
        "task": ["single_choice", "single_choice", "multiple_choice", "true_false"],
        "options": [None, OPTIONS, None, None],
    }
    texts = [RIGHT, BY_TEXT, WRONG, "true"]
    passed = {"completion_ids": [[1]] * 4, "trainer_state": None, "log_metric": None}
    wanted = [2.0, 2.0, 1.0, 0.0]
    assert reward(prompts=["q"] * 4, completions=texts, **passed, **columns) == wanted
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    assert reward(prompts=[[]] * 4, completions=messages, **passed, **columns) == wanted
    parts = [
        [
            {"role": "assistant", "content": "<answer>A</answer>"},  # an earlier turn
            {"role": "assistant", "content": [{"type": "text", "text": text}, {"type": "image"}]},
        ]
        for text in texts
    ]
    assert reward(prompts=[[]] * 4, completions=parts, **columns) == wanted
    empty: list[Any] = [[], [{"role": "assistant", "content": None}]]
    truths = {"ground_truth": ["B", "B"], "task": ["single_choice"] * 2}
    assert reward(completions=empty, **truths) == [0.0, 0.0]


def test_swift_passes_the_completions_by_position() -> None:
    reward = BatchReward(scorer=Scorer(task="single_choice"), truth_column="solution")
    assert reward([RIGHT, WRONG], solution=["B", "B"], images=[None, None]) == [2.0, 1.0]


def test_parts_can_be_logged_and_weighed_by_the_trainer() -> None:
    columns = {"completions": [WRONG, "B"], "ground_truth": ["B", "B"]}
    scorer = Scorer(task="single_choice", lenient=True)
    assert BatchReward(scorer=scorer, part="format")(**columns) == [1.0, 0.0]
    assert BatchReward(scorer=scorer, part="accuracy")(**columns) == [0.0, 0.0]
    assert cast("Any", BatchReward(part="format")).__name__ == "uadt_format"
    with pytest.raises(ValueError, match=r"part must be one of \('total', .*\), got 'acc'"):
        BatchReward(part="acc")


def test_an_unscorable_item_is_none_in_a_batch() -> None:
    reward = BatchReward(scorer=UNSCORABLE)
    assert reward([RIGHT, "B"], ground_truth=["Drusen", "Drusen"]) == [None, 0.0]


def test_a_batch_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match=r"column 'ground_truth', got \['solution'\]"):
        BatchReward()([RIGHT], solution=["B"])
    with pytest.raises(ValueError, match=r"task must be one of .*, got None"):
        BatchReward()([RIGHT], ground_truth=["B"])
    with pytest.raises(ValueError, match="argument"):  # a column of another length
        BatchReward(scorer=Scorer(task="single_choice"))([RIGHT, RIGHT], ground_truth=["B"])


def test_rewards_pickle() -> None:
    for reward in (BatchReward(part="accuracy"), OpenRLHFReward(scorer=UNSCORABLE)):
        assert pickle.loads(pickle.dumps(reward)) == reward


def test_openrlhf_cuts_off_the_prompt_and_the_special_tokens() -> None:
    prompt = "<|im_start|>user\nIn <think> </think><answer> </answer>: A or B?<|im_end|>\n" * 4
    queries = [
        f"{prompt}{RIGHT}<|im_end|>",
        f"{prompt[10:]}{RIGHT}\n</s> <|endoftext|>\n",  # the stack cut the prompt on the left
        f"{prompt}{WRONG}",
        f"{prompt}<|im_end|>",
    ]
    reward = OpenRLHFReward(scorer=Scorer(task="single_choice"))
    got = reward(queries, [prompt] * 4, ["B", ITEM, "B", "B"])
    torch.testing.assert_close(got["rewards"], torch.tensor([2.0, 2.0, 1.0, 0.0]))
    torch.testing.assert_close(got["scores"], torch.tensor([1.0, 1.0, 0.0, 0.0]))
    assert sorted(got["extra_logs"]) == ["accuracy", "format", "unscorable"]
    unscorable = OpenRLHFReward(scorer=UNSCORABLE)([f"q{RIGHT}"], ["q"], ["Drusen"])
    assert unscorable["rewards"].tolist() == [0.0]
    assert unscorable["extra_logs"]["unscorable"].tolist() == [1.0]
    with pytest.raises(ValueError, match="a query must hold its prompt, got 'x'"):
        reward(["x"], ["another prompt"], ["B"])


def test_easyr1_one_or_a_batch() -> None:
    rows = [{"response": text, "response_length": 9, "ground_truth": ITEM} for text in (RIGHT, "B")]
    one = easyr1_compute_score(rows[0], format_weight=0.5)
    assert one == {"overall": 1.5, "format": 1.0, "accuracy": 1.0, "unscorable": 0.0}
    assert [row["overall"] for row in easyr1_compute_score(rows)] == [2.0, 0.0]


def test_areal_slime_and_rlinf() -> None:
    row = {"ground_truth": "B", "task": "single_choice", "options": ["Drusen", "Glaucoma"]}
    assert areal_reward("q", BY_TEXT, [1], [2], **row) == 2.0
    assert areal_reward("q", WRONG, prompt_ids=[1], completion_ids=[2], answer=ITEM) == 1.0
    plain = SimpleNamespace(response=RIGHT, label="B", metadata={"task": "single_choice"})
    bare = SimpleNamespace(response=WRONG, label=ITEM, metadata=None)
    assert asyncio.run(slime_reward(None, plain)) == 2.0
    assert asyncio.run(slime_reward(None, [plain, bare], evaluation=True)) == [2.0, 1.0]
    assert rlinf_reward([RIGHT, WRONG], [ITEM, ITEM]) == [2.0, 1.0]
