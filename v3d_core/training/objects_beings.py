"""Families of objects that grow: animals, dolls, birds, fish, plants, sweets.

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
    outward,
    plus,
    turn,
    unit,
)
from .objects_table import Join, Pattern

_HIDES = (Pattern.SOLID, Pattern.PATCHES, Pattern.DOTS, Pattern.STRIPES, Pattern.SPLIT)
_HIDES += (Pattern.GRADIENT, Pattern.MARBLE)
_CLOTHES = (Pattern.STRIPES, Pattern.CHECKS, Pattern.DOTS, Pattern.ZIGZAG, Pattern.SPLIT)


def _eye(b: Build, centre: Vector, radius: float, towards: Vector, iris: Vector = INK) -> None:
    b.ball(centre, radius, Paint(WHITE, iris, Pattern.SPLIT, share=0.55, axis=unit(towards)))


def quadruped(b: Build) -> None:
    """An animal on four legs that turns its head; two legs step forward."""
    d, c = b.draw, b.palette
    long, high, wide = d(0.5, 0.85), d(0.28, 0.45), d(0.26, 0.42)
    leg, thick = d(0.25, 0.6), d(0.07, 0.13)
    hide = draw_paint(d, c.main, c.second, _HIDES)
    skin = hide if d.chance(0.5) else Paint(c.main)
    fluffy = (d(0.015, 0.03), d(9.0, 14.0), d(0, 6)) if d.chance(0.3) else (0.0, 0.0, 0.0)
    if d.chance(0.5):
        b.ellipsoid((0, 0, 0), (wide, high, long), hide, bumps=fluffy)
    else:
        b.capsule((0, 0, -long + high), (0, d(-0.05, 0.1), long - high), high, hide, bumps=fluffy)
    yaw = math.radians(d(18, 50)) * d.sign()
    neck = d(0.05, 0.75) if d.chance(0.5) else 0.08
    size = d(0.22, 0.36)
    head = (0.35 * math.sin(yaw), high * 0.6 + neck, long * 0.85 + 0.1)
    b.capsule((0, high * 0.3, long * 0.65), head, d(0.1, 0.16), skin, width=0.15)
    look = (math.sin(yaw), -0.1, math.cos(yaw))
    right = (math.cos(yaw), 0.0, -math.sin(yaw))
    b.ellipsoid(head, (size * 0.9, size * 0.85, size), skin, rows=aim((0, 1, 0), look), width=0.1)
    b.ellipsoid(
        plus(head, look, size * 0.9), (size * 0.5, size * 0.42, size * d(0.5, 0.9)),
        Paint(c.third, INK, Pattern.SPLIT, share=0.6, axis=(0, 0, 1)),
        rows=aim((0, 1, 0), look), width=0.05,
    )  # fmt: skip
    for side in (1, -1):  # each leg of a pair has its own step
        step = d(-0.18, 0.18)
        for z in (0.62, -0.62):
            top = (side * wide * 0.62, -high * 0.45, z * long)
            foot = (side * wide * 0.7, -high * 0.6 - leg, z * long + step * (1 if z > 0 else -1))
            paint = Paint(c.main, c.third, Pattern.SPLIT, share=-0.3, axis=(0, -1, 0))
            b.capsule(top, foot, thick, paint if side > 0 else skin, width=0.06)
    for side in (1, -1):
        at = plus(plus(plus(head, look, size * 0.7), right, side * size * 0.45), (0, size * 0.4, 0))
        _eye(b, at, size * 0.24, (0.2 * side, 0.1, 1))
    ear = d.choice(("round", "pointed", "long"))
    for side in (1, -1):
        at = plus(plus(head, right, side * size * 0.6), (0, size * 0.8, 0))
        paint = Paint(c.second if side > 0 else c.accent)
        up = plus((0, 1, 0), right, 0.4 * side)
        if ear == "round":
            b.ellipsoid(at, (size * 0.38, size * 0.4, size * 0.16), paint, rows=aim(up, look))
        elif ear == "pointed":
            b.frustum(at, size * 0.32, 0.0, size * 0.5, 0.02, paint, rows=aim(up, look))
        else:
            b.capsule(at, plus(at, up, size * d(0.4, 1.3)), size * 0.18, paint)
    swing = d(0.2, 0.7) * d.sign()
    b.capsule(
        (0, high * 0.4, -long * 0.85), (swing * 0.6, high * d(0.2, 2.0), -long - d(0.1, 0.4)),
        d(0.04, 0.09), Paint(c.accent), width=0.05,
    )  # fmt: skip


def doll(b: Build) -> None:
    """A figure on two legs: one arm up, something in a hand, a hat, a sign on the chest."""
    d, c = b.draw, b.palette
    torso, wide = d(0.32, 0.55), d(0.24, 0.4)
    skin = Paint(d.choice((c.third, (0.94, 0.76, 0.62), (0.55, 0.36, 0.24), WHITE)))
    robot = d.chance(0.4)
    if d.chance(0.5):
        shirt = glyph(d, c.main, c.accent, wide * 0.55)
    else:
        shirt = draw_paint(d, c.main, c.second, _CLOTHES)
    if robot:
        b.box((0, 0, 0), (wide, torso, wide * 0.75), d(0.03, 0.12), shirt)
    elif d.chance(0.5):
        b.ellipsoid((0, 0, 0), (wide * 1.1, torso, wide * 0.95), shirt)
    else:
        b.frustum((0, 0, 0), wide * 1.2, wide * 0.7, torso, 0.06, shirt)
    size = d(0.24, 0.4)
    tilt = d(8, 22) * d.sign()
    head = (-math.sin(math.radians(tilt)) * size, torso + size * 0.8, d(0, 0.06))
    rows = turn(yaw=d(10, 40) * d.sign(), roll=tilt)
    if robot:
        b.box(head, (size, size * 0.75, size * 0.8), d(0.02, 0.15), Paint(c.second), rows=rows)
    else:
        b.ellipsoid(head, (size * 0.9, size, size * 0.9), skin, rows=rows)
    for side in (1, -1):
        at = plus(head, outward(rows, (side * size * 0.38, size * 0.12, size * 0.72)))
        b.ball(at, size * (0.2 if side > 0 else 0.16),
               Paint(WHITE, INK, Pattern.SPLIT, share=0.5, axis=(0, 0, 1)), rows=rows)  # fmt: skip
    raised = d.sign()
    for side in (1, -1):
        up = d(0.2, 0.6) if side == raised else -d(0.3, 0.6)
        shoulder = (side * wide * 0.9, torso * 0.6, 0)
        hand = (side * (wide + d(0.25, 0.5)), torso * 0.6 + up, d(0.0, 0.3))
        sleeve = draw_paint(d, c.second, c.main, (Pattern.SOLID, Pattern.STRIPES))
        b.capsule(shoulder, hand, d(0.07, 0.11), sleeve, width=0.04)
        if side == raised:
            held = d.choice(("ball", "ring", "box", "cone"))
            paint = draw_paint(d, c.accent, WHITE, (Pattern.SOLID, Pattern.STRIPES, Pattern.SPLIT))
            if held == "ball":
                b.ball(plus(hand, (0, 0.1, 0)), d(0.12, 0.22), paint)
            elif held == "ring":
                b.torus(hand, d(0.14, 0.24), 0.05, paint, rows=turn(pitch=80))
            elif held == "box":
                b.box(plus(hand, (0, 0.1, 0)), (0.14, d(0.1, 0.22), 0.1), 0.02, paint)
            else:
                b.frustum(plus(hand, (0, 0.1, 0)), 0.02, d(0.12, 0.2), 0.2, 0.02, paint)
    stance, length = d(0.1, 0.35), d(0.25, 0.55)
    for side in (1, -1):
        foot = (side * wide * 0.6 + side * stance * 0.3, -torso - length, 0.1 * side * d(0, 1))
        trousers = Paint(c.third if side > 0 else c.second)
        b.capsule((side * wide * 0.5, -torso * 0.8, 0), foot, d(0.09, 0.14), trousers, width=0.03)
        b.ellipsoid(
            plus(foot, (0, -0.06, 0.08)), (0.13, 0.09, 0.2), Paint(INK if side > 0 else c.accent)
        )
    top = plus(head, outward(rows, (0, size * 0.85, 0)))
    hat = d.choice(("cone", "cylinder", "cap", "aerial"))
    paint = draw_paint(d, c.accent, c.main, _CLOTHES)
    if hat == "cone":
        b.frustum(
            plus(top, outward(rows, (0, 0.15, 0))), size * 0.7, 0.0, 0.28, 0.02, paint, rows=rows
        )
    elif hat == "cylinder":
        b.cylinder(plus(top, outward(rows, (0, 0.12, 0))), size * 0.6, 0.2, 0.02, paint, rows=rows)
        b.cylinder(top, size * 1.05, 0.035, 0.02, Paint(c.accent), rows=rows)
    elif hat == "cap":
        b.ellipsoid(top, (size * 0.85, size * 0.4, size * 0.85), paint, rows=rows)
    else:
        tip = plus(top, outward(rows, (0.12, 0.3, 0)))
        b.capsule(top, tip, 0.03, Paint(INK))
        b.ball(tip, 0.09, Paint(c.accent))


def bird(b: Build) -> None:
    """A bird that looks aside with one wing lifted."""
    d, c = b.draw, b.palette
    length, fat, lean = d(0.5, 0.75), d(0.32, 0.48), d(-50, -10)
    feathers = draw_paint(d, c.main, c.second, _HIDES)
    b.ellipsoid((0, 0, 0), (fat * 0.95, fat, length), feathers, rows=turn(pitch=lean))
    yaw = d(25, 65) * d.sign()
    look = (math.sin(math.radians(yaw)), 0.0, math.cos(math.radians(yaw)))
    rise = math.sin(math.radians(-lean)) * length
    head = (0.0, rise + d(0.1, 0.25), length * 0.62)
    size = d(0.22, 0.34)
    b.ball(head, size, draw_paint(d, c.second, c.main, _HIDES), width=0.12, rows=turn(yaw=yaw))
    beak = d(0.1, 0.4)
    b.frustum(
        plus(head, look, size + beak * 0.6), size * 0.4, 0.0, beak, 0.02,
        Paint(c.accent), rows=aim(plus(look, (0, -0.25, 0))),
    )  # fmt: skip
    right = (look[2], 0.0, -look[0])
    for side in (1, -1):
        at = plus(plus(plus(head, look, size * 0.6), right, side * size * 0.6), (0, size * 0.3, 0))
        _eye(b, at, size * 0.28, (right[0] * side + look[0], 0, right[2] * side + look[2]))
    lifted = d.sign()
    for side in (1, -1):
        angle = d(30, 75) if side == lifted else d(-15, 5)
        rows = turn(roll=angle * side, pitch=d(-20, 10))
        along = outward(rows, (side, 0, 0))
        wing = draw_paint(d, c.third, c.accent, (Pattern.STRIPES, Pattern.ZIGZAG, Pattern.SOLID))
        span = d(0.35, 0.6) if side == lifted else d(0.3, 0.4)
        at = plus((side * fat * 0.6, 0.08, -0.05), along, span * 0.6)
        b.ellipsoid(at, (span, 0.08, d(0.2, 0.32)), wing, rows=rows, width=0.03)
    tail = turn(pitch=d(-25, 40), yaw=d(8, 25) * d.sign())
    b.box(
        plus((0, -rise * 0.4, -length * 0.8), outward(tail, (0, 0, -0.2))), (0.2, 0.04, 0.3), 0.03,
        draw_paint(d, c.accent, c.third, (Pattern.STRIPES, Pattern.SOLID)), rows=tail,
    )  # fmt: skip
    for side in (1, -1):
        foot = (side * 0.16, -fat - d(0.2, 0.4), 0.05 + 0.1 * side)
        b.capsule((side * 0.14, -fat * 0.7, 0), foot, 0.04, Paint(c.accent))
        b.ellipsoid(plus(foot, (0, 0, 0.06)), (0.11, 0.04, 0.16), Paint(c.accent))
    if d.chance(0.6):
        b.frustum(
            plus(head, (0, size, 0)),
            0.03,
            d(0.06, 0.12),
            0.12,
            0.02,
            Paint(c.accent),
            rows=turn(roll=25),
        )


def fish(b: Build) -> None:
    """A fish with a bent tail and fins of its own on each side."""
    d, c = b.draw, b.palette
    long, high, wide = d(0.6, 0.85), d(0.3, 0.6), d(0.16, 0.34)
    scales = draw_paint(d, c.main, c.second, (*_HIDES, Pattern.CHECKS, Pattern.ZIGZAG))
    b.ellipsoid((0, 0, 0), (wide, high, long), scales)
    bend = d(20, 50) * d.sign()
    rows = turn(yaw=bend)
    root = (0, 0, -long * 0.85)
    for lift in (1, -1):
        fin = turn(yaw=bend, pitch=lift * d(35, 60))
        at = plus(root, outward(fin, (0, 0, -0.25)))
        b.ellipsoid(at, (0.07, d(0.12, 0.2), d(0.28, 0.42)), Paint(c.accent), rows=fin, width=0.05)
    back = draw_paint(d, c.third, c.accent, (Pattern.STRIPES, Pattern.SOLID))
    b.ellipsoid(
        (0, high * 0.85, d(-0.2, 0.1)), (0.06, d(0.15, 0.4), d(0.25, 0.45)), back, width=0.03
    )
    b.ellipsoid((0, -high * 0.9, -0.2), (0.05, 0.18, 0.18), Paint(c.third), width=0.03)
    for side in (1, -1):
        rows = turn(roll=side * d(-60, 20), yaw=side * d(20, 60))
        at = plus((side * wide * 0.8, -high * 0.15, long * 0.2), outward(rows, (side * 0.2, 0, 0)))
        b.ellipsoid(
            at, (d(0.2, 0.36), 0.05, 0.16), Paint(c.accent if side > 0 else c.third), rows=rows
        )
        _eye(b, (side * wide * 0.72, high * 0.25, long * 0.62), d(0.09, 0.15), (side, 0, 0.4))
    b.torus((0, -0.03, long * 0.98), 0.1, 0.05, Paint(c.second), rows=turn(pitch=90), width=0.03)
    if d.chance(0.6):  # a wave to stand on
        base = draw_paint(d, (0.3, 0.6, 0.85), WHITE, (Pattern.MARBLE, Pattern.STRIPES))
        b.cylinder((0.1, -high - 0.3, 0), d(0.3, 0.5), 0.07, 0.03, base)
        b.capsule((0.08, -high - 0.3, 0), (0, -high * 0.6, 0), 0.06, Paint(c.second))


def mushroom(b: Build) -> None:
    """Mushrooms of several sizes that grow from one foot."""
    d, c = b.draw, b.palette
    b.superquadric((0, -0.75, 0), (d(0.5, 0.8), 0.12, d(0.4, 0.7)), 2.5, 2.5,
                   draw_paint(d, (0.35, 0.5, 0.22), (0.5, 0.36, 0.22), (Pattern.PATCHES, Pattern.MARBLE)),
                   bumps=(0.02, 9.0, d(0, 6)))  # fmt: skip
    at, size = (d(-0.1, 0.1), 0.0, d(-0.1, 0.1)), 1.0
    for k in range(d.whole(2, 3)):
        stem, cap = d(0.4, 0.75) * size, d(0.4, 0.65) * size
        lean = (at[0] * 0.3 + d(-0.12, 0.12), 0.0, at[2] * 0.3 + d(-0.12, 0.12))
        top = plus((at[0], -0.7 + 2 * stem, at[2]), lean)
        axis = unit((lean[0], 2 * stem, lean[2]))
        thick = d(0.1, 0.2) * size
        profile = [thick * f for f in (1.5, 1.4, 1.1, 0.9, 0.85, 0.9, 1.0, 1.0)]
        middle = (at[0] + lean[0] / 2, -0.7 + stem, at[2] + lean[2] / 2)
        b.revolution(middle, stem, profile, draw_paint(d, WHITE, c.second, (Pattern.SOLID, Pattern.GRADIENT)),
                     rows=aim(axis), width=0.05)  # fmt: skip
        spots = draw_paint(d, (c.main, c.accent, c.third)[k], WHITE,
                           (Pattern.DOTS, Pattern.DOTS, Pattern.SPLIT, Pattern.SECTORS))  # fmt: skip
        flat = d(0.45, 0.9)
        b.ellipsoid(
            plus(top, axis, cap * flat * 0.3), (cap, cap * flat, cap), spots, rows=aim(axis)
        )
        angle = d(0, 2 * math.pi)
        at, size = (0.48 * math.cos(angle), 0.0, 0.48 * math.sin(angle)), size * d(0.45, 0.7)
    if d.chance(0.6):  # a snail
        b.torus((-0.35, -0.5, 0.4), 0.09, 0.07, draw_paint(d, c.accent, c.main, (Pattern.SECTORS,)),
                rows=turn(pitch=90, yaw=50))  # fmt: skip


def tree(b: Build) -> None:
    """A tree or a potted plant: crowns of different sizes at bent branches."""
    d, c = b.draw, b.palette
    green = d.choice(
        ((0.2, 0.5, 0.2), (0.4, 0.62, 0.2), (0.85, 0.45, 0.15), (0.9, 0.6, 0.7), c.main)
    )
    bark = draw_paint(d, (0.42, 0.28, 0.17), (0.6, 0.45, 0.3), (Pattern.STRIPES, Pattern.MARBLE))
    bend = d(-0.25, 0.25)
    b.capsule((0, -0.8, 0), (bend * 0.4, -0.2, 0), d(0.09, 0.15), bark, width=0.05)
    crown = (bend, d(0.3, 0.5), d(-0.1, 0.1))
    b.capsule((bend * 0.4, -0.2, 0), crown, d(0.07, 0.1), bark, width=0.08)
    if d.chance(0.4):  # a fir: cones over one another
        for k in range(3):
            radius = d(0.5, 0.62) * (1 - 0.24 * k)
            shade = Paint(green, WHITE, Pattern.SPLIT, share=d(0.1, 0.9), axis=(0, 1, 0))
            b.frustum((crown[0] + 0.04 * k, crown[1] + 0.3 * k - 0.25, crown[2]), radius, 0.0, 0.32, 0.03,
                      shade, rows=turn(roll=d(-10, 10)))  # fmt: skip
    else:
        for k in range(d.whole(2, 4)):
            at = crown if k == 0 else plus(crown, (d(-0.55, 0.55), d(-0.25, 0.4), d(-0.5, 0.5)))
            size = d(0.35, 0.5) if k == 0 else d(0.18, 0.36)
            leaves = draw_paint(d, green, c.second, (Pattern.PATCHES, Pattern.DOTS, Pattern.SOLID))
            b.ball(at, size, leaves, width=0.06, bumps=(0.025, d(10, 15), d(0, 6)))
    for _ in range(d.whole(1, 3)):  # fruit
        angle = d(0, 2 * math.pi)
        at = plus(crown, (0.42 * math.cos(angle), d(-0.2, 0.2), 0.42 * math.sin(angle)))
        b.ball(at, d(0.07, 0.12), Paint(c.accent))
    if d.chance(0.6):
        pot = draw_paint(d, c.third, c.second, (Pattern.STRIPES, Pattern.ZIGZAG, Pattern.SOLID))
        b.frustum((0, -0.9, 0), 0.2, d(0.28, 0.4), 0.2, 0.02, pot)
    else:
        b.ellipsoid((0, -0.85, 0), (0.5, 0.1, 0.4), Paint((0.36, 0.5, 0.22)), width=0.06)
    if d.chance(0.7):  # a bird's box on one side
        b.box(
            (bend * 0.4 + 0.14, -0.15, 0.1),
            (0.1, 0.13, 0.09),
            0.02,
            Paint(c.accent),
            rows=turn(yaw=40),
        )


def sweets(b: Build) -> None:
    """Ice cream or a cake with what lies on it."""
    d, c = b.draw, b.palette
    biscuit = draw_paint(
        d, (0.87, 0.67, 0.38), (0.68, 0.46, 0.22), (Pattern.CHECKS, Pattern.ZIGZAG)
    )
    if d.chance(0.5):
        b.frustum((0, -0.5, 0), 0.05, 0.4, 0.55, 0.03, biscuit)
        b.torus((0, 0.04, 0), 0.38, 0.06, biscuit)
        places = ((0.16, 0.24, 0.06), (-0.2, 0.3, -0.08), (0.02, 0.62, 0.02))
        for at, colour in zip(places, (c.main, c.second, c.third)):
            scoop = draw_paint(d, colour, WHITE, (Pattern.SOLID, Pattern.DOTS, Pattern.MARBLE))
            b.ball(at, d(0.28, 0.36), scoop, width=0.03, bumps=(0.015, d(10, 14), d(0, 6)))
        b.ball((0.08, 0.98, 0.05), 0.12, Paint(c.accent))
        b.capsule(
            (-0.2, 0.4, -0.1), (-0.5, 1.1, -0.2), 0.05, Paint(WHITE, c.accent, Pattern.STRIPES, 1.2)
        )
        b.box((0.34, 0.62, 0.1), (0.04, 0.3, 0.16), 0.01, biscuit, rows=turn(roll=-25, yaw=30))
        return
    radius = d(0.55, 0.75)
    b.cylinder((0, -0.4, 0), radius + 0.15, 0.03, 0.02, Paint(WHITE))
    b.cylinder((0, -0.15, 0), radius, 0.25, 0.05, draw_paint(d, c.main, c.second))
    upper = d(0.55, 0.8) * radius
    b.cylinder((0.06, 0.22, 0.04), upper, 0.18, 0.04, draw_paint(d, c.second, c.third))
    b.box((radius * 0.75, 0.1, radius * 0.75), (0.5, 0.6, 0.5), 0.01, Paint(biscuit.first, c.accent, Pattern.STRIPES, 2.0),
          join=Join.CARVE, rows=turn(yaw=45))  # fmt: skip
    for k in range(d.whole(2, 4)):
        angle = 2.2 + 1.1 * k
        at = (0.06 + upper * 0.6 * math.cos(angle), 0.55, 0.04 + upper * 0.6 * math.sin(angle))
        b.cylinder(
            at,
            0.05,
            d(0.12, 0.22),
            0.01,
            Paint(WHITE, c.accent, Pattern.STRIPES, 1.6, axis=unit((1, 1, 0))),
        )
    for k in range(d.whole(2, 3)):
        angle = 3.0 + 0.9 * k
        b.ball(
            (radius * 0.85 * math.cos(angle), 0.14, radius * 0.85 * math.sin(angle)),
            d(0.08, 0.13),
            Paint(c.accent),
        )
