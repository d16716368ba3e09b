"""The words in which families of objects are written: draws, colours, paints and parts."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from .objects_table import MAX_PARTS, Join, Kind, Pattern

Vector = tuple[float, float, float]
Rows = tuple[Vector, Vector, Vector]  # the part's axes in its object's frame
T = TypeVar("T")

UPRIGHT: Rows = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
WHITE: Vector = (0.97, 0.97, 0.95)
INK: Vector = (0.07, 0.07, 0.09)
_DRAWS = 256  # random numbers taken at a time

# Letters and digits that differ from their mirror images: bits of `objects_table.STROKES`.
_GLYPH_STROKES = (
    (0, 1, 4, 5, 6, 7, 11),  # R
    (0, 4, 5, 6),  # F
    (0, 1, 4, 5, 6, 7),  # P
    (0, 1, 7, 6, 4, 3),  # 2
    (0, 5, 6, 7, 2, 3),  # 5
    (5, 6, 7, 1, 2),  # 4
    (0, 5, 4, 3, 2, 7),  # G
    (4, 5, 8, 11, 1, 2),  # N
    (0, 10, 13, 3),  # Z
    (5, 4, 3),  # L
    (4, 5, 6, 10, 11),  # K
    (0, 10, 12),  # 7
    (1, 2, 3, 4),  # J
    (0, 5, 4, 3, 6),  # E
)
_TOYS: tuple[Vector, ...] = (
    (0.86, 0.12, 0.12),
    (0.97, 0.78, 0.10),
    (0.12, 0.32, 0.80),
    (0.16, 0.60, 0.25),
    (0.96, 0.50, 0.10),
    (0.96, 0.96, 0.93),
    (0.55, 0.20, 0.62),
    (0.15, 0.66, 0.72),
)
_NATURAL: tuple[Vector, ...] = (
    (0.55, 0.36, 0.20),
    (0.76, 0.58, 0.38),
    (0.36, 0.24, 0.15),
    (0.42, 0.52, 0.24),
    (0.62, 0.60, 0.56),
    (0.85, 0.78, 0.66),
    (0.66, 0.33, 0.20),
    (0.25, 0.35, 0.30),
)


class Draw:
    """Random numbers of one object; only plain uniform draws, which are the same everywhere."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self._values: list[float] = []

    def __call__(self, low: float = 0.0, high: float = 1.0) -> float:
        """Uniform from `low` to `high`."""
        if not self._values:
            self._values = self._generator.random(_DRAWS).tolist()
        return low + (high - low) * self._values.pop()

    def whole(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return min(low + int(self(0, high - low + 1)), high)

    def chance(self, probability: float) -> bool:
        """True that often."""
        return self() < probability

    def choice(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[self.whole(0, len(items) - 1)]

    def sign(self) -> float:
        """-1 or 1."""
        return 1.0 if self.chance(0.5) else -1.0


@dataclass(frozen=True)
class Paint:
    """A pattern of two colours; see `objects_table.Pattern`."""

    first: Vector
    second: Vector = WHITE
    pattern: Pattern = Pattern.SOLID
    frequency: float = 1.0
    phase: float = 0.0
    share: float = 0.5
    axis: Vector = (0.0, 1.0, 0.0)
    scale: float | None = None  # None: the part's middle size


@dataclass(frozen=True)
class Palette:
    """Colours that an object is painted with; `accent` stands out."""

    main: Vector
    second: Vector
    third: Vector
    accent: Vector


def draw_palette(draw: Draw) -> Palette:
    """Vivid, pastel, pale, natural, dark, or like wooden toys."""
    style = draw.choice(("vivid", "vivid", "pastel", "pale", "natural", "dark", "toys", "toys"))
    hue = draw()
    hues = [hue, hue + draw(0.05, 0.2) * draw.sign(), hue + draw(0.3, 0.7), hue + 0.5]
    if style == "toys":
        start = draw.whole(0, len(_TOYS) - 1)
        step = draw.choice((1, 3, 5, 7))  # no common factor with 8: four different ones
        return Palette(*(_near(draw, _TOYS[(start + step * k) % len(_TOYS)]) for k in range(4)))
    if style == "natural":
        start, step = draw.whole(0, len(_NATURAL) - 1), draw.choice((1, 3, 5))
        picked = [_near(draw, _NATURAL[(start + step * k) % len(_NATURAL)]) for k in range(3)]
        return Palette(*picked, accent=_colour(hues[3], draw(0.5, 0.9), draw(0.6, 0.95)))
    saturation, value = {
        "vivid": ((0.65, 0.95), (0.70, 1.0)),
        "pastel": ((0.22, 0.45), (0.88, 1.0)),
        "pale": ((0.0, 0.12), (0.80, 0.98)),
        "dark": ((0.2, 0.8), (0.16, 0.45)),
    }[style]
    main, second, third = (_colour(h, draw(*saturation), draw(*value)) for h in hues[:3])
    return Palette(main, second, third, _colour(hues[3], draw(0.7, 0.95), draw(0.75, 1.0)))


def _near(draw: Draw, colour: Vector) -> Vector:
    r, g, b = (min(max(value + draw(-0.04, 0.04), 0.0), 1.0) for value in colour)
    return (r, g, b)


def _colour(hue: float, saturation: float, value: float) -> Vector:
    return colorsys.hsv_to_rgb(hue % 1.0, saturation, value)


def glyph(draw: Draw, ground: Vector, ink: Vector, scale: float) -> Paint:
    """A letter or digit about `scale` half high on the front of a part."""
    bits = float(sum(1 << stroke for stroke in draw.choice(_GLYPH_STROKES)))
    return Paint(ground, ink, Pattern.GLYPH, 1.2, bits, draw(0.13, 0.2), scale=scale)


_PATTERNS = (Pattern.STRIPES, Pattern.CHECKS, Pattern.DOTS, Pattern.RINGS, Pattern.MARBLE)
_PATTERNS += (Pattern.SPLIT, Pattern.SECTORS, Pattern.ZIGZAG, Pattern.GRADIENT, Pattern.PATCHES)


def draw_paint(
    draw: Draw, first: Vector, second: Vector, patterns: Sequence[Pattern] = _PATTERNS
) -> Paint:
    """One of some patterns with drawn frequency, phase and direction."""
    pattern = draw.choice(patterns)
    frequency = {
        Pattern.STRIPES: draw(1.0, 2.6),
        Pattern.CHECKS: draw(1.3, 2.6),
        Pattern.DOTS: draw(1.3, 2.4),
        Pattern.RINGS: draw(1.5, 3.0),
        Pattern.MARBLE: draw(2.0, 4.0),
        Pattern.SECTORS: float(draw.whole(3, 7)),
        Pattern.ZIGZAG: draw(1.4, 2.4),
        Pattern.GRADIENT: draw(0.8, 1.3),
        Pattern.PATCHES: draw(2.2, 4.0),
    }.get(pattern, 1.0)
    share = {
        Pattern.STRIPES: draw(0.3, 0.6),
        Pattern.DOTS: draw(0.36, 0.48),
        Pattern.SPLIT: draw(-0.25, 0.35),
        Pattern.PATCHES: draw(0.2, 0.9),
    }.get(pattern, 0.5)
    axis = (0.0, 1.0, 0.0)
    if draw.chance(0.4):
        axis = unit((draw(-1, 1), draw(-1, 1), draw(-1, 1)))
    return Paint(first, second, pattern, frequency, draw(), share, axis)


def unit(v: Vector) -> Vector:
    """The direction of a vector; up for one of no length."""
    length = math.sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2])
    return (v[0] / length, v[1] / length, v[2] / length) if length > 1e-9 else (0.0, 1.0, 0.0)


def plus(a: Vector, b: Vector, times: float = 1.0) -> Vector:
    """a + times * b."""
    return (a[0] + times * b[0], a[1] + times * b[1], a[2] + times * b[2])


def cross(a: Vector, b: Vector) -> Vector:
    """The cross product."""
    return (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])


def aim(axis: Vector, front: Vector = (0.0, 0.0, 1.0)) -> Rows:
    """The frame whose +Y is along `axis` and whose +Z is as near to `front` as can be."""
    y = unit(axis)
    if abs(y[0] * front[0] + y[1] * front[1] + y[2] * front[2]) > 0.999:
        front = (0.0, 1.0, 0.0) if abs(y[1]) < 0.9 else (1.0, 0.0, 0.0)
    x = unit(cross(y, front))
    return (x, y, cross(x, y))


def turn(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> Rows:
    """Degrees: roll about +Z (towards -X), then pitch about +X (nose down), then yaw about +Y."""
    cy, sy = math.cos(math.radians(yaw)), math.sin(math.radians(yaw))
    cp, sp = math.cos(math.radians(pitch)), math.sin(math.radians(pitch))
    cr, sr = math.cos(math.radians(roll)), math.sin(math.radians(roll))

    def turned(v: Vector) -> Vector:
        x, y, z = cr * v[0] - sr * v[1], sr * v[0] + cr * v[1], v[2]
        y, z = cp * y - sp * z, sp * y + cp * z
        return (cy * x + sy * z, y, cy * z - sy * x)

    return (turned((1, 0, 0)), turned((0, 1, 0)), turned((0, 0, 1)))


def outward(rows: Rows, local: Vector) -> Vector:
    """A vector given in a part's axes, in the object's frame."""
    x, y, z = rows
    return (
        x[0] * local[0] + y[0] * local[1] + z[0] * local[2],
        x[1] * local[0] + y[1] * local[1] + z[1] * local[2],
        x[2] * local[0] + y[2] * local[1] + z[2] * local[2],
    )


@dataclass(frozen=True)
class Part:
    """One primitive in its object's frame, before that is scaled to the picture."""

    kind: Kind
    centre: Vector
    sizes: tuple[float, ...]
    paint: Paint
    rows: Rows = UPRIGHT
    width: float = 0.0
    join: Join = Join.UNION
    bumps: Vector = (0.0, 0.0, 0.0)
    profile: tuple[float, ...] = (0.0,) * 8

    @property
    def half_sides(self) -> Vector:
        """Half sides of the box around it, in its own axes."""
        s = self.sizes
        if self.kind in (Kind.ELLIPSOID, Kind.SUPERQUADRIC):
            return (s[0], s[1], s[2])
        if self.kind == Kind.BOX:
            return (s[0] + s[3], s[1] + s[3], s[2] + s[3])
        if self.kind == Kind.CAPSULE:
            return (s[1], s[0] + s[1], s[1])
        if self.kind == Kind.TORUS:
            return (s[0] + s[1], s[1], s[0] + s[1])
        if self.kind == Kind.REVOLUTION:
            widest = max(self.profile)
            return (widest, s[0], widest)
        widest = max(s[0], s[1]) if self.kind == Kind.FRUSTUM else s[0]
        half, rounding = s[-2], s[-1]
        return (widest + rounding, half + rounding, widest + rounding)

    def turned(self, rows: Rows) -> Part:
        """The same part after its whole object was turned by `turn(...)`'s rows."""
        axes = tuple(outward(rows, axis) for axis in self.rows)
        return replace(self, rows=axes, centre=outward(rows, self.centre))

    @property
    def radius(self) -> float:
        """Of a ball about its centre that holds it."""
        x, y, z = self.half_sides
        if self.kind == Kind.ELLIPSOID:
            ball = max(x, y, z)
        elif self.kind == Kind.SUPERQUADRIC:
            ball = math.sqrt(x * x + y * y + z * z)
            ball = max(x, y, z) if max(self.sizes[3:]) <= 2.0 else ball
        elif self.kind == Kind.CAPSULE:
            ball = y
        elif self.kind == Kind.TORUS:
            ball = x
        elif self.kind == Kind.BOX:
            ball = math.sqrt(x * x + y * y + z * z)
        else:
            ball = math.hypot(x, y)
        return ball + self.bumps[0]


@dataclass
class Build:
    """An object in the making; its front is +Z, its units are free.

    What does not fit into `MAX_PARTS` is left out, so families add what matters first.
    """

    draw: Draw
    palette: Palette
    parts: list[Part] = field(default_factory=list)

    def add(self, kind: Kind, centre: Vector, sizes: Sequence[float], paint: Paint, **more) -> None:
        """One more part; `more` are fields of `Part`."""
        if len(self.parts) < MAX_PARTS:
            self.parts.append(Part(kind, centre, tuple(sizes), paint, **more))

    def ball(self, centre: Vector, radius: float, paint: Paint, **more) -> None:
        """A ball."""
        self.add(Kind.ELLIPSOID, centre, (radius, radius, radius), paint, **more)

    def ellipsoid(self, centre: Vector, semi_axes: Vector, paint: Paint, **more) -> None:
        """An ellipsoid."""
        self.add(Kind.ELLIPSOID, centre, semi_axes, paint, **more)

    def box(self, centre: Vector, half: Vector, edge: float, paint: Paint, **more) -> None:
        """A box of these half sides whose edges are rounded with radius `edge`."""
        edge = min(edge, 0.95 * min(half))
        sizes = (half[0] - edge, half[1] - edge, half[2] - edge, edge)
        self.add(Kind.BOX, centre, sizes, paint, **more)

    def cylinder(
        self, centre: Vector, radius: float, half: float, edge: float, paint: Paint, **more
    ) -> None:
        """A cylinder with rounded rims."""
        edge = min(edge, 0.95 * min(radius, half))
        self.add(Kind.CYLINDER, centre, (radius - edge, half - edge, edge), paint, **more)

    def frustum(
        self, centre: Vector, below: float, above: float, half: float, edge: float, paint: Paint,
        **more,
    ) -> None:  # fmt: skip
        """A cone or a part of one; a radius of 0 is a point with radius `edge`."""
        edge = min(edge, 0.95 * half)
        radii = (max(below - edge, 0.0), max(above - edge, 0.0))
        self.add(Kind.FRUSTUM, centre, (*radii, half - edge, edge), paint, **more)

    def capsule(self, start: Vector, end: Vector, radius: float, paint: Paint, **more) -> None:
        """A capsule from one end's centre to the other's."""
        axis = plus(end, start, -1.0)
        half = 0.5 * math.sqrt(axis[0] ** 2 + axis[1] ** 2 + axis[2] ** 2)
        more.setdefault("rows", aim(axis))
        self.add(Kind.CAPSULE, plus(start, axis, 0.5), (half, radius), paint, **more)

    def torus(self, centre: Vector, ring: float, tube: float, paint: Paint, **more) -> None:
        """A ring about +Y."""
        self.add(Kind.TORUS, centre, (ring, tube), paint, **more)

    def superquadric(
        self, centre: Vector, semi_axes: Vector, across: float, along: float, paint: Paint, **more
    ) -> None:
        """Between a double cone (1), an ellipsoid (2) and a box (large exponents)."""
        self.add(Kind.SUPERQUADRIC, centre, (*semi_axes, across, along), paint, **more)

    def revolution(
        self, centre: Vector, half: float, profile: Sequence[float], paint: Paint, **more
    ) -> None:
        """A turned body: 8 control radii from below to above."""
        self.add(Kind.REVOLUTION, centre, (half,), paint, profile=tuple(profile), **more)
