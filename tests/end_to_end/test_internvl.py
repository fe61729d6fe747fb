# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
# pyright: reportPrivateUsage=false
# (verl is not typed, transformers in part; the last test asks a private function of verl)
"""How far the full recipe comes with InternVL, on one with random weights."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

import uadt
from examples.ophthareason.full.finetune import load, run
from examples.ophthareason.records import Item
from examples.ophthareason.writers import write_dataset
from tests.end_to_end.test_finetune import FULL, SMALL
from tests.end_to_end.tiny_intern import SIDE, make_tiny_intern


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_intern(tmp_path_factory.mktemp("intern") / "base")


def picture(red: int) -> Image.Image:
    return Image.new("RGB", (SIDE, SIDE), (red, 40, 20))


def _item(number: int) -> Item:
    buffer = io.BytesIO()
    picture(60 * number).save(buffer, "PNG")
    return Item(
        id=f"item-{number}",
        question="Which is it?\nA: drusen\nB: a large cup",
        answer="B",
        task="single_choice",
        images=(buffer.getvalue(),),
        reason="The disc is pale.",
        caption="A disc.",
    )


def test_stage_1_trains_the_eye_of_an_internvl_and_nothing_else(base: Path, tmp_path: Path) -> None:
    from transformers import InternVLForConditionalGeneration

    write_dataset((_item(number) for number in range(4)), tmp_path / "rows")
    told = [f"model={base}", f"data={tmp_path / 'rows'}", f"training.output_dir={tmp_path / 'out'}"]
    run(load(FULL / "stage1_alignment.yaml", [*told, *SMALL]))
    read: Any = InternVLForConditionalGeneration.from_pretrained
    before, after = (dict(read(path).named_parameters()) for path in (base, tmp_path / "out"))
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved
    assert all("language_model" not in name and "lm_head" not in name for name in moved)


def test_verl_picks_the_class_and_an_update_reaches_eye_and_language(base: Path) -> None:
    from transformers import AutoConfig, AutoProcessor
    from verl.utils.model import get_hf_auto_model_class

    config = AutoConfig.from_pretrained(base)
    loader: Any = get_hf_auto_model_class(config)
    model: Any = loader.from_pretrained(base, dtype=torch.float32)
    assert type(model).__name__ == "InternVLForConditionalGeneration"
    processor: Any = AutoProcessor.from_pretrained(base)
    text = ["<IMG_CONTEXT>\nWhich is it? B", "<IMG_CONTEXT>\nWhich is it? A"]
    batch = processor(
        text=text, images=[picture(10), picture(200)], padding=True, return_tensors="pt"
    )
    logits = model(**batch).logits[:, -3:-1]
    entropy = uadt.token_entropy(logits.detach())
    # Random weights: nearly uniform over the vocabulary, so just below its logarithm.
    ceiling = float(torch.tensor(float(logits.shape[-1])).log())
    assert (entropy > 0.9 * ceiling).all()
    assert (entropy <= ceiling + 1e-5).all()
    rollout = uadt.Rollout(mask=torch.ones(2, 2, dtype=torch.bool), entropy=entropy)
    shaping = uadt.UADT()
    shaped = shaping(torch.tensor([1.0, -1.0]), rollout, shaping.init())
    chosen = torch.log_softmax(logits, -1).gather(-1, batch["input_ids"][:, -2:, None])[..., 0]
    (-(shaped.advantage[:, None] * chosen).mean()).backward()
    reached = {name for name, one in model.named_parameters() if one.grad is not None}
    assert any("vision_tower" in name for name in reached)
    assert any("language_model" in name for name in reached)


def test_what_stops_verl(base: Path) -> None:
    # verl decodes the sequence without special tokens and hands text and pictures to the processor
    # again. Qwen's processor does not mind that the marks are gone; InternVL's does. When this
    # fails, verl has learnt it: try stage3_intern again, and mend docs/reproduce.md.
    from transformers import AutoProcessor
    from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
    from verl.workers.rollout.utils import qwen2_5_vl_dedup_image_tokens

    processor: Any = AutoProcessor.from_pretrained(base)
    ids = processor(text=["<IMG_CONTEXT>\nhi"], images=[picture(9)], return_tensors="pt")
    worker = SimpleNamespace(
        processor=processor,
        tokenizer=processor.tokenizer,
        _get_mm_processor_kwargs=lambda audios: {},  # pyright: ignore[reportUnknownLambdaType]
    )
    output = SimpleNamespace(multi_modal_data={"images": [picture(9)]}, mm_processor_kwargs=None)
    asked: Any = AgentLoopWorker._compute_multi_modal_inputs
    with pytest.raises(ValueError, match="placeholders"):
        asked(worker, output, ids["input_ids"])
    # And vLLM, which writes the marks out itself, gets them written out already.
    row: list[int] = ids["input_ids"][0].tolist()
    assert row.count(processor.image_token_id) == 4
    assert qwen2_5_vl_dedup_image_tokens(row, processor) == row
