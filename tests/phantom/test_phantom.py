# pyright: reportUnknownVariableType=false
# (the annotations of scipy.ndimage are partial)
"""The fundus phantom: what it says it drew is what can be found in its pixels."""

import hashlib
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from examples.ophthareason.phantom import (
    GRADES,
    KINDS,
    LARGE_CUP,
    NATURAL_SIZE,
    Lesion,
    Phantom,
    draw,
    draw_random,
)


def change(seed: int, kind: str, count: int, size: int = 224) -> NDArray[np.float64]:
    """How much each pixel differs between an eye with these lesions and the same eye without."""
    marked = draw(seed, counts={kind: count}, size=size).image.astype(float)
    clear = draw(seed, size=size).image.astype(float)
    return np.abs(marked - clear).max(-1)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "neovascularisation"])
@pytest.mark.parametrize("count", [1, 3])
def test_the_lesions_can_be_counted_in_the_pixels(kind: str, count: int) -> None:
    # The oracle knows nothing of the drawing: connected regions of what changed. New vessels are
    # left out, for one tangle may be several loops.
    labelled: Any = ndimage.label(change(3, kind, count) > 12)
    assert labelled[1] == count


@pytest.mark.parametrize("kind", KINDS)
def test_a_lesion_lies_where_the_truth_says(kind: str) -> None:
    difference = change(5, kind, 1)
    centre: Any = ndimage.center_of_mass(difference > 12)
    y, x = float(centre[0]), float(centre[1])
    (lesion,) = draw(5, counts={kind: 1}, size=224).lesions
    assert math.dist((x / 224, y / 224), (lesion.x, lesion.y)) < lesion.radius


@pytest.mark.parametrize(
    ("kind", "channel", "sign"),
    [
        ("microaneurysms", 0, -1),  # dark red on orange: less red
        ("haemorrhages", 0, -1),
        ("hard exudates", 1, 1),  # yellow: more green
        ("soft exudates", 2, 1),  # white: more blue
        ("drusen", 1, 1),
        ("neovascularisation", 0, -1),
    ],
)
def test_each_kind_has_the_colour_that_it_has_in_an_eye(kind: str, channel: int, sign: int) -> None:
    marked = draw(1, counts={kind: 1}, size=224)
    clear = draw(1, size=224)
    where = change(1, kind, 1) > 40
    difference = marked.image.astype(float) - clear.image
    assert sign * difference[..., channel][where].mean() > 20


def test_equal_arguments_give_equal_bytes_in_another_process() -> None:
    program = (
        "import hashlib; from examples.ophthareason.phantom import draw_random;"
        "print(hashlib.sha256(draw_random(11).image.tobytes()).hexdigest())"
    )
    other = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300
    )
    assert other.stdout.strip() == hashlib.sha256(draw_random(11).image.tobytes()).hexdigest()


def test_another_seed_is_another_eye() -> None:
    assert not np.array_equal(draw(1).image, draw(2).image)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**9), difficulty=st.floats(0, 1))
def test_no_lesion_covers_another_or_leaves_the_eye(seed: int, difficulty: float) -> None:
    eye = draw_random(seed, difficulty=difficulty)
    for place, one in enumerate(eye.lesions):
        assert math.dist((one.x, one.y), (0.5, 0.5)) + one.radius < 0.48
        for other in eye.lesions[:place]:
            assert math.dist((one.x, one.y), (other.x, other.y)) > one.radius + other.radius
    assert not eye.image[0].any()  # the corners are outside the field of view
    assert eye.image[56, 56].any()


def test_the_knob_makes_lesions_smaller_and_fainter() -> None:
    seen = [
        np.abs(
            draw(4, counts={"haemorrhages": 4}, difficulty=knob).image.astype(float)
            - draw(4, difficulty=knob).image
        ).sum()
        for knob in (0.0, 0.5, 1.0)
    ]
    assert seen[0] > 2 * seen[1] > 4 * seen[2]


@pytest.mark.parametrize("size", [112, NATURAL_SIZE - 1, NATURAL_SIZE, 448])
def test_the_truth_does_not_depend_on_the_size(size: int) -> None:
    counts = {"drusen": 4, "haemorrhages": 2}
    eye, small = (draw(8, counts=counts, size=pixels) for pixels in (size, 112))
    assert eye.image.shape == (size, size, 3)
    assert [(one.kind, one.x, one.y) for one in eye.lesions] == [
        (one.kind, one.x, one.y) for one in small.lesions
    ]
    assert (eye.grade, eye.cup_ratio, eye.disc) == (small.grade, small.cup_ratio, small.disc)


def test_lesions_have_their_natural_proportions_where_there_are_pixels_for_them() -> None:
    # A disc is about 1.75 mm wide: 0.17 of the side, so 0.1 mm are 0.0097. By definition a
    # microaneurysm has less than 0.125 mm, a druse at most some 0.25 mm; a cotton-wool spot has a
    # quarter to half of the disc.
    eye = draw(6, counts=dict.fromkeys(KINDS, 2), size=NATURAL_SIZE)
    widths = {
        kind: [2 * one.radius * 1.75 / 0.17 for one in eye.lesions if one.kind == kind]
        for kind in KINDS
    }
    assert max(widths["microaneurysms"]) < 0.16
    assert max(widths["microaneurysms"]) < min(widths["hard exudates"])
    assert max(widths["drusen"]) < 0.36
    assert max(widths["hard exudates"]) < min(widths["haemorrhages"])
    assert all(0.25 < width / 1.75 < 0.5 for width in widths["soft exudates"])


@pytest.mark.parametrize("seed", range(4))
def test_vessels_cross_the_rim_of_the_disc(seed: int) -> None:
    # Just inside the disc's rim, blood is darker than the disc. Four vessels at least leave it.
    eye = draw(seed, size=448)
    green: list[int] = []
    for step in range(720):
        x, y = (
            int(448 * (centre + 0.078 * turn(math.radians(step / 2))))
            for centre, turn in zip(eye.disc, (math.cos, math.sin), strict=True)
        )
        green.append(int(eye.image[y, x, 1]))
    dark = np.array(green) < sorted(green)[360] - 25
    crossed: Any = ndimage.label(dark)
    assert crossed[1] >= 4


def test_the_miniature_sees_what_the_shipped_checkpoint_was_trained_on() -> None:
    # Mean green of an 8 by 8 grid, written down from the drawing that the checkpoint was trained
    # on. Another drawing at this size would ask it about pictures such as it has never seen.
    eye = draw(7, counts={"haemorrhages": 3, "drusen": 5}, cup_ratio=0.8)
    grid = eye.image[..., 1].astype(float).reshape(8, 14, 8, 14).mean((1, 3))
    expected = [
        [0.0, 4.4, 37.7, 60.1, 61.4, 38.0, 4.2, 0.0],
        [4.4, 60.5, 76.8, 84.9, 88.3, 84.7, 63.5, 4.4],
        [40.2, 87.2, 75.1, 105.6, 104.4, 96.3, 83.1, 35.3],
        [63.0, 73.4, 108.8, 101.3, 88.7, 152.5, 184.1, 64.3],
        [62.8, 91.6, 99.2, 108.8, 104.2, 113.2, 129.7, 63.3],
        [40.7, 86.6, 95.2, 96.6, 92.8, 97.6, 83.8, 35.3],
        [4.5, 61.8, 83.9, 89.8, 93.8, 86.5, 64.8, 4.5],
        [0.0, 4.5, 41.0, 64.6, 63.9, 40.0, 4.7, 0.0],
    ]
    assert np.abs(grid - np.array(expected)).max() < 1.0


def lesion(kind: str, x: float = 0.4, y: float = 0.4) -> Lesion:
    return Lesion(kind=kind, x=x, y=y, radius=0.02)


def eye_with(*lesions: Lesion, cup: float = 0.3) -> Phantom:
    return Phantom(
        image=np.zeros((112, 112, 3), np.uint8),
        lesions=lesions,
        cup_ratio=cup,
        disc=(0.75, 0.5),
        seed=0,
        difficulty=0.0,
    )


QUADRANTS = [(0.3, 0.3), (0.7, 0.3), (0.3, 0.7), (0.7, 0.7)]


@pytest.mark.parametrize(
    ("lesions", "grade"),
    [
        ([], "no apparent retinopathy"),
        ([lesion("drusen")], "no apparent retinopathy"),  # age, not diabetes
        ([lesion("microaneurysms")], "mild retinopathy"),  # and nothing else
        ([lesion("microaneurysms"), lesion("hard exudates")], "moderate retinopathy"),
        ([lesion("soft exudates")], "moderate retinopathy"),
        ([lesion("haemorrhages", *at) for at in QUADRANTS[:3]], "moderate retinopathy"),
        ([lesion("haemorrhages", *at) for at in QUADRANTS], "severe retinopathy"),  # all four
        ([lesion("neovascularisation")], "proliferative retinopathy"),  # whatever else
    ],
)
def test_the_grade_follows_the_scale(lesions: list[Lesion], grade: str) -> None:
    assert GRADES[eye_with(*lesions).grade] == grade


def test_cells_name_what_lies_in_them() -> None:
    # A grid of four: x = 0.4 lies in column 1, y = 0.9 in row 3; the disc at (0.75, 0.5) in
    # column 3 and row 2.
    cells = eye_with(lesion("drusen", 0.4, 0.9), cup=0.8).cells(4)
    assert cells.sum() == 2
    assert cells[3, 1, KINDS.index("drusen")]
    assert cells[2, 3, -1]


def test_a_cup_is_large_above_the_limit_only() -> None:
    assert not eye_with(cup=LARGE_CUP).large_cup
    assert eye_with(cup=LARGE_CUP + 0.01).large_cup


def test_a_larger_cup_makes_a_brighter_disc() -> None:
    def disc(ratio: float) -> float:
        eye = draw(2, cup_ratio=ratio)
        x, y = (round(v * 112) for v in eye.disc)
        return float(eye.image[y - 8 : y + 9, x - 8 : x + 9, 2].mean())

    assert disc(0.8) > disc(0.3) + 20


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"size": 64}, r"size must be within 112\.\.448 pixels, got 64"),
        ({"difficulty": 1.5}, r"difficulty must be within \[0, 1\], got 1\.5"),
        ({"cup_ratio": 1.0}, r"cup_ratio must be within \(0\.1, 0\.95\), got 1\.0"),
        ({"counts": {"cataract": 1}}, r"a lesion must be one of .* got \['cataract'\]"),
        ({"counts": {"soft exudates": 90}}, r"the lesions must fit into one eye, got"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        draw(0, **arguments)  # pyright: ignore[reportArgumentType]
