"""Families of objects that are nothing in particular: machine parts, toys, free compositions.

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
from .objects_table import Join, Pattern


def machine(b: Build) -> None:
    """A bracket, valve or gear box: drilled, with bolts, a shaft, a lever and a number."""
    d, c = b.draw, b.palette
    wide, tall, deep = d(0.35, 0.6), d(0.3, 0.55), d(0.25, 0.45)
    plate = glyph(d, c.main, c.accent, min(wide, tall) * 0.6)
    b.box((0, 0, 0), (wide, tall, deep), d(0.03, 0.15), plate)
    b.cylinder((d(-0.1, 0.1), tall * 0.4, 0), d(0.26, 0.4), deep * d(1.2, 1.7), 0.03,
               draw_paint(d, c.second, c.third), rows=aim((0, 0, 1)), width=d(0.0, 0.08))  # fmt: skip
    b.cylinder((wide * d(-0.5, 0.5), -tall * 0.4, 0), d(0.12, 0.2), 1.0, 0.01, Paint(c.accent),
               rows=aim((d(-0.3, 0.3), 0, 1)), join=Join.CARVE)  # fmt: skip
    b.cylinder((wide, d(-0.2, 0.2), 0), d(0.14, 0.22), 0.3, 0.01, Paint(c.third), rows=aim((0, 1, 0)),
               join=Join.CARVE, width=0.03)  # fmt: skip
    side = d.sign()
    b.cylinder((-side * (wide + 0.2), 0, 0), d(0.1, 0.2), 0.35, 0.02,
               draw_paint(d, c.third, INK, (Pattern.STRIPES, Pattern.SPLIT)), rows=aim((1, 0, 0)))  # fmt: skip
    b.torus((-side * (wide + 0.45), 0, 0), d(0.2, 0.36), d(0.05, 0.08),
            draw_paint(d, c.accent, WHITE, (Pattern.SECTORS, Pattern.SOLID)), rows=aim((1, 0, 0)))  # fmt: skip
    lever = (side * wide * 0.6 + side * d(0.2, 0.5), tall + d(0.3, 0.6), d(-0.2, 0.2))
    b.capsule((side * wide * 0.5, tall * 0.8, 0), lever, 0.06, Paint(c.second))
    b.ball(lever, d(0.1, 0.15), Paint(c.accent))
    for x, z in ((0.7, 0.6), (-0.7, 0.6), (0.7, -0.6))[: d.whole(1, 3)]:
        b.cylinder((x * wide, tall, z * deep), 0.08, 0.08, 0.02, Paint(c.third))
    b.box(
        (0, -tall, 0),
        (wide * 1.4, 0.07, deep * 1.3),
        0.03,
        draw_paint(d, c.second, c.main, (Pattern.SPLIT, Pattern.SOLID)),
    )
    b.frustum(
        (side * wide * 0.5, -tall * 0.1, deep),
        0.16,
        0.08,
        0.14,
        0.02,
        Paint(c.accent),
        rows=aim((0, 0, 1)),
    )


def free(b: Build) -> None:
    """A body that parts grow from in random directions, with a bite out of it."""
    d, c = b.draw, b.palette
    colours = (c.main, c.second, c.third, c.accent)
    body = d.choice(("ball", "box", "quad", "turned"))
    paint = draw_paint(d, c.main, c.second)
    bumps = (d(0.02, 0.05), d(6.0, 12.0), d(0, 6)) if d.chance(0.4) else (0.0, 0.0, 0.0)
    rows = turn(d(0, 360), d(-40, 40), d(-40, 40))
    size = (d(0.4, 0.7), d(0.4, 0.7), d(0.4, 0.7))
    if body == "ball":
        b.ellipsoid((0, 0, 0), size, paint, rows=rows, bumps=bumps)
    elif body == "box":
        b.box((0, 0, 0), size, d(0.05, 0.3), paint, rows=rows, bumps=bumps)
    elif body == "quad":
        b.superquadric((0, 0, 0), size, d(1.2, 5), d(1.2, 5), paint, rows=rows)
    else:
        b.revolution((0, 0, 0), 0.65, [d(0.25, 0.6) for _ in range(8)], paint, rows=rows)
    if d.chance(0.6):
        way = unit((d(-1, 1), d(-0.5, 0.5), d(-1, 1)))
        b.ball(plus((0, 0, 0), way, 0.6), d(0.25, 0.4), Paint(c.accent, WHITE, Pattern.SPLIT), join=Join.CARVE,
               width=d(0.0, 0.08))  # fmt: skip
    turned, width = d(0, 2 * math.pi), d(0.02, 0.15)
    limbs = d.whole(4, 7)
    for k in range(limbs):  # spread over the ball by the golden angle, then shaken
        y = 0.9 - 1.8 * (k + 0.5) / limbs + d(-0.15, 0.15)
        ring = math.sqrt(max(1 - y * y, 0.0))
        angle = turned + 2.39996 * k + d(-0.4, 0.4)
        way = (ring * math.cos(angle), y, ring * math.sin(angle))
        _limb(b, way, draw_paint(d, colours[(k + 1) % 4], colours[d.whole(0, 3)]), width)


def _limb(b: Build, way: Vector, paint: Paint, width: float) -> None:
    d = b.draw
    root, tip = plus((0, 0, 0), way, 0.45), plus((0, 0, 0), way, d(0.75, 1.05))
    kind = d.choice(("horn", "arm", "knob", "ring", "block", "plate"))
    if kind == "horn":
        b.frustum(
            plus(root, way, 0.3), d(0.15, 0.25), 0.0, 0.35, 0.02, paint, rows=aim(way), width=width
        )
    elif kind == "arm":
        b.capsule(root, tip, d(0.07, 0.13), paint, width=width)
        b.ball(tip, d(0.13, 0.22), Paint(paint.second, paint.first, Pattern.SPLIT), width=0.03)
    elif kind == "knob":
        b.ball(plus(root, way, 0.15), d(0.18, 0.3), paint, width=width)
    elif kind == "ring":
        b.torus(
            plus(root, way, 0.25),
            d(0.18, 0.26),
            d(0.05, 0.08),
            paint,
            rows=aim((-way[1], way[0], way[2])),
            width=width,
        )
    elif kind == "block":
        b.box(
            plus(root, way, 0.2),
            (d(0.1, 0.22), d(0.15, 0.3), d(0.1, 0.22)),
            0.04,
            paint,
            rows=aim(way),
            width=width,
        )
    else:
        b.cylinder(
            plus(root, way, 0.2),
            d(0.16, 0.3),
            d(0.05, 0.12),
            0.03,
            paint,
            rows=aim(way),
            width=width,
        )


def blocks(b: Build) -> None:
    """A child's building blocks: arches, cubes with letters, cones, bridges."""
    d, c = b.draw, b.palette
    colours = (c.main, c.second, c.third, c.accent, WHITE)
    height = (-0.75, -0.75, -0.75)
    columns = [0.0, 0.0, 0.0]
    for k in range(d.whole(7, 10)):
        place = d.whole(0, 2) if k > 2 else k
        half = d(0.14, 0.24)
        x = (place - 1) * 0.46 + d(-0.04, 0.04)
        at = (x, height[place] + columns[place] + half, d(-0.12, 0.12) + 0.12 * (place == 1))
        colour, other = colours[k % 5], colours[(k + 2) % 5]
        rows = turn(yaw=d(-25, 25))
        kind = d.choice(("cube", "cube", "cylinder", "arch", "cone", "ball"))
        last = columns[place] > 1.1 or k > 6
        if kind == "cube" or (kind in ("cone", "ball") and not last):
            paint = (
                glyph(d, colour, other, half * 0.8)
                if d.chance(0.6)
                else draw_paint(d, colour, other)
            )
            b.box(at, (d(0.16, 0.22), half, d(0.16, 0.24)), 0.02, paint, rows=rows)
        elif kind == "cylinder":
            b.cylinder(at, d(0.14, 0.22), half, 0.015, draw_paint(d, colour, other), rows=rows)
        elif kind == "arch":
            b.box(
                at,
                (0.22, half, 0.16),
                0.015,
                draw_paint(d, colour, other, (Pattern.SOLID, Pattern.SPLIT)),
                rows=rows,
            )
            b.cylinder(
                plus(at, (0, -half, 0)),
                0.12,
                0.3,
                0.01,
                Paint(other),
                rows=aim(rows[2]),
                join=Join.CARVE,
            )
        elif kind == "cone":
            b.frustum(
                at,
                d(0.16, 0.24),
                0.0,
                half,
                0.015,
                Paint(colour, other, Pattern.STRIPES, 1.5),
                rows=rows,
            )
        else:
            b.ball(at, half, draw_paint(d, colour, other), rows=rows)
        columns[place] += 2 * half
