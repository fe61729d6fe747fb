"""How a fundus phantom is painted: retina, vessels, disc, lesions, and the camera.

Plain functions from a picture to a picture; what is true of the eye is decided in
`examples.ophthareason.phantom`. All lengths are fractions of the picture's side.
"""

import math
import random
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

__all__ = [
    "DISC",
    "FIELD",
    "KINDS",
    "SUPERSAMPLING",
    "Lesion",
    "background",
    "blend",
    "optic_disc",
    "oval",
    "paint",
    "photograph",
    "vessels",
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

FIELD = 0.48  # radius of the field of view; all lengths are fractions of the picture's side
DISC = 0.085
SUPERSAMPLING = 2

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesion:
    """One thing that was drawn, in fractions of the picture's side from its upper left corner."""

    kind: str
    x: float
    y: float
    radius: float


def background(
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
    rim = ((x - 0.5) ** 2 + (y - 0.5) ** 2) / FIELD**2
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


def vessels(
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
        picture = blend(picture, masks[name], colour, strength, 0.0012)
    return picture


def _stroke(
    pen: ImageDraw.ImageDraw, path: list[tuple[float, float]], width: float, canvas: int
) -> None:
    for step, ((x0, y0), (x1, y1)) in enumerate(pairwise(path)):
        thick = max(1.0, width * (1 - 0.75 * step / len(path)) * canvas)
        pen.line((x0 * canvas, y0 * canvas, x1 * canvas, y1 * canvas), fill=255, width=round(thick))


def optic_disc(
    picture: NDArray[np.float32], disc: tuple[float, float], cup_ratio: float
) -> NDArray[np.float32]:
    """The optic disc and, in it, the cup: what glaucoma widens."""
    canvas = picture.shape[0]
    for radius, colour, strength in (
        (DISC, (246, 190, 112), 0.88),
        (DISC * cup_ratio, (255, 246, 214), 0.95),
    ):
        mask = Image.new("L", (canvas, canvas))
        oval(ImageDraw.Draw(mask), disc, radius, canvas, stretch=1.08)
        picture = blend(picture, mask, colour, strength, 0.003)
    return picture


def paint(
    chance: random.Random,
    picture: NDArray[np.float32],
    lesions: tuple[Lesion, ...],
    difficulty: float,
) -> NDArray[np.float32]:
    """Lesions, kind by kind: the later kinds of `KINDS` lie above the earlier ones."""
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
                    oval(pen, (near[0], near[1]), radius * 0.75, canvas, chance.uniform(0.8, 1.2))
            else:
                oval(pen, at, radius, canvas, chance.uniform(0.9, 1.1))
        strength = 0.95 * (1 - 0.6 * difficulty)
        picture = blend(picture, mask, _COLOUR[kind], strength, _SOFTNESS[kind])
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


def oval(
    pen: ImageDraw.ImageDraw,
    at: tuple[float, float],
    radius: float,
    canvas: int,
    stretch: float = 1.0,
) -> None:
    """Fill an ellipse."""
    x, y = at[0] * canvas, at[1] * canvas
    r = radius * canvas
    pen.ellipse((x - r, y - r * stretch, x + r, y + r * stretch), fill=255)


def blend(
    picture: NDArray[np.float32],
    mask: Image.Image,
    colour: tuple[int, int, int],
    strength: float,
    softness: float,
) -> NDArray[np.float32]:
    """Lay a colour over a picture where the mask is, with soft edges."""
    soft = mask.filter(ImageFilter.GaussianBlur(softness * picture.shape[0]))
    weight = np.asarray(soft, dtype=np.float32)[..., None] * np.float32(strength / 255)
    return (picture * (1 - weight) + np.array(colour, dtype=np.float32) * weight).astype(np.float32)


def photograph(
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
    pixels[(x - 0.5) ** 2 + (y - 0.5) ** 2 > FIELD**2] = 0
    return np.clip(pixels, 0, 255).astype(np.uint8)
