# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# verl, trl, transformers and datasets are typed in part.
"""What the writers write is what verl and TRL read: their own code, real images."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from examples.ophthareason.loading import read_records
from examples.ophthareason.prompts import SYSTEM_PROMPT
from examples.ophthareason.records import Item
from examples.ophthareason.writers import write_dataset, write_verl_parquet
from tests.end_to_end.tiny_qwen import make_tiny_qwen
from uadt.integrations.reward_functions import BatchReward, compute_score


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_qwen(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def items(real_data: Path) -> list[Item]:
    """Every kind of item; among the complex ones are two with two images."""
    folder = real_data / "mm_retinal_reason"
    table = real_data / "retina" / "images.csv"
    names = ("single_choice_test_data_OCT", "multi_choice_test_data_CFP", "complex_reason")
    return [
        item
        for name in names
        for item in list(read_records(folder / f"{name}.json", real_data, image_table=table))[:8]
    ]


def test_verls_own_data_set_reads_the_parquet(
    items: list[Item], model: Path, tmp_path: Path
) -> None:
    from omegaconf import OmegaConf
    from transformers import AutoProcessor
    from verl.utils.dataset.rl_dataset import RLHFDataset

    path = tmp_path / "x.parquet"
    assert write_verl_parquet(items, path) == len(items) == 24
    processor: Any = AutoProcessor.from_pretrained(model)
    config = OmegaConf.create(
        {"max_prompt_length": 4096, "filter_overlong_prompts": True, "cache_dir": str(tmp_path)}
    )
    data: Any = RLHFDataset(
        data_files=str(path), tokenizer=processor.tokenizer, config=config, processor=processor
    )
    assert len(data) == len(items)  # none was dropped as too long, so every template was rendered
    shown = 0
    for place, item in enumerate(items):
        row = data[place]
        system, user = row["raw_prompt"]
        assert system["content"] in (SYSTEM_PROMPT, [{"type": "text", "text": SYSTEM_PROMPT}])
        kinds = [part["type"] for part in user["content"]]
        assert kinds == ["text"] + ["image"] * len(item.images)
        assert user["content"][0]["text"] == item.prompt
        for part, data_of_image in zip(user["content"][1:], item.images, strict=True):
            with Image.open(io.BytesIO(data_of_image)) as original:
                assert part["image"].size == original.size
            shown += 1
        # The reward entry gets what verl hands over, and the reference is right by it.
        text = f"<think>t</think><answer>{item.answer}</answer>"
        truth = row["reward_model"]["ground_truth"]
        score = compute_score(row["data_source"], text, truth, row["extra_info"])
        assert score["score"] == 2.0
        assert row["extra_info"]["id"] == item.id
    assert shown == sum(len(item.images) for item in items) > len(items)


def test_trl_prepares_the_data_set_and_its_rewards_read_the_columns(
    items: list[Item], model: Path, tmp_path: Path
) -> None:
    from datasets import load_from_disk
    from transformers import AutoProcessor
    from trl.data_utils import prepare_multimodal_messages

    assert write_dataset(items, tmp_path / "set") == 24
    data: Any = load_from_disk(str(tmp_path / "set"))
    processor: Any = AutoProcessor.from_pretrained(model)
    rows = [data[place] for place in range(len(data))]
    for row, item in zip(rows, items, strict=True):
        messages = prepare_multimodal_messages(row["prompt"], images=row["images"])
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert text.count("<|image_pad|>") == len(item.images)
        assert text.index(item.prompt) < text.index("<|image_pad|>")
        inputs = processor(text=[text], images=[row["images"]], return_tensors="pt")
        assert len(inputs["image_grid_thw"]) == len(item.images)
    columns = {name: [row[name] for row in rows] for name in ("ground_truth", "task", "options")}
    right = [f"<think>t</think><answer>{item.answer}</answer>" for item in items]
    assert BatchReward()(completions=right, **columns) == [2.0] * len(items)
    assert BatchReward()(completions=["nothing"] * len(items), **columns) == [0.0] * len(items)
