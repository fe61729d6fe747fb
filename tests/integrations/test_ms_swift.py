"""ms-swift 4.6.0: trainings by its own command with the plug-in of examples/ms_swift_plugin.py."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integrations.environments import environment, run

pytestmark = pytest.mark.matrix
HERE = Path(__file__).parent
Found = dict[str, Any]


@pytest.fixture(scope="module")
def python() -> Path:
    pins = "ms-swift==4.6.0 trl==0.29.1 transformers==5.10.4 peft==0.20.0 torch==2.13.0 msgspec"
    return environment("ms-swift", *pins.split())


@pytest.fixture(scope="module")
def model(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    run(python, "-m", "tests.integrations.ms_swift_run", "model", str(folder))
    return folder


def train(
    python: Path, model: Path, out: Path, *options: str, strength: str | None = None
) -> list[Found]:
    """Train two steps by ``swift rlhf``; return its log."""
    plugin = HERE / "ms_swift_checksum.py"
    command = f"""--rlhf_type grpo --model {model} --model_type qwen2 --template dummy
        --tuner_type full --torch_dtype float32 --dataset {model}/data.jsonl
        --split_dataset_ratio 0 --dataloader_num_workers 0 --external_plugins {plugin}
        --reward_funcs checksum --use_vllm false --use_hf true --beta 0
        --num_generations 4 --max_completion_length 12 --per_device_train_batch_size 8
        --gradient_accumulation_steps 1 --max_steps 2 --logging_steps 1 --learning_rate 1e-3
        --save_strategy steps --save_steps 2 --eval_strategy no --report_to none
        --add_version false --output_dir {out}"""
    variables = {} if strength is None else {"STRENGTH": strength}
    launcher = ("-m", "tests.integrations.ms_swift_run")
    run(python, *launcher, *command.split(), *options, variables=variables)
    state = json.loads(max(out.glob("checkpoint-*/trainer_state.json")).read_text())
    return [row for row in state["log_history"] if "grad_norm" in row]


def state_in(out: Path, step: int) -> Found:
    file = out / f"checkpoint-{step}" / "uadt_state.json"
    return json.loads(file.read_text())["state"]["EmaState"]


def test_trainings(python: Path, model: Path, tmp_path: Path) -> None:
    stock = train(python, model, tmp_path / "stock")
    zero = train(python, model, tmp_path / "zero", strength="0")
    assert [row["grad_norm"] for row in zero] == [row["grad_norm"] for row in stock]
    assert not any("uadt" in name for row in stock for name in row)

    shaped = train(python, model, tmp_path / "shaped", "--max_steps", "4", strength="0.5")
    assert shaped[0]["grad_norm"] != stock[0]["grad_norm"]
    assert shaped[0]["uadt/threshold/mean"] > 0
    assert state_in(tmp_path / "shaped", 4)["step"] == 4

    half = str(tmp_path / "shaped" / "checkpoint-2")
    again = tmp_path / "again"
    train(
        *(python, model, again, "--max_steps", "4", "--resume_from_checkpoint", half),
        strength="0.5",
    )
    assert state_in(again, 4) == state_in(tmp_path / "shaped", 4)

    parts = ("--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2")
    split = train(python, model, tmp_path / "split", *parts, strength="0.5")
    assert split[0]["grad_norm"] == pytest.approx(shaped[0]["grad_norm"], rel=1e-3)
    assert state_in(tmp_path / "split", 2)["step"] == 2  # a generation batch, not a micro-batch


def test_a_reference_is_not_taken_for_the_policy_and_evaluations_do_not_count(
    python: Path, model: Path, tmp_path: Path
) -> None:
    # An adapter that does not start at zero: the policy differs from its reference at once, and
    # both run through the same model.
    adapter = ("--tuner_type", "lora", "--init_weights", "false", "--beta")
    alone = train(python, model, tmp_path / "alone", *adapter, "0", strength="0.5")
    evaluations = f"""--eval_strategy steps --eval_steps 1 --val_dataset {model}/data.jsonl
        --per_device_eval_batch_size 8"""
    beside = train(
        *(python, model, tmp_path / "beside", *adapter, "0.1", *evaluations.split()), strength="0.5"
    )
    assert beside[0]["kl"] > 0
    threshold = "uadt/threshold/mean"
    assert beside[0][threshold] == pytest.approx(alone[0][threshold], rel=1e-5)
    states = json.loads(max((tmp_path / "beside").glob("*-2/trainer_state.json")).read_text())
    assert [row["step"] for row in states["log_history"] if "eval_loss" in row] == [1, 2]
    assert state_in(tmp_path / "beside", 2)["step"] == 2
