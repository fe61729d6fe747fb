"""Synthetic fundus pictures with known lesions: a stand-in for data that nobody may ship.

`draw` is a pure function of its arguments: background and lesions have random streams of their own,
so the same eye can be drawn with and without a lesion. What it draws is a **phantom**, not a
patient: no statement about medicine follows from a score on it, and every record made from one says
``synthetic``.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from examples.ophthareason.fine_painting import (
    NATURAL,
    fine_background,
    fine_disc,
    fine_lesions,
    fine_vessels,
)
from examples.ophthareason.painting import (
    DISC,
    FIELD,
    KINDS,
    SUPERSAMPLING,
    Lesion,
    background,
    optic_disc,
    paint,
    photograph,
    vessels,
)

__all__ = [
    "GRADES",
    "KINDS",
    "LARGE_CUP",
    "NATURAL_SIZE",
    "Lesion",
    "Phantom",
    "draw",
    "draw_random",
    "usual_count",
]

GRADES = (
    "no apparent retinopathy",
    "mild retinopathy",
    "moderate retinopathy",
    "severe retinopathy",
    "proliferative retinopathy",
)
"""The steps of the international scale, as far as a phantom can show them."""

LARGE_CUP = 0.6
"""A cup-to-disc ratio above this one is called large. Ours; clinics look at more than a ratio."""

NATURAL_SIZE = 224
"""From so many pixels a side, lesions have their natural size, and vessels and disc their detail.

On fewer, a microaneurysm would be less than a pixel: there, lesions are symbols, drawn up to three
times as wide. Kinds, counts and places are the same on every size."""

_RADIUS = {
    "microaneurysms": (0.017, 0.021),
    "haemorrhages": (0.034, 0.046),
    "hard exudates": (0.018, 0.024),
    "soft exudates": (0.048, 0.060),
    "drusen": (0.026, 0.034),
    "neovascularisation": (0.060, 0.072),
}
_USUAL_COUNT = {
    "microaneurysms": (4, 9),
    "haemorrhages": (2, 6),
    "hard exudates": (5, 10),
    "soft exudates": (1, 3),
    "drusen": (5, 9),
    "neovascularisation": (1, 2),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Phantom:
    """A picture and everything that is true of it."""

    image: NDArray[np.uint8]
    """Shape ``(size, size, 3)``, RGB."""
    lesions: tuple[Lesion, ...]
    """Every lesion, none hidden by another."""
    cup_ratio: float
    """Diameter of the cup over that of the disc, within ``(0, 1)``."""
    disc: tuple[float, float]
    """Centre of the optic disc."""
    seed: int
    difficulty: float

    def count(self, kind: str) -> int:
        """Return how many lesions of one kind there are."""
        _check_kinds([kind])
        return sum(lesion.kind == kind for lesion in self.lesions)

    @property
    def large_cup(self) -> bool:
        """Whether the cup-to-disc ratio lies above `LARGE_CUP`."""
        return self.cup_ratio > LARGE_CUP

    @property
    def grade(self) -> int:
        """Diabetic retinopathy on the international scale, 0 to 4: an index into `GRADES`.

        4 with new vessels; 3 with haemorrhages in all four quadrants (one arm of the 4-2-1 rule;
        the others need signs that are not drawn); 2 with anything beyond microaneurysms; 1 with
        microaneurysms only. Drusen and the cup do not count.
        """
        if self.count("neovascularisation"):
            return 4
        bleeding = [lesion for lesion in self.lesions if lesion.kind == "haemorrhages"]
        if len({(lesion.x > 0.5, lesion.y > 0.5) for lesion in bleeding}) == 4:
            return 3
        if bleeding or self.count("hard exudates") or self.count("soft exudates"):
            return 2
        return 1 if self.count("microaneurysms") else 0

    def cells(self, side: int) -> NDArray[np.bool_]:
        """Say which finding lies in which cell of a grid.

        Args:
            side: Cells a side.

        Returns:
            Shape ``(side, side, len(KINDS) + 1)``, rows first; the last entry is the large cup, in
            the cell of the disc.
        """
        found = np.zeros((side, side, len(KINDS) + 1), dtype=np.bool_)
        for lesion in self.lesions:
            found[int(lesion.y * side), int(lesion.x * side), KINDS.index(lesion.kind)] = True
        x, y = self.disc
        found[int(y * side), int(x * side), -1] = self.large_cup
        return found


def draw(
    seed: int,
    *,
    counts: Mapping[str, int] | None = None,
    cup_ratio: float = 0.35,
    size: int = 112,
    difficulty: float = 0.0,
) -> Phantom:
    """Draw one eye with the lesions that are asked for.

    Args:
        seed: Decides the eye and where its lesions lie. Equal arguments give equal bytes.
        counts: How many lesions of which of `KINDS`; none by default.
        cup_ratio: Diameter of the cup over that of the disc, within ``(0.1, 0.95)``.
        size: Side of the picture in pixels, 112 to 448; from `NATURAL_SIZE` with more detail.
        difficulty: 0 draws large, clear lesions; 1 halves their size, takes 60 % of their contrast
            and makes light and focus worse.

    Returns:
        The picture and its truth.

    Raises:
        ValueError: If an argument is out of its range, or the lesions do not fit into the eye.

    Example:
        >>> eye = draw(7, counts={"haemorrhages": 3})
        >>> eye.image.shape, eye.count("haemorrhages"), GRADES[eye.grade]
        ((112, 112, 3), 3, 'moderate retinopathy')
    """
    if not 112 <= size <= 448:
        raise ValueError(f"size must be within 112..448 pixels, got {size}")
    if not 0.0 <= difficulty <= 1.0:
        raise ValueError(f"difficulty must be within [0, 1], got {difficulty}")
    if not 0.1 < cup_ratio < 0.95:
        raise ValueError(f"cup_ratio must be within (0.1, 0.95), got {cup_ratio}")
    counts = counts or {}
    _check_kinds(counts)
    eye = random.Random(f"eye {seed}")
    right = eye.random() < 0.5
    side = 1 if right else -1  # the disc lies towards the nose
    disc = (0.5 + side * eye.uniform(0.24, 0.28), 0.5 + eye.uniform(-0.03, 0.03))
    macula = (0.5 - side * eye.uniform(0.03, 0.06), 0.5 + eye.uniform(-0.01, 0.04))
    canvas = size * SUPERSAMPLING
    picture = background(eye, seed, canvas, disc, macula, difficulty)
    lesions = _place(random.Random(f"lesions {seed}"), counts, disc, macula, difficulty)
    shapes = random.Random(f"shapes {seed}")
    if size < NATURAL_SIZE:
        picture = optic_disc(vessels(eye, picture, disc, side), disc, cup_ratio)
        picture = paint(shapes, picture, lesions, difficulty)
    else:
        lesions = tuple(replace(one, radius=one.radius * NATURAL[one.kind]) for one in lesions)
        picture = fine_disc(fine_background(seed, picture), disc, cup_ratio)
        picture = fine_vessels(eye, picture, disc, macula, side)
        picture = fine_lesions(shapes, picture, lesions, difficulty)
    return Phantom(
        image=photograph(picture, seed, size, difficulty),
        lesions=lesions,
        cup_ratio=cup_ratio,
        disc=disc,
        seed=seed,
        difficulty=difficulty,
    )


def draw_random(seed: int, *, size: int = 112, difficulty: float = 0.0) -> Phantom:
    """Draw one eye whose findings the seed decides as well: a quarter of the eyes are clear.

    Example:
        >>> draw_random(3).lesions == draw_random(3).lesions
        True
    """
    chance = random.Random(f"findings {seed}")
    share = 0.0 if chance.random() < 0.25 else 0.35
    counts = {
        kind: chance.randint(*_USUAL_COUNT[kind]) for kind in KINDS if chance.random() < share
    }
    cup = chance.uniform(0.7, 0.8) if chance.random() < 0.3 else chance.uniform(0.25, 0.4)
    return draw(seed, counts=counts, cup_ratio=cup, size=size, difficulty=difficulty)


def usual_count(chance: random.Random, kind: str) -> int:
    """Return how many lesions of this kind an eye that has them shows."""
    return chance.randint(*_USUAL_COUNT[kind])


def _check_kinds(kinds: Mapping[str, int] | list[str]) -> None:
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise ValueError(f"a lesion must be one of {list(KINDS)}, got {unknown}")


def _place(
    chance: random.Random,
    counts: Mapping[str, int],
    disc: tuple[float, float],
    macula: tuple[float, float],
    difficulty: float,
) -> tuple[Lesion, ...]:
    """Find a place for every lesion, large ones first, so that none covers another."""
    lesions: list[Lesion] = []
    for kind in sorted(KINDS, key=lambda kind: -_RADIUS[kind][1]):
        for _ in range(counts.get(kind, 0)):
            radius = chance.uniform(*_RADIUS[kind]) * (1 - 0.5 * difficulty)
            for _ in range(2000):
                x, y = chance.uniform(0.04, 0.96), chance.uniform(0.04, 0.96)
                if kind == "drusen" and math.dist((x, y), macula) > 0.24:
                    continue
                inside = math.dist((x, y), (0.5, 0.5)) + radius < FIELD - 0.02
                off_disc = math.dist((x, y), disc) > DISC + radius + 0.02
                apart = all(
                    math.dist((x, y), (other.x, other.y)) > radius + other.radius + 0.022
                    for other in lesions
                )
                if inside and off_disc and apart:
                    lesions.append(Lesion(kind=kind, x=x, y=y, radius=radius))
                    break
            else:
                raise ValueError(f"the lesions must fit into one eye, got {dict(counts)}")
    return tuple(lesions)
