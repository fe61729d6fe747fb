"""Synthetic fundus pictures with known lesions: a stand-in for data that nobody may ship.

`draw` is a pure function of its arguments: background and lesions have random streams of their own,
so the same eye can be drawn with and without a lesion. What it draws is a **phantom**, not a
patient: no statement about medicine follows from a score on it, and every record made from one says
``synthetic``.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

__all__ = [
    "GRADES",
    "KINDS",
    "LARGE_CUP",
    "Lesion",
    "Phantom",
    "draw",
    "draw_random",
    "usual_count",
]

KINDS = (
    "microaneurysms",
    "haemorrhages",
    "hard exudates",
    "soft exudates",
    "drusen",
    "neovascularisation",
)
"""What can be drawn, and counted."""

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

_FIELD = 0.48  # radius of the field of view; all lengths are fractions of the picture's side
_DISC = 0.085
_SUPERSAMPLING = 2

_RADIUS = {
    "microaneurysms": (0.017, 0.021),
    "haemorrhages": (0.034, 0.046),
    "hard exudates": (0.018, 0.024),
    "soft exudates": (0.048, 0.060),
    "drusen": (0.026, 0.034),
    "neovascularisation": (0.060, 0.072),
}
_COLOUR = {
    "microaneurysms": (96, 4, 8),
    "haemorrhages": (88, 6, 10),
    "hard exudates": (255, 240, 96),
    "soft exudates": (248, 240, 222),
    "drusen": (238, 196, 120),
    "neovascularisation": (110, 8, 20),
}
_SOFTNESS = {
    "microaneurysms": 0.002,
    "haemorrhages": 0.004,
    "hard exudates": 0.002,
    "soft exudates": 0.011,
    "drusen": 0.006,
    "neovascularisation": 0.001,
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
class Lesion:
    """One thing that was drawn, in fractions of the picture's side from its upper left corner."""

    kind: str
    x: float
    y: float
    radius: float


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
        size: Side of the picture in pixels, 112 to 448.
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
    canvas = size * _SUPERSAMPLING
    picture = _background(eye, seed, canvas, disc, macula, difficulty)
    picture = _vessels(eye, picture, disc, side)
    picture = _disc(picture, disc, cup_ratio)
    lesions = _place(random.Random(f"lesions {seed}"), counts, disc, macula, difficulty)
    picture = _paint(random.Random(f"shapes {seed}"), picture, lesions, difficulty)
    return Phantom(
        image=_photograph(picture, seed, size, difficulty),
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


def _background(
    eye: random.Random,
    seed: int,
    canvas: int,
    disc: tuple[float, float],
    macula: tuple[float, float],
    difficulty: float,
) -> NDArray[np.float32]:
    """Retina: orange, brighter at the disc, darker at the rim and the macula, faintly mottled."""
    y, x = (np.mgrid[0:canvas, 0:canvas].astype(np.float32) + 0.5) / canvas
    base = np.array([eye.uniform(196, 222), eye.uniform(92, 118), eye.uniform(42, 62)], np.float32)
    rim = ((x - 0.5) ** 2 + (y - 0.5) ** 2) / _FIELD**2
    light = 1.06 - 0.34 * rim
    light += 0.10 * np.exp(-((x - disc[0]) ** 2 + (y - disc[1]) ** 2) / 0.03)
    dark = np.exp(-((x - macula[0]) ** 2 + (y - macula[1]) ** 2) / 0.006)
    tilt = eye.uniform(0, 2 * math.pi)
    slope = 0.35 * difficulty + 0.08
    light *= 1 + slope * ((x - 0.5) * math.cos(tilt) + (y - 0.5) * math.sin(tilt))
    mottle = np.random.default_rng(seed).normal(size=(14, 14))
    coarse = Image.fromarray(mottle.astype(np.float32)).resize(
        (canvas, canvas), Image.Resampling.BICUBIC
    )
    light *= 1 + 0.025 * np.asarray(coarse, dtype=np.float32)
    colour = base * light[..., None]
    return colour * (1 - dark[..., None] * np.array([0.30, 0.42, 0.40], np.float32))


def _vessels(
    eye: random.Random, picture: NDArray[np.float32], disc: tuple[float, float], side: int
) -> NDArray[np.float32]:
    """Four arcades, each a vein and an artery that taper and branch, from the disc outwards."""
    canvas = picture.shape[0]
    masks = {name: Image.new("L", (canvas, canvas)) for name in ("vein", "artery")}
    for up in (-1, 1):
        for towards, reach, bend in ((-side, 0.72, 0.30), (side, 0.26, 0.20)):
            for name, width, spread in (("vein", 0.017, 1.0), ("artery", 0.012, 0.8)):
                pen = ImageDraw.Draw(masks[name])
                height = bend * spread * eye.uniform(0.92, 1.1)
                length = reach * eye.uniform(0.92, 1.05)
                path = [
                    (
                        disc[0] + towards * length * t + 0.008 * math.sin(9 * t + spread * 7),
                        disc[1] + up * height * math.sin(min(1.0, 1.45 * t) * math.pi / 2) ** 0.8,
                    )
                    for t in np.linspace(0, 1, 24)
                ]
                _stroke(pen, path, width, canvas)
                for start in (7, 13):
                    x, y = path[start]
                    turn = eye.choice((-1, 1))
                    branch = [
                        (
                            x + towards * 0.16 * t,
                            y + up * (0.04 + 0.10 * (turn > 0)) * turn * t**1.3,
                        )
                        for t in np.linspace(0, 1, 10)
                    ]
                    _stroke(pen, branch, width * 0.5, canvas)
    for name, colour, strength in (("artery", (158, 46, 30), 0.75), ("vein", (118, 24, 24), 0.85)):
        picture = _blend(picture, masks[name], colour, strength, 0.0012)
    return picture


def _stroke(
    pen: ImageDraw.ImageDraw, path: list[tuple[float, float]], width: float, canvas: int
) -> None:
    for step, ((x0, y0), (x1, y1)) in enumerate(pairwise(path)):
        thick = max(1.0, width * (1 - 0.75 * step / len(path)) * canvas)
        pen.line((x0 * canvas, y0 * canvas, x1 * canvas, y1 * canvas), fill=255, width=round(thick))


def _disc(
    picture: NDArray[np.float32], disc: tuple[float, float], cup_ratio: float
) -> NDArray[np.float32]:
    """The optic disc and, in it, the cup: what glaucoma widens."""
    canvas = picture.shape[0]
    for radius, colour, strength in (
        (_DISC, (246, 190, 112), 0.88),
        (_DISC * cup_ratio, (255, 246, 214), 0.95),
    ):
        mask = Image.new("L", (canvas, canvas))
        _oval(ImageDraw.Draw(mask), disc, radius, canvas, stretch=1.08)
        picture = _blend(picture, mask, colour, strength, 0.003)
    return picture


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
                inside = math.dist((x, y), (0.5, 0.5)) + radius < _FIELD - 0.02
                off_disc = math.dist((x, y), disc) > _DISC + radius + 0.02
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


def _paint(
    chance: random.Random,
    picture: NDArray[np.float32],
    lesions: tuple[Lesion, ...],
    difficulty: float,
) -> NDArray[np.float32]:
    canvas = picture.shape[0]
    for kind in KINDS:
        mask = Image.new("L", (canvas, canvas))
        pen = ImageDraw.Draw(mask)
        for lesion in lesions:
            if lesion.kind != kind:
                continue
            at, radius = (lesion.x, lesion.y), lesion.radius
            if kind == "neovascularisation":
                _tangle(chance, pen, at, radius, canvas)
            elif kind in ("haemorrhages", "soft exudates"):  # blots: three overlapping ovals
                for _ in range(3):
                    near = tuple(c + chance.uniform(-0.25, 0.25) * radius for c in at)
                    _oval(pen, (near[0], near[1]), radius * 0.75, canvas, chance.uniform(0.8, 1.2))
            else:
                _oval(pen, at, radius, canvas, chance.uniform(0.9, 1.1))
        strength = 0.95 * (1 - 0.6 * difficulty)
        picture = _blend(picture, mask, _COLOUR[kind], strength, _SOFTNESS[kind])
    return picture


def _tangle(
    chance: random.Random,
    pen: ImageDraw.ImageDraw,
    at: tuple[float, float],
    radius: float,
    canvas: int,
) -> None:
    """New vessels: a lace of fine loops around one point."""
    width = max(2, round(0.008 * canvas))
    for _ in range(8):
        angle = chance.uniform(0, 2 * math.pi)
        x = at[0] + 0.5 * radius * math.cos(angle)
        y = at[1] + 0.5 * radius * math.sin(angle)
        r = radius * chance.uniform(0.4, 0.5)
        box = tuple(v * canvas for v in (x - r, y - r, x + r, y + r))
        pen.ellipse((box[0], box[1], box[2], box[3]), outline=255, width=width)


def _oval(
    pen: ImageDraw.ImageDraw,
    at: tuple[float, float],
    radius: float,
    canvas: int,
    stretch: float = 1.0,
) -> None:
    x, y = at[0] * canvas, at[1] * canvas
    r = radius * canvas
    pen.ellipse((x - r, y - r * stretch, x + r, y + r * stretch), fill=255)


def _blend(
    picture: NDArray[np.float32],
    mask: Image.Image,
    colour: tuple[int, int, int],
    strength: float,
    softness: float,
) -> NDArray[np.float32]:
    soft = mask.filter(ImageFilter.GaussianBlur(softness * picture.shape[0]))
    weight = np.asarray(soft, dtype=np.float32)[..., None] * np.float32(strength / 255)
    return (picture * (1 - weight) + np.array(colour, dtype=np.float32) * weight).astype(np.float32)


def _photograph(
    picture: NDArray[np.float32], seed: int, size: int, difficulty: float
) -> NDArray[np.uint8]:
    """What the camera makes of it: focus, pixels, sensor noise and the black surround."""
    scene = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    scene = scene.filter(
        ImageFilter.GaussianBlur((0.4 + 0.9 * difficulty) * picture.shape[0] / 224)
    )
    scene = scene.resize((size, size), Image.Resampling.BOX)
    noise = np.random.default_rng(seed + 1).normal(0, 2.5 + 5 * difficulty, (size, size, 3))
    pixels = np.asarray(scene, dtype=np.float64) + noise
    y, x = (np.mgrid[0:size, 0:size] + 0.5) / size
    pixels[(x - 0.5) ** 2 + (y - 0.5) ** 2 > _FIELD**2] = 0
    return np.clip(pixels, 0, 255).astype(np.uint8)
