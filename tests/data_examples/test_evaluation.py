"""The loop around a model: what is asked when, what survives a failure, what the commands say."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from examples.ophthareason import backends
from examples.ophthareason.backends import Answer
from examples.ophthareason.evaluate import app
from examples.ophthareason.evaluation import answer_items, evaluate, score_folder
from examples.ophthareason.predictions import PredictionFile, predict_row, read_predictions
from examples.ophthareason.records import Item
from tests.data_examples.samples import item, raw, save

ITEMS = [item(str(place)) for place in range(7)]


class Model:
    """Answers B, and fails at one item if told so: a GPU that runs out of memory."""

    def __init__(self, fails_at: str | None = None) -> None:
        self.fails_at = fails_at
        self.batches: list[list[str]] = []
        self.closed = 0

    def close(self) -> None:
        self.closed += 1

    def answer(self, items: Sequence[Item]) -> list[Answer]:
        ids = [one.id for one in items]
        if self.fails_at in ids:
            raise RuntimeError("out of memory")
        self.batches.append(ids)
        return [Answer("<think>t</think><answer>B</answer>", 9, True, 0.25) for _ in items]


def test_batches_keep_the_order_and_the_last_may_be_short(tmp_path: Path) -> None:
    model = Model()
    told: list[int] = []
    done = answer_items(
        ITEMS, lambda: model, tmp_path / "p.jsonl", settings={}, batch_size=3, watch=told.append
    )
    assert model.batches == [["0", "1", "2"], ["3", "4", "5"], ["6"]]
    assert (done, told) == (7, [0, 3, 6, 7])
    assert model.closed == 1


def test_a_failure_costs_its_batch_and_the_next_run_goes_on_there(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    broken = Model(fails_at="4")
    with pytest.raises(RuntimeError, match="out of memory"):
        answer_items(ITEMS, lambda: broken, path, settings={}, batch_size=3)
    assert broken.closed == 1  # what it held is free for the next model
    assert [row.id for row in read_predictions(path)] == ["0", "1", "2"]
    model = Model()
    assert answer_items(ITEMS, lambda: model, path, settings={}, batch_size=3) == 4
    assert model.batches == [["3", "4", "5"], ["6"]]
    assert [row.id for row in read_predictions(path)] == [one.id for one in ITEMS]


def test_no_model_is_loaded_when_nothing_is_left(tmp_path: Path) -> None:
    def never() -> Model:
        raise AssertionError("there is nothing to answer")

    path = tmp_path / "p.jsonl"
    answer_items(ITEMS, Model, path, settings={})
    assert answer_items(ITEMS, never, path, settings={}) == 0


def test_items_that_were_added_later_are_answered_then(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    answer_items(ITEMS[2:4], Model, path, settings={})
    model = Model()
    answer_items(ITEMS, lambda: model, path, settings={}, batch_size=9)
    assert model.batches == [["0", "1", "4", "5", "6"]]


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (["a/x", "b/x/"], "models must have different names"),
        ([], "models must be one or more"),
        ({"../up": "m"}, "names fit for a folder"),
        ({"": "m"}, "names fit for a folder"),
    ],
)
def test_names_of_models(tmp_path: Path, models: list[str] | dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        evaluate(ITEMS, models, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_items_and_an_unknown_backend(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="items must not be empty"):
        evaluate(iter(()), ["m"], tmp_path)
    with pytest.raises(ValueError, match=r"backend must be one of .*'vllm'.*, got 'jax'"):
        evaluate(ITEMS, ["m"], tmp_path, backend="jax")
    with pytest.raises(ValueError, match="no predictions in"):
        score_folder(tmp_path)


def test_the_command_scores_a_folder_again(tmp_path: Path) -> None:
    for name, answer in (("one", "A"), ("two", "B")):
        with PredictionFile(tmp_path / name / "predictions.jsonl", {}) as file:
            text = f"<think>t</think><answer>{answer}</answer>"
            file.append(
                predict_row(one, response=text, tokens=5, finished=True, entropy=None)
                for one in ITEMS
            )
    done = CliRunner().invoke(app, ["score", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert {"scores.json", "report.md", "accuracy.png"} < {path.name for path in tmp_path.iterdir()}
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| two − one | +100.0" in report
    assert not (tmp_path / "one" / "thinking.png").exists()  # no entropy is known


def no_model(model: str, **options: object) -> Model:
    return Model()


def test_what_was_not_read_is_told_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = save(tmp_path / "in" / "single_choice_test_data_CFP.json", [raw(), raw()])
    broken.write_text(broken.read_text(encoding="utf-8")[:-30], encoding="utf-8")
    save(tmp_path / "in" / "single_choice_test_data_OCT.json", [raw(), raw(answer="Z")])
    monkeypatch.setitem(backends.BACKENDS, "transformers", no_model)
    out = tmp_path / "out"
    command = ["run", str(tmp_path / "in"), str(out), "--model", "m", "--skip-bad"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "1 records skipped" in done.output
    assert "1 files whose rest cannot be read" in done.output
    assert "single_choice_test_data_CFP.json" in done.output
    assert "broken JSON" in done.output
    # Scoring again keeps the account; a run that reads everything replaces it.
    CliRunner().invoke(app, ["score", str(out)])
    kept = json.loads((out / "scores.json").read_text(encoding="utf-8"))["reading"]
    assert (kept["read"], kept["files_with_unread_rest"], len(kept["problems"])) == (2, 1, 2)
    broken.unlink()
    save(tmp_path / "in" / "single_choice_test_data_OCT.json", [raw()])
    whole = CliRunner().invoke(
        app, ["run", str(tmp_path / "in"), str(tmp_path / "whole"), "--model", "m"]
    )
    assert whole.exit_code == 0, whole.output
    assert "not everything was read" not in whole.output


def test_the_command_names_a_fault_before_a_model_is_loaded(tmp_path: Path) -> None:
    source = save(tmp_path / "single_choice_test_data_CFP.json", [raw(), raw(answer="Z")])
    command = ["run", str(source), str(tmp_path / "out"), "--model", "no/such/model"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert "single_choice_test_data_CFP.json[1]: conversations[1].value" in done.output
    assert not (tmp_path / "out").exists()
