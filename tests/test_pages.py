"""The code on the pages runs, and does what the page says."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import uadt
from examples.ophthareason.phantom import draw

ROOT = Path(__file__).resolve().parents[1]
NEEDS_A_TRAINING = {"integrations/trl.md"}
"""Shown as a fragment there, run whole by the integration tests."""


def blocks(page: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return [block for block in found if "--8<--" not in block]


def run(code: str, **names: Any) -> dict[str, Any]:
    scope: dict[str, Any] = dict(names)
    exec(compile(code, "page", "exec"), scope)
    return scope


def pages() -> list[str]:
    docs = ROOT / "docs"
    return [str(path.relative_to(docs)) for path in sorted(docs.rglob("*.md"))]


@pytest.mark.parametrize("page", pages())
def test_every_block_is_python(page: str) -> None:
    for block in blocks(page):
        compile(block, page, "exec")


def test_no_page_has_code_that_nothing_runs() -> None:
    with_code = {page for page in pages() if blocks(page)} - NEEDS_A_TRAINING
    assert with_code == {"data.md", "integrations/your-stack.md", "phantom.md", "rewards.md"}


def test_the_rewards_page() -> None:
    score, reference = blocks("rewards.md")
    expression = score.strip().splitlines()[-1]
    value, comment = expression.split("  # ")
    scope = run(score)
    assert repr(eval(value, scope)) == comment
    code, said = reference.split("# ValueError: ")
    with pytest.raises(ValueError, match=re.escape(said.strip())):
        run(code)


def test_the_phantom_page() -> None:
    (code,) = blocks("phantom.md")
    eye = run(code)["eye"]
    assert eye.image.shape == (224, 224, 3)
    assert str(eye.image.dtype) == "uint8"
    assert eye.count("drusen") == 5
    assert eye.large_cup


def test_the_data_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "images").mkdir()
    Image.fromarray(draw(1, counts={"drusen": 4}, size=112).image).save(tmp_path / "images/1.png")
    turns = [
        {"from": "human", "value": "What is it?\nA: drusen\nB: scar"},
        {"from": "gpt", "value": "A"},
    ]
    record = json.dumps([{"image": ["1.png"], "conversations": turns, "reason": ""}])
    (tmp_path / "records/single_choice_test_data_CFP.json").write_text(record)
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("data.md")
    run(code)
    assert capsys.readouterr().out.startswith("1 Counter()")
    assert (tmp_path / "train.parquet").is_file()


def test_the_page_for_other_stacks(tmp_path: Path) -> None:
    first, second = blocks("integrations/your-stack.md")
    torch.manual_seed(0)
    mask = torch.ones(8, 6, dtype=torch.bool)
    entropy = torch.rand(8, 6) + 0.1
    reward = torch.tensor([1.0, 0.0] * 4)
    group = torch.arange(8) // 4
    advantage = uadt.group_advantage(reward, group)
    named = run(
        first, uadt=uadt, mask=mask, entropy=entropy, reward=reward, group=group,
        advantage=advantage,
    )  # fmt: skip
    # Two micro-batches of the second block are the batch of the first: the same advantages.
    parts = [(advantage[:4], mask[:4], entropy[:4]), (advantage[4:], mask[4:], entropy[4:])]
    second_scope = run(second, uadt=uadt, micro_batches=parts, checkpoint_folder=tmp_path)
    torch.testing.assert_close(torch.cat(second_scope["shaped"]), named["advantage"])
    assert (tmp_path / "uadt_state.json").is_file()
