# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (transformers' models are typed in part)
"""Stages 1 and 2 of the full recipe with TRL's trainer, on a Qwen2.5-VL with random weights."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from examples.ophthareason.full.finetune import load, run
from examples.ophthareason.records import Item
from examples.ophthareason.writers import write_dataset
from tests.end_to_end.tiny_qwen import make_tiny_qwen

FULL = Path(__file__).resolve().parents[2] / "examples" / "ophthareason" / "full"
# What a laptop cannot do, and sizes: all else is the recipe's.
SMALL = [
    "training.bf16=false",
    "training.use_cpu=true",
    "training.max_steps=3",
    "training.per_device_train_batch_size=2",
    "training.gradient_accumulation_steps=1",
    "training.learning_rate=1.0e-3",
    "training.save_steps=2",
    "training.logging_steps=1",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "rows"
    write_dataset((_item(number) for number in range(4)), folder)
    return folder


def _item(number: int) -> Item:
    buffer = io.BytesIO()
    Image.new("RGB", (56, 56), (60 * number, 40, 20)).save(buffer, "PNG")
    return Item(
        id=f"item-{number}",
        question="Which is it?\nA: drusen\nB: a large cup",
        answer="AB"[number % 2],
        task="single_choice",
        images=(buffer.getvalue(),) * (1 + number % 2),
        reason="The disc is pale.",
        caption="A disc.",
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from transformers import Qwen2_5_VLForConditionalGeneration

    model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def test_both_stages_run_in_their_order_and_go_on_after_an_interruption(
    data: Path, tmp_path: Path
) -> None:
    base = make_tiny_qwen(tmp_path / "base")
    shared = [f"data={data}", *SMALL]
    first = [f"model={base}", f"training.output_dir={tmp_path / 'stage1'}", *shared]
    run(load(FULL / "stage1_alignment.yaml", first))
    before, aligned = weights(base), weights(tmp_path / "stage1")
    moved = {name for name, value in aligned.items() if not torch.equal(value, before[name])}
    assert moved
    # The figure's snowflake: the language model learns nothing in stage 1.
    assert all(name.startswith("model.visual.") for name in moved)

    second = [f"model={tmp_path / 'stage1'}", f"training.output_dir={tmp_path / 'stage2'}", *shared]
    run(load(FULL / "stage2_reasoning.yaml", second))
    tuned = weights(tmp_path / "stage2")
    assert not torch.equal(tuned["lm_head.weight"], aligned["lm_head.weight"])
    assert any(
        not torch.equal(value, aligned[name])
        for name, value in tuned.items()
        if name.startswith("model.visual.")
    )
    # Steps 2 and 3 were kept; asked for five steps, the stage goes on from the third.
    run(load(FULL / "stage2_reasoning.yaml", [*second, "training.max_steps=5"]))
    assert (tmp_path / "stage2" / "checkpoint-5" / "trainer_state.json").is_file()
    assert not torch.equal(weights(tmp_path / "stage2")["lm_head.weight"], tuned["lm_head.weight"])


def test_a_stage_without_its_texts_is_refused(data: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    item = _item(0)
    write_dataset(
        [Item(id="x", question="Q?", answer="drusen", task="diagnosis", images=item.images)], bare
    )
    base = make_tiny_qwen(tmp_path / "base")
    told = [f"model={base}", f"data={bare}", f"training.output_dir={tmp_path / 'out'}", *SMALL]
    with pytest.raises(ValueError, match="item 'x' must have a reason, got none"):
        run(load(FULL / "stage2_reasoning.yaml", told))
