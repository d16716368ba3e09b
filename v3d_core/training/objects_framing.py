"""Parts of objects as a table, moved and scaled so that V3D's cameras see them at one size.

Only sums, products, roots and powers of one object's own numbers are taken, in double precision,
so that an object does not depend on its company.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from ..cameras import V3D_ORBIT
from .objects_build import Part
from .objects_table import MAX_PARTS, PROFILE_POINTS, Join, Kind, ObjectTable

FRAMING_STEPS = 4  # perspective makes the share a little more than proportional to the size
_RING, _TILTED = 24, 8  # directions to the sides and above: the outlines' normals


def _outline_directions() -> np.ndarray:  # [D, 3]
    # what touches the outline's box from afar faces the sides or up and down; from near by it
    # faces the camera a little more
    ring = [(math.cos(a), 0.0, math.sin(a)) for a in np.arange(_RING) * (2 * math.pi / _RING)]
    steep = [(0.0, 1.0, 0.0), (0.0, -1.0, 0.0)]
    for angle in np.arange(_TILTED) * (2 * math.pi / _TILTED):
        for up in (1.0, -1.0):
            steep.append((0.3 * math.cos(angle), up * math.sqrt(0.91), 0.3 * math.sin(angle)))
    return np.array(ring + steep)


_DIRECTIONS = _outline_directions()
_ANGLES = np.radians(V3D_ORBIT.azimuths_deg)


def framed(objects: Sequence[Sequence[Part]], shares: Sequence[float]) -> ObjectTable:
    """The table of some objects at their final places.

    The middle of the height and the middle of the ground plan's box come to the origin; the
    longest side of any view's outline fills the share of V3D's frame, to about two in a hundred.

    Args:
        objects: Parts of each, at most `MAX_PARTS`, the first one no carving.
        shares: Of the frame, in (0, 1).
    """
    count, most = len(objects), MAX_PARTS
    table = {
        "kinds": np.zeros((count, most), np.int32), "joins": np.zeros((count, most), np.int32),
        "patterns": np.zeros((count, most), np.int32), "widths": np.zeros((count, most)),
        "radii": np.zeros((count, most)), "rotations": np.zeros((count, most, 3, 3)),
        "centres": np.zeros((count, most, 3)), "sizes": np.zeros((count, most, 5)),
        "profiles": np.zeros((count, most, PROFILE_POINTS)), "bumps": np.zeros((count, most, 3)),
        "paints": np.zeros((count, most, 4)), "axes": np.zeros((count, most, 3)),
        "colours": np.zeros((count, most, 2, 3)),
    }  # fmt: skip
    for n, parts in enumerate(objects):
        for k, part in enumerate(parts):
            paint, half = part.paint, part.half_sides
            scale = (half[0] + half[1] + half[2]) / 3 if paint.scale is None else paint.scale
            row = {
                "kinds": part.kind, "joins": part.join, "patterns": paint.pattern,
                "widths": part.width, "radii": part.radius, "rotations": part.rows,
                "centres": part.centre, "profiles": part.profile, "bumps": part.bumps,
                "paints": (paint.frequency, paint.phase, paint.share, scale), "axes": paint.axis,
                "colours": (paint.first, paint.second),
            }  # fmt: skip
            for name, value in row.items():
                table[name][n, k] = value
            table["sizes"][n, k, : len(part.sizes)] = part.sizes
    counts = np.array([len(parts) for parts in objects], np.int32)
    middle, scale = _place(table, counts, np.asarray(shares, np.float64))
    return _scaled(table, counts, middle, scale)


def _place(table: dict, counts: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # middle of every object [N, 3], in its own units, and world units per unit [N]
    seen = (np.arange(MAX_PARTS) < counts[:, None]) & (table["joins"] == Join.UNION)
    points = _extremes(table)  # [N, P, D, 3]
    masked = [np.where(seen[:, :, None, None], points, side) for side in (np.inf, -np.inf)]
    low, high = masked[0].min(axis=(1, 2)), masked[1].max(axis=(1, 2))
    middle = 0.5 * (low + high)
    # hidden parts repeat the first one, which is never hidden
    points = np.where(seen[:, :, None, None], points, points[:, :1]) - middle[:, None, None]
    per_object = points.shape[1] * points.shape[2]
    x, y, z = np.moveaxis(points, -1, 0).reshape(3, len(counts), per_object)
    across = [math.cos(a) * x - math.sin(a) * z for a in _ANGLES]
    towards = [math.sin(a) * x + math.cos(a) * z for a in _ANGLES]
    slope = math.tan(math.radians(V3D_ORBIT.fov_y_deg / 2))
    scale = shares * (2 * V3D_ORBIT.radius * slope) / (high - low).max(axis=1)
    for _ in range(FRAMING_STEPS):
        longest = np.zeros(len(counts))
        s = scale[:, None]
        for side, near in zip(across, towards, strict=True):
            depth = np.maximum(V3D_ORBIT.radius - s * near, 0.1)
            for extent in (s * side / depth, s * y / depth):
                longest = np.maximum(longest, extent.max(axis=1) - extent.min(axis=1))
        scale = scale * shares * 2 * slope / longest
    return middle, scale


def _extremes(table: dict) -> np.ndarray:  # [N, P, D, 3]
    # the point of every part that is farthest in each direction
    rows, sizes, kinds = table["rotations"], table["sizes"], table["kinds"]
    # directions in the parts' axes, [N, P, D] each; sums in one order, whatever the company
    towards = [_combined(rows[:, :, i, :, None], _DIRECTIONS.T) for i in range(3)]
    local = np.zeros((*kinds.shape, len(_DIRECTIONS), 3))
    for kind in Kind:
        chosen = kinds == kind
        if chosen.any():
            n = np.stack([t[chosen] for t in towards], axis=-1)
            local[chosen] = _support(kind, n, sizes[chosen], table["profiles"][chosen])
    world = [_combined(rows[:, :, :, j, None], np.moveaxis(local, -1, 2)) for j in range(3)]
    return np.stack(world, axis=-1) + table["centres"][:, :, None]


def _combined(weights: np.ndarray, vectors: np.ndarray) -> np.ndarray:  # [N, P, 3, 1] -> [N, P, D]
    x, y, z = (weights[:, :, i] * vectors[..., i, :] for i in range(3))
    return x + y + z


def _support(kind: Kind, n: np.ndarray, sizes: np.ndarray, profiles: np.ndarray) -> np.ndarray:
    # farthest points of primitives [M, D, 3] in unit directions n [M, D, 3]
    s = sizes[:, None]
    if kind == Kind.ELLIPSOID:
        stretched = n * s[..., :3]
        return stretched * s[..., :3] / np.sqrt((stretched**2).sum(-1, keepdims=True) + 1e-24)
    if kind == Kind.BOX:
        return np.sign(n) * s[..., :3] + n * s[..., 3:4]
    if kind == Kind.SUPERQUADRIC:
        return _superquadric_support(n, s)
    up = np.sign(n[..., 1])
    flat = np.sqrt(n[..., 0] ** 2 + n[..., 2] ** 2)
    way = n / np.maximum(flat, 1e-12)[..., None]  # away from the axis
    way[..., 1] = 0
    axis = np.array([0.0, 1.0, 0.0])
    if kind == Kind.CAPSULE:
        return axis * (up * s[..., 0])[..., None] + n * s[..., 1:2]
    if kind == Kind.TORUS:
        return way * s[..., 0:1] + n * s[..., 1:2]
    if kind == Kind.CYLINDER:
        return way * s[..., 0:1] + axis * (up * s[..., 1])[..., None] + n * s[..., 2:3]
    if kind == Kind.FRUSTUM:
        below, above, half = s[..., 0], s[..., 1], s[..., 2]
        top = above * flat + half * n[..., 1] > below * flat - half * n[..., 1]
        radius, height = np.where(top, above, below), np.where(top, half, -half)
        return way * radius[..., None] + axis * height[..., None] + n * s[..., 3:4]
    # a turned body: the best of some rings
    t = np.linspace(0, PROFILE_POINTS - 2, 4 * (PROFILE_POINTS - 2) + 1)
    span = np.minimum(t.astype(int), PROFILE_POINTS - 3)
    t = t - span
    radii = 0.5 * (
        (1 - t) ** 2 * profiles[:, span]
        + (1 + 2 * t * (1 - t)) * profiles[:, span + 1]
        + t**2 * profiles[:, span + 2]
    )  # [M, rings]
    heights = np.linspace(-1, 1, radii.shape[1]) * sizes[:, 0:1]
    reach = flat[..., None] * radii[:, None] + n[..., 1, None] * heights[:, None]
    best = reach.argmax(axis=-1)  # [M, D]
    radius, height = (np.take_along_axis(v, best, axis=1) for v in (radii, heights))
    return way * radius[..., None] + axis * height[..., None]


def _superquadric_support(n: np.ndarray, s: np.ndarray) -> np.ndarray:
    # gradient of the dual norm: exponents e / (e - 1), first across, then along the axis
    a, b, c, across, along = (s[..., k] for k in range(5))
    dual, dual_along = across / (across - 1), along / (along - 1)
    x, y, z = np.abs(n[..., 0]) * a, np.abs(n[..., 1]) * b, np.abs(n[..., 2]) * c
    u = np.maximum((x**dual + z**dual) ** (1 / dual), 1e-12)
    whole = np.maximum((u**dual_along + y**dual_along) ** (1 / dual_along), 1e-12)
    ring = (u / whole) ** (dual_along - 1)
    point = (
        a * ring * (x / u) ** (dual - 1),
        b * (y / whole) ** (dual_along - 1),
        c * ring * (z / u) ** (dual - 1),
    )
    return np.sign(n) * np.stack(point, axis=-1)


def _scaled(table: dict, counts: np.ndarray, middle: np.ndarray, scale: np.ndarray) -> ObjectTable:
    s = scale[:, None]
    used = np.arange(MAX_PARTS) < counts[:, None]
    table["centres"] = (
        np.where(used[..., None], table["centres"] - middle[:, None], 0) * s[..., None]
    )
    for name in ("widths", "radii"):
        table[name] = table[name] * s
    for name in ("sizes", "profiles"):
        lengths = table[name] * s[..., None]
        if name == "sizes":  # exponents stay
            exponents = (table["kinds"] == Kind.SUPERQUADRIC)[..., None] & (np.arange(5) > 2)
            lengths = np.where(exponents, table[name], lengths)
        table[name] = lengths
    table["bumps"] = table["bumps"] * np.stack([s, 1 / s, np.ones_like(s)], axis=-1)
    table["paints"][..., 3] *= s
    away = np.sqrt((table["centres"] ** 2).sum(-1)) + table["radii"] + 0.25 * table["widths"]
    solid = used & (table["joins"] == Join.UNION)
    bounds = np.where(solid, away, 0).max(axis=1)
    tensors = {name: _tensor(values) for name, values in table.items()}
    return ObjectTable(counts=_tensor(counts), bounds=_tensor(bounds), **tensors)


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values if values.dtype == np.int32 else values.astype(np.float32))
