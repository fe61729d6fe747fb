"""The full recipe composes, verl and the library accept it, its models can be built."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from examples.ophthareason.full.dry_run import check_data, compose_recipe, main
from examples.ophthareason.full.finetune import completion_of, load
from examples.ophthareason.records import Item
from examples.ophthareason.writers import write_verl_parquet

FULL = Path(__file__).resolve().parents[2] / "examples" / "ophthareason" / "full"


@pytest.mark.parametrize(
    ("recipe", "model", "billions"),
    [
        # 3.09 B of language (36 layers of 2048) and 0.67 B of vision; 1.54 B and 0.30 B.
        ("stage3_qwen", "Qwen2_5_VLForConditionalGeneration", 3.76),
        ("stage3_intern", "InternVLForConditionalGeneration", 1.85),
    ],
)
def test_a_recipe_passes_its_dry_run(
    recipe: str, model: str, billions: float, capsys: pytest.CaptureFixture[str]
) -> None:
    main([recipe])
    shown = capsys.readouterr().out
    assert "UADT(decay=0.9, strength=0.5" in shown
    found = re.search(r"model +(\w+), ([\d.]+) billion", shown)
    assert found is not None
    assert found[1] == model
    assert float(found[2]) == pytest.approx(billions, rel=0.02)


def test_a_recipe_with_a_wrong_key_is_refused() -> None:
    with pytest.raises(ValueError, match="must have keys of"):
        main(["stage3_qwen", "+uadt.strenght=0.5"])


def test_a_recipe_without_our_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="uadt_sync"):
        main(["stage3_qwen", "trainer.v1.trainer_mode=sync"])


def test_every_value_of_a_recipe_that_is_a_choice_says_whose() -> None:
    # A number without a source is what the recipe must not have.
    unmarked: list[str] = []
    for path in sorted(FULL.glob("*.yaml")):
        for line in path.read_text().splitlines():
            if re.search(r"^\s+\w+: [\d.]+(e-?\d+)?$", line) and "nnodes" not in line:
                unmarked.append(f"{path.name}: {line.strip()}")
    allowed = {"clip_ratio_high: 0.2", "log_prob_micro_batch_size_per_gpu: 8", "n_gpus_per_node: 8"}
    assert not [line for line in unmarked if line.split(": ", 1)[1] not in allowed]


@pytest.mark.parametrize("images", [1, 6])
def test_the_data_check_counts_marks(tmp_path: Path, images: int) -> None:
    path = tmp_path / "rows.parquet"
    write_verl_parquet([_item(images)], path)
    assert check_data(str(path)) == 1


def test_the_uadt_section_reaches_verl() -> None:
    config = compose_recipe("stage3_qwen", ["uadt.strength=0.25"])
    assert config.uadt.strength == 0.25
    assert config.actor_rollout_ref.actor.entropy_from_logits_with_chunking is True


def test_the_supervised_stages_load_and_say_what_they_learn() -> None:
    assert load(FULL / "stage1_alignment.yaml", []).target == "caption"
    assert load(FULL / "stage2_reasoning.yaml", []).frozen == []
    with pytest.raises(ValueError, match=r"target must be .* got 'poem'"):
        load(FULL / "stage2_reasoning.yaml", ["target=poem"])


def test_an_item_without_a_trace_is_refused() -> None:
    row: dict[str, Any] = {"id": "cfp-1", "reason": " ", "caption": "A disc.", "ground_truth": "B"}
    with pytest.raises(ValueError, match="item 'cfp-1' must have a reason, got none"):
        completion_of(row, "trace")
    assert completion_of(row, "caption") == "A disc."
    row["reason"] = "Pale disc. "
    assert completion_of(row, "trace") == "<think>Pale disc.</think><answer>B</answer>"


def _item(images: int) -> Item:
    buffer = io.BytesIO()
    Image.new("RGB", (28, 28), (120, 40, 20)).save(buffer, "PNG")
    return Item(
        id="phantom-1",
        question="Which is it?\nA: Drusen\nB: Glaucoma",
        answer="B",
        task="single_choice",
        images=(buffer.getvalue(),) * images,
    )
