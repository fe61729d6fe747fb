"""One patient's pictures and a question, answered by the miniature's checkpoint."""

from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from examples.ophthareason.ask import DISCLAIMER, QUESTION, item_of, main, shown
from examples.ophthareason.backends import Answer
from examples.ophthareason.data import TaskName
from examples.ophthareason.phantom import draw

CHECKPOINT = Path(__file__).resolve().parents[2] / "examples/ophthareason/checkpoints/stage-2"


def test_the_command_answers_and_says_what_it_is_not(tmp_path: Path) -> None:
    picture = tmp_path / "eye.png"
    Image.fromarray(draw(3, counts={"drusen": 6}, size=112).image).save(picture)
    app = typer.Typer()
    app.command()(main)
    question = "Which finding is seen?\nA: drusen\nB: soft exudates"
    arguments = [str(CHECKPOINT), str(picture), "--question", question, "--max-tokens", "48"]
    done = CliRunner().invoke(app, [*arguments, "--task", "single_choice"])
    assert done.exit_code == 0, done.output
    assert DISCLAIMER in done.output
    assert "nats a token" in done.output
    assert "thought" in done.output
    assert "answer" in done.output


def test_too_many_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 to 6 pictures, got 7"):
        item_of(QUESTION, TaskName.diagnosis, [tmp_path / "eye.png"] * 7)


def test_codes_that_a_terminal_obeys_are_not_shown() -> None:
    text = "<think>\x1b[2Jlook</think><answer>drusen\x07</answer>"
    words = shown(Answer(text, tokens=3, finished=True, entropy=0.5))
    assert "\x1b" not in words
    assert "\x07" not in words
    assert "drusen" in words


def test_an_answer_in_another_form_is_shown_as_it_is() -> None:
    words = shown(Answer("drusen, I think", tokens=3, finished=False, entropy=None))
    assert words.splitlines()[0].endswith("drusen, I think")
    assert "cut off" in words
