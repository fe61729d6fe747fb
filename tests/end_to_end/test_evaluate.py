# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# transformers is typed in part.
"""The miniature's checkpoint on real images: from records to figures, with a kill.

The checkpoint learnt from drawings and knows nothing of patients; what is tested is that all it
says is kept and counted.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from examples.ophthareason.backends import TransformersBackend
from examples.ophthareason.evaluation import evaluate, score_folder
from examples.ophthareason.images import open_rgb
from examples.ophthareason.loading import read_records
from examples.ophthareason.predictions import read_predictions
from examples.ophthareason.prompts import chat_messages
from examples.ophthareason.records import Item
from tests.end_to_end.tiny_qwen import make_tiny_qwen
from uadt.answers import parse_completion
from uadt.rewards import score as uadt_score

CHECKPOINT = Path(__file__).resolve().parents[2] / "examples/ophthareason/checkpoints/stage-2"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the shipped checkpoint: one test takes a file of it away."""
    return Path(shutil.copytree(CHECKPOINT, tmp_path_factory.mktemp("model") / "stage-2"))


@pytest.fixture(scope="module")
def items(real_data: Path) -> list[Item]:
    folder = real_data / "mm_retinal_reason"
    table = real_data / "retina" / "images.csv"
    names = ("single_choice_test_data_OCT", "multi_choice_test_data_CFP", "complex_reason")
    return [
        item
        for name in names
        for item in list(read_records(folder / f"{name}.json", real_data, image_table=table))[-4:]
    ]


def test_answers_and_entropies_are_those_of_a_plain_forward_pass(
    model: Path, items: list[Item]
) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    item = next(item for item in items if len(item.images) == 2)
    batch = [item, items[0]]
    answers = TransformersBackend(str(model), max_tokens=8).answer(batch)
    # The oracle: no cache, no batch, no generate; argmax, and entropy in float64 by its definition.
    processor: Any = AutoProcessor.from_pretrained(model)
    plain: Any = AutoModelForImageTextToText.from_pretrained(model).eval()
    for one, answer in zip(batch, answers, strict=True):
        text = processor.apply_chat_template(
            chat_messages(one.prompt, len(one.images)), tokenize=False, add_generation_prompt=True
        )
        pictures = [open_rgb(data) for data in one.images]
        inputs = processor(text=[text], images=[pictures], return_tensors="pt")
        prompt = inputs["input_ids"].shape[1]
        entropies: list[float] = []
        with torch.inference_mode():
            for _ in range(8):
                logits = plain(**inputs).logits[0, -1].double()
                p = logits.softmax(-1)
                entropies.append(-sum(q * math.log(q) for q in p.tolist() if q > 0))
                token = logits.argmax().reshape(1, 1)
                inputs["input_ids"] = torch.cat([inputs["input_ids"], token], dim=1)
                inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
                if "mm_token_type_ids" in inputs:
                    kinds = inputs["mm_token_type_ids"]
                    inputs["mm_token_type_ids"] = torch.cat([kinds, torch.zeros_like(token)], dim=1)
                if int(token) == processor.tokenizer.eos_token_id:
                    break
        written = inputs["input_ids"][0, prompt:]
        assert answer.response == processor.tokenizer.decode(written, skip_special_tokens=True)
        assert answer.tokens == len(written)
        assert answer.entropy == pytest.approx(sum(entropies) / len(entropies), abs=1e-3)


def test_a_checkpoints_own_generation_defaults_are_not_used(
    tmp_path: Path, items: list[Item]
) -> None:
    # Qwen2.5-VL ships repetition_penalty 1.05; a strong one would change every answer.
    model = make_tiny_qwen(tmp_path / "plain")
    other = make_tiny_qwen(tmp_path / "other", repetition_penalty=5.0)
    held = json.loads((other / "generation_config.json").read_text())
    assert held["repetition_penalty"] == 5.0
    one, two = (
        TransformersBackend(str(path), max_tokens=12).answer(items[:2]) for path in (model, other)
    )
    assert one == two


def test_the_miniature_and_a_random_model_in_one_call_from_records_to_figures(
    tmp_path: Path, model: Path, items: list[Item]
) -> None:
    out = tmp_path / "out"
    second = make_tiny_qwen(tmp_path / "second", seed=1)
    seen: list[tuple[str, int, int]] = []
    summaries = evaluate(
        items,
        {"first": str(model), "second": str(second)},
        out,
        batch_size=5,
        max_tokens=32,
        watch=lambda name, done, total: seen.append((name, done, total)),
    )
    assert [one.n for one in summaries] == [12, 12]
    assert seen[0] == ("first", 0, 12)
    assert seen[-1] == ("second", 12, 12)
    words = {"first": 1024, "second": 263}  # upper bounds of the vocabularies
    for name in ("first", "second"):
        rows = list(read_predictions(out / name / "predictions.jsonl"))
        assert [row.id for row in rows] == [item.id for item in items]
        assert all(
            row.entropy is not None and 0 < row.entropy < math.log(words[name]) for row in rows
        )
        assert len({row.entropy for row in rows}) > 1
        assert (out / name / "thinking.png").stat().st_size > 5000
    scores = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    assert {"multiple_choice", "diagnosis"} < set(scores["models"][0]["by"]["kind"])
    miniature, chance = (one["by"]["all"]["all"] for one in scores["models"])
    # The miniature writes in the form that it was taught, also about pictures of another kind; a
    # random model does not. What it may get right it does not know: the tables only have to agree.
    answers = [row.response for row in read_predictions(out / "first" / "predictions.jsonl")]
    assert sum(text.startswith("<think>") for text in answers) >= 8
    formed = [parse_completion(text).well_formed for text in answers]
    assert miniature["format"]["mean"] == pytest.approx(sum(formed) / 12)
    assert sum(formed) >= 3
    assert chance["format"]["mean"] == chance["accuracy"]["mean"] == 0.0
    right = [
        (uadt_score(text, item.answer, task=item.task, options=item.options or None).accuracy or 0)
        for text, item in zip(answers, items, strict=True)
    ]
    assert miniature["accuracy"]["mean"] == pytest.approx(sum(right) / 12)
    assert scores["differences"]["second − first"]["all"]["mean"] == pytest.approx(-sum(right) / 12)
    report = (out / "report.md").read_text(encoding="utf-8")
    assert "| first |" in report
    with Image.open(out / "accuracy.png") as figure:
        assert min(figure.size) > 200
    # A second call has nothing to do: not even a model is needed any more.
    before = (out / "first" / "predictions.jsonl").read_bytes()
    (model / "config.json").rename(model / "config.away")
    try:
        again = evaluate(
            items,
            {"first": str(model), "second": str(second)},
            out,
            batch_size=5,
            max_tokens=32,
        )
    finally:
        (model / "config.away").rename(model / "config.json")
    assert (out / "first" / "predictions.jsonl").read_bytes() == before
    assert [one.as_dict() for one in again] == [one.as_dict() for one in summaries]
    assert [one.as_dict() for one in score_folder(out)] == [one.as_dict() for one in summaries]
    with pytest.raises(ValueError, match=r"other settings \(max_tokens: 32 then, 9 now\)"):
        evaluate(items, {"first": str(model)}, out, max_tokens=9)


def test_killed_and_started_again_it_answers_every_item_once(
    tmp_path: Path, model: Path, real_data: Path
) -> None:
    source = real_data / "mm_retinal_reason" / "single_choice_test_data_OCT.json"

    def command(out: Path) -> list[str]:
        run = [sys.executable, "-m", "examples.ophthareason.evaluate", "run", str(source), str(out)]
        settings = [
            "--batch-size",
            "1",
            "--max-tokens",
            "16",
            "--limit",
            "12",
            "--root",
            str(real_data),
        ]
        return [*run, "--model", f"tiny={model}", *settings]

    root = Path(__file__).parents[2]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    out = tmp_path / "out"
    path = out / "tiny" / "predictions.jsonl"
    with subprocess.Popen(
        command(out), cwd=root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        until = time.monotonic() + 300
        while not (path.exists() and path.read_bytes().count(b"\n") >= 2):
            assert process.poll() is None, process.communicate()[1].decode()
            assert time.monotonic() < until
            time.sleep(0.01)
        process.kill()
    done = path.read_bytes().count(b"\n")
    assert 2 <= done < 12  # killed on the way
    with path.open("ab") as file:
        file.write(b'{"id": "torn')  # and what a kill in the middle of a write would leave
    again = subprocess.run(
        command(out), cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    unbroken = tmp_path / "unbroken"
    evaluate(
        list(read_records(source, real_data))[:12],
        {"tiny": str(model)},
        unbroken,
        batch_size=1,
        max_tokens=16,
        dtype="auto",
    )
    assert path.read_bytes() == (unbroken / "tiny" / "predictions.jsonl").read_bytes()
    assert len(list(read_predictions(path))) == 12
