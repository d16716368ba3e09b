"""Families of objects that move people: cars, aeroplanes, boats.

All proportions are free choices, drawn so that no object equals its mirror image.
"""

from __future__ import annotations

from .objects_build import (
    INK,
    WHITE,
    Build,
    Paint,
    aim,
    draw_paint,
    glyph,
    plus,
    turn,
    unit,
)
from .objects_table import Join, Pattern

_LIVERY = (Pattern.SOLID, Pattern.STRIPES, Pattern.SPLIT, Pattern.CHECKS, Pattern.GRADIENT)
_GLAZE = (Pattern.STRIPES, Pattern.ZIGZAG, Pattern.MARBLE, Pattern.DOTS, Pattern.GRADIENT)
_GLAZE += (Pattern.SPLIT, Pattern.SECTORS, Pattern.PATCHES, Pattern.CHECKS, Pattern.SOLID)
_WALLS = (Pattern.SOLID, Pattern.CHECKS, Pattern.STRIPES, Pattern.SPLIT)
_SIDE = aim((0, 1, 0), (1, 0, 0))  # a frame whose front is +X
_OTHER_SIDE = aim((0, 1, 0), (-1, 0, 0))
_ACROSS = aim((1, 0, 0))  # a frame whose axis is +X
_FORWARD = aim((0, 0, 1), (0, 1, 0))  # a frame whose axis is +Z


def car(b: Build) -> None:
    """A car, van, lorry or tractor with a sign on one door and a load or chimney."""
    d, c = b.draw, b.palette
    long, wide, high = d(0.7, 0.95), d(0.3, 0.42), d(0.14, 0.26)
    paint = draw_paint(d, c.main, c.second, _LIVERY)
    b.box((0, 0, 0), (wide, high, long), d(0.03, 0.12), paint)
    cabin = d.choice(("car", "van", "lorry"))
    tall = d(0.16, 0.28)
    glass = Paint(
        c.second, (0.25, 0.4, 0.5), Pattern.SPLIT, share=d(-0.1, 0.2), axis=unit((0.5, 1, 0))
    )
    if cabin == "car":
        b.superquadric(
            (0, high, d(-0.15, 0.1)), (wide * 0.92, tall * 1.6, long * 0.55), 4, 3, glass
        )
    elif cabin == "van":
        sign = glyph(d, c.second, c.accent, tall * 0.8)
        b.box(
            (0, high + tall, -0.1), (wide * 0.97, tall * 1.2, long * 0.85), 0.06, sign, rows=_SIDE
        )
        b.parts.pop()  # the sign's frame has its sides exchanged
        b.box(
            (0, high + tall, -0.1), (long * 0.85, tall * 1.2, wide * 0.97), 0.06, sign, rows=_SIDE
        )
    else:
        b.box(
            (0, high + tall * 0.9, long * 0.55), (wide * 0.95, tall * 1.3, long * 0.32), 0.06, glass
        )
        load = d.choice(("tank", "box", "logs"))
        if load == "tank":
            b.cylinder((0, high + 0.24, -long * 0.35), 0.27, long * 0.55, 0.05,
                       draw_paint(d, c.third, c.accent, _LIVERY), rows=_FORWARD)  # fmt: skip
        elif load == "box":
            b.box((0, high + 0.26, -long * 0.35), (long * 0.55, 0.27, wide * 0.95), 0.02,
                  glyph(d, c.third, c.accent, 0.22), rows=_SIDE)  # fmt: skip
        else:
            for x, y in ((-0.16, 0.13), (0.15, 0.13), (0.0, 0.36)):
                b.cylinder((x, high + y, -long * 0.35), 0.14, long * d(0.45, 0.6), 0.02,
                           Paint((0.5, 0.33, 0.2), (0.8, 0.62, 0.4), Pattern.RINGS, 3.0), rows=_FORWARD)  # fmt: skip
    radius, rear = d(0.16, 0.26), d(0.16, 0.36)
    hub = draw_paint(d, INK, c.third, (Pattern.RINGS, Pattern.SECTORS))
    for x in (1, -1):
        for z, size in ((0.62, radius), (-0.6, rear)):
            at = (x * wide, -high - radius * 0.4 + (size - radius), z * long)
            b.cylinder(at, size, 0.09, 0.03, hub, rows=_ACROSS)
    b.cylinder((d.sign() * wide * 0.6, high + 0.2, long * 0.8), 0.05, 0.25, 0.02, Paint(c.accent))
    b.ball((wide * 0.55, 0.02, long), 0.08, Paint((0.98, 0.9, 0.5)))
    if cabin == "car":
        b.box(
            (-wide * 0.4, high + tall * 1.6, -0.1),
            (0.12, 0.07, 0.2),
            0.03,
            Paint(c.accent),
            rows=turn(yaw=12),
        )
        b.box(
            (wide, 0.02, 0.1),
            (0.2, high * 0.8, 0.02),
            0.01,
            glyph(d, WHITE, INK, high * 0.7),
            rows=_SIDE,
        )


def plane(b: Build) -> None:
    """An aeroplane or rocket plane: one engine, a banked fuselage, letters on a wing."""
    d, c = b.draw, b.palette
    long, thick = d(0.75, 0.95), d(0.15, 0.24)
    hull = draw_paint(d, c.main, c.second, (Pattern.STRIPES, Pattern.SPLIT, Pattern.SOLID))
    profile = [thick * f for f in (0.35, 0.5, 0.75, 0.95, 1.05, 1.0, 0.85, 0.4)]
    b.revolution((0, 0, 0), long, profile, hull, rows=_FORWARD)
    sweep, span = d(-10, 30), d(0.55, 0.9)
    for side in (1, -1):
        rows = turn(yaw=side * sweep, roll=-side * d(2, 12))
        wing = draw_paint(d, c.third, c.accent if side > 0 else WHITE, _LIVERY)
        b.box(
            (side * span * 0.55, d(-0.06, 0.1), -0.1 * sweep / 30),
            (span * 0.6, 0.035, d(0.18, 0.26)),
            0.03,
            wing,
            rows=rows,
        )
        b.box(
            (side * 0.22, 0.05, -long * 0.85), (0.22, 0.025, 0.11), 0.02, Paint(c.second), rows=rows
        )
    fin = glyph(d, c.accent, WHITE, 0.14)
    b.box((0, thick + 0.14, -long * 0.85), (0.14, 0.24, 0.03), 0.02, fin, rows=_SIDE)
    b.ellipsoid(
        (0, thick * 0.75, long * 0.25), (thick * 0.6, thick * 0.6, 0.22), Paint((0.35, 0.55, 0.7))
    )
    b.ball((0, 0, long), thick * 0.45, Paint(c.accent))
    blades = turn(roll=d(10, 80))
    b.box(
        (0, 0, long + 0.05),
        (d(0.25, 0.4), 0.05, 0.02),
        0.015,
        Paint(INK, c.accent, Pattern.SPLIT, share=0.6, axis=(1, 0, 0)),
        rows=blades,
    )
    side = d.sign()
    b.capsule(
        (side * 0.4, -0.1, -0.1),
        (side * 0.4, -0.1, 0.2),
        0.09,
        draw_paint(d, c.second, c.accent, _LIVERY),
    )
    for x in (1, -1):
        b.cylinder(
            (x * 0.2, -thick - 0.12, 0.2),
            0.1,
            0.04,
            0.02,
            Paint(INK, WHITE, Pattern.RINGS, 2.0),
            rows=_ACROSS,
        )


def boat(b: Build) -> None:
    """A boat with a cabin, a mast with a sail on one side, and a funnel."""
    d, c = b.draw, b.palette
    long, wide = d(0.75, 0.95), d(0.28, 0.4)
    hull = Paint(c.main, c.second, Pattern.SPLIT, share=d(-0.1, 0.25), axis=(0, 1, 0))
    b.superquadric((0, 0, 0), (wide, d(0.28, 0.38), long), 2.0, 3.0, hull)
    b.box(
        (0, 0.35, 0),
        (wide * 1.3, 0.28, long * 1.1),
        0.01,
        Paint((0.7, 0.5, 0.3), (0.55, 0.38, 0.22), Pattern.STRIPES, 6.0, axis=(1, 0, 0)),
        join=Join.CARVE,
    )
    b.box(
        (0, 0.2, -long * 0.4),
        (wide * 0.6, 0.22, 0.22),
        0.04,
        draw_paint(d, WHITE, c.third, _LIVERY),
    )
    mast = (0.0, 0.05, d(0.0, 0.25))
    height = d(0.8, 1.2)
    b.capsule(mast, plus(mast, (0, height, 0)), 0.035, Paint((0.5, 0.35, 0.2)))
    side = d.sign()
    sail = glyph(d, WHITE, c.accent, 0.24) if d.chance(0.5) else draw_paint(d, WHITE, c.accent)
    b.box(plus(mast, (side * 0.2, height * 0.62, 0.0)), (d(0.25, 0.4), height * 0.32, 0.025), 0.02, sail,
          rows=turn(yaw=side * d(15, 50)))  # fmt: skip
    b.box(
        plus(mast, (-0.12, height, 0)),
        (0.12, 0.07, 0.015),
        0.01,
        Paint(c.accent),
        rows=turn(yaw=20),
    )
    b.cylinder(
        (d(-0.1, 0.1), 0.55, -long * 0.45),
        0.09,
        0.2,
        0.02,
        Paint(c.third, c.accent, Pattern.STRIPES, 1.0),
        rows=turn(pitch=-10),
    )
    b.torus(
        (wide * 0.9, 0.0, -0.1),
        0.11,
        0.04,
        Paint(WHITE, c.accent, Pattern.SECTORS, 4.0),
        rows=_ACROSS,
    )
    b.box((0.0, -0.25, -long * 0.9), (0.03, 0.16, 0.12), 0.02, Paint(c.third), rows=turn(yaw=25))
