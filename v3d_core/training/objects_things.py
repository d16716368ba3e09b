"""Families of objects to live with: vessels, furniture, houses, stacks.

All proportions are free choices, drawn so that no object equals its mirror image.
"""

from __future__ import annotations

import math

from .objects_build import (
    INK,
    WHITE,
    Build,
    Paint,
    Vector,
    aim,
    draw_paint,
    glyph,
    plus,
    turn,
    unit,
)
from .objects_table import Join, Kind, Pattern

_LIVERY = (Pattern.SOLID, Pattern.STRIPES, Pattern.SPLIT, Pattern.CHECKS, Pattern.GRADIENT)
_GLAZE = (Pattern.STRIPES, Pattern.ZIGZAG, Pattern.MARBLE, Pattern.DOTS, Pattern.GRADIENT)
_GLAZE += (Pattern.SPLIT, Pattern.SECTORS, Pattern.PATCHES, Pattern.CHECKS, Pattern.SOLID)
_WALLS = (Pattern.SOLID, Pattern.CHECKS, Pattern.STRIPES, Pattern.SPLIT)
_SIDE = aim((0, 1, 0), (1, 0, 0))  # a frame whose front is +X
_OTHER_SIDE = aim((0, 1, 0), (-1, 0, 0))
_ACROSS = aim((1, 0, 0))  # a frame whose axis is +X
_FORWARD = aim((0, 0, 1), (0, 1, 0))  # a frame whose axis is +Z


def vessel(b: Build) -> None:
    """A cup, jug, vase or teapot: turned, mostly hollow, with a handle or a spout."""
    d, c = b.draw, b.palette
    half = d(0.45, 0.75)
    base = d(0.2, 0.4)
    profile = [base]
    for _ in range(7):  # a smooth random walk
        profile.append(min(max(profile[-1] + d(-0.17, 0.19), 0.13), 0.62))
    profile[1] = profile[0]
    profile[7] = profile[6]
    glaze = draw_paint(d, c.main, c.second, _GLAZE)
    b.revolution((0, 0, 0), half, profile, glaze)
    rim = 0.5 * (profile[6] + profile[7])
    widest = max(profile)
    lidded = d.chance(0.35)
    if lidded:
        lid = draw_paint(d, c.third, c.main, _GLAZE)
        b.ellipsoid((0, half, 0), (rim * 0.98, d(0.12, 0.25), rim * 0.98), lid, width=0.02)
        b.ball((0.02, half + 0.26, 0), d(0.06, 0.1), Paint(c.accent), width=0.03)
    else:
        inner = [max(r - 0.06, 0.05) for r in profile]
        b.revolution((0, 0.08, 0), half, inner, Paint(c.third), join=Join.CARVE, width=0.02)
        b.torus((0, half - 0.01, 0), rim - 0.03, 0.04, Paint(c.second), width=0.02)
    handle = d.whole(1, 2)
    size = d(0.2, 0.34)
    for k in range(handle):
        x = -1 if k == 0 else 1
        at = (x * (widest + (0.0 if k == 0 else -0.05)), d(-0.1, 0.2) - 0.2 * k, 0)
        paint = Paint(c.accent if k == 0 else c.third)
        b.torus(
            at,
            size if k == 0 else size * 0.6,
            d(0.04, 0.07),
            paint,
            rows=turn(pitch=90, yaw=0, roll=0),
            width=0.02,
        )
    if lidded or d.chance(0.4):
        reach = (widest + d(0.25, 0.4), half * d(0.5, 0.95), 0)
        b.capsule(
            (widest * 0.6, -half * 0.2, 0),
            reach,
            d(0.06, 0.1),
            Paint(c.main, c.accent, Pattern.SPLIT, share=0.8, axis=(0, 1, 0)),
            width=0.1,
        )
    if not lidded and d.chance(0.5):  # what stands in it
        for k in range(d.whole(1, 3)):
            tip = (d(-0.4, 0.4), half + d(0.4, 0.8), d(-0.4, 0.4))
            b.capsule((0, 0, 0), tip, 0.03, Paint((0.25, 0.5, 0.2)))
            b.ellipsoid(tip, (0.16, 0.08, 0.16), draw_paint(d, (c.accent, c.second, c.main)[k], WHITE, (Pattern.SECTORS, Pattern.RINGS)),
                        rows=aim(plus(tip, (0, -half, 0))))  # fmt: skip
    else:
        b.cylinder(
            (0, -half - 0.04, 0),
            base * d(1.1, 1.8),
            0.05,
            0.02,
            draw_paint(d, c.second, c.accent, _GLAZE),
        )
    b.ball((widest * 0.62, d(-0.2, 0.1), widest * 0.62), 0.09, Paint(c.accent), width=0.02)


def chair(b: Build) -> None:
    """A chair, armchair or stool with one arm, a cushion and something on it."""
    d, c = b.draw, b.palette
    wide, deep, seat = d(0.36, 0.5), d(0.34, 0.46), d(0.05, 0.12)
    wood = draw_paint(d, c.main, c.second, (Pattern.SOLID, Pattern.STRIPES, Pattern.MARBLE))
    b.box((0, 0, 0), (wide, seat, deep), 0.04, wood)
    tall = d(0.4, 0.65)
    lean = turn(pitch=-d(3, 15))
    back = (
        glyph(d, c.second, c.accent, wide * 0.6)
        if d.chance(0.4)
        else draw_paint(d, c.second, c.third)
    )
    b.box((0, tall, -deep), (wide, tall, 0.06), 0.05, back, rows=lean)
    leg = d(0.35, 0.6)
    for x in (1, -1):
        for z in (1, -1):
            foot = (x * wide * d(0.85, 1.05), -leg, z * deep * d(0.85, 1.05))
            b.capsule(
                (x * wide * 0.85, 0, z * deep * 0.85),
                foot,
                d(0.04, 0.07),
                Paint(c.third if x > 0 else c.main),
            )
    side = d.sign()
    b.box((side * wide, 0.3, -0.05), (0.07, 0.05, deep * 0.9), 0.03, Paint(c.accent))
    b.capsule((side * wide, 0, deep * 0.6), (side * wide, 0.3, deep * 0.6), 0.05, Paint(c.accent))
    b.superquadric(
        (0, seat + 0.07, 0.02),
        (wide * 0.85, 0.1, deep * 0.8),
        4,
        2.2,
        draw_paint(d, c.accent, c.third),
    )
    extra = d.choice(("ball", "book", "pillow"))
    at = (-side * wide * 0.4, seat + 0.28, 0.05)
    if extra == "ball":
        b.ball(at, 0.15, draw_paint(d, WHITE, c.accent, (Pattern.SECTORS, Pattern.STRIPES)))
    elif extra == "book":
        b.box(
            plus(at, (0, -0.07, 0)),
            (0.16, 0.05, 0.2),
            0.01,
            Paint(c.second, WHITE, Pattern.STRIPES, 3.0),
            rows=turn(yaw=25),
        )
    else:
        b.superquadric(
            at,
            (0.2, 0.2, 0.08),
            3,
            3,
            draw_paint(d, c.main, WHITE),
            rows=turn(yaw=30, pitch=-30, roll=20),
        )


def table_lamp(b: Build) -> None:
    """A lamp on a bent arm, or a table with things on it."""
    d, c = b.draw, b.palette
    if d.chance(0.5):
        b.cylinder((0, -0.8, 0), d(0.3, 0.45), 0.06, 0.03, draw_paint(d, c.main, c.second))
        elbow = (d(0.2, 0.4) * d.sign(), d(-0.1, 0.1), d(-0.2, 0.0))
        b.capsule((0, -0.8, 0), elbow, 0.05, Paint(c.second))
        b.ball(elbow, 0.09, Paint(c.accent))
        head = (-elbow[0] * d(0.3, 1.0), d(0.45, 0.7), d(0.1, 0.4))
        b.capsule(elbow, head, 0.045, Paint(c.second))
        axis = unit((-elbow[0] * 0.8, -1.0, d(0.1, 0.8)))
        shade = draw_paint(d, c.accent, c.third, _GLAZE)
        b.frustum(plus(head, axis, 0.12), 0.12, d(0.34, 0.5), 0.24, 0.02, shade, rows=aim(axis))
        b.frustum(
            plus(head, axis, 0.2),
            0.06,
            0.36,
            0.26,
            0.01,
            Paint(WHITE),
            rows=aim(axis),
            join=Join.CARVE,
        )
        b.ball(plus(head, axis, 0.22), 0.12, Paint((1.0, 0.95, 0.6)))
        b.box((0.18, -0.72, 0.2), (0.06, 0.03, 0.06), 0.02, Paint(c.accent))
        return
    wide, deep = d(0.55, 0.8), d(0.4, 0.6)
    top = draw_paint(d, c.main, c.second)
    if d.chance(0.5):
        b.box((0, 0, 0), (wide, 0.05, deep), 0.03, top)
        for x, z in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            b.frustum(
                (x * wide * 0.85, -0.35, z * deep * 0.8), 0.04, 0.07, 0.33, 0.01, Paint(c.third)
            )
    else:
        b.cylinder((0, 0, 0), wide, 0.05, 0.03, top)
        b.revolution(
            (0, -0.35, 0), 0.35, (0.35, 0.33, 0.12, 0.09, 0.14, 0.09, 0.1, 0.25), Paint(c.third)
        )
    profile = [d(0.1, 0.24) for _ in range(8)]
    b.revolution(
        (-wide * 0.4, 0.3, -deep * 0.25), 0.26, profile, draw_paint(d, c.accent, WHITE, _GLAZE)
    )
    b.cylinder((wide * 0.4, 0.12, deep * 0.3), 0.12, 0.1, 0.02, draw_paint(d, WHITE, c.accent))
    b.torus(
        (wide * 0.4 + 0.14, 0.12, deep * 0.3), 0.07, 0.025, Paint(c.accent), rows=turn(pitch=90)
    )
    b.box(
        (wide * 0.25, 0.1, -deep * 0.4),
        (0.22, 0.05, 0.15),
        0.01,
        Paint(c.second, WHITE, Pattern.SPLIT, share=0.0, axis=(0, 1, 0)),
        rows=turn(yaw=30),
    )
    b.ball(
        (-wide * 0.2, 0.15, deep * 0.4),
        0.11,
        draw_paint(d, c.accent, c.third, (Pattern.SECTORS, Pattern.GRADIENT)),
    )


def house(b: Build) -> None:
    """A house with an annexe, a chimney, a door and windows, or a castle's tower."""
    d, c = b.draw, b.palette
    wide, tall, deep = d(0.4, 0.6), d(0.3, 0.6), d(0.4, 0.6)
    walls = draw_paint(d, c.main, c.second, _WALLS)
    b.box((0, 0, 0), (wide, tall, deep), 0.02, walls)
    tiles = draw_paint(d, c.accent, c.third, (Pattern.STRIPES, Pattern.CHECKS, Pattern.SOLID))
    side = d.sign()
    roof = d.choice(("gable", "hip", "round"))
    if roof == "gable":
        edge = wide * 0.78
        b.box((0, tall + 0.02, 0), (edge, edge, deep * 1.08), 0.02, tiles, rows=turn(roll=45))
    elif roof == "hip":
        b.superquadric(
            (0, tall, 0), (wide * 1.5, d(0.4, 0.7), deep * 1.5), 1.1, 1.05, tiles, rows=turn(yaw=0)
        )
    else:
        b.cylinder((0, tall * 0.95, 0), wide * 1.02, deep * 1.05, 0.02, tiles, rows=_FORWARD)
    low = tall * d(0.4, 0.7)
    annexe = (side * (wide + 0.2), low - tall, d(-0.15, 0.1))
    b.box(annexe, (0.26, low, deep * 0.6), 0.02, draw_paint(d, c.second, c.main, _WALLS))
    if d.chance(0.5):
        b.frustum(plus(annexe, (0, low + 0.2, 0)), 0.36, 0.0, 0.22, 0.02, tiles)
    else:
        radius, rise = d(0.16, 0.24), d(0.5, 0.9)
        at = (-side * wide * 0.9, tall - 0.2, -deep * 0.8)
        b.cylinder(at, radius, rise, 0.02, draw_paint(d, c.third, c.second, _WALLS))
        b.frustum(plus(at, (0, rise + 0.2, 0)), radius * 1.35, 0.0, 0.24, 0.01, tiles)
    b.box(
        (-side * wide * 0.5, tall + 0.42, deep * d(-0.4, 0.3)),
        (0.08, 0.3, 0.08),
        0.01,
        Paint((0.6, 0.3, 0.22)),
    )
    b.box(
        (side * wide * 0.4, -tall + 0.2, deep),
        (0.12, 0.22, 0.03),
        0.01,
        Paint(c.accent, INK, Pattern.SPLIT, share=0.7, axis=(1, 0, 0)),
    )
    b.box(
        (-side * wide * 0.45, 0.05, deep),
        (0.14, 0.14, 0.03),
        0.01,
        Paint((0.5, 0.75, 0.9), WHITE, Pattern.CHECKS, 1.0, 0.0),
    )
    b.box(
        (-side * wide, 0.05, deep * 0.2),
        (0.03, 0.12, 0.16),
        0.01,
        Paint((0.3, 0.45, 0.6), WHITE, Pattern.STRIPES, 1.5, 0.25, 0.2, axis=(0, 0, 1)),
    )
    b.box(
        (0, 0.1, -deep),
        (0.16, 0.2, 0.03),
        0.01,
        glyph(d, WHITE, c.accent, 0.14),
        rows=turn(yaw=180),
    )
    b.cylinder(
        (0, -tall - 0.03, 0.05),
        d(0.85, 1.0),
        0.05,
        0.02,
        draw_paint(d, (0.45, 0.6, 0.3), (0.6, 0.55, 0.45), (Pattern.PATCHES, Pattern.SOLID)),
    )
    b.ball(
        (-side * (wide + 0.2), -tall + 0.15, deep * 0.6),
        0.18,
        Paint((0.25, 0.5, 0.2)),
        bumps=(0.02, 14.0, 0.0),
    )


def totem(b: Build) -> None:
    """Different parts stacked on one another, each a little beside the last, with arms."""
    d, c = b.draw, b.palette
    colours = (c.main, c.second, c.third, c.accent)
    y, at = -1.0, (0.0, 0.0)
    levels = d.whole(4, 6)
    for k in range(levels):
        half = d(0.13, 0.28)
        radius = d(0.25, 0.5) * (1 - 0.07 * k)
        paint = draw_paint(d, colours[k % 4], colours[(k + 1 + d.whole(0, 1)) % 4])
        _stack(b, (at[0], y + half, at[1]), radius, half, paint)
        y += 2 * half * 0.96
        at = (at[0] + d(-0.1, 0.1), at[1] + d(-0.1, 0.1))
        if k in (1, 3):
            angle = d(0, 2 * math.pi)
            way = (math.cos(angle), d(-0.2, 0.8), math.sin(angle))
            hand = plus((at[0], y - half, at[1]), way, d(0.5, 0.7))
            b.capsule((at[0], y - half, at[1]), hand, d(0.05, 0.09), Paint(c.accent), width=0.03)
            b.ball(hand, d(0.1, 0.17), draw_paint(d, colours[k % 4], WHITE), width=0.02)
    b.frustum(
        (at[0], y + 0.1, at[1]), 0.16, 0.0, 0.18, 0.02, Paint(c.accent), rows=turn(roll=d(-20, 20))
    )


def _stack(b: Build, at: Vector, radius: float, half: float, paint: Paint) -> None:
    d = b.draw
    kind = d.choice(tuple(Kind))
    rows = turn(yaw=d(0, 90))
    if kind == Kind.BOX:
        b.box(at, (radius * 0.85, half, radius * d(0.5, 0.85)), d(0.02, 0.1), paint, rows=rows)
    elif kind in (Kind.CYLINDER, Kind.CAPSULE):
        b.cylinder(at, radius * 0.9, half, d(0.02, 0.1), paint, rows=rows)
    elif kind == Kind.FRUSTUM:
        b.frustum(at, radius, radius * d(0.4, 0.8), half, 0.03, paint, rows=rows)
    elif kind == Kind.TORUS:
        b.torus(at, radius * 0.6, half, paint, rows=rows)
    elif kind == Kind.REVOLUTION:
        b.revolution(at, half, [radius * d(0.5, 1.0) for _ in range(8)], paint, rows=rows)
    elif kind == Kind.SUPERQUADRIC:
        sizes = (radius, half, radius * d(0.6, 1.0))
        b.superquadric(
            at, sizes, d.choice((1.3, 3.0, 5.0)), d.choice((1.5, 2.0, 4.0)), paint, rows=rows
        )
    else:
        b.ellipsoid(at, (radius, half * 1.1, radius * d(0.7, 1.0)), paint, rows=rows)
