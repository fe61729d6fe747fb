"""The demo's other ways, each once for real: all stages, real images, vLLM, every interruption."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from examples.ophthareason.demo import CHECKPOINT
from examples.ophthareason.real import TEMPLATED
from examples.ophthareason.reinforce import diagnostics, metrics, trained_model
from tests.end_to_end.demo_runs import (
    PATIENCE,
    TINY_MODEL,
    finish,
    left_behind,
    start,
    wait_for,
)

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(3 * PATIENCE)]
shipped = pytest.mark.skipif(not CHECKPOINT.is_dir(), reason="the stage-2 checkpoint is not there")
SMALL = [
    "rl_items=8",
    "test_items=9",
    "reinforcement.prompts=2",
    "reinforcement.group=2",
    "reinforcement.checkpoint_every=1",
    "reinforcement.warmup=1",
]
STAGES = [
    f"{name}={{steps: {steps}, batch: 4, learning_rate: 1e-3, warmup: 1, checkpoint_every: 5}}"
    for name, steps in (("vision", 6), ("language", 6), ("alignment", 6), ("finetuning", 6))
]


def demo(run: Path, log: Path, *words: str, steps: int = 1, **environment: str) -> Any:
    told = ["examples.ophthareason.demo", "--run", str(run), "--steps", str(steps), *SMALL, *words]
    return start(told, log, **environment)


def answers(run: Path, name: str) -> list[dict[str, Any]]:
    return json.loads((run / "predictions" / f"{name}.json").read_text())


def test_all_stages_and_then_reinforcement(tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    finish(demo(run, log, "train_items=12", *TINY_MODEL, *STAGES, STAGES="all"), log)
    # Held-out items are asked before and after each stage, captions around stage 1.
    for name in ("pretrained-captions", "pretrained-greedy", "aligned-captions", "aligned-greedy"):
        assert len(answers(run, name)) == 9
    for moment in ("before", "after"):
        for exam in ("greedy", "sampled", "swapped"):
            assert len(answers(run, f"{moment}-{exam}")) == 9
    page = (run / "report.html").read_text()
    for words in ("Stage by stage", "after stage 1", "captions"):
        assert words in page
    assert trained_model(run / "reinforcement", 1).is_dir()


@shipped
def test_real_images_from_a_folder_of_records(tmp_path: Path, real_data: Path) -> None:
    run, log, folder = tmp_path / "run", tmp_path / "log", tmp_path / "data"
    (folder / "mm_retinal_reason").mkdir(parents=True)
    shutil.copytree(real_data / "retina", folder / "retina")  # a link would leave the folder
    for path in sorted((real_data / "mm_retinal_reason").glob("*.json")):
        few = json.loads(path.read_text())[:4]
        (folder / "mm_retinal_reason" / path.name).write_text(json.dumps(few))
    finish(demo(run, log, *STAGES, DATA=str(folder)), log)

    texts = [json.loads(line) for line in (run / "texts.jsonl").read_text().splitlines()]
    made = [text for text in texts if text["title"].startswith(TEMPLATED)]
    assert len(made) == len(texts) > 20  # the test records have no reasoning of their own
    assert {text["split"] for text in texts} == {"train", "test"}
    page = (run / "report.html").read_text()
    assert f"{len(made)} of {len(texts)} records had no reasoning trace" in page
    for words in ("Real retinal images", "trace templated", "IDRiD dataset (c)", "data:image/jpeg"):
        assert words in page
    assert "synthetic phantoms" not in page
    rows = diagnostics(run / "reinforcement")
    assert len(rows) == 4  # two questions, two answers each
    # Other data in the same folder would mix two runs.
    again = demo(run, log, *STAGES)
    again.wait(timeout=PATIENCE)
    assert again.returncode != 0
    assert "must be continued with data" in log.read_text()


@shipped
def test_vllm_writes_the_completions(tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    finish(demo(run, log, steps=2, ROLLOUT="vllm"), log)
    shown = metrics(run / "reinforcement")
    assert list(shown) == [1, 2]
    # Its log-probabilities are those of the actor: the weights arrived, the prompts are the same.
    for numbers in shown.values():
        assert numbers["training/rollout_probs_diff_mean"] < 0.02
    assert json.loads((run / "environment.json").read_text())["rollout"] == "vllm"


def test_a_supervised_stage_goes_on_after_ctrl_c_and_after_a_kill(tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    config = tmp_path / "config.yaml"
    config.write_text("{train_items: 12, test_items: 6}\n")
    long = "{steps: 150, batch: 4, warmup: 1, checkpoint_every: 20}"
    words = ["examples.ophthareason.stages", str(config), "--run", str(run), *TINY_MODEL]
    words += [STAGES[0], STAGES[1], f"alignment={long}", f"finetuning={long}"]
    for stage, blow in (("alignment", signal.SIGINT), ("finetuning", signal.SIGKILL)):
        process = start(words, log)
        trainer = run / stage / "trainer"
        wait_for(lambda at=trainer: list(at.glob("checkpoint-*/trainer_state.json")), process, log)
        os.killpg(process.pid, blow)
        process.wait(timeout=PATIENCE)
        assert process.returncode != 0
        assert not (run / stage / "done.json").is_file()
    finish(start(words, log), log)

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    sittings: list[list[dict[str, Any]]] = [[]]
    for line in lines:
        if sittings[-1] and line["seconds"] < sittings[-1][-1]["seconds"]:
            sittings.append([])
        sittings[-1].append(line)
    assert len(sittings) == 3
    trained = [
        [(line["stage"], line["step"]) for line in sitting if "loss" in line]
        for sitting in sittings
    ]
    # What was finished is not trained again.
    assert {stage for stage, _ in trained[1]} == {"alignment", "finetuning"}
    assert {stage for stage, _ in trained[2]} == {"finetuning"}
    # The loss is told every ten steps: a stage that began anew would tell of step 10.
    assert trained[1][0][1] > 20
    assert trained[2][0][1] > 20
    assert trained[2][-1] == ("finetuning", 150)


@shipped
def test_reinforcement_goes_on_after_ctrl_c_and_leaves_nothing_behind(tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    tracker = run / "reinforcement" / "checkpoints" / "latest_checkpointed_iteration.txt"
    process = demo(run, log, steps=3)
    wait_for(tracker.is_file, process, log)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    process.wait(timeout=PATIENCE)
    assert process.returncode == 130
    assert "the same command goes on from here" in log.read_text()
    assert left_behind(run) == []
    done = int(tracker.read_text())
    assert done < 3
    finish(demo(run, log, steps=3), log)
    folder = run / "reinforcement"
    assert list(metrics(folder)) == [1, 2, 3]
    second = (folder / "metrics-001.jsonl").read_text().splitlines()
    assert json.loads(second[0])["step"] == done + 1
    assert left_behind(run) == []
