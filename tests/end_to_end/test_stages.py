# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportAttributeAccessIssue=false
# (transformers' models and processors are partially annotated)
"""The supervised stages with the real trainer, at sizes that take seconds."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from examples.ophthareason.exam import describe, paired, sit, summary
from examples.ophthareason.lessons import Batches, Lesson, ResponseLoss, finetuning_lesson
from examples.ophthareason.model import (
    build_model,
    build_processor,
    fit_projector,
    load,
    never_sampled,
)
from examples.ophthareason.prompts import SYSTEM_PROMPT, TEMPLATES
from examples.ophthareason.real import TEMPLATED, fit_lengths, read_real, templated, write_texts
from examples.ophthareason.records import Item
from examples.ophthareason.settings import (
    ModelSettings,
    Reinforcement,
    Settings,
    Stage,
    load_settings,
)
from examples.ophthareason.splits import draw_phantoms, read_split
from examples.ophthareason.stages import STAGES, claim, fine_tune, run_stage, run_stages
from uadt.rewards import score

TINY = ModelSettings(
    hidden=64, layers=1, intermediate=96, heads=2, vision_hidden=32, vision_depth=1
)


def quiet(stage: str, done: int, total: int, numbers: dict[str, float]) -> None:
    """Progress that nobody reads."""


@pytest.fixture(scope="module")
def settings() -> Settings:
    stage = Stage(steps=2, batch=4, warmup=1, checkpoint_every=1)
    return Settings(
        train_items=9,
        test_items=6,
        rl_items=3,
        model=replace(TINY, vision_heads=1),
        vision=stage,
        language=stage,
        alignment=stage,
        finetuning=stage,
    )


@pytest.fixture(scope="module")
def run(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run_stages(settings, folder, quiet)
    return folder


@pytest.fixture(scope="module")
def items(run: Path) -> list[Item]:
    return read_split(run / "phantoms", "train")


def test_every_stage_leaves_a_model_and_its_figures(run: Path) -> None:
    for stage in STAGES:
        done = json.loads((run / stage / "done.json").read_text())
        assert done["figures"]["loss"] > 0
        load(run / stage / "model")
    for stage in ("language", "alignment"):  # before and after stage 1
        done = json.loads((run / stage / "done.json").read_text())
        assert done["captions"]["caption"]["n"] == done["greedy"]["all"]["n"] == 6
    last = json.loads((run / "finetuning" / "done.json").read_text())
    assert last["greedy"]["all"]["n"] == 6
    assert last["greedy"]["single_choice"]["n"] == 2  # a third of the items each


def test_a_finished_run_is_not_run_again(run: Path, settings: Settings) -> None:
    told: list[str] = []

    def tell(stage: str, done: int, total: int, numbers: dict[str, float]) -> None:
        told.append(stage)

    run_stages(settings, run, tell)
    assert told == []


def test_other_settings_need_another_folder(run: Path, settings: Settings) -> None:
    with pytest.raises(ValueError, match=r"got other \['seed'\]"):
        claim(replace(settings, seed=5), run)


def test_alignment_trains_the_eye_and_not_the_language(run: Path) -> None:
    before, _ = load(run / "language" / "model")
    after, _ = load(run / "alignment" / "model")
    moved = {
        name
        for (name, one), (_, other) in zip(
            before.named_parameters(), after.named_parameters(), strict=True
        )
        if not torch.equal(one, other)
    }
    assert moved
    assert all(name.startswith("model.visual.") for name in moved)


def test_an_interrupted_stage_goes_on_to_the_same_weights(
    run: Path, items: list[Item], tmp_path: Path
) -> None:
    def weights(folder: Path, *, interrupt: bool) -> torch.Tensor:
        stage = Stage(steps=4, batch=4, warmup=1, checkpoint_every=1)
        last: dict[str, float] = {}
        for _ in range(2 if interrupt else 1):
            model, processor = load(run / "alignment" / "model")

            def tell(name: str, done: int, total: int, numbers: dict[str, float]) -> None:
                if interrupt and not last and (folder / "checkpoint-2").is_dir():
                    last["step"] = done
                    raise KeyboardInterrupt

            try:
                run_stage("finetuning", replace(stage), model, processor, items, folder, tell=tell)
            except KeyboardInterrupt:
                continue
            return model.lm_head.weight.detach().clone()
        raise AssertionError("the stage never ended")

    whole = weights(tmp_path / "whole", interrupt=False)
    halved = weights(tmp_path / "halved", interrupt=True)
    torch.testing.assert_close(whole, halved)


def test_a_stage_that_runs_long_enough_learns(run: Path, items: list[Item]) -> None:
    model, processor = load(run / "alignment" / "model")
    batch = Batches(processor)([finetuning_lesson(0.0)(random.Random(0), items[0], None)] * 2)
    loss = ResponseLoss(model, processor)
    with torch.no_grad():
        before = float(loss(**dict(batch))["loss"])
    run_stage(
        "finetuning",
        Stage(steps=25, batch=4, warmup=1, learning_rate=3e-3),
        model,
        processor,
        items[:1],
        run / "long",
        tell=quiet,
    )
    with torch.no_grad():
        after = float(loss(**dict(batch))["loss"])
    assert after < before / 2


def test_splits_share_no_picture(run: Path, settings: Settings) -> None:
    draw_phantoms(settings, run / "phantoms", "practice", quiet)
    seen: set[str] = set()
    for split in ("train", "practice", "test"):
        pixels = {key for item in read_split(run / "phantoms", split) for key in item.pixels}
        assert not pixels & seen
        seen |= pixels


def test_the_authors_prompts_are_single_tokens_and_survive(run: Path) -> None:
    _, processor = load(run / "finetuning" / "model")
    tokenizer: Any = processor.tokenizer
    for text in (SYSTEM_PROMPT, TEMPLATES["single_choice"].split("{Question}")[1]):
        ids = tokenizer.encode(text)
        assert len(ids) == 1
        assert tokenizer.decode(ids) == text
        assert ids[0] in never_sampled(tokenizer)
    strange = "Ärzte: ≥ 5 µm? 眼底"  # bytes can spell anything
    assert tokenizer.decode(tokenizer.encode(strange)) == strange
    assert tokenizer.eos_token_id not in never_sampled(tokenizer)


def test_the_vocabulary_has_no_id_without_a_token(run: Path) -> None:
    # verl bars ids beyond the tokenizer in the rollout only, so there must be none.
    model, processor = load(run / "finetuning" / "model")
    text: Any = model.config.text_config
    assert text.vocab_size == len(processor.tokenizer)


def test_labels_cover_the_response_and_nothing_else(run: Path, items: list[Item]) -> None:
    _, processor = load(run / "finetuning" / "model")
    lessons = [finetuning_lesson(0.0)(random.Random(0), item, None) for item in items[:3]]
    batch = Batches(processor)(lessons)
    for lesson, labels in zip(lessons, batch["labels"], strict=True):
        kept = labels[labels != -100]
        assert processor.tokenizer.decode(kept[:-1]) == lesson.response
        assert kept[-1] == processor.tokenizer.eos_token_id
    pads = batch["input_ids"] == processor.image_token_id
    assert pads.sum(1).tolist() == [16, 16, 16]  # 112 pixels: 4 x 4 tokens


def test_a_slip_loses_the_end_of_the_thought(items: list[Item]) -> None:
    def ends(slips: float) -> list[bool]:
        make = finetuning_lesson(slips)
        return ["</think>" in make(random.Random(n), items[0], None).response for n in range(40)]

    assert all(ends(0.0))
    assert not any(ends(1.0))
    assert 4 < sum(ends(0.5)) < 36


def test_the_projector_finds_a_linear_map(run: Path) -> None:
    # If words are an affine function of what the encoder says, nothing is left unexplained.
    model, _ = load(run / "vision" / "model")
    torch.manual_seed(0)
    seen = torch.randn(400, TINY.hidden)
    words = seen @ torch.randn(TINY.hidden, TINY.hidden) + 3.0
    assert fit_projector(model, seen, words) < 1e-3


def test_an_exam_counts_tokens_and_scores(run: Path, items: list[Item]) -> None:
    model, processor = load(run / "finetuning" / "model")
    answers = sit(model, processor, items, max_new_tokens=5, temperature=1.0, batch=4)
    assert [answer["id"] for answer in answers] == [item.id for item in items]
    assert all(1 <= answer["tokens"] <= 5 for answer in answers)
    again = sit(model, processor, items, max_new_tokens=5, temperature=1.0, batch=4)
    assert answers == again  # the seed decides


def test_a_caption_is_right_if_it_says_the_same_in_any_order(
    run: Path, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = load(run / "alignment" / "model")
    said = ["a yes, b no.", "b no, a yes.", "a yes.", "a yes, b no, c no."]

    def written(*_: Any, **__: Any) -> list[tuple[str, int, bool]]:
        return [(text, 3, True) for text in said]

    monkeypatch.setattr("examples.ophthareason.exam._written", written)
    known = [replace(item, caption="a yes, b no.") for item in items[:4]]
    rows = describe(model, processor, known, max_new_tokens=3)
    assert [row["accuracy"] for row in rows] == [1.0, 1.0, 0.0, 0.0]


def test_a_checkpoint_that_was_being_written_is_passed_over(
    run: Path, items: list[Item], tmp_path: Path
) -> None:
    # Killed while the trainer wrote checkpoint 4: it has weights and no state.
    model, processor = load(run / "alignment" / "model")
    stage = Stage(steps=2, batch=4, warmup=1, checkpoint_every=1)
    run_stage("finetuning", stage, model, processor, items, tmp_path, tell=quiet)
    torn = tmp_path / "checkpoint-4"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    steps: list[int] = []

    def tell(stage: str, done: int, total: int, numbers: dict[str, float]) -> None:
        steps.append(done)

    longer = replace(stage, steps=12)
    run_stage("finetuning", longer, model, processor, items, tmp_path, tell=tell)
    assert steps[-1] == 12
    assert (tmp_path / "checkpoint-12" / "trainer_state.json").is_file()


def test_a_summary_by_hand() -> None:
    answers: list[dict[str, Any]] = [
        {"task": "diagnosis", "accuracy": right, "format": 1.0, "tokens": 10}
        for right in (1.0, 1.0, 0.0, None)  # an unscorable answer counts as wrong
    ]
    row = summary(answers)["diagnosis"]
    assert (row["n"], row["accuracy"], row["tokens"]) == (4, 0.5, 10)


def test_real_sizes_of_pictures_are_batched(run: Path, items: list[Item]) -> None:
    _, processor = load(run / "finetuning" / "model")
    two = Lesson(items[0].images + items[1].images, "Findings?", "none")
    batch = Batches(processor)([two, Lesson((), "Findings?", "none"), two])
    pads = batch["input_ids"] == processor.image_token_id
    assert pads.sum(1).tolist() == [32, 0, 32]


def test_the_shipped_settings_can_be_read() -> None:
    folder = Path(__file__).parents[2] / "examples" / "ophthareason" / "configs"
    shipped = load_settings(folder / "miniature.yaml", ["finetuning.steps=7"])
    assert shipped.finetuning.steps == 7
    assert 0 < shipped.teacher.grade < 1


def test_a_weight_of_a_random_model_depends_on_the_seed(run: Path) -> None:
    _, processor = load(run / "finetuning" / "model")
    small = replace(TINY, vision_heads=1)
    one, same, other = (build_model(small, processor, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.lm_head.weight, same.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    assert np.isfinite(one.lm_head.weight.detach().numpy()).all()


def test_the_tokenizer_stays_within_its_bound(items: list[Item]) -> None:
    processor = build_processor(TINY, [item.prompt for item in items])
    assert len(processor.tokenizer) <= 1024


def test_real_records_get_templates_that_say_so(
    run: Path, settings: Settings, real_data: Path, tmp_path: Path
) -> None:
    practice, test, count = read_real(real_data)
    assert {item.split for item in practice} == {"train"}
    assert not {item.id for item in practice} & {item.id for item in test}
    # The OCT test records are there twice, once with pictures in base64 and no known source.
    assert len({item.digest for item in test}) == len(test)
    assert all(item.source != "unknown" for item in test)
    marked = [item for item in [*practice, *test] if templated(item)]
    assert len(marked) == count > 0
    write_texts(marked, tmp_path / "texts.jsonl")
    for line in (tmp_path / "texts.jsonl").read_text().splitlines():
        assert json.loads(line)["title"].startswith(TEMPLATED)
    # A caption of the record's own stays, and the mark says that only the trace was made.
    own = next(item for item in marked if item.task == "diagnosis")
    assert own.title.startswith(f"{TEMPLATED}: reason. ")
    assert not own.caption.startswith(f"{own.modality}: {own.answer}")
    for item in marked[:50]:
        text = f"<think>{item.reason}</think><answer>{item.answer}</answer>"
        points = score(text, item.answer, task=item.task)
        assert (points.format, points.accuracy) == (1.0, 1.0)
        assert item.caption
    tuned = fine_tune(settings, tmp_path, practice[:20], run / "finetuning" / "model", quiet)
    model, processor = load(tuned)
    (answer,) = sit(model, processor, test[:1], max_new_tokens=3)
    assert answer["id"] == test[0].id


def test_lengths_make_room_for_the_longest(run: Path, items: list[Item]) -> None:
    folder = run / "finetuning" / "model"
    _, processor = load(folder)
    longer = replace(items[0], reason="word " * 200)
    fitted = fit_lengths(Reinforcement(), folder, [items[1], longer])
    assert fitted.max_new_tokens >= len(processor.tokenizer.encode(longer.reason))
    assert fitted.max_prompt_tokens == Reinforcement().max_prompt_tokens  # these are short


def test_a_gain_is_paired_by_item() -> None:
    was: list[dict[str, Any]] = [{"id": n, "accuracy": float(n < 5)} for n in range(10)]
    mean, low, high = paired(was, was)
    assert (mean, low, high) == (0.0, 0.0, 0.0)  # nothing changed, so nothing is uncertain
    with pytest.raises(ValueError, match="the same items in the same order"):
        paired(was, was[::-1])
