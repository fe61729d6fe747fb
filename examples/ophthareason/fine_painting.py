"""A fundus phantom in its natural proportions, for pictures that have the pixels for it.

The same eye as `examples.ophthareason.painting` draws, with the same lesions in the same places.
There, lesions are symbols, large enough to be seen on a few pixels; here they have the size that
they have beside an optic disc, vessels leave the disc across its rim, branch and spare the fovea.
"""

import math
import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from examples.ophthareason.painting import DISC, KINDS, Lesion, blend, oval

__all__ = ["NATURAL", "fine_background", "fine_disc", "fine_lesions", "fine_vessels"]

Point = tuple[float, float]

NATURAL = {
    "microaneurysms": 0.36,
    "haemorrhages": 0.6,
    "hard exudates": 0.5,
    "soft exudates": 0.65,
    "drusen": 0.5,
    "neovascularisation": 0.8,
}
"""Radius over that of the symbol: a microaneurysm is a tenth of the disc's width at most."""

_COLOUR = {
    "microaneurysms": (112, 14, 10),
    "haemorrhages": (100, 14, 10),
    "hard exudates": (252, 226, 122),
    "soft exudates": (240, 222, 190),
    "drusen": (240, 204, 132),
    "neovascularisation": (122, 18, 18),
}
_SOFTNESS = {
    "microaneurysms": 0.0012,
    "haemorrhages": 0.003,
    "hard exudates": 0.0012,
    "soft exudates": 0.007,
    "drusen": 0.003,
    "neovascularisation": 0.0008,
}
_FOVEA = 0.075  # radius of the zone without vessels
_VESSELS = (  # name, width at the disc, colour, strength
    ("vein", 0.0135, (116, 30, 22), 0.82),
    ("artery", 0.0095, (164, 58, 34), 0.74),
)


def fine_background(seed: int, picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give the retina the pigment's texture: mottled at three scales, browner at the rim."""
    canvas = picture.shape[0]
    grain = np.random.default_rng([seed, 2])
    light = np.ones((canvas, canvas), np.float32)
    for cells, depth in ((9, 0.035), (34, 0.022), (90, 0.016)):
        coarse = Image.fromarray(grain.normal(size=(cells, cells)).astype(np.float32))
        light += depth * np.asarray(coarse.resize((canvas, canvas), Image.Resampling.BICUBIC))
    y, x = (np.mgrid[0:canvas, 0:canvas].astype(np.float32) + 0.5) / canvas - 0.5
    rim = np.clip((x**2 + y**2) / 0.23, 0, 1) ** 2
    tint = 1 - rim[..., None] * np.array([0.12, 0.2, 0.16], np.float32)
    return (picture * light[..., None] * tint).astype(np.float32)


def fine_disc(picture: NDArray[np.float32], disc: Point, cup_ratio: float) -> NDArray[np.float32]:
    """The optic disc with its pink rim and its pale cup, both softly bounded."""
    canvas = picture.shape[0]
    for radius, colour, strength, softness in (
        (DISC * 1.08, (232, 166, 98), 0.45, 0.008),
        (DISC, (242, 178, 112), 0.85, 0.004),
        (DISC * cup_ratio, (252, 232, 182), 0.9, 0.005),
    ):
        mask = Image.new("L", (canvas, canvas))
        oval(ImageDraw.Draw(mask), disc, radius, canvas, stretch=1.08)
        picture = blend(picture, mask, colour, strength, softness)
    return picture


def fine_vessels(
    eye: random.Random, picture: NDArray[np.float32], disc: Point, macula: Point, side: int
) -> NDArray[np.float32]:
    """Arteries and veins from the middle of the disc: arcades around the macula, and branches."""
    canvas = picture.shape[0]
    for name, width, colour, strength in reversed(_VESSELS):  # veins lie over arteries
        mask = Image.new("L", (canvas, canvas))
        reflex = Image.new("L", (canvas, canvas))
        tree = _Tree(eye, macula, canvas, mask, reflex)
        apart = 0.9 if name == "artery" else 1.04
        start = (disc[0] + side * 0.014, disc[1] + eye.uniform(-0.006, 0.006))
        for up in (-1, 1):
            far = eye.uniform(0.26, 0.32) * apart
            bows = (
                (  # temporal arcade: up from the disc, around the macula, towards the raphe
                    (start[0] - side * 0.01, start[1] + up * 0.2 * apart),
                    (macula[0] + side * 0.08, macula[1] + up * far * 1.32),
                    (macula[0] - side * 0.36, macula[1] + up * far * eye.uniform(0.75, 1.1)),
                    1.0,
                ),
                (  # nasal
                    (start[0] + side * 0.02, start[1] + up * 0.1),
                    (start[0] + side * 0.1, start[1] + up * 0.2 * apart),
                    (start[0] + side * 0.22, start[1] + up * eye.uniform(0.2, 0.4) * apart),
                    0.72,
                ),
                (  # a small one straight to the macula
                    (start[0] - side * 0.06, start[1] + up * 0.012),
                    (start[0] - side * 0.13, start[1] + up * eye.uniform(0.03, 0.09)),
                    (macula[0] + side * 0.05, macula[1] + up * eye.uniform(0.03, 0.08)),
                    0.34,
                ),
            )
            for one, two, end, share in bows:
                first = (start[0], start[1] + up * 0.008)
                tree.grow(_bow(eye, first, one, two, end), width * share, depth=2)
        picture = blend(picture, mask, colour, strength, 0.0011)
        picture = blend(picture, reflex, (214, 112, 72), 0.3, 0.0009)
    return picture


def _bow(eye: random.Random, *points: Point, tremble: float = 0.006) -> list[Point]:
    """A cubic Bézier curve with a slow tremor in it: vessels are never quite smooth."""
    phase, pace = eye.uniform(0, 6.3), eye.uniform(9, 15)
    path: list[Point] = []
    for t in np.linspace(0, 1, 60).tolist():
        s = 1 - t
        weights = (s**3, 3 * s * s * t, 3 * s * t * t, t**3)
        x, y = (sum(w * p[axis] for w, p in zip(weights, points, strict=True)) for axis in (0, 1))
        tremor = tremble * min(1.0, 4 * t) * math.sin(pace * t + phase)
        path.append((x + tremor, y + tremor * math.cos(phase)))
    return path


class _Tree:
    """Vessels of one kind, drawn as they grow."""

    def __init__(
        self,
        eye: random.Random,
        macula: Point,
        canvas: int,
        mask: Image.Image,
        reflex: Image.Image,
    ) -> None:
        self.eye, self.macula, self.canvas = eye, macula, canvas
        self.pen, self.reflex = ImageDraw.Draw(mask), ImageDraw.Draw(reflex)

    def grow(self, path: Sequence[Point], width: float, *, depth: int) -> None:
        """Draw one vessel that tapers, and what branches off it."""
        last = len(path) - 1
        for step in range(last):
            if math.dist(path[step + 1], self.macula) < _FOVEA:
                last = step
                break
            thick = width * (1 - 0.62 * step / len(path))
            stroke(self.pen, path[step], path[step + 1], thick, self.canvas)
            if thick > 0.006:
                stroke(self.reflex, path[step], path[step + 1], thick * 0.3, self.canvas)
        if depth == 0:
            return
        turn = self.eye.choice((-1, 1))
        for step in range(16 if depth == 2 else 10, last - 3, self.eye.randint(9, 13)):
            turn = -turn
            thick = width * (1 - 0.62 * step / len(path)) * self.eye.uniform(0.5, 0.68)
            (x0, y0), (x, y) = path[step - 2], path[step]
            angle = math.atan2(y - y0, x - x0) + turn * self.eye.uniform(0.5, 0.95)
            length = self.eye.uniform(0.11, 0.2) * (1 if depth == 2 else 0.6)
            back = turn * self.eye.uniform(0.15, 0.5)  # it turns back along its parent
            corners = [(x, y)]
            for piece in range(3):
                heading, (x, y) = angle - piece * back, corners[-1]
                corners.append(
                    (x + length / 3 * math.cos(heading), y + length / 3 * math.sin(heading))
                )
            branch = _bow(self.eye, *corners, tremble=0.02 * length)
            self.grow(branch[::2], thick, depth=depth - 1)


def stroke(pen: ImageDraw.ImageDraw, start: Point, end: Point, width: float, canvas: int) -> None:
    """Draw one piece of a vessel; one that is thinner than a pixel is drawn paler."""
    thick = width * canvas
    ink, r = round(255 * min(1.0, thick)), max(1.0, thick) / 2
    (x0, y0), (x1, y1) = ((x * canvas, y * canvas) for x, y in (start, end))
    pen.line((x0, y0, x1, y1), fill=ink, width=max(1, round(thick)))
    if r > 1:
        pen.ellipse((x1 - r, y1 - r, x1 + r, y1 + r), fill=ink)


def fine_lesions(
    chance: random.Random,
    picture: NDArray[np.float32],
    lesions: tuple[Lesion, ...],
    difficulty: float,
) -> NDArray[np.float32]:
    """Lesions with ragged outlines, kind by kind in the order of `KINDS`."""
    canvas = picture.shape[0]
    ragged = {"microaneurysms": 0.1, "haemorrhages": 0.6, "hard exudates": 0.5, "drusen": 0.2}
    for kind in KINDS:
        mask = Image.new("L", (canvas, canvas))
        pen = ImageDraw.Draw(mask)
        for lesion in lesions:
            if lesion.kind != kind:
                continue
            at, radius = (lesion.x, lesion.y), lesion.radius
            if kind == "neovascularisation":
                _lace(chance, pen, at, radius, canvas)
            else:
                _blot(chance, pen, at, radius, canvas, ragged.get(kind, 0.35))
        strength = 0.95 * (1 - 0.6 * difficulty)
        picture = blend(picture, mask, _COLOUR[kind], strength, _SOFTNESS[kind])
    return picture


def _blot(
    chance: random.Random,
    pen: ImageDraw.ImageDraw,
    at: Point,
    radius: float,
    canvas: int,
    ragged: float,
) -> None:
    """A filled outline within the radius, the more ragged the more it falls short of it."""
    waves = [(k, chance.uniform(0.3, 1) / k, chance.uniform(0, 6.3)) for k in (1, 2, 3, 5)]
    outline: list[Point] = []
    for angle in np.linspace(0, 2 * math.pi, 40, endpoint=False).tolist():
        dent = 0.5 + 0.5 * sum(a * math.cos(k * angle + p) for k, a, p in waves)
        r = radius * (1 - ragged * min(1.0, max(0.0, dent)))
        outline.append(
            ((at[0] + r * math.cos(angle)) * canvas, (at[1] + r * math.sin(angle)) * canvas)
        )
    pen.polygon(outline, fill=255)


def _lace(
    chance: random.Random, pen: ImageDraw.ImageDraw, at: Point, radius: float, canvas: int
) -> None:
    """New vessels: fine curly stems from one point, which turn back before they are long."""
    for stem in range(9):
        heading = 2 * math.pi * (stem + chance.uniform(0, 0.8)) / 9
        curl = chance.choice((-1, 1)) * chance.uniform(0.12, 0.34)
        here = at
        for _ in range(16):
            step = 0.11 * radius
            there = (here[0] + step * math.cos(heading), here[1] + step * math.sin(heading))
            if math.dist(there, at) > 0.97 * radius:
                heading += 2.0
                continue
            stroke(pen, here, there, 0.0034, canvas)
            here = there
            heading += curl + chance.uniform(-0.25, 0.25)
